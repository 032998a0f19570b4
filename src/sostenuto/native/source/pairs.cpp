// Products of chosen pairs of rows, added up in float64: no pair's vectors are gathered.

#include <cstdint>

#include "doubles.h"
#include "interface.h"
#include "parallel.h"

namespace {

constexpr int64_t kAhead = 4;  // pairs whose second row is asked for before it is needed
constexpr int64_t kLine = 16;  // floats that memory hands out at once

inline double total(Wide values) {
  double sum = 0.0;
  for (int i = 0; i < kDoubles; ++i) sum += values[i];
  return sum;
}

template <bool kWithMagnitude>
void multiply(const RowsShape& shape, const float* query, const float* key, const int64_t* candidate,
              const int64_t* behaviour, double* product, double* magnitude) {
  const int64_t n = shape.count, dim = shape.dim;
  in_even_parts(n, shape.threads, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) {
      if (j + kAhead < last)
        for (int64_t d = 0; d < dim; d += kLine) __builtin_prefetch(key + behaviour[j + kAhead] * dim + d);
      const float *a = query + candidate[j] * dim, *b = key + behaviour[j] * dim;
      Wide sums[2] = {Wide{}, Wide{}}, sizes{};
      int64_t d = 0;
      for (; d + 2 * kDoubles <= dim; d += 2 * kDoubles) {
        for (int64_t k = 0; k < 2; ++k) {
          const Wide both = widened(a + d + k * kDoubles) * widened(b + d + k * kDoubles);
          sums[k] += both;
          if (kWithMagnitude) sizes += both < Wide{} ? -both : both;
        }
      }
      double rest = 0.0, size = 0.0;
      for (; d < dim; ++d) {
        const double both = static_cast<double>(a[d]) * b[d];
        rest += both;
        size += both < 0.0 ? -both : both;
      }
      product[j] = total(sums[0] + sums[1]) + rest;
      if (kWithMagnitude) magnitude[j] = total(sizes) + size;
    }
  });
}

}  // namespace

extern "C" void sostenuto_pair_products(const RowsShape* shape, const float* query, const float* key,
                                        const int64_t* candidate, const int64_t* behaviour, double* product,
                                        double* magnitude) {
  if (magnitude)
    multiply<true>(*shape, query, key, candidate, behaviour, product, magnitude);
  else
    multiply<false>(*shape, query, key, candidate, behaviour, product, magnitude);
}
