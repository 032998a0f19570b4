// Optimiser steps on the touched rows of a table: one pass reads gradient, weight, state and clock, and writes them.

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "interface.h"
#include "parallel.h"
#include "vectors.h"

namespace {

constexpr int64_t kAhead = 12;  // rows asked for before they are needed
constexpr int64_t kLine = 64;   // bytes that memory hands out at once
constexpr int64_t kShare = 2048;  // rows that are worth a thread
constexpr int32_t kKnown = 1 << 15;  // counts whose factors are kept during a call

enum Kind : int64_t { kAdam = 0, kRowwiseAdam = 1, kAdagrad = 2, kRowwiseAdagrad = 3 };

inline Vec root(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)x);
#else
  Vec out;
  for (int i = 0; i < kWidth; ++i) out[i] = std::sqrt(x[i]);
  return out;
#endif
}
inline float root(float x) { return std::sqrt(x); }
inline Vec like(Vec, float value) { return spread(value); }
inline float like(float, float value) { return value; }

inline void ask_for(const void* from, int64_t bytes) {
  const char* at = static_cast<const char*>(from);
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(at + i, 1);
  __builtin_prefetch(at + bytes - 1, 1);  // a row may begin inside a line
}

// What a row of the step needs beside its numbers; changes with the row's own count.
struct Factors {
  float keep;    // weight is multiplied by it: decay
  float step;    // learning rate, over 1 - beta1^k
  float spread;  // 1 / sqrt(1 - beta2^k)
};

Factors factors(const RowUpdate& u, int32_t count) {
  const double share = u.learning_rate * u.decay;
  Factors f{static_cast<float>(1.0 - (u.by_frequency ? share / count : share)), static_cast<float>(u.learning_rate), 1.0f};
  if (u.kind == kAdam || u.kind == kRowwiseAdam) {
    const double first = 1.0 - std::pow(u.beta1, count), second = 1.0 - std::pow(u.beta2, count);
    f.step = static_cast<float>(u.learning_rate / first);
    f.spread = static_cast<float>(1.0 / std::sqrt(second));
  }
  return f;
}

// Factors by count, worked out when first asked for: a power costs as much as the rest of a row.
class KnownFactors {
 public:
  explicit KnownFactors(const RowUpdate& update) : update_(update), known_(new Factors[kKnown]), is_known_(kKnown, 0) {}
  Factors of(int32_t count) {
    if (count >= kKnown) return factors(update_, count);
    if (!is_known_[count]) {
      known_[count] = factors(update_, count);
      is_known_[count] = 1;
    }
    return known_[count];
  }

 private:
  const RowUpdate& update_;
  std::unique_ptr<Factors[]> known_;
  std::vector<char> is_known_;
};

// One vector (or one float) of a row; T is Vec or float.
template <bool momentum, bool rowwise, typename T>
inline void piece(const RowUpdate& u, const Factors& f, float per_row, const T& g, T& w, T& first, T& second) {
  w *= like(g, f.keep);
  if constexpr (momentum) {
    first += (g - first) * like(g, static_cast<float>(1.0 - u.beta1));
    T below;
    if constexpr (rowwise) {
      below = like(g, per_row);
    } else {
      second += (g * g - second) * like(g, static_cast<float>(1.0 - u.beta2));
      below = root(second) * like(g, f.spread) + like(g, static_cast<float>(u.eps));
    }
    w -= first / below * like(g, f.step);
  } else {
    T below;
    if constexpr (rowwise) {
      below = like(g, per_row);
    } else {
      second += g * g;
      below = root(second) + like(g, static_cast<float>(u.eps));
    }
    w -= g / below * like(g, f.step);
  }
}

inline float mean_square(const float* g, int64_t dim) {
  Vec sums{};
  float rest = 0.0f;
  int64_t d = 0;
  for (; d + kWidth <= dim; d += kWidth) sums += load(g + d) * load(g + d);
  for (; d < dim; ++d) rest += g[d] * g[d];
  return (sum(sums) + rest) / static_cast<float>(dim);
}

template <bool momentum, bool rowwise>
void update(const RowUpdate& u, int64_t from, int64_t to, const int64_t* rows, const float* gradient, float* table,
            float* first, float* second, int32_t* touches) {
  const int64_t dim = u.dim, wide = dim * static_cast<int64_t>(sizeof(float));
  KnownFactors known(u);
  for (int64_t j = from; j < to; ++j) {
    if (j + kAhead < to) {
      const int64_t next = rows[j + kAhead];
      ask_for(table + next * dim, wide);
      if (momentum) ask_for(first + next * dim, wide);
      if (rowwise) __builtin_prefetch(second + next, 1);
      else ask_for(second + next * dim, wide);
      __builtin_prefetch(touches + next, 1);
    }
    const int64_t row = rows[j];
    const Factors f = known.of(++touches[row]);
    const float* g = gradient + j * dim;
    float* w = table + row * dim;
    float* m = momentum ? first + row * dim : nullptr;
    float* v = rowwise ? nullptr : second + row * dim;
    float per_row = 0.0f;
    if constexpr (rowwise) {
      const float square = mean_square(g, dim);
      float& held = second[row];
      held += momentum ? (square - held) * static_cast<float>(1.0 - u.beta2) : square;
      per_row = std::sqrt(held) * f.spread + static_cast<float>(u.eps);
    }
    int64_t d = 0;
    for (; d + kWidth <= dim; d += kWidth) {
      Vec weight = load(w + d), moment{}, square{};
      if constexpr (momentum) moment = load(m + d);
      if constexpr (!rowwise) square = load(v + d);
      piece<momentum, rowwise>(u, f, per_row, load(g + d), weight, moment, square);
      store(w + d, weight);
      if constexpr (momentum) store(m + d, moment);
      if constexpr (!rowwise) store(v + d, square);
    }
    for (; d < dim; ++d) {
      float none = 0.0f;
      piece<momentum, rowwise>(u, f, per_row, g[d], w[d], momentum ? m[d] : none, rowwise ? none : v[d]);
    }
  }
}

}  // namespace

extern "C" {

int64_t sostenuto_update_rows(const RowUpdate* given, const int64_t* row, const float* gradient, float* table,
                              float* first, float* second, int32_t* touches) {
  const RowUpdate& u = *given;
  if (u.count && (row[0] < 0 || row[u.count - 1] >= u.rows)) return 1;
  for (int64_t j = 1; j < u.count; ++j)
    if (row[j] <= row[j - 1]) return 1;
  in_even_parts(u.count, std::min(u.threads, 1 + u.count / kShare), [&](int64_t from, int64_t to) {
    switch (u.kind) {
      case kAdam: return update<true, false>(u, from, to, row, gradient, table, first, second, touches);
      case kRowwiseAdam: return update<true, true>(u, from, to, row, gradient, table, first, second, touches);
      case kAdagrad: return update<false, false>(u, from, to, row, gradient, table, first, second, touches);
      default: return update<false, true>(u, from, to, row, gradient, table, first, second, touches);
    }
  });
  return 0;
}

// In eight sums of double, so that a long gradient loses nothing; one thread: it costs less than starting another.
double sostenuto_square_sum(const float* values, int64_t count) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int64_t k = 0; k < 8; ++k) sums[k] += static_cast<double>(values[i + k]) * values[i + k];
  for (; i < count; ++i) sums[0] += static_cast<double>(values[i]) * values[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}
}
