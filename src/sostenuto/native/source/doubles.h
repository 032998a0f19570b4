// Vectors of float64, half as many as the floats of vectors.h.

#pragma once

#include <cmath>
#include <cstdint>

#include "vectors.h"

constexpr int kDoubles = kWidth / 2;

typedef double Wide __attribute__((vector_size(kDoubles * sizeof(double)), aligned(sizeof(double)), may_alias));
typedef float Half __attribute__((vector_size(kDoubles * sizeof(float)), aligned(sizeof(float)), may_alias));

inline Wide load(const double* from) { return *reinterpret_cast<const Wide*>(from); }
inline void store(double* to, Wide value) { *reinterpret_cast<Wide*>(to) = value; }
inline Wide spread(double value) {
#if !defined(__clang__)
  return value - Wide{};
#endif
  Wide all;
  for (int i = 0; i < kDoubles; ++i) all[i] = value;
  return all;
}
inline Wide widened(const float* from) { return __builtin_convertvector(*reinterpret_cast<const Half*>(from), Wide); }
inline void store_narrow(float* to, Wide value) { *reinterpret_cast<Half*>(to) = __builtin_convertvector(value, Half); }

// Sum of products of two slices, in a fixed order.
inline double dot(const double* a, const double* b, int64_t count) {
  Wide total{};
  int64_t i = 0;
  for (; i + kDoubles <= count; i += kDoubles) total += load(a + i) * load(b + i);
  double sum = 0.0;
  for (; i < count; ++i) sum += a[i] * b[i];
  for (int k = 0; k < kDoubles; ++k) sum += total[k];
  return sum;
}

// Length of a slice without under- or overflow: decayed sums may be as small as 1e-200.
inline double length_of(const double* from, int64_t count) {
  const double square = dot(from, from, count);
  if (square > 1e-280 && square < 1e280) return std::sqrt(square);
  double largest = 0.0, scaled = 0.0;
  for (int64_t i = 0; i < count; ++i) largest = std::fabs(from[i]) > largest ? std::fabs(from[i]) : largest;
  if (largest == 0.0) return 0.0;
  for (int64_t i = 0; i < count; ++i) scaled += (from[i] / largest) * (from[i] / largest);
  return largest * std::sqrt(scaled);
}
