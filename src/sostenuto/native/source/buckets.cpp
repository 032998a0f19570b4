// Sums of behaviours by hash bucket, and their gradient. A user's table stays in the second-level cache while the
// behaviours stream by; products of weights and values are never stored.

#include <algorithm>
#include <vector>

#include "interface.h"
#include "parallel.h"

namespace {

std::vector<int64_t> costs_of(const BucketShape& s) {
  std::vector<int64_t> costs;
  for (int64_t b = 0; b < s.rows; ++b) costs.push_back(s.offsets[b + 1] - s.offsets[b] + 64);
  return costs;
}

}  // namespace

extern "C" {

void sostenuto_bucket_sums(const BucketShape* shape, const float* values, const double* weights, const int64_t* ids,
                           double* table) {
  const BucketShape& s = *shape;
  const int64_t width = s.sets * s.width, size = s.groups * s.buckets * width;
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    std::vector<double> weighted(width);
    for (int64_t b = first; b < last; ++b) {
      double* mine = table + b * size;
      std::fill(mine, mine + size, 0.0);
      for (int64_t j = s.offsets[b]; j < s.offsets[b + 1]; ++j) {
        const float* value = values + j * s.width;
        for (int64_t set = 0; set < s.sets; ++set) {
          const double weight = weights[j * s.sets + set];
          for (int64_t v = 0; v < s.width; ++v) weighted[set * s.width + v] = weight * value[v];
        }
        for (int64_t g = 0; g < s.groups; ++g) {
          double* __restrict row = mine + (g * s.buckets + ids[j * s.groups + g]) * width;
          const double* __restrict add = weighted.data();
          for (int64_t i = 0; i < width; ++i) row[i] += add[i];
        }
      }
    }
  });
}

void sostenuto_bucket_sums_backward(const BucketShape* shape, const double* weights, const int64_t* ids,
                                    const double* d_table, float* d_values) {
  const BucketShape& s = *shape;
  const int64_t width = s.sets * s.width, size = s.groups * s.buckets * width;
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    std::vector<double> found(width);
    for (int64_t b = first; b < last; ++b) {
      const double* mine = d_table + b * size;
      for (int64_t j = s.offsets[b]; j < s.offsets[b + 1]; ++j) {
        std::fill(found.begin(), found.end(), 0.0);
        for (int64_t g = 0; g < s.groups; ++g) {
          const double* __restrict row = mine + (g * s.buckets + ids[j * s.groups + g]) * width;
          double* __restrict sum = found.data();
          for (int64_t i = 0; i < width; ++i) sum[i] += row[i];
        }
        for (int64_t v = 0; v < s.width; ++v) {
          double total = 0.0;
          for (int64_t set = 0; set < s.sets; ++set) total += weights[j * s.sets + set] * found[set * s.width + v];
          d_values[j * s.width + v] = static_cast<float>(total);
        }
      }
    }
  });
}
}
