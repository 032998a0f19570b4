// Piecewise-linear bins times a matrix, without making the bins.
//
// Of a number's bins those below it are 1, those above it 0, and one is in between (a few more where knots coincide).
// So a row of the product is, per column, one row of running sums of the matrix and a share of one more: two rows in place
// of as many as there are bins, and none for a number below all knots, as most counts are.

#include <algorithm>
#include <vector>

#include "interface.h"
#include "parallel.h"
#include "vectors.h"

namespace {

constexpr int kTogether = 8;  // vectors of a row that wait in registers

struct Term {
  const float* row;
  float share;
};

// Rows of the sums and of the matrix, with their shares, that make one row of the product.
void find_terms(const BinsShape& s, const float* values, const float* low, const float* inverse, const float* weight,
                const float* sums, float* share, std::vector<Term>& terms) {
  terms.clear();
  for (int64_t c = 0; c < s.columns; ++c) {
    const float *from = low + c * s.bins, *by = inverse + c * s.bins;
    const float x = values[c];
    int32_t full = 0;
    for (int64_t k = 0; k < s.bins; ++k) {
      share[k] = (x - from[k]) * by[k];
      full += share[k] >= 1.0f;
    }
    if (full) terms.push_back({sums + (c * s.bins + full - 1) * s.units, 1.0f});
    for (int64_t k = full; k < s.bins && !(share[k] <= 0.0f); ++k)  // a number that is none makes every bin none
      terms.push_back({weight + (c * s.bins + k) * s.units, std::min(share[k], 1.0f)});
  }
}

template <int N>
void add_terms(const std::vector<Term>& terms, const float* bias, int64_t at, float* out) {
  Vec sum[N];
  for (int n = 0; n < N; ++n) sum[n] = load(bias + at + n * kWidth);
  for (const Term& term : terms) {
    const Vec share = spread(term.share);
    for (int n = 0; n < N; ++n) sum[n] += share * load(term.row + at + n * kWidth);
  }
  for (int n = 0; n < N; ++n) store(out + at + n * kWidth, sum[n]);
}

}  // namespace

void sostenuto_binned_product(const BinsShape* shape, const float* values, const float* low, const float* inverse,
                              const float* weight, const float* sums, const float* bias, float* out) {
  const BinsShape& s = *shape;
  in_even_parts(s.rows, s.threads, [&](int64_t begin, int64_t end) {
    std::vector<float> share(s.bins);
    std::vector<Term> terms;
    for (int64_t i = begin; i < end; ++i) {
      find_terms(s, values + i * s.columns, low, inverse, weight, sums, share.data(), terms);
      float* const row = out + i * s.units;
      int64_t h = 0;
      for (; h + kTogether * kWidth <= s.units; h += kTogether * kWidth) add_terms<kTogether>(terms, bias, h, row);
      for (; h + kWidth <= s.units; h += kWidth) add_terms<1>(terms, bias, h, row);
      for (; h < s.units; ++h) {
        float sum = bias[h];
        for (const Term& term : terms) sum += term.share * term.row[h];
        row[h] = sum;
      }
    }
  });
}
