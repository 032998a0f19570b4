// The forward pass of target attention; attention.h says what it computes.

#include "attention.h"

namespace {

// The hidden layer of R behaviours, N vectors of units from `h` on, before the activation.
template <int R, int N>
inline void hidden_tile(const Layout& to, const Rows& rows, const float* matrix, const float* hidden, int64_t h,
                        Vec (&acc)[R][N]) {
  for (int n = 0; n < N; ++n) {
    const Vec start = load(hidden + h + n * kWidth);
    for (int r = 0; r < R; ++r)
      acc[r][n] = rows.extra ? start + load(rows.extra + r * rows.stride + h + n * kWidth) : start;
  }
  const int64_t dim = to.dim, wide = to.wide;
  const float* right_row = matrix + h;
  const float* left_row = rows.keys;
  for (int64_t d = 0; d < dim; ++d) {
    Vec right[N];
    for (int n = 0; n < N; ++n) right[n] = load(right_row + n * kWidth);
    for (int r = 0; r < R; ++r) {
      const Vec left = spread(left_row[r * dim]);
      for (int n = 0; n < N; ++n) acc[r][n] += left * right[n];
    }
    right_row += wide;
    ++left_row;
  }
}

// Add what N vectors of units say to the scores of R behaviours; with Keeps also note where they are above 0.
template <int R, int N, bool Leaks, bool Keeps>
inline void score_tile(const Layout& to, const Rows& rows, const float* matrix, const float* hidden, int64_t h,
                       Vec (&total)[R], uint64_t* signs) {
  Vec acc[R][N];
  hidden_tile<R, N>(to, rows, matrix, hidden, h, acc);
  for (int n = 0; n < N; ++n) {
    const Vec above = load(&to.above[h + n * kWidth]);
    for (int r = 0; r < R; ++r) {
      if constexpr (Leaks) {
        total[r] += acc[r][n] * (acc[r][n] > Vec{} ? above : load(&to.below[h + n * kWidth]));
      } else {
        total[r] += above_zero(acc[r][n]) * above;
      }
    }
  }
  if constexpr (Keeps) {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "signs are written in parts of a word");
    char* place = reinterpret_cast<char*>(signs) + h / 8;  // h is a multiple of two vectors, and so is a word
    for (int r = 0; r < R; ++r, place += to.words * sizeof(uint64_t)) {
      uint64_t bits = 0;
      for (int n = 0; n < N; ++n) bits |= lanes_above_zero(acc[r][n]) << (n * kWidth);
      std::memcpy(place, &bits, 2 * kWidth / 8);
    }
  }
}

// Scores of kRows behaviours, written to `scores`, and their signs.
template <bool Leaks, bool Keeps>
inline void score_rows(const Layout& to, const Rows& rows, const float* matrix, const float* hidden, float bias,
                       float* scores, uint64_t* signs) {
  if (Keeps && to.units % kBits) std::fill(signs, signs + kRows * to.words, 0);
  Vec total[kRows] = {};
  int64_t h = 0;
  for (; h + 2 * kWidth <= to.wide; h += 2 * kWidth)
    score_tile<kRows, 2, Leaks, Keeps>(to, rows, matrix, hidden, h, total, signs);
  if (h < to.wide) score_tile<kRows, 1, Leaks, Keeps>(to, rows, matrix, hidden, h, total, signs);
  float found[kRows];
  sums_of(total, found);
  for (int r = 0; r < kRows; ++r) scores[r] = found[r] + bias;
}

// Scores of a block. The last tile begins early rather than end late: some scores are then written twice, the same.
template <bool Leaks, bool Keeps>
void score_block(const Layout& to, const Rows& rows, int64_t count, const float* matrix, const float* hidden,
                 float bias, float* scores, uint64_t* signs, Buffer& spare) {
  if (count >= kRows) {
    for (int64_t r = 0; r < count; r += kRows) {
      const int64_t at = std::min<int64_t>(r, count - kRows);
      score_rows<Leaks, Keeps>(to, moved(to, rows, at), matrix, hidden, bias, scores + at, signs + at * to.words);
    }
    return;
  }
  float* keys = spare.at(kRows * (to.dim + to.wide + 1) + 2 * kRows * to.words + 2);  // fewer rows than a tile has
  float* extra = keys + kRows * to.dim;
  float* found = extra + kRows * to.wide;
  std::fill(keys, found, 0.0f);
  std::copy(rows.keys, rows.keys + count * to.dim, keys);
  if (rows.extra) {
    for (int64_t r = 0; r < count; ++r)
      std::copy(rows.extra + r * rows.stride, rows.extra + r * rows.stride + to.wide, extra + r * to.wide);
  }
  std::vector<uint64_t> noted(Keeps ? kRows * to.words : 0);
  const Rows few{keys, rows.extra ? extra : nullptr, to.wide};
  score_rows<Leaks, Keeps>(to, few, matrix, hidden, bias, found, noted.data());
  std::copy(found, found + count, scores);
  if constexpr (Keeps) std::copy(noted.data(), noted.data() + count * to.words, signs);
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

// to (N vectors) += weights . rows, for one candidate.
template <int N>
inline void weigh_rows(const float* rows, int64_t stride, int64_t count, const float* weights, float* to) {
  constexpr int kAtOnce = N == 1 ? 4 : 2;  // enough sums to keep the units busy
  Vec acc[kAtOnce][N] = {};
  int64_t j = 0;
  for (; j + kAtOnce <= count; j += kAtOnce)
    for (int i = 0; i < kAtOnce; ++i) {
      const Vec w = spread(weights[j + i]);
      for (int n = 0; n < N; ++n) acc[i][n] += w * load(rows + (j + i) * stride + n * kWidth);
    }
  for (; j < count; ++j)
    for (int n = 0; n < N; ++n) acc[0][n] += spread(weights[j]) * load(rows + j * stride + n * kWidth);
  for (int n = 0; n < N; ++n) {
    Vec total = load(to + n * kWidth);
    for (int i = 0; i < kAtOnce; ++i) total += acc[i][n];
    store(to + n * kWidth, total);
  }
}

// part (candidates x broad) = weights (candidates, rows of `length`) . rows (count, width). The order of additions
// differs with `few`: it goes by the request, not by the candidates here, whose number depends on the threads.
inline void sum_rows_of(const float* rows, int64_t count, int64_t width, int64_t candidates, bool few,
                        const float* weights, int64_t length, float* part, Buffer& spare) {
  const int64_t broad = padded(width), whole = width / kWidth * kWidth;
  std::fill(part, part + candidates * broad, 0.0f);
  if (!few) {
    if (whole != width) {
      float* space = spare.at(count * broad);
      pad_rows(rows, count, width, broad, space);
      rows = space;
    }
    return add_product(candidates, broad, count, weights, length, 1, rows, broad, part, broad);
  }
  for (int64_t c = 0; c < candidates; ++c) {
    const float* w = weights + c * length;
    int64_t v = 0;
    for (; v + 4 * kWidth <= whole; v += 4 * kWidth) weigh_rows<4>(rows + v, width, count, w, part + c * broad + v);
    for (; v < whole; v += kWidth) weigh_rows<1>(rows + v, width, count, w, part + c * broad + v);
    for (; v < width; ++v) {
      float total[4] = {};
      int64_t j = 0;
      for (; j + 4 <= count; j += 4)
        for (int i = 0; i < 4; ++i) total[i] += w[j + i] * rows[(j + i) * width + v];
      for (; j < count; ++j) total[0] += w[j] * rows[j * width + v];
      part[c * broad + v] = (total[0] + total[1]) + (total[2] + total[3]);
    }
  }
}

// Some candidates of one request.
struct Piece {
  int64_t request, first, last;
  int64_t pair0;     // where the pairs of the first begin
  bool by_behaviour;  // one matrix per behaviour instead of one per candidate
};

// A request with this many times more candidates than behaviours needs fewer matrices, and fewer tiles that are not
// full, when they change places: pre_cj = (P diag(k_j)) q_c + (A k_j + e_j) + hidden_c.
constexpr int64_t kManyTimes = 2;
constexpr int64_t kMostByBehaviour = 43 * 12;  // candidates of a piece then; whole tiles
constexpr int64_t kMostByCandidate = 128;

struct ForwardSpace {
  Buffer matrix, hidden, extra, part, weights, spare;
  std::vector<double> sums;
};

template <bool Leaks, bool Keeps>
void score_piece(const AttentionInputs& in, const Layout& to, const Piece& piece, int64_t key0, int64_t length,
                 float* scores, uint64_t* signs, ForwardSpace& space) {
  const int64_t count = piece.last - piece.first;
  float* matrix = space.matrix.at(to.dim * to.wide);
  float* hidden = space.hidden.at(to.wide);
  float* extra = space.extra.at((kBlock + kRows) * to.wide);
  std::fill(hidden, hidden + to.wide, 0.0f);
  for (int64_t stretch = 0; stretch < length; stretch += kStretch) {
    const int64_t end = std::min(stretch + kStretch, length);
    for (int64_t c = 0; c < count; ++c) {
      to.matrix_of(in.query + (piece.first + c) * to.dim, matrix);
      std::copy_n(in.query_hidden + (piece.first + c) * to.units, to.units, hidden);
      int64_t rows;
      for (int64_t j = stretch; j < end; j += rows) {
        rows = end - j < kBlock + kRows ? end - j : kBlock;  // a last tile that is not full joins its block
        const int64_t at = c * length + j;
        score_block<Leaks, Keeps>(to, rows_from(to, in, key0 + j, rows, extra), rows, matrix, hidden, *in.bias,
                                  scores + at, Keeps ? signs + at * to.words : nullptr, space.spare);
      }
    }
  }
}

// The same scores where candidates outnumber behaviours: the rows of a tile are candidates.
template <bool Leaks>
void score_by_behaviour(const AttentionInputs& in, const Layout& to, const Piece& piece, int64_t key0, int64_t length,
                        float* scores, ForwardSpace& space) {
  const int64_t count = piece.last - piece.first;
  float* matrix = space.matrix.at(to.dim * to.wide);
  float* start = space.hidden.at(to.wide);
  float* found = space.part.at(count);
  Rows rows{in.query + piece.first * to.dim, in.query_hidden + piece.first * to.units, to.units};
  if (to.units != to.wide) {
    float* room = space.extra.at(count * to.wide);
    pad_rows(rows.extra, count, to.units, to.wide, room);
    rows = {rows.keys, room, to.wide};
  }
  for (int64_t j = 0; j < length; ++j) {
    std::fill(start, start + to.wide, 0.0f);
    if (in.key_hidden) std::copy_n(in.key_hidden + (key0 + j) * to.units, to.units, start);
    to.products_of(in.key + (key0 + j) * to.dim, matrix, start);
    score_block<Leaks, false>(to, rows, count, matrix, start, *in.bias, found, nullptr, space.spare);
    for (int64_t c = 0; c < count; ++c) scores[c * length + j] = found[c];
  }
}

void forward_piece(const AttentionShape& s, const AttentionInputs& in, const AttentionOutputs& out, const Layout& to,
                   const Piece& piece, ForwardSpace& space) {
  const int64_t key0 = s.key_offsets[piece.request], length = s.key_offsets[piece.request + 1] - key0;
  const int64_t count = piece.last - piece.first;
  const SummedParts parts(s, in);
  float* result = out.out + piece.first * parts.width;
  std::fill(result, result + count * parts.width, 0.0f);
  if (!length || !count) return;
  const bool keeps = out.weights != nullptr;
  float* weights = keeps ? out.weights + piece.pair0 : space.weights.at(count * length);
  uint64_t* signs = keeps ? out.signs + piece.pair0 * to.words : nullptr;
  if (piece.by_behaviour) {
    const auto score = to.leaks ? score_by_behaviour<true> : score_by_behaviour<false>;
    score(in, to, piece, key0, length, weights, space);
  } else {
    const auto score = to.leaks ? (keeps ? score_piece<true, true> : score_piece<true, false>)
                                : (keeps ? score_piece<false, true> : score_piece<false, false>);
    score(in, to, piece, key0, length, weights, signs, space);
  }
  for (int64_t c = 0; c < count; ++c) normalise_scores(s.normalise, length, weights + c * length);
  const bool few = s.query_offsets[piece.request + 1] - s.query_offsets[piece.request] < kFew;
  for (int i = 0; i < parts.count; ++i) {
    const Summed& summed = parts.part[i];
    const int64_t broad = padded(summed.width);
    float* part = space.part.at(count * broad);
    std::vector<double>& sums = space.sums;
    if (length < kBlock + kRows) {  // one block
      sum_rows_of(summed.rows + key0 * summed.width, length, summed.width, count, few, weights, length, part,
                  space.spare);
      for (int64_t c = 0; c < count; ++c)
        std::copy_n(part + c * broad, summed.width, result + c * parts.width + summed.column);
      continue;
    }
    sums.assign(count * broad, 0.0);  // thousands of terms: a block in float32, blocks in float64
    for (int64_t j = 0; j < length; j += kBlock) {
      sum_rows_of(summed.rows + (key0 + j) * summed.width, std::min(kBlock, length - j), summed.width, count, few,
                  weights + j, length, part, space.spare);
      for (int64_t k = 0; k < count * broad; ++k) sums[k] += part[k];
    }
    for (int64_t c = 0; c < count; ++c)
      for (int64_t v = 0; v < summed.width; ++v)
        result[c * parts.width + summed.column + v] = static_cast<float>(sums[c * broad + v]);
  }
}

}  // namespace

extern "C" {

int64_t sostenuto_attention_pairs(const AttentionShape* shape) {
  const auto rises = [&](const int64_t* offsets, int64_t rows) {
    bool good = offsets[0] == 0 && offsets[shape->requests] == rows;
    for (int64_t b = 0; b < shape->requests; ++b) good = good && offsets[b] <= offsets[b + 1];
    return good;
  };
  if (!rises(shape->query_offsets, shape->candidates)) return -1;
  if (!rises(shape->key_offsets, shape->behaviours)) return -2;
  int64_t pairs = 0;
  for (int64_t b = 0; b < shape->requests; ++b) {
    const int64_t length = shape->key_offsets[b + 1] - shape->key_offsets[b];
    pairs += (shape->query_offsets[b + 1] - shape->query_offsets[b]) * length;
  }
  return pairs;
}

void sostenuto_attention_forward(const AttentionShape* shape, const AttentionInputs* in,
                                 const AttentionOutputs* out) {
  const Layout to(*shape, *in);
  std::vector<Piece> pieces;
  std::vector<int64_t> costs;
  int64_t pairs = 0;
  for (int64_t b = 0; b < shape->requests; ++b) {
    const int64_t first = shape->query_offsets[b], last = shape->query_offsets[b + 1];
    const int64_t length = shape->key_offsets[b + 1] - shape->key_offsets[b];
    // One request alone must be shared by the threads; more candidates than this would need too many weights at once.
    const bool by_behaviour = !out->weights && length <= kBlock * kManyTimes && length * kManyTimes <= last - first;
    const int64_t share = std::max<int64_t>(8, (last - first + shape->threads - 1) / shape->threads);
    const int64_t most = std::min(by_behaviour ? kMostByBehaviour : kMostByCandidate, share);
    for (int64_t c = first; c < last; c += most) {
      pieces.push_back({b, c, std::min(c + most, last), pairs, by_behaviour});
      pairs += (pieces.back().last - c) * length;
      costs.push_back((pieces.back().last - c) * (length + 16));
    }
  }
  in_parts(costs, shape->threads, [&](int64_t first, int64_t last) {
    ForwardSpace space;
    for (int64_t i = first; i < last; ++i) forward_piece(*shape, *in, *out, to, pieces[i], space);
  });
}
}
