// Sums of behaviours by hash bucket, and their gradient.
//
// A user's table is larger than the first-level cache, so behaviours stream by once for every few signatures whose
// buckets fit there together. A value waits in registers while it is added to its buckets; products of weights and
// values are never stored.

#include <algorithm>
#include <cstring>
#include <vector>

#include "doubles.h"
#include "interface.h"
#include "parallel.h"

namespace {

constexpr int64_t kStretch = 1024;           // behaviours whose buckets are gathered at once
constexpr int64_t kCacheDoubles = 3 * 1024;  // of a first-level cache, left for buckets: 24 KiB
constexpr int64_t kAhead = 8;                // rows asked for before they are needed
constexpr int kMost = 8;                     // vectors of a value that wait in registers

std::vector<int64_t> costs_of(const BucketShape& s) {
  std::vector<int64_t> costs;
  for (int64_t b = 0; b < s.rows; ++b) costs.push_back(s.offsets[b + 1] - s.offsets[b] + 64);
  return costs;
}

// Rows of the table, (G K) of them, that behaviours `first` .. `last` fall into.
void gather_rows_of(const BucketShape& s, const int64_t* place, const int32_t* ids, int64_t first, int64_t last,
                    int32_t* to) {
  for (int64_t j = first; j < last; ++j) {
    if (j + kAhead < last) {
      const char* next = reinterpret_cast<const char*>(ids + place[j + kAhead] * s.groups);
      for (int64_t at = 0; at < s.groups * 4; at += 64) __builtin_prefetch(next + at);
    }
    const int32_t* from = ids + place[j] * s.groups;
    for (int64_t g = 0; g < s.groups; ++g)
      to[(j - first) * s.groups + g] = from[g] + static_cast<int32_t>(g * s.buckets);
  }
}

// A piece of a value: N vectors, or (N == 0) `count` numbers, from column v on, of one set of weights.
struct Piece {
  int64_t set, v, count;
};

std::vector<Piece> pieces_of(const BucketShape& s) {
  std::vector<Piece> pieces;
  for (int64_t set = 0; set < s.sets; ++set) {
    int64_t v = 0;
    while (v < s.width) {
      const int64_t vectors = std::min<int64_t>(kMost, (s.width - v) / kDoubles);
      const int64_t count = vectors ? vectors * kDoubles : s.width - v;
      pieces.push_back({set, v, count});
      v += count;
    }
  }
  return pieces;
}

template <int N>
void add_vectors(const BucketShape& s, const Piece& piece, const float* values, const double* weights, int64_t start,
                 int64_t end, int64_t g0, int64_t g1, const int32_t* own, double* table) {
  const int64_t width = s.sets * s.width;
  double* column = table + piece.set * s.width + piece.v;
  for (int64_t j = start; j < end; ++j) {
    const Wide weight = spread(weights[j * s.sets + piece.set]);
    const float* value = values + j * s.width + piece.v;
    Wide held[N];
    for (int n = 0; n < N; ++n) held[n] = widened(value + n * kDoubles) * weight;
    const int32_t* of = own + (j - start) * s.groups;
    for (int64_t g = g0; g < g1; ++g) {
      double* row = column + of[g] * width;
      for (int n = 0; n < N; ++n) store(row + n * kDoubles, load(row + n * kDoubles) + held[n]);
    }
  }
}

void add_numbers(const BucketShape& s, const Piece& piece, const float* values, const double* weights, int64_t start,
                 int64_t end, int64_t g0, int64_t g1, const int32_t* own, double* table) {
  const int64_t width = s.sets * s.width;
  for (int64_t j = start; j < end; ++j) {
    const double weight = weights[j * s.sets + piece.set];
    for (int64_t v = piece.v; v < piece.v + piece.count; ++v) {
      const double add = weight * values[j * s.width + v];
      for (int64_t g = g0; g < g1; ++g) table[own[(j - start) * s.groups + g] * width + piece.set * s.width + v] += add;
    }
  }
}

// What a behaviour finds in the rows it is told of, times its weight, added to its gradient.
template <int N>
void take_vectors(const BucketShape& s, const Piece& piece, const double* weights, int64_t start, int64_t end,
                  const int32_t* hits, const int32_t* counts, const double* table, double* found) {
  const int64_t width = s.sets * s.width;
  const double* column = table + piece.set * s.width + piece.v;
  for (int64_t j = start; j < end; ++j) {
    Wide sum[N] = {};
    const int32_t* of = hits + (j - start) * s.groups;
    for (int64_t i = 0; i < counts[j - start]; ++i) {
      const double* row = column + of[i] * width;
      for (int n = 0; n < N; ++n) sum[n] += load(row + n * kDoubles);
    }
    const Wide weight = spread(weights[j * s.sets + piece.set]);
    double* to = found + (j - start) * s.width + piece.v;
    for (int n = 0; n < N; ++n) store(to + n * kDoubles, load(to + n * kDoubles) + weight * sum[n]);
  }
}

void take_numbers(const BucketShape& s, const Piece& piece, const double* weights, int64_t start, int64_t end,
                  const int32_t* hits, const int32_t* counts, const double* table, double* found) {
  const int64_t width = s.sets * s.width;
  for (int64_t j = start; j < end; ++j) {
    for (int64_t v = piece.v; v < piece.v + piece.count; ++v) {
      double sum = 0.0;
      for (int64_t i = 0; i < counts[j - start]; ++i)
        sum += table[hits[(j - start) * s.groups + i] * width + piece.set * s.width + v];
      found[(j - start) * s.width + v] += weights[j * s.sets + piece.set] * sum;
    }
  }
}

using Add = decltype(&add_numbers);
using Take = decltype(&take_numbers);
constexpr Add kAdd[kMost + 1] = {add_numbers,     add_vectors<1>, add_vectors<2>, add_vectors<3>, add_vectors<4>,
                                 add_vectors<5>, add_vectors<6>, add_vectors<7>, add_vectors<8>};
constexpr Take kTake[kMost + 1] = {take_numbers,     take_vectors<1>, take_vectors<2>, take_vectors<3>, take_vectors<4>,
                                   take_vectors<5>, take_vectors<6>, take_vectors<7>, take_vectors<8>};

bool any(const double* from, int64_t count) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint64_t next;
    std::memcpy(&next, from + i, sizeof(next));
    bits |= next << 1;  // the sign does not count
  }
  return bits != 0;
}

}  // namespace

extern "C" {

void sostenuto_bucket_sums(const BucketShape* shape, const float* values, const double* weights, const int64_t* place,
                           const int32_t* ids, double* table) {
  const BucketShape& s = *shape;
  const int64_t size = s.groups * s.buckets * s.sets * s.width;
  const std::vector<Piece> pieces = pieces_of(s);
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    std::vector<int32_t> own(kStretch * s.groups);
    for (int64_t b = first; b < last; ++b) {
      double* mine = table + b * size;
      std::fill(mine, mine + size, 0.0);
      for (int64_t start = s.offsets[b]; start < s.offsets[b + 1]; start += kStretch) {
        const int64_t end = std::min(start + kStretch, s.offsets[b + 1]);
        gather_rows_of(s, place, ids, start, end, own.data());
        for (const Piece& piece : pieces) {
          const int64_t together = std::max<int64_t>(1, kCacheDoubles / (s.buckets * piece.count));
          const Add add = kAdd[piece.count < kDoubles ? 0 : piece.count / kDoubles];
          for (int64_t g = 0; g < s.groups; g += together)
            add(s, piece, values, weights, start, end, g, std::min(g + together, s.groups), own.data(), mine);
        }
      }
    }
  });
}

void sostenuto_bucket_sums_backward(const BucketShape* shape, const double* weights, const int64_t* place,
                                    const int32_t* ids, const double* d_table, float* d_values) {
  const BucketShape& s = *shape;
  const int64_t width = s.sets * s.width, number = s.groups * s.buckets;
  const std::vector<Piece> pieces = pieces_of(s);
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    std::vector<double> found(kStretch * s.width);
    std::vector<int32_t> own(kStretch * s.groups), counts(kStretch), asked(number);
    for (int64_t b = first; b < last; ++b) {
      const double* mine = d_table + b * number * width;
      for (int64_t r = 0; r < number; ++r) asked[r] = any(mine + r * width, width);
      for (int64_t start = s.offsets[b]; start < s.offsets[b + 1]; start += kStretch) {
        const int64_t end = std::min(start + kStretch, s.offsets[b + 1]);
        gather_rows_of(s, place, ids, start, end, own.data());
        for (int64_t j = 0; j < end - start; ++j) {  // few candidates ask for few buckets: only those are kept
          int32_t* of = own.data() + j * s.groups;
          int32_t hits = 0;
          for (int64_t g = 0; g < s.groups; ++g) {
            const int32_t row = of[g];
            of[hits] = row;
            hits += asked[row];
          }
          counts[j] = hits;
        }
        std::fill(found.begin(), found.begin() + (end - start) * s.width, 0.0);
        for (const Piece& piece : pieces) {
          const Take take = kTake[piece.count < kDoubles ? 0 : piece.count / kDoubles];
          take(s, piece, weights, start, end, own.data(), counts.data(), mine, found.data());
        }
        float* to = d_values + start * s.width;
        for (int64_t i = 0; i < (end - start) * s.width; ++i) to[i] = static_cast<float>(found[i]);
      }
    }
  });
}
}
