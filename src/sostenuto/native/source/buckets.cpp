// Sums of behaviours by hash bucket, what candidates find there, and the gradients.
//
// Behaviours come in stretches that are summed in float32 and then added to the float64 table: a stretch is short, so
// its rounding stays near that of one float32 number. Inside a stretch they stream by once for every few signatures
// whose buckets fit the first-level cache together, and a value waits in registers while it is added to its buckets.
//
// A candidate finds the mean over signatures of the bucket sums, each brought to length 1 (or not). A bucket is brought
// to length 1 when a candidate first asks for it: one candidate asks for G of G K, hundreds for all. In training the
// gradient goes from candidates to behaviours user by user, so that of a table never leaves the cache.

#include <algorithm>
#include <cstring>
#include <vector>

#include "doubles.h"
#include "interface.h"
#include "parallel.h"

namespace {

constexpr int64_t kStretch = 256;          // behaviours summed in float32, and whose buckets are gathered at once
constexpr int64_t kCacheFloats = 6 * 1024;  // of a first-level cache, left for buckets: 24 KiB
constexpr int64_t kAhead = 8;              // rows asked for before they are needed
constexpr int kMost = 8;                   // vectors of a value that wait in registers
constexpr double kSpread = 1e-25;          // weights of a stretch further apart than this would vanish in float32

std::vector<int64_t> costs_of(const BucketShape& s) {
  std::vector<int64_t> costs;
  for (int64_t b = 0; b < s.rows; ++b) costs.push_back(s.offsets[b + 1] - s.offsets[b] + 64);
  return costs;
}

// Have the buckets of an item brought near.
inline void ask_for(const int32_t* ids, int64_t groups) {
  const char* first = reinterpret_cast<const char*>(ids);
  for (int64_t at = 0; at < groups * 4; at += 64) __builtin_prefetch(first + at);
}

// Rows of the table, (G K) of them, that behaviours `first` .. `last` fall into.
void gather_rows_of(const BucketShape& s, const int64_t* place, const int32_t* ids, int64_t first, int64_t last,
                    int32_t* to) {
  for (int64_t j = first; j < last; ++j) {
    if (j + kAhead < last) ask_for(ids + place[j + kAhead] * s.groups, s.groups);
    const int32_t* from = ids + place[j] * s.groups;
    for (int64_t g = 0; g < s.groups; ++g)
      to[(j - first) * s.groups + g] = from[g] + static_cast<int32_t>(g * s.buckets);
  }
}

// A piece of a value: whole vectors, or fewer numbers than make one, from column v on, of one set of weights.
struct Piece {
  int64_t set, v, count;
};

std::vector<Piece> pieces_of(const BucketShape& s, int64_t vector) {
  std::vector<Piece> pieces;
  for (int64_t set = 0; set < s.sets; ++set) {
    int64_t v = 0;
    while (v < s.width) {
      const int64_t vectors = std::min<int64_t>(kMost, (s.width - v) / vector);
      const int64_t count = vectors ? vectors * vector : s.width - v;
      pieces.push_back({set, v, count});
      v += count;
    }
  }
  return pieces;
}

// Behaviours start .. end and what they fall into.
struct Stretch {
  int64_t start, end;
  const int32_t* own;  // (end - start, G) rows of the table
};

// The stretch's own sums: (rows of the signatures g0 .. g1, N vectors), weights relative to `top`.
template <int N>
void add_vectors(const BucketShape& s, const Piece& piece, const float* values, const double* weights, double top,
                 const Stretch& at, int64_t g0, int64_t g1, float* sums) {
  const double share = 1.0 / top;
  const int64_t groups = s.groups, sets = s.sets, width = s.width, last = at.end;
  float* const base = sums - g0 * s.buckets * N * kWidth;
  weights += piece.set;
  values += piece.v;
  const int32_t* of = at.own;
  for (int64_t j = at.start; j < last; ++j, of += groups) {
    const Vec weight = spread(static_cast<float>(weights[j * sets] * share));
    Vec held[N];
    for (int n = 0; n < N; ++n) held[n] = load(values + j * width + n * kWidth) * weight;
    for (int64_t g = g0; g < g1; ++g) {
      float* row = base + static_cast<int64_t>(of[g]) * (N * kWidth);
      for (int n = 0; n < N; ++n) store(row + n * kWidth, load(row + n * kWidth) + held[n]);
    }
  }
}

using Add = decltype(&add_vectors<1>);
constexpr Add kAdd[kMost] = {add_vectors<1>, add_vectors<2>, add_vectors<3>, add_vectors<4>,
                             add_vectors<5>, add_vectors<6>, add_vectors<7>, add_vectors<8>};

// Straight into the table, for a last few columns and for weights that lie far apart.
void add_numbers(const BucketShape& s, const Piece& piece, const float* values, const double* weights,
                 const Stretch& at, double* table) {
  const int64_t width = s.sets * s.width;
  for (int64_t j = at.start; j < at.end; ++j) {
    const double weight = weights[j * s.sets + piece.set];
    for (int64_t g = 0; g < s.groups; ++g) {
      double* row = table + at.own[(j - at.start) * s.groups + g] * width + piece.set * s.width;
      for (int64_t v = piece.v; v < piece.v + piece.count; ++v) row[v] += weight * values[j * s.width + v];
    }
  }
}

void add_piece(const BucketShape& s, const Piece& piece, const float* values, const double* weights, const Stretch& at,
               float* sums, double* table) {
  double top = 0.0, low = weights[at.start * s.sets + piece.set];
  for (int64_t j = at.start; j < at.end; ++j) {
    top = std::max(top, weights[j * s.sets + piece.set]);
    low = std::min(low, weights[j * s.sets + piece.set]);
  }
  if (piece.count < kWidth || !(low > top * kSpread)) return add_numbers(s, piece, values, weights, at, table);
  const int64_t width = s.sets * s.width;
  const int64_t together = std::max<int64_t>(1, kCacheFloats / (s.buckets * piece.count));
  for (int64_t g0 = 0; g0 < s.groups; g0 += together) {
    const int64_t g1 = std::min(g0 + together, s.groups), rows = (g1 - g0) * s.buckets;
    std::fill(sums, sums + rows * piece.count, 0.0f);
    kAdd[piece.count / kWidth - 1](s, piece, values, weights, top, at, g0, g1, sums);
    double* to = table + g0 * s.buckets * width + piece.set * s.width + piece.v;
    const Wide scale = spread(top);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t v = 0; v < piece.count; v += kDoubles)
        store(to + r * width + v, load(to + r * width + v) + scale * widened(sums + r * piece.count + v));
  }
}

// Room for the sums of one user.
struct SumRoom {
  std::vector<int32_t> own;
  std::vector<float> sums;

  explicit SumRoom(const BucketShape& s)
      : own(kStretch * s.groups), sums(std::max(kCacheFloats, s.buckets * kMost * kWidth)) {}
};

// All buckets of user b.
void sum_buckets(const BucketShape& s, const std::vector<Piece>& pieces, int64_t b, const float* values,
                 const double* weights, const int64_t* place, const int32_t* ids, SumRoom& room, double* table) {
  std::fill(table, table + s.groups * s.buckets * s.sets * s.width, 0.0);
  for (int64_t start = s.offsets[b]; start < s.offsets[b + 1]; start += kStretch) {
    const Stretch at{start, std::min(start + kStretch, s.offsets[b + 1]), room.own.data()};
    gather_rows_of(s, place, ids, at.start, at.end, room.own.data());
    for (const Piece& piece : pieces) add_piece(s, piece, values, weights, at, room.sums.data(), table);
  }
}

// Behaviours start .. end, and of the rows each falls into those that were asked for.
struct Hits {
  std::vector<int32_t> rows;    // (kStretch, G), the first `counts` of each
  std::vector<int32_t> counts;  // (kStretch,)

  explicit Hits(const BucketShape& s) : rows(kStretch * s.groups), counts(kStretch) {}

  // Asked for by several candidates: `asked` marks the rows.
  void find(const BucketShape& s, const int64_t* place, const int32_t* ids, int64_t start, int64_t end,
            const std::vector<int32_t>& asked) {
    gather_rows_of(s, place, ids, start, end, rows.data());
    for (int64_t j = 0; j < end - start; ++j) {
      int32_t* of = rows.data() + j * s.groups;
      int32_t hits = 0;
      for (int64_t g = 0; g < s.groups; ++g) {
        const int32_t row = of[g];
        of[hits] = row;
        hits += asked[row];
      }
      counts[j] = hits;
    }
  }

  // Asked for by one candidate, in the buckets `wanted` (G): whole vectors of signatures are compared.
  void find(const BucketShape& s, const int64_t* place, const int32_t* ids, int64_t start, int64_t end,
            const int32_t* wanted) {
    const int64_t groups = s.groups, buckets = s.buckets;
    for (int64_t j = start; j < end; ++j) {
      if (j + kAhead < end) ask_for(ids + place[j + kAhead] * groups, groups);
      const int32_t* of = ids + place[j] * groups;
      int32_t* to = rows.data() + (j - start) * groups;
      int32_t hits = 0;
      for (int64_t g0 = 0; g0 < groups; g0 += 64) {
        const int64_t g1 = std::min<int64_t>(g0 + 64, groups);
        uint64_t same = 0;
        int64_t g = g0;
        for (; g + kWidth <= g1; g += kWidth) same |= lanes_equal(of + g, wanted + g) << (g - g0);
        for (; g < g1; ++g) same |= static_cast<uint64_t>(of[g] == wanted[g]) << (g - g0);
        for (; same; same &= same - 1) {
          const int64_t hit = g0 + __builtin_ctzll(same);
          to[hits++] = static_cast<int32_t>(hit * buckets + wanted[hit]);
        }
      }
      counts[j - start] = hits;
    }
  }
};

// A behaviour's value times its weight, added to the rows it hits: N vectors of it.
template <int N>
void add_to_hits(const BucketShape& s, const Piece& piece, const float* values, const double* weights, int64_t start,
                 int64_t end, const Hits& hits, double* table) {
  const int64_t width = s.sets * s.width;
  double* column = table + piece.set * s.width + piece.v;
  for (int64_t j = start; j < end; ++j) {
    const Wide weight = spread(weights[j * s.sets + piece.set]);
    Wide held[N];
    for (int n = 0; n < N; ++n) held[n] = weight * widened(values + j * s.width + piece.v + n * kDoubles);
    const int32_t* of = hits.rows.data() + (j - start) * s.groups;
    const int32_t count = hits.counts[j - start];
    for (int32_t i = 0; i < count; ++i) {
      double* row = column + of[i] * width;
      for (int n = 0; n < N; ++n) store(row + n * kDoubles, load(row + n * kDoubles) + held[n]);
    }
  }
}

void add_numbers_to_hits(const BucketShape& s, const Piece& piece, const float* values, const double* weights,
                         int64_t start, int64_t end, const Hits& hits, double* table) {
  const int64_t width = s.sets * s.width;
  for (int64_t j = start; j < end; ++j)
    for (int32_t i = 0; i < hits.counts[j - start]; ++i) {
      double* row = table + hits.rows[(j - start) * s.groups + i] * width + piece.set * s.width;
      for (int64_t v = piece.v; v < piece.v + piece.count; ++v)
        row[v] += weights[j * s.sets + piece.set] * values[j * s.width + v];
    }
}

using AddToHits = decltype(&add_numbers_to_hits);
constexpr AddToHits kAddToHits[kMost + 1] = {add_numbers_to_hits, add_to_hits<1>, add_to_hits<2>,
                                             add_to_hits<3>,      add_to_hits<4>, add_to_hits<5>,
                                             add_to_hits<6>,      add_to_hits<7>, add_to_hits<8>};

// The buckets `wanted` (G) of user b; the others are left as they are.
void sum_wanted(const BucketShape& s, const std::vector<Piece>& pieces, int64_t b, const float* values,
                const double* weights, const int64_t* place, const int32_t* ids, const int32_t* wanted, Hits& hits,
                double* table) {
  const int64_t width = s.sets * s.width;
  for (int64_t g = 0; g < s.groups; ++g) std::fill_n(table + (g * s.buckets + wanted[g]) * width, width, 0.0);
  for (int64_t start = s.offsets[b]; start < s.offsets[b + 1]; start += kStretch) {
    const int64_t end = std::min(start + kStretch, s.offsets[b + 1]);
    hits.find(s, place, ids, start, end, wanted);
    for (const Piece& piece : pieces)
      kAddToHits[piece.count < kDoubles ? 0 : piece.count / kDoubles](s, piece, values, weights, start, end, hits,
                                                                      table);
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

using Take = decltype(&take_numbers);
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

// Room for the gradient of one user's values.
struct Room {
  std::vector<double> found;
  std::vector<int32_t> asked;
  Hits hits;

  explicit Room(const BucketShape& s) : found(kStretch * s.width), asked(s.groups * s.buckets), hits(s) {}
};

// The gradient of user b's values from that of the table's rows that were asked for; the other rows are not read. One
// candidate asks for `wanted` (G), which is null where there are several.
void values_gradient(const BucketShape& s, const std::vector<Piece>& pieces, int64_t b, const double* weights,
                     const int64_t* place, const int32_t* ids, const int32_t* wanted, const double* d_rows, Room& room,
                     float* d_values) {
  for (int64_t start = s.offsets[b]; start < s.offsets[b + 1]; start += kStretch) {
    const int64_t end = std::min(start + kStretch, s.offsets[b + 1]);
    if (wanted) {
      room.hits.find(s, place, ids, start, end, wanted);
    } else {
      room.hits.find(s, place, ids, start, end, room.asked);
    }
    std::fill(room.found.begin(), room.found.begin() + (end - start) * s.width, 0.0);
    for (const Piece& piece : pieces) {
      const Take take = kTake[piece.count < kDoubles ? 0 : piece.count / kDoubles];
      take(s, piece, weights, start, end, room.hits.rows.data(), room.hits.counts.data(), d_rows, room.found.data());
    }
    float* to = d_values + start * s.width;
    for (int64_t i = 0; i < (end - start) * s.width; ++i) to[i] = static_cast<float>(room.found[i]);
  }
}

std::vector<int64_t> costs_of(const InterestShape& s) {
  std::vector<int64_t> costs;
  for (int64_t b = 0; b < s.rows; ++b) costs.push_back(s.offsets[b + 1] - s.offsets[b] + 4);
  return costs;
}

// The buckets (G) of the one candidate of row b; null where there is none or more than one.
const int32_t* wanted_by_one(const InterestShape& s, int64_t b, const int32_t* ids) {
  return s.offsets[b + 1] - s.offsets[b] == 1 ? ids + s.offsets[b] * s.groups : nullptr;
}

// One bucket: S values of V, each in parts of length 1, rounded to float32 and padded to whole vectors.
void unit_parts(const InterestShape& s, const double* bucket, float* unit) {
  for (int64_t set = 0; set < s.sets; ++set) {
    int64_t start = 0;
    for (int64_t p = 0; p < s.parts; ++p) {
      const int64_t at = set * s.width + start, count = s.part_ends[p] - start;
      const double length = length_of(bucket + at, count), share = length > 0.0 ? 1.0 / length : 0.0;
      for (int64_t i = 0; i < count; ++i) unit[at + i] = static_cast<float>(bucket[at + i] * share);
      start = s.part_ends[p];
    }
  }
  if (!s.parts)
    for (int64_t i = 0; i < s.sets * s.width; ++i) unit[i] = static_cast<float>(bucket[i]);
}

// The mean of some rows, N vectors of it.
template <int N>
void mean_of(const float* unit, int64_t broad, const int32_t* rows, int64_t groups, float share, float* mean) {
  Vec sum[N] = {};
  for (int64_t g = 0; g < groups; ++g)
    for (int n = 0; n < N; ++n) sum[n] += load(unit + rows[g] * broad + n * kWidth);
  for (int n = 0; n < N; ++n) store(mean + n * kWidth, sum[n] * spread(share));
}

using Mean = decltype(&mean_of<1>);
constexpr Mean kMean[kMost] = {mean_of<1>, mean_of<2>, mean_of<3>, mean_of<4>,
                               mean_of<5>, mean_of<6>, mean_of<7>, mean_of<8>};


// The gradient of user b's table: rows that were asked for are written and marked, the others left as they are.
void table_gradient(const InterestShape& s, int64_t b, const double* table, const int32_t* ids, const float* d_out,
                    std::vector<double>& unit, std::vector<int32_t>& asked, double* d_rows) {
  const int64_t width = s.sets * s.width, number = s.groups * s.buckets;
  const double share = 1.0 / static_cast<double>(s.groups);
  std::fill(asked.begin(), asked.end(), 0);
  for (int64_t c = s.offsets[b]; c < s.offsets[b + 1]; ++c) {
    for (int64_t g = 0; g < s.groups; ++g) {
      const int64_t r = g * s.buckets + ids[c * s.groups + g];
      double* __restrict sum = d_rows + r * width;
      const float* __restrict add = d_out + c * width;
      if (asked[r]) {
        for (int64_t i = 0; i < width; ++i) sum[i] += add[i] * share;
      } else {
        for (int64_t i = 0; i < width; ++i) sum[i] = add[i] * share;
        asked[r] = 1;
      }
    }
  }
  if (!s.parts) return;
  unit.resize(s.width);
  for (int64_t r = 0; r < number; ++r) {  // from the direction to the sum: what lies across it, over its length
    if (!asked[r]) continue;
    const double* bucket = table + (b * number + r) * width;
    double* d = d_rows + r * width;
    for (int64_t set = 0; set < s.sets; ++set) {
      int64_t start = 0;
      for (int64_t p = 0; p < s.parts; ++p) {
        const int64_t at = set * s.width + start, count = s.part_ends[p] - start;
        start = s.part_ends[p];
        const double length = length_of(bucket + at, count), inverse = length > 0.0 ? 1.0 / length : 0.0;
        for (int64_t i = 0; i < count; ++i) unit[i] = bucket[at + i] * inverse;
        const double along = dot(unit.data(), d + at, count);
        for (int64_t i = 0; i < count; ++i) d[at + i] = (d[at + i] - along * unit[i]) * inverse;
      }
    }
  }
}

}  // namespace

extern "C" {

void sostenuto_bucket_sums(const BucketShape* shape, const float* values, const double* weights, const int64_t* place,
                           const int32_t* ids, double* table) {
  const BucketShape& s = *shape;
  const int64_t size = s.groups * s.buckets * s.sets * s.width;
  const std::vector<Piece> pieces = pieces_of(s, kWidth);
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    SumRoom room(s);
    for (int64_t b = first; b < last; ++b)
      sum_buckets(s, pieces, b, values, weights, place, ids, room, table + b * size);
  });
}

void sostenuto_asked_sums(const InterestShape* asked, const BucketShape* summed, const float* values,
                          const double* weights, const int64_t* place, const int32_t* ids, const int32_t* query_ids,
                          double* table) {
  const BucketShape& s = *summed;
  const int64_t size = s.groups * s.buckets * s.sets * s.width;
  const std::vector<Piece> whole = pieces_of(s, kWidth), halves = pieces_of(s, kDoubles);
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    SumRoom room(s);
    Hits hits(s);
    for (int64_t b = first; b < last; ++b) {
      double* mine = table + b * size;
      if (const int32_t* wanted = wanted_by_one(*asked, b, query_ids)) {
        sum_wanted(s, halves, b, values, weights, place, ids, wanted, hits, mine);
      } else {
        sum_buckets(s, whole, b, values, weights, place, ids, room, mine);
      }
    }
  });
}

void sostenuto_bucket_sums_backward(const BucketShape* shape, const double* weights, const int64_t* place,
                                    const int32_t* ids, const double* d_table, float* d_values) {
  const BucketShape& s = *shape;
  const int64_t width = s.sets * s.width, number = s.groups * s.buckets;
  const std::vector<Piece> pieces = pieces_of(s, kDoubles);
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    Room room(s);
    for (int64_t b = first; b < last; ++b) {
      const double* mine = d_table + b * number * width;
      for (int64_t r = 0; r < number; ++r) room.asked[r] = any(mine + r * width, width);
      values_gradient(s, pieces, b, weights, place, ids, nullptr, mine, room, d_values);
    }
  });
}

void sostenuto_interests(const InterestShape* shape, const double* table, const int32_t* ids, float* out) {
  const InterestShape& s = *shape;
  const int64_t width = s.sets * s.width, number = s.groups * s.buckets, broad = padded(width);
  const float share = 1.0f / static_cast<float>(s.groups);
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    std::vector<float> unit(number * broad, 0.0f), mean(broad);
    std::vector<int32_t> rows(s.groups);
    std::vector<uint8_t> known(number);
    for (int64_t b = first; b < last; ++b) {
      const bool most = s.offsets[b + 1] - s.offsets[b] >= s.buckets;  // of the buckets will be asked for
      if (most)
        for (int64_t r = 0; r < number; ++r) unit_parts(s, table + (b * number + r) * width, unit.data() + r * broad);
      std::fill(known.begin(), known.end(), 0);
      for (int64_t c = s.offsets[b]; c < s.offsets[b + 1]; ++c) {
        for (int64_t g = 0; g < s.groups; ++g)
          rows[g] = static_cast<int32_t>(g * s.buckets) + ids[c * s.groups + g];
        for (int64_t g = 0; g < s.groups && !most; ++g) {
          const int32_t r = rows[g];
          if (known[r]) continue;
          unit_parts(s, table + (b * number + r) * width, unit.data() + r * broad);
          known[r] = 1;
        }
        for (int64_t v = 0; v < broad; v += kMost * kWidth) {
          const int64_t vectors = std::min<int64_t>(kMost, (broad - v) / kWidth);
          kMean[vectors - 1](unit.data() + v, broad, rows.data(), s.groups, share, mean.data() + v);
        }
        std::copy(mean.begin(), mean.begin() + width, out + c * width);
      }
    }
  });
}

void sostenuto_interests_backward(const InterestShape* shape, const double* table, const int32_t* ids,
                                  const float* d_out, double* d_table) {
  const InterestShape& s = *shape;
  const int64_t width = s.sets * s.width, number = s.groups * s.buckets;
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    std::vector<double> unit;
    std::vector<int32_t> asked(number);
    for (int64_t b = first; b < last; ++b) {
      double* mine = d_table + b * number * width;
      table_gradient(s, b, table, ids, d_out, unit, asked, mine);
      for (int64_t r = 0; r < number; ++r)
        if (!asked[r]) std::fill(mine + r * width, mine + (r + 1) * width, 0.0);
    }
  });
}

void sostenuto_interests_to_values(const InterestShape* asked, const BucketShape* summed, const double* table,
                                   const int32_t* query_ids, const float* d_out, const double* weights,
                                   const int64_t* place, const int32_t* ids, float* d_values) {
  const BucketShape& s = *summed;
  const std::vector<Piece> pieces = pieces_of(s, kDoubles);
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    Room room(s);
    std::vector<double> unit, d_rows(s.groups * s.buckets * s.sets * s.width);
    for (int64_t b = first; b < last; ++b) {
      table_gradient(*asked, b, table, query_ids, d_out, unit, room.asked, d_rows.data());
      const int32_t* wanted = wanted_by_one(*asked, b, query_ids);
      values_gradient(s, pieces, b, weights, place, ids, wanted, d_rows.data(), room, d_values);
    }
  });
}
}
