// What candidates find in their buckets: the mean over signatures of the bucket sums, each brought to length 1 (or not).
//
// A bucket is brought to length 1 when a candidate first asks for it: one candidate asks for G of G K, hundreds for all.

#include <algorithm>
#include <vector>

#include "doubles.h"
#include "interface.h"
#include "parallel.h"

namespace {

std::vector<int64_t> costs_of(const InterestShape& s) {
  std::vector<int64_t> costs;
  for (int64_t b = 0; b < s.rows; ++b) costs.push_back(s.offsets[b + 1] - s.offsets[b] + 4);
  return costs;
}

// One bucket: S values of V, each in parts of length 1.
void unit_parts(const InterestShape& s, const double* bucket, double* unit) {
  for (int64_t set = 0; set < s.sets; ++set) {
    int64_t start = 0;
    for (int64_t p = 0; p < s.parts; ++p) {
      const int64_t at = set * s.width + start, count = s.part_ends[p] - start;
      const double length = length_of(bucket + at, count), share = length > 0.0 ? 1.0 / length : 0.0;
      for (int64_t i = 0; i < count; ++i) unit[at + i] = bucket[at + i] * share;
      start = s.part_ends[p];
    }
  }
  if (!s.parts) std::copy(bucket, bucket + s.sets * s.width, unit);
}

}  // namespace

extern "C" {

void sostenuto_interests(const InterestShape* shape, const double* table, const int32_t* ids, float* out) {
  const InterestShape& s = *shape;
  const int64_t width = s.sets * s.width, number = s.groups * s.buckets;
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    std::vector<double> unit(number * width), sum(width);
    std::vector<uint8_t> known(number);
    for (int64_t b = first; b < last; ++b) {
      std::fill(known.begin(), known.end(), 0);
      for (int64_t c = s.offsets[b]; c < s.offsets[b + 1]; ++c) {
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int64_t g = 0; g < s.groups; ++g) {
          const int64_t r = g * s.buckets + ids[c * s.groups + g];
          double* __restrict found = unit.data() + r * width;
          if (!known[r]) {
            unit_parts(s, table + (b * number + r) * width, found);
            known[r] = 1;
          }
          for (int64_t i = 0; i < width; ++i) sum[i] += found[i];
        }
        const double share = 1.0 / static_cast<double>(s.groups);
        for (int64_t i = 0; i < width; ++i) out[c * width + i] = static_cast<float>(sum[i] * share);
      }
    }
  });
}

void sostenuto_interests_backward(const InterestShape* shape, const double* table, const int32_t* ids,
                                  const float* d_out, double* d_table) {
  const InterestShape& s = *shape;
  const int64_t width = s.sets * s.width, number = s.groups * s.buckets;
  const double share = 1.0 / static_cast<double>(s.groups);
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    std::vector<double> unit(width);
    std::vector<uint8_t> asked(number);
    for (int64_t b = first; b < last; ++b) {
      double* mine = d_table + b * number * width;
      std::fill(mine, mine + number * width, 0.0);
      std::fill(asked.begin(), asked.end(), 0);
      for (int64_t c = s.offsets[b]; c < s.offsets[b + 1]; ++c) {
        for (int64_t g = 0; g < s.groups; ++g) {
          const int64_t r = g * s.buckets + ids[c * s.groups + g];
          asked[r] = 1;
          double* __restrict sum = mine + r * width;
          for (int64_t i = 0; i < width; ++i) sum[i] += d_out[c * width + i] * share;
        }
      }
      if (!s.parts) continue;
      for (int64_t r = 0; r < number; ++r) {  // from the direction to the sum: what lies across it, over its length
        if (!asked[r]) continue;
        const double* bucket = table + (b * number + r) * width;
        double* d = mine + r * width;
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
  });
}
}
