// Signatures by random hyperplanes: projected in float32, and again in float64 where a vector lies so near a plane that
// rounding could decide. So a bit does not depend on the order of summation, the batch or the processor.

#include <algorithm>
#include <cmath>
#include <vector>

#include "interface.h"
#include "parallel.h"
#include "vectors.h"

namespace {

constexpr int64_t kBlock = 8 * kRows;  // vectors projected at once
constexpr int64_t kPiece = 4 * kBlock;  // vectors handed to a thread at once

// Planes by bit, signatures side by side and padded to whole vectors: (D, tau, wide) float32, and as they came.
struct Planes {
  int64_t dim, groups, bits, wide, columns;
  const double* exact;  // (D, G, tau)
  std::vector<float> rounded;
  float longest = 0.0f;

  Planes(const HashShape& s, const double* planes)
      : dim(s.dim), groups(s.groups), bits(s.bits), wide(padded(s.groups)), columns(s.bits * wide), exact(planes),
        rounded(s.dim * columns, 0.0f) {
    for (int64_t d = 0; d < dim; ++d)
      for (int64_t g = 0; g < groups; ++g)
        for (int64_t t = 0; t < bits; ++t)
          rounded[d * columns + t * wide + g] = static_cast<float>(planes[(d * groups + g) * bits + t]);
    for (int64_t c = 0; c < columns; ++c) {
      double square = 0.0;
      for (int64_t d = 0; d < dim; ++d)
        square += static_cast<double>(rounded[d * columns + c]) * rounded[d * columns + c];
      longest = std::max(longest, static_cast<float>(std::sqrt(square)));
    }
  }

  void exactly(const float* vector, int32_t* ids) const {
    for (int64_t g = 0; g < groups; ++g) {
      ids[g] = 0;
      for (int64_t t = 0; t < bits; ++t) {
        double side = 0.0;
        for (int64_t d = 0; d < dim; ++d) side += static_cast<double>(vector[d]) * exact[(d * groups + g) * bits + t];
        ids[g] |= (side > 0.0) << t;
      }
    }
  }
};

// Bits of one vector from its projections; false when one of them lies within `margin` of a plane.
bool rounded_ids(const Planes& planes, const float* sides, float margin, int32_t* ids) {
  IntVec near{};
  const Vec bound = spread(margin);
  for (int64_t g = 0; g < planes.wide; g += kWidth) {
    IntVec id{};
    const int64_t real = std::min<int64_t>(kWidth, planes.groups - g);
    for (int64_t t = 0; t < planes.bits; ++t) {
      const Vec side = load(sides + t * planes.wide + g);
      id |= (side > Vec{}) & (IntVec{} + (1 << t));
      const IntVec close = (side <= bound) & (side >= -bound);
      if (real == kWidth) {
        near |= close;
      } else {
        for (int64_t i = 0; i < real; ++i) near[0] |= close[i];  // padding lies on its plane
      }
    }
    std::memcpy(ids + g, &id, real * sizeof(int32_t));
  }
  int32_t any = 0;
  for (int i = 0; i < kWidth; ++i) any |= near[i];
  return any == 0;
}

}  // namespace

extern "C" {

void sostenuto_hash_rows(const HashShape* shape, const float* vectors, const double* planes, int32_t* ids) {
  const HashShape& s = *shape;
  const Planes to(s, planes);
  // Rounding of D products and sums, of the planes themselves, and of this bound.
  const float unit = 2.0f * static_cast<float>(s.dim + 4) * 5.9604645e-8f * to.longest;
  const std::vector<int64_t> costs((s.rows + kPiece - 1) / kPiece, 1);
  if (costs.empty()) return;
  in_parts(costs, s.threads, [&](int64_t first, int64_t last) {
    std::vector<float> sides(kBlock * to.columns);
    const int64_t end = std::min(last * kPiece, s.rows);
    for (int64_t n = first * kPiece; n < end; n += kBlock) {
      const int64_t rows = std::min(kBlock, end - n);
      std::fill(sides.begin(), sides.begin() + rows * to.columns, 0.0f);
      add_product(rows, to.columns, s.dim, vectors + n * s.dim, s.dim, 1, to.rounded.data(), to.columns, sides.data(),
                  to.columns);
      for (int64_t r = 0; r < rows; ++r) {
        const float* vector = vectors + (n + r) * s.dim;
        float square = 0.0f;
        for (int64_t d = 0; d < s.dim; ++d) square += vector[d] * vector[d];
        const float margin = unit * std::sqrt(square) + 1e-37f;  // the addend: products that underflow
        int32_t* out = ids + (n + r) * s.groups;
        if (!rounded_ids(to, sides.data() + r * to.columns, margin, out)) to.exactly(vector, out);
      }
    }
  });
}
}
