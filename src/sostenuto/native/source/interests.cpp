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

constexpr int kMost = 8;  // vectors of a result that wait in registers

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

}  // namespace

extern "C" {

void sostenuto_interests(const InterestShape* shape, const double* table, const int32_t* ids, float* out) {
  const InterestShape& s = *shape;
  const int64_t width = s.sets * s.width, number = s.groups * s.buckets, broad = padded(width);
  const float share = 1.0f / static_cast<float>(s.groups);
  in_parts(costs_of(s), s.threads, [&](int64_t first, int64_t last) {
    std::vector<float> unit(number * broad, 0.0f), mean(broad);
    std::vector<int32_t> rows(s.groups);
    std::vector<uint8_t> known(number);
    for (int64_t b = first; b < last; ++b) {
      std::fill(known.begin(), known.end(), 0);
      for (int64_t c = s.offsets[b]; c < s.offsets[b + 1]; ++c) {
        for (int64_t g = 0; g < s.groups; ++g) {
          const int32_t r = static_cast<int32_t>(g * s.buckets) + ids[c * s.groups + g];
          rows[g] = r;
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
