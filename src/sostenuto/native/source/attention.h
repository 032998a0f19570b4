// Target attention with a factored activation unit: what its forward and backward pass share.
//
//   pre_cj = (A + P diag(q_c)) k_j + hidden_c + e_j
//   s_cj   = sum_h above_h max(pre_h, 0) + below_h min(pre_h, 0) + bias
//   out_c  = sum_j norm(s_c)_j v_j
//
// No (candidates, behaviours, units) tensor of floats is ever made. All that the backward pass needs to know of the
// hidden layer is where it is above 0: one bit, kept by the forward pass.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "interface.h"
#include "parallel.h"
#include "vectors.h"

constexpr int64_t kBlock = 8 * kRows;     // behaviours of a block of the forward pass
constexpr int64_t kBits = 64;             // of a word of signs; behaviours of a block of the backward pass
constexpr int64_t kParts = 16;            // sums of the shared weights
constexpr int64_t kStretch = 12 * kBits;  // behaviours that all candidates meet before the next ones come
constexpr int64_t kFlush = 16;            // stretches whose sums are added in float32 before float64 takes them
constexpr int64_t kFew = 4;               // candidates from which on the sum of values is a matrix product
constexpr int kSlices = kWidth == 16 ? 2 : 4;  // vectors of an entry of a table of subsets

// Floats that begin at a cache line and are made once per thread.
class Buffer {
 public:
  float* at(int64_t floats) {
    if (static_cast<int64_t>(space_.size()) < floats + 16) space_.resize(floats + 16);
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(space_.data()) + 63) & ~static_cast<uintptr_t>(63));
  }

 private:
  std::vector<float> space_;
};

// Weights in the layout the products want, padded with zeros to whole vectors.
struct Layout {
  int64_t dim, units, wide, deep, words;  // D, H, padded H, padded D, words of signs
  bool leaks;                             // some readout of what is below 0
  std::vector<float> key, product, above, below;

  Layout(const AttentionShape& s, const AttentionInputs& in)
      : dim(s.dim), units(s.units), wide(padded(s.units)), deep(padded(s.dim)), words((s.units + kBits - 1) / kBits),
        leaks(false), key(dim * wide), product(dim * wide), above(wide), below(wide) {
    for (int64_t h = 0; h < units; ++h) {
      for (int64_t d = 0; d < dim; ++d) {
        key[d * wide + h] = in.w_key[h * dim + d];
        product[d * wide + h] = in.w_product[h * dim + d];
      }
      above[h] = in.w_above[h];
      below[h] = in.w_below[h];
      leaks = leaks || below[h] != 0.0f;
    }
  }

  // (D, wide): the first layer as this candidate sees it.
  void matrix_of(const float* query, float* matrix) const {
    const float *from = key.data(), *times = product.data();
    for (int64_t d = 0, at = 0; d < dim; ++d) {
      const Vec q = spread(query[d]);
      const int64_t end = at + wide;
#pragma GCC unroll 4
      for (; at < end; at += kWidth) store(matrix + at, load(from + at) + q * load(times + at));
    }
  }

  // (D, wide): the products alone, as this behaviour makes them, and its own part added to `start` (wide).
  void products_of(const float* key_row, float* matrix, float* start) const {
    const float *from = key.data(), *times = product.data();
    for (int64_t d = 0, at = 0; d < dim; ++d) {
      const Vec k = spread(key_row[d]);
      for (int64_t h = 0; h < wide; h += kWidth, at += kWidth) {
        store(matrix + at, k * load(times + at));
        store(start + h, load(start + h) + k * load(from + at));
      }
    }
  }
};

// A run of behaviours that meets one candidate. What is known of them beside the key comes in padded rows, or not.
struct Rows {
  const float* keys;   // (rows, D)
  const float* extra;  // rows of `stride` floats or null
  int64_t stride;
};

inline Rows moved(const Layout& to, const Rows& rows, int64_t by) {
  return {rows.keys + by * to.dim, rows.extra ? rows.extra + by * rows.stride : nullptr, rows.stride};
}

// Copy rows of `width` floats to rows of `broad`, zeros behind.
inline void pad_rows(const float* from, int64_t rows, int64_t width, int64_t broad, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + r * broad, from + r * width, width * sizeof(float));
    std::fill(to + r * broad + width, to + (r + 1) * broad, 0.0f);
  }
}

// What is known of some behaviours beside the key, in rows that may be read in whole vectors.
inline Rows rows_from(const Layout& to, const AttentionInputs& in, int64_t first, int64_t count, float* space) {
  Rows rows{in.key + first * to.dim, nullptr, to.units};
  if (!in.key_hidden) return rows;
  rows.extra = in.key_hidden + first * to.units;
  if (to.units == to.wide) return rows;
  pad_rows(rows.extra, count, to.units, to.wide, space);
  return {rows.keys, space, to.wide};
}

// Columns that are summed with the weights: the values, and the keys where they are asked for.
struct Summed {
  const float* rows;
  int64_t width, column;  // how many, and where they stand in the result
};

struct SummedParts {
  Summed part[2];
  int count = 0;
  int64_t width = 0;  // of the result

  SummedParts(const AttentionShape& s, const AttentionInputs& in) {
    if (s.with_key) add(in.key, s.dim);
    if (s.width) add(in.value, s.width);
  }
  void add(const float* rows, int64_t columns) {
    part[count++] = {rows, columns, width};
    width += columns;
  }
};
