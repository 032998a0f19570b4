// Rows of embedding tables: gathered with a look ahead, and gradients summed per distinct row without a sort of all.

#include <algorithm>
#include <cstring>
#include <vector>

#include "interface.h"
#include "parallel.h"

namespace {

constexpr int64_t kAhead = 16;  // rows asked for before they are needed

std::vector<int64_t> even(int64_t items, int64_t pieces) {
  std::vector<int64_t> costs(std::max<int64_t>(1, std::min(items, pieces)), 0);
  for (size_t i = 0; i < costs.size(); ++i)
    costs[i] = items * (i + 1) / costs.size() - items * i / costs.size();
  return costs;
}

}  // namespace

extern "C" {

void sostenuto_gather_rows(const RowsShape* shape, const float* table, const int64_t* index, float* out) {
  const int64_t n = shape->count, dim = shape->dim;
  const std::vector<int64_t> sizes = even(n, shape->threads);
  std::vector<int64_t> starts(sizes.size() + 1, 0);
  for (size_t i = 0; i < sizes.size(); ++i) starts[i + 1] = starts[i] + sizes[i];
  in_parts(sizes, shape->threads, [&](int64_t first, int64_t last) {
    for (int64_t j = starts[first]; j < starts[last]; ++j) {
      if (j + kAhead < n) __builtin_prefetch(table + index[j + kAhead] * dim);
      std::memcpy(out + j * dim, table + index[j] * dim, dim * sizeof(float));
    }
  });
}

// The distinct rows of `index` in rising order, and for each index its place among them. Returns their number.
int64_t sostenuto_distinct_rows(const RowsShape* shape, const int64_t* index, int64_t* distinct, int32_t* place) {
  static thread_local std::vector<int32_t> seen;  // kept between calls: clearing what was touched costs less than all
  if (static_cast<int64_t>(seen.size()) < shape->rows) seen.assign(shape->rows, -1);
  int64_t found = 0;
  for (int64_t j = 0; j < shape->count; ++j) {
    if (seen[index[j]] < 0) {
      seen[index[j]] = 0;
      distinct[found++] = index[j];
    }
  }
  std::sort(distinct, distinct + found);
  for (int64_t i = 0; i < found; ++i) seen[distinct[i]] = static_cast<int32_t>(i);
  for (int64_t j = 0; j < shape->count; ++j) place[j] = seen[index[j]];
  for (int64_t i = 0; i < found; ++i) seen[distinct[i]] = -1;
  return found;
}

// sums[place[j]] += values[j], in the order of j whatever the threads: each thread owns a range of places.
void sostenuto_sum_rows(const RowsShape* shape, const float* values, const int32_t* place, float* sums) {
  const int64_t n = shape->count, dim = shape->dim, rows = shape->rows;
  std::fill(sums, sums + rows * dim, 0.0f);
  const std::vector<int64_t> sizes = even(rows, shape->threads);
  std::vector<int64_t> starts(sizes.size() + 1, 0);
  for (size_t i = 0; i < sizes.size(); ++i) starts[i + 1] = starts[i] + sizes[i];
  in_parts(sizes, shape->threads, [&](int64_t first, int64_t last) {
    const int64_t low = starts[first], high = starts[last];
    for (int64_t j = 0; j < n; ++j) {
      if (j + kAhead < n) __builtin_prefetch(sums + place[j + kAhead] * dim, 1);
      if (place[j] < low || place[j] >= high) continue;
      float* __restrict sum = sums + place[j] * dim;
      const float* __restrict value = values + j * dim;
      for (int64_t d = 0; d < dim; ++d) sum[d] += value[d];
    }
  });
}
}
