// How many multiply-adds the processor can do when nothing but registers is in their way: a limit to measure against.

#include <algorithm>

#include "interface.h"
#include "parallel.h"
#include "vectors.h"

namespace {

// Independent chains: enough to hide the latency of one step, few enough to stay in registers with the two constants.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kChains = 24;
#else
constexpr int kChains = 12;
#endif

// A step that needs the one before it: the product of two constants would be taken out of the loop.
double chains(int64_t rounds) {
  Vec acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = spread(1.0f + 0.01f * i);
  const Vec shrink = spread(0.75f), add = spread(0.25f);  // towards 1: never large, never denormal
  for (int64_t round = 0; round < rounds; ++round)
    for (int i = 0; i < kChains; ++i) acc[i] = acc[i] * shrink + add;
  double total = 0.0;
  for (int i = 0; i < kChains; ++i) total += sum(acc[i]);
  return total;
}

}  // namespace

extern "C" {

void sostenuto_multiply_add_peak(const PeakShape* shape, double* found) {
  const int64_t threads = std::max<int64_t>(1, shape->threads);
  std::vector<double> totals(threads, 0.0);
  in_parts(std::vector<int64_t>(threads, 1), threads, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) totals[part] = chains(shape->rounds);
  });
  found[0] = 2.0 * kWidth * kChains * static_cast<double>(shape->rounds) * static_cast<double>(threads);
  found[1] = 0.0;
  for (double total : totals) found[1] += total;
}
}
