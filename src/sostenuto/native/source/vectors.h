// Vectors of floats as wide as the instruction set this file is compiled for, and the small matrix product on them.
//
// The library is compiled once per instruction set, each time into a file of its own: inline code of the standard
// library compiled for a newer processor must not end up in the file for an older one.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int kWidth = 16;     // floats of a vector
constexpr int kLog = 4;        // its logarithm
constexpr int kRows = 12;      // rows of a tile: kRows x 2 accumulators stay in registers
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr int kLog = 3;
constexpr int kRows = 6;
#else
constexpr int kWidth = 4;
constexpr int kLog = 2;
constexpr int kRows = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t IntVec __attribute__((vector_size(kWidth * sizeof(int32_t)), aligned(sizeof(int32_t)), may_alias));
typedef uint32_t UintVec __attribute__((vector_size(kWidth * sizeof(uint32_t)), aligned(sizeof(uint32_t)), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<Vec*>(to) = value; }
inline Vec spread(float value) {
#if !defined(__clang__)
  return value - Vec{};  // x - 0 is x for every x: one broadcast
#endif
  Vec all;
  for (int i = 0; i < kWidth; ++i) all[i] = value;
  return all;
}
inline Vec above_zero(Vec x) {
#if defined(__AVX512F__)
  return _mm512_max_ps(x, _mm512_setzero_ps());
#elif defined(__AVX2__)
  return _mm256_max_ps(x, _mm256_setzero_ps());
#else
  return x > Vec{} ? x : Vec{};
#endif
}
inline Vec below_zero(Vec x) { return x > Vec{} ? Vec{} : x; }

template <int N>
inline float sum_of(const float* x) {  // in halves: a chain of log2(N) additions instead of N
  if constexpr (N == 1) {
    return x[0];
  } else {
    float half[N / 2];
    for (int i = 0; i < N / 2; ++i) half[i] = x[i] + x[i + N / 2];
    return sum_of<N / 2>(half);
  }
}
inline float sum(Vec x) { return sum_of<kWidth>(reinterpret_cast<const float*>(&x)); }

// Have this value in a register here. Compilers like to sort a long unrolled sum by accumulator, and then keep all the
// addresses waiting on the stack.
inline __attribute__((always_inline)) void settle(Vec& x) {
#if defined(__GNUC__) && defined(__SSE2__)
  asm volatile("" : "+x"(x));
#elif defined(__GNUC__) && defined(__aarch64__)
  asm volatile("" : "+w"(x));
#endif
}

// The sums of R vectors, written to `to`.
template <int R>
inline void sums_of(const Vec (&x)[R], float* to) {
  int r = 0;
#if defined(__AVX2__) && !defined(__AVX512F__)
  for (; r < R && R >= 4; r += 4) {  // four at once: halves are added while they change places
    r = r + 4 <= R ? r : R - 4;      // some twice, so that a sum does not depend on its place
    const __m256 pairs = _mm256_hadd_ps(x[r], x[r + 1]), others = _mm256_hadd_ps(x[r + 2], x[r + 3]);
    const __m256 all = _mm256_hadd_ps(pairs, others);
    _mm_storeu_ps(to + r, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
#endif
  for (; r < R; ++r) to[r] = sum(x[r]);
}

// The first `count` floats of a vector, 0 < count <= kWidth, zeros behind; nothing else is touched.
inline Vec load_part(const float* from, int64_t count) {
  Vec x = {};
  if (count == kWidth) return load(from);
  for (int64_t i = 0; i < count; ++i) x[i] = from[i];
  return x;
}
inline void store_part(float* to, Vec value, int64_t count) {
  if (count == kWidth) return store(to, value);
  for (int64_t i = 0; i < count; ++i) to[i] = value[i];
}

// Bit i: lane i is above 0.
inline uint64_t lanes_above_zero(Vec x) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps(x, _mm_setzero_ps())));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= static_cast<uint64_t>(x[i] > 0.0f) << i;
  return bits;
#endif
}

// Lane i of `yes` where bit i is set, of `no` where it is not.
inline Vec chosen(uint64_t bits, Vec yes, Vec no) {
  IntVec lanes;
  for (int i = 0; i < kWidth; ++i) lanes[i] = 1 << i;
  const IntVec all = static_cast<int32_t>(bits) - IntVec{};
  return (all & lanes) != 0 ? yes : no;
}

// Bit i: the i-th numbers of both are the same.
inline uint64_t lanes_equal(const int32_t* a, const int32_t* b) {
  IntVec x, y;
  std::memcpy(&x, a, sizeof(x));
  std::memcpy(&y, b, sizeof(y));
#if defined(__AVX512F__)
  return _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(y));
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(x == y));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= static_cast<uint64_t>(x[i] == y[i]) << i;
  return bits;
#endif
}

// Lane i is the lane of `table` that the low kLog bits of index i name.
inline Vec looked_up(Vec table, IntVec index) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), table);
#elif defined(__AVX2__)
  return _mm256_permutevar8x32_ps(table, reinterpret_cast<__m256i>(index));
#else
  Vec found;
  for (int i = 0; i < kWidth; ++i) found[i] = table[index[i] & (kWidth - 1)];
  return found;
#endif
}

inline int64_t padded(int64_t width) { return (width + kWidth - 1) / kWidth * kWidth; }

// exp of numbers of at most 0 (scores minus their largest): 2 ** n * p(r), a relative error of 2e-7.
inline Vec exp_of_negative(Vec x) {
  x = x < spread(-87.0f) ? spread(-87.0f) : x;
  const Vec scaled = x * spread(1.44269504088896341f) - spread(0.5f);
  const IntVec n = __builtin_convertvector(scaled, IntVec);  // truncates towards 0: rounds, because x <= 0
  const Vec whole = __builtin_convertvector(n, Vec);
  const Vec r = (x - whole * spread(0.693359375f)) + whole * spread(2.12194440e-4f);
  Vec p = spread(1.9875691500e-4f);
  for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * r + spread(next);
  p = p * r * r + r + spread(1.0f);
  IntVec bits;
  for (int i = 0; i < kWidth; ++i) bits[i] = (n[i] + 127) << 23;
  Vec power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

// One tile of C (R x N vectors) += A (R x k) B (k x N vectors). A has any strides, rows of B and C are contiguous.
template <int R, int N>
inline void tile(int64_t k, const float* a, int64_t row_a, int64_t col_a, const float* b, int64_t row_b, float* c,
                 int64_t row_c) {
  Vec acc[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) acc[r][n] = load(c + r * row_c + n * kWidth);
  for (int64_t i = 0; i < k; ++i) {
    Vec right[N];
    for (int n = 0; n < N; ++n) right[n] = load(b + i * row_b + n * kWidth);
    for (int r = 0; r < R; ++r) {
      const Vec left = spread(a[r * row_a + i * col_a]);
      for (int n = 0; n < N; ++n) acc[r][n] += left * right[n];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store(c + r * row_c + n * kWidth, acc[r][n]);
}

template <int R>
inline void rows_of(int64_t width, int64_t k, const float* a, int64_t row_a, int64_t col_a, const float* b,
                    int64_t row_b, float* c, int64_t row_c) {
  int64_t n = 0;
  for (; n + 2 * kWidth <= width; n += 2 * kWidth) tile<R, 2>(k, a, row_a, col_a, b + n, row_b, c + n, row_c);
  if (n < width) tile<R, 1>(k, a, row_a, col_a, b + n, row_b, c + n, row_c);
}

template <int R>
inline void last_rows(int64_t rows, int64_t width, int64_t k, const float* a, int64_t row_a, int64_t col_a,
                      const float* b, int64_t row_b, float* c, int64_t row_c) {
  if (rows == R) {
    rows_of<R>(width, k, a, row_a, col_a, b, row_b, c, row_c);
  } else if constexpr (R > 1) {
    last_rows<R - 1>(rows, width, k, a, row_a, col_a, b, row_b, c, row_c);
  }
}

// C (rows x width) += A (rows x k) B (k x width); width is a multiple of kWidth, rows of B and C are contiguous.
inline void add_product(int64_t rows, int64_t width, int64_t k, const float* a, int64_t row_a, int64_t col_a,
                        const float* b, int64_t row_b, float* c, int64_t row_c) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows)
    rows_of<kRows>(width, k, a + r * row_a, row_a, col_a, b, row_b, c + r * row_c, row_c);
  if (r < rows) last_rows<kRows>(rows - r, width, k, a + r * row_a, row_a, col_a, b, row_b, c + r * row_c, row_c);
}
