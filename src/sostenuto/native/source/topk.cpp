// The behaviours nearest to each candidate: by signature (Hamming distance) and by inner product.
//
// Rows are read from the newest behaviour to the oldest, so that of equals the one met first is the newer. Letters as in
// ops/top_k.py.

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "interface.h"
#include "parallel.h"
#include "vectors.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kBytes = 4 * kWidth;      // of a vector
constexpr int64_t kTogether = 4;            // candidates that meet a stretch of signatures before the next one comes
constexpr int64_t kStretchBytes = 1 << 14;  // of signatures: half of a first-level cache
constexpr int64_t kCrowd = 16 * kRows;      // candidates that share a block of products
constexpr int64_t kBlock = 128;             // behaviours of a block of products; a multiple of kWidth
constexpr int64_t kTile = 16;               // behaviours turned together
constexpr int64_t kNone = -1;

// Some candidates of one request.
struct Piece {
  int64_t request, first, last;
};

std::vector<Piece> pieces_of(const SearchShape& s, int64_t candidates) {
  std::vector<Piece> pieces;
  for (int64_t b = 0; b < s.requests; ++b)
    for (int64_t c = s.query_offsets[b]; c < s.query_offsets[b + 1]; c += candidates)
      pieces.push_back({b, c, std::min(c + candidates, s.query_offsets[b + 1])});
  return pieces;
}

std::vector<int64_t> costs_of(const SearchShape& s, const std::vector<Piece>& pieces) {
  std::vector<int64_t> costs;
  for (const Piece& p : pieces)
    costs.push_back((p.last - p.first) * (s.key_offsets[p.request + 1] - s.key_offsets[p.request] + 64));
  return costs;
}

inline int64_t ones(uint64_t x) {
#if defined(__POPCNT__) || defined(__aarch64__)
  return __builtin_popcountll(x);
#else
  x -= (x >> 1) & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int64_t>((x * 0x0101010101010101u) >> 56);
#endif
}

// Distances of one candidate to a row, the oldest behaviour first: bytes where the signatures are short enough.
template <typename Small>
struct Distances {
  typedef Small SmallVec __attribute__((vector_size(kBytes), aligned(sizeof(Small)), may_alias));
  static constexpr int64_t kSmalls = kBytes / sizeof(Small);         // numbers of a vector
  static constexpr int64_t kLanes = 8 / sizeof(Small);               // numbers of 64 bits
  static constexpr int64_t kBits = 8 * sizeof(Small);
  static constexpr int64_t kLimit = std::numeric_limits<Small>::max();

  std::vector<Small> of;

  // `words` of a signature are known when it is compiled for short ones, W; 0 is any number.
  template <int W>
  void measure(const int64_t* code, const int64_t* keys, int64_t words, int64_t first, int64_t last) {
    Small* to = of.data();
    for (int64_t j = first; j < last; ++j) {
      int64_t total = 0;
      for (int64_t w = 0; w < (W ? W : words); ++w)
        total += ones(static_cast<uint64_t>(code[w] ^ keys[j * (W ? W : words) + w]));
      to[j] = static_cast<Small>(total);
    }
  }

  int64_t at_most(int64_t length, int64_t bound) const {
    const SmallVec wanted = SmallVec{} + static_cast<Small>(bound);
    int64_t total = 0, j = 0;
    while (j + kSmalls <= length) {
      const int64_t end = std::min(j + kLimit * kSmalls, length - kSmalls + 1);
      SmallVec counts{};  // a lane may count to kLimit
      for (; j < end; j += kSmalls)
        counts -= reinterpret_cast<SmallVec>(*reinterpret_cast<const SmallVec*>(of.data() + j) <= wanted);
      for (int64_t i = 0; i < kSmalls; ++i) total += counts[i];
    }
    for (; j < length; ++j) total += of[j] <= bound;
    return total;
  }

  // The least bound that `k` of the behaviours keep, `widest` without that many.
  int64_t bound_of(int64_t length, int64_t k, int64_t widest) const {
    if (length <= k) return widest;
    int64_t low = 0, high = widest;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (at_most(length, middle) >= k)
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }

  void nearest(int64_t length, int64_t start, int64_t k, int64_t widest, int64_t* positions, int64_t* distances) {
    const int64_t bound = bound_of(length, k, widest);
    std::vector<int64_t> places(bound + 2, 0);  // where the next behaviour at a distance goes
    int64_t spare = std::min(k, length) - (bound ? at_most(length, bound - 1) : 0);  // room for those at the bound
    int64_t limit = spare ? bound : bound - 1, found = 0;
    std::vector<int64_t> met(std::min(k, length));
    const auto take = [&](int64_t j) {
      const int64_t distance = of[j];
      if (distance > limit) return;
      if (distance == bound && --spare == 0) --limit;
      met[found++] = j;
      ++places[distance + 1];
    };
    int64_t j = length;
    for (; j % kSmalls; --j) take(j - 1);
    while (j && limit >= 0) {
      const SmallVec wanted = SmallVec{} + static_cast<Small>(limit);
      for (; j; j -= kSmalls) {
        const auto hit = *reinterpret_cast<const SmallVec*>(of.data() + j - kSmalls) <= wanted;
        uint64_t lanes[kBytes / 8], any = 0;
        std::memcpy(lanes, &hit, sizeof(lanes));
        for (uint64_t lane : lanes) any |= lane;
        if (!any) continue;
        const int64_t before = limit;
        for (int64_t l = kBytes / 8; l-- > 0;)
          for (uint64_t lane = lanes[l]; lane;) {  // all bits of a number that is a hit are set
            const int64_t i = (63 - __builtin_clzll(lane)) / kBits;
            take(j - kSmalls + l * kLanes + i);
            lane &= ~(~uint64_t{0} << (i * kBits));
          }
        if (limit != before) {
          j -= kSmalls;
          break;
        }
      }
    }
    for (int64_t d = 0; d <= bound; ++d) places[d + 1] += places[d];
    for (int64_t i = 0; i < found; ++i) {
      const int64_t place = places[of[met[i]]]++;
      positions[place] = start + met[i];
      distances[place] = of[met[i]];
    }
    std::fill(positions + found, positions + k, kNone);
    std::fill(distances + found, distances + k, kNone);
  }
};

template <int W, typename Small>
void search_codes(const SearchShape& s, const int64_t* query, const int64_t* key, int64_t* positions,
                  int64_t* distances) {
  const int64_t words = s.width, stretch = std::max<int64_t>(1, kStretchBytes / (8 * std::max<int64_t>(words, 1)));
  const std::vector<Piece> pieces = pieces_of(s, kTogether);
  in_parts(costs_of(s, pieces), s.threads, [&](int64_t from, int64_t to) {
    Distances<Small> rows[kTogether];
    for (int64_t p = from; p < to; ++p) {
      const Piece& piece = pieces[p];
      const int64_t start = s.key_offsets[piece.request], length = s.key_offsets[piece.request + 1] - start;
      for (auto& row : rows) row.of.resize(std::max<int64_t>(length, row.of.size()));
      for (int64_t j = 0; j < length; j += stretch)
        for (int64_t c = piece.first; c < piece.last; ++c)
          rows[c - piece.first].template measure<W>(query + c * words, key + start * words, words, j,
                                                    std::min(j + stretch, length));
      for (int64_t c = piece.first; c < piece.last; ++c)
        rows[c - piece.first].nearest(length, start, s.k, 64 * words, positions + c * s.k, distances + c * s.k);
    }
  });
}

// A product and its behaviour in one number that is larger for what comes first: the product in the order of floats,
// then the newer behaviour.
inline int64_t rank_of(float product, int64_t position) {
  const float known = product == product ? product + 0.0f : -std::numeric_limits<float>::infinity();  // -0 equals 0
  int32_t bits;
  std::memcpy(&bits, &known, sizeof(bits));
  bits ^= (bits >> 31) & 0x7fffffff;
  return static_cast<int64_t>(static_cast<uint64_t>(static_cast<int64_t>(bits)) << 32 | static_cast<uint64_t>(position));
}

inline float product_of(int64_t rank) {
  int32_t bits = static_cast<int32_t>(rank >> 32);
  bits ^= (bits >> 31) & 0x7fffffff;
  float product;
  std::memcpy(&product, &bits, sizeof(product));
  return product;
}

// One bit for each number of a vector that is above `bound`, the first one lowest.
inline uint32_t above(const float* numbers, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(numbers), _mm512_set1_ps(bound), _CMP_GT_OQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(numbers), _mm256_set1_ps(bound), _CMP_GT_OQ));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= static_cast<uint32_t>(numbers[i] > bound) << i;
  return bits;
#endif
}

// Turns `count` behaviours, the newest, at `newest`, first: (dim, kBlock). Tiles are as wide as a cache line.
inline void turn(const float* key, int64_t dim, int64_t newest, int64_t count, float* turned) {
  for (int64_t i = 0; i < count; i += kTile) {
    const int64_t here = std::min(kTile, count - i);
    const float* from = key + (newest - i) * dim;
    for (int64_t d = 0; d < dim; ++d)
      for (int64_t t = 0; t < here; ++t) turned[d * kBlock + i + t] = from[d - t * dim];
  }
}

// The best of one candidate so far, some more than k: they are thinned out when the space is full. Then an older
// behaviour must be above the k-th of them.
struct Largest {
  int64_t k, found = 0;
  bool full = false;
  float bound = 0.0f;
  std::vector<int64_t> ranks;

  explicit Largest(int64_t wanted) : k(wanted), ranks(2 * wanted + 2 * kWidth) {}

  // Products of `count` behaviours, the newest, at `newest`, first.
  void meet(const float* products, int64_t count, int64_t newest) {
    for (int64_t i = 0; i < count; i += kWidth) {
      const int64_t here = std::min<int64_t>(kWidth, count - i);
      uint32_t wanted = (uint32_t{1} << here) - 1;
      if (full) wanted &= above(products + i, bound);
      for (; wanted; wanted &= wanted - 1) {
        const int64_t j = i + __builtin_ctz(wanted);
        ranks[found++] = rank_of(products[j], newest - j);
      }
      if (found + kWidth > static_cast<int64_t>(ranks.size())) thin();
    }
  }

  void thin() {
    std::nth_element(ranks.begin(), ranks.begin() + k - 1, ranks.begin() + found, std::greater<int64_t>());
    found = k;
    full = true;
    bound = product_of(ranks[k - 1]);
  }

  void write(int64_t* positions, float* products) {
    if (found > k) thin();
    std::sort(ranks.begin(), ranks.begin() + found, std::greater<int64_t>());
    const int64_t kept = std::min(k, found);
    for (int64_t i = 0; i < kept; ++i) {
      positions[i] = ranks[i] & 0xffffffff;
      products[i] = product_of(ranks[i]);
    }
    std::fill(positions + kept, positions + k, kNone);
    std::fill(products + kept, products + k, -std::numeric_limits<float>::infinity());
  }
};

}  // namespace

extern "C" {

void sostenuto_hamming_top_k(const SearchShape* shape, const int64_t* query, const int64_t* key, int64_t* positions,
                             int64_t* distances) {
  const SearchShape& s = *shape;
  if (s.width == 1) return search_codes<1, uint8_t>(s, query, key, positions, distances);
  if (s.width == 2) return search_codes<2, uint8_t>(s, query, key, positions, distances);
  if (s.width < 1000) return search_codes<0, uint16_t>(s, query, key, positions, distances);
  search_codes<0, uint32_t>(s, query, key, positions, distances);
}

void sostenuto_product_top_k(const SearchShape* shape, const float* query, const float* key, int64_t* positions,
                             float* products) {
  const SearchShape& s = *shape;
  const int64_t dim = s.width;
  const std::vector<Piece> pieces = pieces_of(s, kCrowd);
  in_parts(costs_of(s, pieces), s.threads, [&](int64_t from, int64_t to) {
    std::vector<float> turned(dim * kBlock), found(kCrowd * kBlock);
    for (int64_t p = from; p < to; ++p) {
      const Piece& piece = pieces[p];
      const int64_t first = s.key_offsets[piece.request], rows = piece.last - piece.first;
      std::vector<Largest> largest(rows, Largest(s.k));
      for (int64_t j = s.key_offsets[piece.request + 1]; j > first; j -= kBlock) {
        const int64_t count = std::min(kBlock, j - first);
        turn(key, dim, j - 1, count, turned.data());
        std::fill(found.begin(), found.begin() + rows * kBlock, 0.0f);
        // columns behind `count` hold an older block: they are multiplied and never read
        add_product(rows, kBlock, dim, query + piece.first * dim, dim, 1, turned.data(), kBlock, found.data(), kBlock);
        for (int64_t c = 0; c < rows; ++c) largest[c].meet(found.data() + c * kBlock, count, j - 1);
      }
      for (int64_t c = 0; c < rows; ++c)
        largest[c].write(positions + (piece.first + c) * s.k, products + (piece.first + c) * s.k);
    }
  });
}
}
