// Rows of embedding tables: gathered with a look ahead, and gradients summed per distinct row without a sort of all.

#include <algorithm>
#include <cstring>
#include <vector>

#include "interface.h"
#include "parallel.h"

namespace {

constexpr int64_t kAhead = 16;  // rows asked for before they are needed

constexpr int64_t kBlock = 1024;  // indices looked at together
constexpr int64_t kLine = 16;   // floats that memory hands out at once
constexpr int64_t kFew = 256;   // rows below which a comparison sort is quicker
constexpr int kDigit = 11;      // bits of a digit at most: the counters stay in the first-level cache

struct Found {
  int64_t row;
  int32_t place;  // in order of appearance
};

// Sort by row, digit by digit from the lowest: the work follows the number of rows found.
void sort_by_row(std::vector<Found>& found, int64_t rows) {
  if (static_cast<int64_t>(found.size()) < kFew) {
    std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) { return a.row < b.row; });
    return;
  }
  int bits = 1;
  while ((rows - 1) >> bits) ++bits;
  const int passes = (bits + kDigit - 1) / kDigit, digit = (bits + passes - 1) / passes;
  const int64_t mask = (int64_t{1} << digit) - 1;
  std::vector<Found> other(found.size());
  std::vector<size_t> start;
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = pass * digit;
    start.assign(mask + 2, 0);
    for (const Found& f : found) ++start[((f.row >> shift) & mask) + 1];
    for (size_t i = 1; i < start.size(); ++i) start[i] += start[i - 1];
    for (const Found& f : found) other[start[(f.row >> shift) & mask]++] = f;
    found.swap(other);
  }
}

}  // namespace

extern "C" {

void sostenuto_gather_rows(const RowsShape* shape, const float* table, const int64_t* index, float* out) {
  const int64_t n = shape->count, dim = shape->dim;
  in_even_parts(n, shape->threads, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      if (j + kAhead < n)
        for (int64_t d = 0; d < dim; d += kLine) __builtin_prefetch(table + index[j + kAhead] * dim + d);
      std::memcpy(out + j * dim, table + index[j] * dim, dim * sizeof(float));
    }
  });
}

// The distinct rows of `index` in rising order, and for each index its place among them. Returns their number.
//
// `seen` holds one number per row of the largest table so far, is made once per thread and left as it was found: a call
// touches it where the index points, however large the table.
int64_t sostenuto_distinct_rows(const RowsShape* shape, const int64_t* index, int64_t* distinct, int32_t* place) {
  static thread_local std::vector<int32_t> seen;
  if (static_cast<int64_t>(seen.size()) < shape->rows) seen.assign(shape->rows, -1);
  const int64_t n = shape->count;
  int32_t* at = seen.data();
  std::vector<Found> found;
  for (int64_t j = 0; j < n; ++j) {
    if (j + kAhead < n) __builtin_prefetch(at + index[j + kAhead], 1);
    int32_t& known = at[index[j]];
    if (known < 0) {
      known = static_cast<int32_t>(found.size());
      found.push_back({index[j], known});
    }
    place[j] = known;
  }
  const int64_t count = static_cast<int64_t>(found.size());
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) __builtin_prefetch(at + found[i + kAhead].row, 1);
    at[found[i].row] = -1;
  }
  sort_by_row(found, shape->rows);
  std::vector<int32_t> rank(count);
  for (int64_t i = 0; i < count; ++i) {
    rank[found[i].place] = static_cast<int32_t>(i);
    distinct[i] = found[i].row;
  }
  for (int64_t j = 0; j < n; ++j) place[j] = rank[place[j]];
  return count;
}

// sums[place[j]] += values[j], in the order of j whatever the threads: each thread owns a range of places, and first
// lists which of a block of indices are its own.
void sostenuto_sum_rows(const RowsShape* shape, const float* values, const int32_t* place, float* sums) {
  const int64_t n = shape->count, dim = shape->dim;
  in_even_parts(shape->rows, shape->threads, [&](int64_t low, int64_t high) {
    std::fill(sums + low * dim, sums + high * dim, 0.0f);
    int64_t own[kBlock];
    for (int64_t from = 0; from < n; from += kBlock) {
      int64_t count = 0;
      for (int64_t j = from; j < std::min(from + kBlock, n); ++j) {
        own[count] = j;
        count += place[j] >= low && place[j] < high;
      }
      for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count) __builtin_prefetch(sums + place[own[i + kAhead]] * dim, 1);
        float* __restrict sum = sums + place[own[i]] * dim;
        const float* __restrict value = values + own[i] * dim;
        for (int64_t d = 0; d < dim; ++d) sum[d] += value[d];
      }
    }
  });
}
}
