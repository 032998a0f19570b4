// Target attention with a factored activation unit, forward and backward.
//
//   pre_cj = (A + P diag(q_c)) k_j + hidden_c + e_j
//   s_cj   = sum_h above_h max(pre_h, 0) + below_h min(pre_h, 0) + bias
//   out_c  = sum_j norm(s_c)_j v_j
//
// No (candidates, behaviours, units) tensor is ever made: a block of behaviours against one candidate stays in the
// first-level cache, and the backward pass computes it again.

#include <algorithm>
#include <cmath>

#include "interface.h"
#include "parallel.h"
#include "vectors.h"

namespace {

constexpr int64_t kBlock = 8 * kRows;     // behaviours of a block
constexpr int64_t kParts = 16;            // sums of the shared weights
constexpr int64_t kStretch = 16 * kBlock;  // behaviours that all candidates meet before the next ones come

// Weights in the layout the products want: transposed, units padded to whole vectors with zeros.
struct Layout {
  int64_t dim, units, wide, deep, width, broad;  // D, H, padded H, padded D, V, padded V
  std::vector<float> key, product, above, below;

  Layout(const AttentionShape& s, const AttentionInputs& in)
      : dim(s.dim), units(s.units), wide(padded(s.units)), deep(padded(s.dim)), width(s.width),
        broad(padded(s.width)), key(dim * wide), product(dim * wide), above(wide), below(wide) {
    for (int64_t h = 0; h < units; ++h) {
      for (int64_t d = 0; d < dim; ++d) {
        key[d * wide + h] = in.w_key[h * dim + d];
        product[d * wide + h] = in.w_product[h * dim + d];
      }
      above[h] = in.w_above[h];
      below[h] = in.w_below[h];
    }
  }

  // (D, wide): the first layer as this candidate sees it.
  void matrix_of(const float* query, float* matrix) const {
    for (int64_t d = 0; d < dim; ++d) {
      const Vec q = spread(query[d]);
      for (int64_t h = 0; h < wide; h += kWidth)
        store(matrix + d * wide + h, load(&key[d * wide + h]) + q * load(&product[d * wide + h]));
    }
  }
};

// A run of behaviours that meets one candidate. What is known of them beside the key comes in padded rows, or not.
struct Rows {
  const float* keys;   // (rows, D)
  const float* extra;  // rows of `stride` floats or null
  int64_t stride;
};

// The hidden layer of R behaviours, N vectors of units from `h` on, before the activation.
template <int R, int N>
inline void hidden_tile(const Layout& to, const Rows& rows, const float* matrix, const float* hidden, int64_t h,
                        Vec (&acc)[R][N]) {
  for (int n = 0; n < N; ++n) {
    const Vec start = load(hidden + h + n * kWidth);
    for (int r = 0; r < R; ++r)
      acc[r][n] = rows.extra ? start + load(rows.extra + r * rows.stride + h + n * kWidth) : start;
  }
  for (int64_t d = 0; d < to.dim; ++d) {
    Vec right[N];
    for (int n = 0; n < N; ++n) right[n] = load(matrix + d * to.wide + h + n * kWidth);
    for (int r = 0; r < R; ++r) {
      const Vec left = spread(rows.keys[r * to.dim + d]);
      for (int n = 0; n < N; ++n) acc[r][n] += left * right[n];
    }
  }
}

template <int R, int N>
inline void score_tile(const Layout& to, const Rows& rows, const float* matrix, const float* hidden, int64_t h,
                       Vec (&total)[R]) {
  Vec acc[R][N];
  hidden_tile<R, N>(to, rows, matrix, hidden, h, acc);
  for (int n = 0; n < N; ++n) {
    const Vec above = load(&to.above[h + n * kWidth]), below = load(&to.below[h + n * kWidth]);
    for (int r = 0; r < R; ++r) total[r] += above_zero(acc[r][n]) * above + below_zero(acc[r][n]) * below;
  }
}

// Scores of up to R behaviours, written to `scores`.
template <int R>
inline void score_rows(int64_t count, const Layout& to, const Rows& rows, const float* matrix, const float* hidden,
                       float bias, float* scores) {
  if (count == R) {
    Vec total[R] = {};
    int64_t h = 0;
    for (; h + 2 * kWidth <= to.wide; h += 2 * kWidth) score_tile<R, 2>(to, rows, matrix, hidden, h, total);
    if (h < to.wide) score_tile<R, 1>(to, rows, matrix, hidden, h, total);
    for (int r = 0; r < R; ++r) scores[r] = sum(total[r]) + bias;
  } else if constexpr (R > 1) {
    score_rows<R - 1>(count, to, rows, matrix, hidden, bias, scores);
  }
}

// What the backward pass of one candidate adds up over behaviours, units padded.
struct Sums {
  float* hidden;
  float* above;
  float* below;
};

template <int R, int N>
inline void gradient_tile(const Layout& to, const Rows& rows, const float* matrix, const float* hidden, int64_t h,
                          const float* d_scores, const Sums& sums, float* block) {
  Vec acc[R][N];
  hidden_tile<R, N>(to, rows, matrix, hidden, h, acc);
  for (int n = 0; n < N; ++n) {
    const int64_t at = h + n * kWidth;
    const Vec above = load(&to.above[at]), below = load(&to.below[at]);
    Vec total = load(sums.hidden + at), up = load(sums.above + at), down = load(sums.below + at);
    for (int r = 0; r < R; ++r) {
      const Vec x = acc[r][n], ds = spread(d_scores[r]);
      up += ds * above_zero(x);
      down += ds * below_zero(x);
      const Vec grad = ds * (x > Vec{} ? above : below);
      total += grad;
      store(block + r * to.wide + at, grad);
    }
    store(sums.hidden + at, total);
    store(sums.above + at, up);
    store(sums.below + at, down);
  }
}

// Gradients of the hidden layer of up to R behaviours, written to rows of `block`.
template <int R>
inline void gradient_rows(int64_t count, const Layout& to, const Rows& rows, const float* matrix, const float* hidden,
                          const float* d_scores, const Sums& sums, float* block) {
  if (count == R) {
    int64_t h = 0;
    for (; h + 2 * kWidth <= to.wide; h += 2 * kWidth)
      gradient_tile<R, 2>(to, rows, matrix, hidden, h, d_scores, sums, block);
    if (h < to.wide) gradient_tile<R, 1>(to, rows, matrix, hidden, h, d_scores, sums, block);
  } else if constexpr (R > 1) {
    gradient_rows<R - 1>(count, to, rows, matrix, hidden, d_scores, sums, block);
  }
}

// What is known of some behaviours beside the key, in rows that may be read in whole vectors.
inline Rows rows_from(const Layout& to, const AttentionInputs& in, int64_t first, int64_t count, float* space) {
  Rows rows{in.key + first * to.dim, nullptr, to.units};
  if (!in.key_hidden) return rows;
  rows.extra = in.key_hidden + first * to.units;
  if (to.units == to.wide) return rows;
  for (int64_t j = 0; j < count; ++j) {
    std::memcpy(space + j * to.wide, rows.extra + j * to.units, to.units * sizeof(float));
    std::fill(space + j * to.wide + to.units, space + (j + 1) * to.wide, 0.0f);
  }
  return {rows.keys, space, to.wide};
}

inline Rows moved(const Layout& to, const Rows& rows, int64_t by) {
  return {rows.keys + by * to.dim, rows.extra ? rows.extra + by * rows.stride : nullptr, rows.stride};
}

void normalise_scores(int64_t kind, int64_t length, float* scores) {
  if (kind == 2) {
    const float share = 1.0f / std::sqrt(static_cast<float>(length));
    for (int64_t j = 0; j < length; ++j) scores[j] *= share;
  }
  if (kind != 1) return;
  const float largest = *std::max_element(scores, scores + length);
  double total = 0.0;
  int64_t j = 0;
  for (; j + kWidth <= length; j += kWidth) {
    const Vec e = exp_of_negative(load(scores + j) - spread(largest));
    store(scores + j, e);
    total += sum(e);
  }
  for (; j < length; ++j) {
    scores[j] = std::exp(scores[j] - largest);
    total += scores[j];
  }
  const float share = static_cast<float>(1.0 / total);
  for (j = 0; j < length; ++j) scores[j] *= share;
}

// Copy rows of `width` floats to rows of `broad`, zeros behind.
inline void pad_rows(const float* from, int64_t rows, int64_t width, int64_t broad, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + r * broad, from + r * width, width * sizeof(float));
    std::fill(to + r * broad + width, to + (r + 1) * broad, 0.0f);
  }
}

// Some candidates of one request.
struct Piece {
  int64_t request, first, last;
};

void forward_piece(const AttentionShape& s, const AttentionInputs& in, const AttentionOutputs& out, const Layout& to,
                   const Piece& piece, std::vector<float>& scratch, std::vector<double>& sums) {
  const int64_t key0 = s.key_offsets[piece.request], length = s.key_offsets[piece.request + 1] - key0;
  const int64_t count = piece.last - piece.first;
  float* result = out.out + piece.first * s.width;
  std::fill(result, result + count * s.width, 0.0f);
  if (!length || !count) return;
  const int64_t matrix_size = to.dim * to.wide, block_size = kBlock * to.wide, values_size = kBlock * to.broad;
  const bool keeps = out.weights != nullptr;
  scratch.resize(matrix_size + to.wide + block_size + values_size + count * to.broad + (keeps ? 0 : count * length));
  float* matrix = scratch.data();
  float* hidden = matrix + matrix_size;
  float* block = hidden + to.wide;
  float* values = block + block_size;
  float* part = values + values_size;
  float* weights = keeps ? out.weights + s.pair_offsets[piece.request] +
                               (piece.first - s.query_offsets[piece.request]) * length
                         : part + count * to.broad;
  std::fill(hidden, hidden + to.wide, 0.0f);
  for (int64_t stretch = 0; stretch < length; stretch += kStretch) {
    const int64_t end = std::min(stretch + kStretch, length);
    for (int64_t c = 0; c < count; ++c) {
      to.matrix_of(in.query + (piece.first + c) * to.dim, matrix);
      std::memcpy(hidden, in.query_hidden + (piece.first + c) * to.units, to.units * sizeof(float));
      for (int64_t j = stretch; j < end; j += kBlock) {
        const int64_t rows = std::min(kBlock, end - j);
        const Rows past = rows_from(to, in, key0 + j, rows, block);
        for (int64_t r = 0; r < rows; r += kRows)
          score_rows<kRows>(std::min<int64_t>(kRows, rows - r), to, moved(to, past, r), matrix, hidden, *in.bias,
                            weights + c * length + j + r);
      }
    }
  }
  for (int64_t c = 0; c < count; ++c) normalise_scores(s.normalise, length, weights + c * length);
  sums.assign(count * to.broad, 0.0);  // thousands of terms: a block in float32, blocks in float64
  for (int64_t j = 0; j < length; j += kBlock) {
    const int64_t rows = std::min(kBlock, length - j);
    pad_rows(in.value + (key0 + j) * s.width, rows, s.width, to.broad, values);
    std::fill(part, part + count * to.broad, 0.0f);
    add_product(count, to.broad, rows, weights + j, length, 1, values, to.broad, part, to.broad);
    for (int64_t i = 0; i < count * to.broad; ++i) sums[i] += part[i];
  }
  for (int64_t c = 0; c < count; ++c)
    for (int64_t v = 0; v < s.width; ++v) result[c * s.width + v] = static_cast<float>(sums[c * to.broad + v]);
}

// What a thread adds up for the shared weights, in the layout's order.
struct Shared {
  std::vector<double> key, product, above, below;
  double bias = 0.0;
  explicit Shared(const Layout& to)
      : key(to.dim * to.wide), product(to.dim * to.wide), above(to.wide), below(to.wide) {}
};

// Turn gradients of the weights of the sum into gradients of the scores.
void before_normalising(int64_t kind, int64_t length, const float* weights, float* d) {
  if (kind == 2) {
    const float share = 1.0f / std::sqrt(static_cast<float>(length));
    for (int64_t j = 0; j < length; ++j) d[j] *= share;
  } else if (kind == 1) {
    double mean = 0.0;
    for (int64_t j = 0; j < length; ++j) mean += static_cast<double>(weights[j]) * d[j];
    const float shift = static_cast<float>(mean);
    for (int64_t j = 0; j < length; ++j) d[j] = weights[j] * (d[j] - shift);
  }
}

void backward_request(const AttentionShape& s, const AttentionInputs& in, const AttentionGradients& g,
                      const Layout& to, int64_t request, std::vector<float>& scratch, Shared& shared) {
  const int64_t key0 = s.key_offsets[request], length = s.key_offsets[request + 1] - key0;
  const int64_t query0 = s.query_offsets[request], count = s.query_offsets[request + 1] - query0;
  if (!length || !count) {  // nothing met anything
    const auto none = [](float* to, int64_t rows, int64_t columns) { std::fill(to, to + rows * columns, 0.0f); };
    none(g.d_query + query0 * to.dim, count, to.dim);
    none(g.d_query_hidden + query0 * to.units, count, to.units);
    none(g.d_key + key0 * to.dim, length, to.dim);
    none(g.d_value + key0 * s.width, length, s.width);
    if (g.d_key_hidden) none(g.d_key_hidden + key0 * to.units, length, to.units);
    return;
  }
  const float* weights = g.weights + s.pair_offsets[request];
  const int64_t matrix_size = to.dim * to.wide, turned_size = to.units * to.deep;
  const int64_t block_size = kBlock * to.wide, values_size = kBlock * to.broad, keys_size = kStretch * to.deep;
  scratch.resize(2 * matrix_size + turned_size + 4 * to.wide + 2 * block_size + values_size + keys_size +
                     count * to.broad + count * length);
  float* matrix = scratch.data();
  float* d_matrix = matrix + matrix_size;
  float* turned = d_matrix + matrix_size;
  float* hidden = turned + turned_size;
  float* d_hidden = hidden + to.wide;
  float* d_above = d_hidden + to.wide;
  float* d_below = d_above + to.wide;
  float* block = d_below + to.wide;
  float* extra = block + block_size;
  float* values = extra + block_size;
  float* d_keys = values + values_size;
  float* d_out = d_keys + keys_size;
  float* d_scores = d_out + count * to.broad;

  std::fill(turned, turned + turned_size, 0.0f);  // the padding of its rows and of `hidden` is read
  std::fill(hidden, hidden + to.wide, 0.0f);
  pad_rows(g.d_out + query0 * s.width, count, s.width, to.broad, d_out);
  for (int64_t j = 0; j < length; j += kBlock) {
    const int64_t rows = std::min(kBlock, length - j);
    pad_rows(in.value + (key0 + j) * s.width, rows, s.width, to.broad, values);
    for (int64_t c = 0; c < count; ++c) {
      const float* upstream = d_out + c * to.broad;
      for (int64_t r = 0; r < rows; ++r) {
        Vec total = Vec{};
        for (int64_t v = 0; v < to.broad; v += kWidth) total += load(values + r * to.broad + v) * load(upstream + v);
        d_scores[c * length + j + r] = sum(total);
      }
    }
    std::fill(values, values + rows * to.broad, 0.0f);
    add_product(rows, to.broad, count, weights + j, 1, length, d_out, to.broad, values, to.broad);
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(g.d_value + (key0 + j + r) * s.width, values + r * to.broad, s.width * sizeof(float));
  }
  for (int64_t c = 0; c < count; ++c)
    before_normalising(s.normalise, length, weights + c * length, d_scores + c * length);
  for (int64_t i = 0; i < count * length; ++i) shared.bias += d_scores[i];

  for (int64_t stretch = 0; stretch < length; stretch += kStretch) {
    const int64_t end = std::min(stretch + kStretch, length);
    std::fill(d_keys, d_keys + (end - stretch) * to.deep, 0.0f);
    for (int64_t c = 0; c < count; ++c) {
      const float* query = in.query + (query0 + c) * to.dim;
      to.matrix_of(query, matrix);
      for (int64_t d = 0; d < to.dim; ++d)
        for (int64_t h = 0; h < to.units; ++h) turned[h * to.deep + d] = matrix[d * to.wide + h];
      std::memcpy(hidden, in.query_hidden + (query0 + c) * to.units, to.units * sizeof(float));
      std::fill(d_matrix, d_matrix + matrix_size, 0.0f);
      std::fill(d_hidden, d_hidden + 3 * to.wide, 0.0f);  // and d_above, d_below behind it
      for (int64_t j = stretch; j < end; j += kBlock) {
        const int64_t rows = std::min(kBlock, end - j);
        const float* keys = in.key + (key0 + j) * to.dim;
        const Rows past = rows_from(to, in, key0 + j, rows, extra);
        for (int64_t r = 0; r < rows; r += kRows)
          gradient_rows<kRows>(std::min<int64_t>(kRows, rows - r), to, moved(to, past, r), matrix, hidden,
                               d_scores + c * length + j + r, {d_hidden, d_above, d_below}, block + r * to.wide);
        if (g.d_key_hidden) {
          for (int64_t r = 0; r < rows; ++r) {
            float* d_extra = g.d_key_hidden + (key0 + j + r) * to.units;
            for (int64_t h = 0; h < to.units; ++h) d_extra[h] = (c ? d_extra[h] : 0.0f) + block[r * to.wide + h];
          }
        }
        add_product(rows, to.deep, to.units, block, to.wide, 1, turned, to.deep, d_keys + (j - stretch) * to.deep,
                    to.deep);
        add_product(to.dim, to.wide, rows, keys, 1, to.dim, block, to.wide, d_matrix, to.wide);
      }
      float* d_query = g.d_query + (query0 + c) * to.dim;
      for (int64_t d = 0; d < to.dim; ++d) {
        Vec total = Vec{};
        for (int64_t h = 0; h < to.wide; h += kWidth)
          total += load(d_matrix + d * to.wide + h) * load(&to.product[d * to.wide + h]);
        d_query[d] = (stretch ? d_query[d] : 0.0f) + sum(total);
        const float q = query[d];
        for (int64_t h = 0; h < to.wide; ++h) {
          const float found = d_matrix[d * to.wide + h];
          shared.key[d * to.wide + h] += found;
          shared.product[d * to.wide + h] += found * q;
        }
      }
      for (int64_t h = 0; h < to.units; ++h) {
        float& found = g.d_query_hidden[(query0 + c) * to.units + h];
        found = (stretch ? found : 0.0f) + d_hidden[h];
        shared.above[h] += d_above[h];
        shared.below[h] += d_below[h];
      }
    }
    for (int64_t j = stretch; j < end; ++j)
      std::memcpy(g.d_key + (key0 + j) * to.dim, d_keys + (j - stretch) * to.deep, to.dim * sizeof(float));
  }
}

}  // namespace

extern "C" {

int64_t sostenuto_version() { return 5; }

int64_t sostenuto_processor() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return 3;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 2;
#endif
  return 0;
}

void sostenuto_attention_forward(const AttentionShape* shape, const AttentionInputs* in,
                                 const AttentionOutputs* out) {
  const Layout to(*shape, *in);
  std::vector<Piece> pieces;
  std::vector<int64_t> costs;
  for (int64_t b = 0; b < shape->requests; ++b) {
    const int64_t first = shape->query_offsets[b], last = shape->query_offsets[b + 1];
    const int64_t length = shape->key_offsets[b + 1] - shape->key_offsets[b];
    // One request alone must be shared by the threads; more candidates than this would need too many weights at once.
    const int64_t most = std::min<int64_t>(128, std::max<int64_t>(8, (last - first + shape->threads - 1) / shape->threads));
    for (int64_t c = first; c < last; c += most) {
      pieces.push_back({b, c, std::min(c + most, last)});
      costs.push_back((pieces.back().last - c) * (length + 16));
    }
  }
  in_parts(costs, shape->threads, [&](int64_t first, int64_t last) {
    std::vector<float> scratch;
    std::vector<double> sums;
    for (int64_t i = first; i < last; ++i) forward_piece(*shape, *in, *out, to, pieces[i], scratch, sums);
  });
}

void sostenuto_attention_backward(const AttentionShape* shape, const AttentionInputs* in,
                                  const AttentionGradients* grads) {
  const Layout to(*shape, *in);
  std::vector<int64_t> costs;
  for (int64_t b = 0; b < shape->requests; ++b)
    costs.push_back((shape->query_offsets[b + 1] - shape->query_offsets[b]) *
                    (shape->key_offsets[b + 1] - shape->key_offsets[b] + 16));
  // Sums of the shared weights are taken in a fixed number of parts, so that threads change no bit of them.
  const std::vector<int64_t> bounds = cut(costs, kParts);
  const int64_t number = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<int64_t> part_costs(number, 0);
  for (int64_t part = 0; part < number; ++part)
    for (int64_t b = bounds[part]; b < bounds[part + 1]; ++b) part_costs[part] += costs[b];
  std::vector<Shared> parts(number, Shared(to));
  in_parts(part_costs, shape->threads, [&](int64_t first, int64_t last) {
    std::vector<float> scratch;
    for (int64_t part = first; part < last; ++part)
      for (int64_t b = bounds[part]; b < bounds[part + 1]; ++b)
        backward_request(*shape, *in, *grads, to, b, scratch, parts[part]);
  });
  for (const Shared& part : parts) {
    *grads->d_bias += static_cast<float>(part.bias);
    for (int64_t h = 0; h < to.units; ++h) {
      for (int64_t d = 0; d < to.dim; ++d) {
        grads->d_w_key[h * to.dim + d] += static_cast<float>(part.key[d * to.wide + h]);
        grads->d_w_product[h * to.dim + d] += static_cast<float>(part.product[d * to.wide + h]);
      }
      grads->d_w_above[h] += static_cast<float>(part.above[h]);
      grads->d_w_below[h] += static_cast<float>(part.below[h]);
    }
  }
}
}
