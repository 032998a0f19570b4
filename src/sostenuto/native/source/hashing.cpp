// Signatures by random hyperplanes, projected in float64: in float32 the order of summation could flip a bit near a plane.

#include <algorithm>
#include <vector>

#include "doubles.h"
#include "interface.h"
#include "parallel.h"

namespace {

constexpr int kTall = 4, kBroad = 2;  // rows and vectors of a tile
constexpr int64_t kPiece = 256;       // rows handed to a thread at once

}  // namespace

extern "C" {

void sostenuto_hash_rows(const HashShape* shape, const float* vectors, const double* planes, int32_t* ids) {
  const HashShape& s = *shape;
  const int64_t columns = s.groups * s.bits, step = kBroad * kDoubles;
  const int64_t broad = (columns + step - 1) / step * step;
  std::vector<double> padded(s.dim * broad, 0.0);
  for (int64_t d = 0; d < s.dim; ++d) std::copy(planes + d * columns, planes + (d + 1) * columns, &padded[d * broad]);
  std::vector<int64_t> costs((s.rows + kPiece - 1) / kPiece, 1);
  if (costs.empty()) return;
  in_parts(costs, s.threads, [&](int64_t first, int64_t last) {
    std::vector<double> sides(kTall * broad), tall(kTall * s.dim);
    const int64_t end = std::min(last * kPiece, s.rows);
    for (int64_t n = first * kPiece; n < end; n += kTall) {
      const int64_t rows = std::min<int64_t>(kTall, end - n);
      for (int64_t r = 0; r < kTall; ++r)
        for (int64_t d = 0; d < s.dim; ++d) tall[d * kTall + r] = vectors[(n + std::min(r, rows - 1)) * s.dim + d];
      for (int64_t c = 0; c < broad; c += step) {
        Wide acc[kTall][kBroad] = {};
        for (int64_t d = 0; d < s.dim; ++d) {
          Wide right[kBroad];
          for (int k = 0; k < kBroad; ++k) right[k] = load(&padded[d * broad + c + k * kDoubles]);
          for (int r = 0; r < kTall; ++r) {
            const Wide left = spread(tall[d * kTall + r]);
            for (int k = 0; k < kBroad; ++k) acc[r][k] += left * right[k];
          }
        }
        for (int r = 0; r < kTall; ++r)
          for (int k = 0; k < kBroad; ++k) store(&sides[r * broad + c + k * kDoubles], acc[r][k]);
      }
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t g = 0; g < s.groups; ++g) {
          int32_t id = 0;
          for (int64_t t = 0; t < s.bits; ++t) id |= (sides[r * broad + g * s.bits + t] > 0.0) << t;
          ids[(n + r) * s.groups + g] = id;
        }
      }
    }
  });
}
}
