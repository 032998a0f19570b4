// The backward pass of target attention, from the signs of the hidden layer that the forward pass kept.
//
// With b_cjh the bit of a pair and unit, and ds the gradient of the scores,
//
//   S_ch   = sum_j b_cjh ds_cj k_j            gives the gradients of A, P, q_c and of `above`,
//   d_k_j  = sum_c ds_cj (sum_h b_cjh T_ch + U_c)   where T and U are rows of the first layer times the readout,
//
// and both are sums over subsets of fixed rows. Rows are taken in fours, the 16 sums of the subsets of four are written
// down once, and four bits look one up: a quarter of the additions of a product with 0 and 1, and no multiplications.

#include <type_traits>

#include "attention.h"

namespace {

// Weights for the backward pass, a row per unit, units padded to fours and columns to whole vectors.
struct Turned {
  int64_t fours;                    // groups of four units
  std::vector<float> key, product;  // times what the readout gains above 0
  std::vector<float> below_key, below_product;  // sums of the rows times the readout below 0

  Turned(const Layout& to, const AttentionInputs& in)
      : fours((to.units + 3) / 4), key(4 * fours * to.deep), product(4 * fours * to.deep), below_key(to.deep),
        below_product(to.deep) {
    for (int64_t h = 0; h < to.units; ++h) {
      const float gain = to.above[h] - to.below[h];
      for (int64_t d = 0; d < to.dim; ++d) {
        key[h * to.deep + d] = gain * in.w_key[h * to.dim + d];
        product[h * to.deep + d] = gain * in.w_product[h * to.dim + d];
        below_key[d] += to.below[h] * in.w_key[h * to.dim + d];
        below_product[d] += to.below[h] * in.w_product[h * to.dim + d];
      }
    }
  }
};

// Sums of which the last few terms are still in float32.
struct Sums {
  std::vector<double> whole;
  std::vector<float> recent;

  explicit Sums(int64_t count) : whole(count), recent(count) {}

  void flush() {
    for (size_t i = 0; i < whole.size(); ++i) whole[i] += recent[i];
    std::fill(recent.begin(), recent.end(), 0.0f);
  }
  void add(const Sums& other) {
    for (size_t i = 0; i < whole.size(); ++i) whole[i] += other.whole[i];
  }
};

// What is added up for the shared weights. Row H of `key` and `product` is for a unit that is always above 0.
struct Shared {
  Sums key, product;  // (H + 1, deep)
  Sums above, all;    // (H,) what the readout met above 0, and everywhere; without the part of `key` and `product`
  int64_t stretches = 0;
  double bias = 0.0;

  explicit Shared(const Layout& to)
      : key((to.units + 1) * to.deep), product((to.units + 1) * to.deep), above(to.units), all(to.units) {}

  void flush() {
    for (Sums* sums : {&key, &product, &above, &all}) sums->flush();
    stretches = 0;
  }
  void add(const Shared& other) {
    bias += other.bias;
    key.add(other.key);
    product.add(other.product);
    above.add(other.above);
    all.add(other.all);
  }
};

// Turn gradients of the weights of the sum into gradients of the scores.
void before_normalising(int64_t kind, int64_t length, const float* weights, float* d) {
  if (kind == 2) {
    const float share = 1.0f / std::sqrt(static_cast<float>(length));
    for (int64_t j = 0; j < length; ++j) d[j] *= share;
  } else if (kind == 1) {
    double mean = 0.0;
    for (int64_t j = 0; j < length; ++j) mean += static_cast<double>(weights[j]) * d[j];
    const float shift = static_cast<float>(mean);
    for (int64_t j = 0; j < length; ++j) d[j] = weights[j] * (d[j] - shift);
  }
}

// Call work(std::integral_constant<int, N>, d) for runs of N vectors of columns.
template <typename Work>
inline void in_slices(int64_t deep, const Work& work) {
  int64_t d = 0;
  for (; d + kSlices * kWidth <= deep; d += kSlices * kWidth) work(std::integral_constant<int, kSlices>{}, d);
  if (kSlices > 2 && d + 2 * kWidth <= deep) {
    work(std::integral_constant<int, 2>{}, d);
    d += 2 * kWidth;
  }
  if (d < deep) work(std::integral_constant<int, 1>{}, d);
}

// The sums of all 16 subsets of four rows of N vectors.
template <int N>
inline void write_subsets(const Vec (&row)[4][N], float* table) {
  for (int n = 0; n < N; ++n) {
    const Vec low[4] = {Vec{}, row[0][n], row[1][n], row[0][n] + row[1][n]};
    const Vec high[4] = {Vec{}, row[2][n], row[3][n], row[2][n] + row[3][n]};
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 4; ++k) store(table + ((4 * i + k) * N + n) * kWidth, i ? high[i] + low[k] : low[k]);
  }
}

// Add the sums that the 4 Groups low bits name: of even and odd fours apart, to shorten the chains of additions.
template <int N, int Groups>
inline __attribute__((always_inline)) void add_subsets(uint64_t bits, const float* table, Vec (&even)[N],
                                                       Vec (&odd)[N]) {
  constexpr int kShift = __builtin_ctz(N * sizeof(Vec));  // bytes of an entry: one `and` makes an address
  const char* bytes = reinterpret_cast<const char*>(table);
#pragma GCC unroll 16
  for (int g = 0; g < Groups; ++g) {
    const uint64_t at = (4 * g < kShift ? bits << (kShift - 4 * g) : bits >> (4 * g - kShift)) & (15 << kShift);
    const float* entry = reinterpret_cast<const float*>(bytes + at) + 16 * g * N * kWidth;
    for (int n = 0; n < N; ++n) {
      Vec& sum = g % 2 ? odd[n] : even[n];
      sum += load(entry + n * kWidth);
      settle(sum);
    }
  }
}

// The same for any number of fours; with Whole it is 16.
template <int N, bool Whole>
inline __attribute__((always_inline)) void add_some_subsets(uint64_t bits, int64_t groups, const float* table,
                                                            Vec (&even)[N], Vec (&odd)[N]) {
  if constexpr (Whole) {
    add_subsets<N, 16>(bits, table, even, odd);
  } else {
    for (; groups >= 4; groups -= 4, bits >>= 16, table += 64 * N * kWidth) add_subsets<N, 4>(bits, table, even, odd);
    for (; groups > 0; --groups, bits >>= 4, table += 16 * N * kWidth) add_subsets<N, 1>(bits, table, even, odd);
  }
}

// One step of turning 64 rows of 64 bits into their columns: squares of By bits change places.
template <int By>
inline void exchange(uint64_t* rows, uint64_t mask) {
  for (int first = 0; first < 64; first += 2 * By)
    for (int i = first; i < first + By; ++i) {
      const uint64_t changed = ((rows[i] >> By) ^ rows[i + By]) & mask;
      rows[i] ^= changed << By;
      rows[i + By] ^= changed;
    }
}

inline void transpose(uint64_t* rows) {
  exchange<32>(rows, 0x00000000FFFFFFFF);
  exchange<16>(rows, 0x0000FFFF0000FFFF);
  exchange<8>(rows, 0x00FF00FF00FF00FF);
  exchange<4>(rows, 0x0F0F0F0F0F0F0F0F);
  exchange<2>(rows, 0x3333333333333333);
  exchange<1>(rows, 0x5555555555555555);
}

struct BackwardSpace {
  Buffer d_out, d_scores, table, sums, counts, values, extra, up, all;
  std::vector<uint64_t> columns;
};

// One candidate and a run of behaviours.
struct Run {
  int64_t count;
  const float* keys;      // (count, D)
  const float* weights;   // (count,)
  const float* d_scores;  // (count,)
  const uint64_t* signs;  // (count, words)
  bool is_first;          // of the candidates: gradients of the behaviours are written, not added to
};

// d_key (count, rows of D, N vectors or `lanes` floats) from the table; Whole: 64 units and whole vectors.
template <int N, bool Whole>
inline void write_key_gradients(const Layout& to, const Turned& turned, const Run& run, const Vec (&start)[N],
                                const Vec (&up)[N], bool with_key, int64_t lanes, const float* table, float* d_key) {
  const int64_t words = Whole ? 1 : to.words;
  for (int64_t j = 0; j < run.count; ++j) {
    Vec even[N], odd[N];
    for (int n = 0; n < N; ++n) even[n] = start[n], odd[n] = Vec{};
    for (int64_t w = 0; w < words; ++w)
      add_some_subsets<N, Whole>(run.signs[j * words + w], std::min<int64_t>(16, turned.fours - 16 * w),
                                 table + w * 256 * N * kWidth, even, odd);
    const Vec ds = spread(run.d_scores[j]), weight = spread(run.weights[j]);
    float* found = d_key + j * to.dim;
    for (int n = 0; n < N; ++n) {
      const int64_t part = Whole ? kWidth : std::min<int64_t>(kWidth, lanes - n * kWidth);
      Vec total = ds * (even[n] + odd[n]);
      if (with_key) total += weight * up[n];
      if (!run.is_first) total += load_part(found + n * kWidth, part);
      store_part(found + n * kWidth, total, part);
    }
  }
}

// Gradients of N vectors of the keys, from column d on.
template <int N>
void key_gradients(const Layout& to, const Turned& turned, const Run& run, const float* query, const float* upstream,
                   int64_t d, float* table, float* d_key) {
  Vec q[N], start[N], up[N];
  const int64_t lanes = std::min<int64_t>(N * kWidth, to.dim - d);
  for (int n = 0; n < N; ++n) {
    const int64_t at = d + n * kWidth;
    q[n] = load_part(query + at, std::min<int64_t>(kWidth, to.dim - at));
    start[n] = load(&turned.below_key[at]) + q[n] * load(&turned.below_product[at]);
    up[n] = upstream ? load_part(upstream + at, std::min<int64_t>(kWidth, to.dim - at)) : Vec{};
  }
  for (int64_t g = 0; g < turned.fours; ++g) {
    Vec row[4][N];
    for (int i = 0; i < 4; ++i)
      for (int n = 0; n < N; ++n) {
        const int64_t at = (4 * g + i) * to.deep + d + n * kWidth;
        row[i][n] = load(&turned.key[at]) + q[n] * load(&turned.product[at]);
      }
    write_subsets<N>(row, table + g * 16 * N * kWidth);
  }
  if (turned.fours == 16 && lanes == N * kWidth) {
    write_key_gradients<N, true>(to, turned, run, start, up, upstream != nullptr, lanes, table, d_key + d);
  } else {
    write_key_gradients<N, false>(to, turned, run, start, up, upstream != nullptr, lanes, table, d_key + d);
  }
}

// Sums over up to 64 behaviours of ds k where a unit is above 0: N vectors from column d on, a row per unit.
template <int N>
void unit_sums(const Layout& to, const Run& run, int64_t first, int64_t count, const uint64_t* columns, int64_t d,
               float* table, float* sums) {
  const int64_t lanes = std::min<int64_t>(N * kWidth, to.dim - d), groups = (count + 3) / 4;
  for (int64_t g = 0; g < groups; ++g) {
    Vec row[4][N];
    for (int i = 0; i < 4; ++i) {
      const int64_t j = first + std::min<int64_t>(4 * g + i, count - 1);  // beyond the end: a row whose bits are 0
      const float* key = run.keys + j * to.dim + d;
      const Vec ds = spread(run.d_scores[j]);
      for (int n = 0; n < N; ++n) {
        const int64_t part = std::min<int64_t>(kWidth, lanes - n * kWidth);
        row[i][n] = ds * (lanes == N * kWidth ? load(key + n * kWidth) : load_part(key + n * kWidth, part));
      }
    }
    write_subsets<N>(row, table + g * 16 * N * kWidth);
  }
  const auto add = [&](auto whole) {
    for (int64_t h = 0; h <= to.units; ++h) {
      Vec even[N], odd[N];
      float* found = sums + h * to.deep + d;
      for (int n = 0; n < N; ++n) even[n] = first ? load(found + n * kWidth) : Vec{}, odd[n] = Vec{};
      add_some_subsets<N, decltype(whole)::value>(columns[h], groups, table, even, odd);
      for (int n = 0; n < N; ++n) store(found + n * kWidth, even[n] + odd[n]);
    }
  };
  if (groups == 16) {
    add(std::true_type{});
  } else {
    add(std::false_type{});
  }
}

// counts (wide,) += sums over up to 64 behaviours of ds where a unit is above 0: kLog behaviours are looked up at once.
// Returns the sum over all of them.
inline float count_units(const Layout& to, const float* d_scores, int64_t count, const uint64_t* columns,
                         float* counts) {
  constexpr int kLookups = (32 + kLog - 1) / kLog;  // of half a column
  Vec lane_bits[kLog];
  for (int i = 0; i < kLog; ++i)
    for (int lane = 0; lane < kWidth; ++lane) lane_bits[i][lane] = static_cast<float>(lane >> i & 1);
  float ds[kBits + kLog] = {};
  std::copy_n(d_scores, count, ds);
  Vec all = load(ds);
  for (int64_t j = kWidth; j < kBits; j += kWidth) all += load(ds + j);
  for (int64_t half = 0; half < count; half += 32) {
    Vec tables[kLookups];
    for (int g = 0; g < kLookups; ++g) {
      const float* scores = ds + half + kLog * g;
      tables[g] = lane_bits[0] * spread(scores[0]);
      for (int i = 1; i < kLog; ++i)
        if (kLog * g + i < 32) tables[g] += lane_bits[i] * spread(scores[i]);
    }
    for (int64_t h = 0; h < to.wide; h += kWidth) {
      IntVec bits;
      for (int i = 0; i < kWidth; ++i) bits[i] = static_cast<int32_t>(columns[h + i] >> half);
      Vec total = load(counts + h);
      for (int g = 0; g < kLookups; ++g, bits = reinterpret_cast<IntVec>(reinterpret_cast<UintVec>(bits) >> kLog))
        total += looked_up(tables[g], bits);
      store(counts + h, total);
    }
  }
  return sum(all);
}

// Gradients of what else is known of up to 64 behaviours, N vectors of units from h on, and its part in those of the
// readout.
template <int N>
void extra_gradients(const Layout& to, const Rows& rows, const Run& run, int64_t first, int64_t count, int64_t h,
                     float* d_extra, float* up, float* all) {
  const int64_t lanes = std::min<int64_t>(N * kWidth, to.units - h);
  Vec positive[N], total[N];
  for (int n = 0; n < N; ++n) positive[n] = load(up + h + n * kWidth), total[n] = load(all + h + n * kWidth);
  for (int64_t r = 0; r < count; ++r) {
    const Vec ds = spread(run.d_scores[first + r]);
    const uint64_t bits = run.signs[(first + r) * to.words + h / kBits] >> (h % kBits);
    const float* extra = rows.extra + r * rows.stride + h;
    float* found = d_extra + r * to.units + h;
    for (int n = 0; n < N; ++n) {
      const Vec above = load(&to.above[h + n * kWidth]), below = load(&to.below[h + n * kWidth]);
      const Vec moved = ds * load(extra + n * kWidth);
      total[n] += moved;
      positive[n] += chosen(bits >> (n * kWidth), moved, Vec{});
      Vec gradient = ds * chosen(bits >> (n * kWidth), above, below);
      if (lanes == N * kWidth) {
        store(found + n * kWidth, run.is_first ? gradient : gradient + load(found + n * kWidth));
      } else {
        const int64_t part = std::min<int64_t>(kWidth, lanes - n * kWidth);
        if (!run.is_first) gradient += load_part(found + n * kWidth, part);
        store_part(found + n * kWidth, gradient, part);
      }
    }
  }
  for (int n = 0; n < N; ++n) store(up + h + n * kWidth, positive[n]), store(all + h + n * kWidth, total[n]);
}

// d (count,) = the values of a run of behaviours . what stands above one candidate's result
inline void weight_gradients(const SummedParts& parts, int64_t first, int64_t count, const float* upstream, float* d) {
  const auto rows_at = [&](int64_t j, auto rows_at_once) {
    constexpr int R = decltype(rows_at_once)::value;
    Vec total[R];
    for (int r = 0; r < R; ++r) total[r] = Vec{};
    for (int i = 0; i < parts.count; ++i) {
      const Summed& part = parts.part[i];
      const float* rows = part.rows + (first + j) * part.width;
      for (int64_t v = 0; v + kWidth <= part.width; v += kWidth) {
        const Vec above = load(upstream + part.column + v);
        for (int r = 0; r < R; ++r) total[r] += above * load(rows + r * part.width + v);
      }
    }
    sums_of(total, d + j);
    for (int i = 0; i < parts.count; ++i) {
      const Summed& part = parts.part[i];
      const float* rows = part.rows + (first + j) * part.width;
      for (int64_t v = part.width / kWidth * kWidth; v < part.width; ++v)
        for (int r = 0; r < R; ++r) d[j + r] += upstream[part.column + v] * rows[r * part.width + v];
    }
  };
  int64_t j = 0;
  for (; j + 8 <= count; j += 8) rows_at(j, std::integral_constant<int, 8>{});
  for (; j < count; ++j) rows_at(j, std::integral_constant<int, 1>{});
}

// Gradients of the values: weights (candidates, rows of `length`), transposed, . d_out (candidates, rows of `stride`)
inline void value_gradients(int64_t count, int64_t width, int64_t candidates, const float* weights, int64_t length,
                            const float* d_out, int64_t stride, float* d_value, Buffer& spare) {
  if (candidates == 1) {
    int64_t v = 0;
    for (; v + kWidth <= width; v += kWidth) {
      const Vec above = load(d_out + v);
      for (int64_t j = 0; j < count; ++j) store(d_value + j * width + v, spread(weights[j]) * above);
    }
    for (; v < width; ++v)
      for (int64_t j = 0; j < count; ++j) d_value[j * width + v] = weights[j] * d_out[v];
    return;
  }
  const int64_t broad = padded(width);
  float* space = spare.at((candidates + kBlock) * broad);
  float* upstream = space + kBlock * broad;
  for (int64_t c = 0; c < candidates; ++c) {
    std::copy_n(d_out + c * stride, width, upstream + c * broad);
    std::fill(upstream + c * broad + width, upstream + (c + 1) * broad, 0.0f);
  }
  for (int64_t j = 0; j < count; j += kBlock) {
    const int64_t rows = std::min(kBlock, count - j);
    float* to = broad == width ? d_value + j * width : space;
    std::fill(to, to + rows * broad, 0.0f);
    add_product(rows, broad, candidates, weights + j, 1, length, upstream, broad, to, broad);
    if (to == space)
      for (int64_t r = 0; r < rows; ++r) std::copy_n(to + r * broad, width, d_value + (j + r) * width);
  }
}

// What the sums of one candidate say of N columns of its gradient and of the shared weights.
template <int N>
inline void query_gradients(const Layout& to, const Turned& turned, const float* query, const float* sums, int64_t d,
                            bool is_first, float* d_query, Shared& shared) {
  Vec q[N], found[N];
  for (int n = 0; n < N; ++n) {
    const int64_t at = d + n * kWidth;
    q[n] = load_part(query + at, std::min<int64_t>(kWidth, to.dim - at));
    found[n] = load(&turned.below_product[at]) * load(sums + to.units * to.deep + at);
  }
  float* key = shared.key.recent.data();
  float* product = shared.product.recent.data();
  for (int64_t h = 0; h <= to.units; ++h) {
    for (int n = 0; n < N; ++n) {
      const int64_t at = h * to.deep + d + n * kWidth;
      const Vec sum = load(sums + at);
      store(key + at, load(key + at) + sum);
      store(product + at, load(product + at) + q[n] * sum);
      if (h < to.units) found[n] += load(&turned.product[at]) * sum;
    }
  }
  for (int n = 0; n < N; ++n) {
    const int64_t at = d + n * kWidth, lanes = std::min<int64_t>(kWidth, to.dim - at);
    store_part(d_query + at, is_first ? found[n] : found[n] + load_part(d_query + at, lanes), lanes);
  }
}

void backward_request(const AttentionShape& s, const AttentionInputs& in, const AttentionGradients& g,
                      const Layout& to, const Turned& turned, int64_t request, int64_t pair0, BackwardSpace& space,
                      Shared& shared) {
  const int64_t key0 = s.key_offsets[request], length = s.key_offsets[request + 1] - key0;
  const int64_t query0 = s.query_offsets[request], count = s.query_offsets[request + 1] - query0;
  if (!length || !count) {  // nothing met anything
    const auto none = [](float* to, int64_t rows, int64_t columns) { std::fill(to, to + rows * columns, 0.0f); };
    none(g.d_query + query0 * to.dim, count, to.dim);
    none(g.d_query_hidden + query0 * to.units, count, to.units);
    none(g.d_key + key0 * to.dim, length, to.dim);
    none(g.d_value + key0 * s.width, length, s.width);
    if (g.d_key_hidden) none(g.d_key_hidden + key0 * to.units, length, to.units);
    return;
  }
  const SummedParts parts(s, in);
  const float* weights = g.weights + pair0;
  const float* d_out = g.d_out + query0 * parts.width;
  float* d_scores = space.d_scores.at(count * length);
  for (int64_t j = 0; j < length; j += kBlock)
    for (int64_t c = 0; c < count; ++c)
      weight_gradients(parts, key0 + j, std::min(kBlock, length - j), d_out + c * parts.width,
                       d_scores + c * length + j);
  if (g.d_weights)
    for (int64_t i = 0; i < count * length; ++i) d_scores[i] += g.d_weights[pair0 + i];
  if (s.width)
    value_gradients(length, s.width, count, weights, length, d_out + parts.part[parts.count - 1].column, parts.width,
                    g.d_value + key0 * s.width, space.values);
  for (int64_t c = 0; c < count; ++c)
    before_normalising(s.normalise, length, weights + c * length, d_scores + c * length);

  const int64_t sums_size = (to.units + 1) * to.deep;
  float* table = space.table.at(std::max<int64_t>(16, turned.fours) * 16 * kSlices * kWidth);
  float* sums = space.sums.at(sums_size);
  float* counts = space.counts.at(to.wide);
  float* extra = space.extra.at(kBits * to.wide);
  float* up = space.up.at(to.wide);
  float* all = space.all.at(to.wide);
  space.columns.resize((to.words + 1) * kBits);
  uint64_t* columns = space.columns.data();
  for (int64_t stretch = 0; stretch < length; stretch += kStretch) {
    const int64_t rows = std::min(kStretch, length - stretch);
    for (int64_t c = 0; c < count; ++c) {
      const float* query = in.query + (query0 + c) * to.dim;
      const int64_t at = c * length + stretch;
      const Run run{rows,          in.key + (key0 + stretch) * to.dim,       weights + at, d_scores + at,
                    g.signs + (pair0 + at) * to.words, c == 0};
      const float* upstream = s.with_key ? d_out + c * parts.width : nullptr;
      float* d_key = g.d_key + (key0 + stretch) * to.dim;
      in_slices(to.deep, [&](auto slices, int64_t d) {
        key_gradients<decltype(slices)::value>(to, turned, run, query, upstream, d, table, d_key);
      });

      double total = 0.0;  // of the gradients of the scores
      std::fill(counts, counts + to.wide, 0.0f);
      std::fill(up, up + to.wide, 0.0f);
      std::fill(all, all + to.wide, 0.0f);
      for (int64_t j = 0; j < rows; j += kBits) {
        const int64_t block = std::min(kBits, rows - j);
        for (int64_t w = 0; w < to.words; ++w) {
          uint64_t* column = columns + w * kBits;
          for (int64_t r = 0; r < kBits; ++r) column[r] = r < block ? run.signs[(j + r) * to.words + w] : 0;
          transpose(column);
        }
        total += count_units(to, run.d_scores + j, block, columns, counts);
        columns[to.units] = ~uint64_t{0} >> (kBits - block);
        in_slices(to.deep, [&](auto slices, int64_t d) {
          unit_sums<decltype(slices)::value>(to, run, j, block, columns, d, table, sums);
        });
        if (in.key_hidden) {
          const Rows past = rows_from(to, in, key0 + stretch + j, block, extra);
          float* d_extra = g.d_key_hidden + (key0 + stretch + j) * to.units;
          in_slices(to.wide, [&](auto slices, int64_t h) {
            extra_gradients<decltype(slices)::value>(to, past, run, j, block, h, d_extra, up, all);
          });
        }
      }

      const float all_scores = static_cast<float>(total);
      shared.bias += total;
      float* d_query = g.d_query + (query0 + c) * to.dim;
      in_slices(to.deep, [&](auto slices, int64_t d) {
        query_gradients<decltype(slices)::value>(to, turned, query, sums, d, stretch == 0, d_query, shared);
      });
      const float* hidden = in.query_hidden + (query0 + c) * to.units;
      float* d_hidden = g.d_query_hidden + (query0 + c) * to.units;
      for (int64_t h = 0; h < to.units; ++h) {
        const float found = (to.above[h] - to.below[h]) * counts[h] + to.below[h] * all_scores;
        d_hidden[h] = stretch ? d_hidden[h] + found : found;
        shared.above.recent[h] += hidden[h] * counts[h] + up[h];
        shared.all.recent[h] += hidden[h] * all_scores + all[h];
      }
      if (++shared.stretches == kFlush) shared.flush();
    }
  }
}

}  // namespace

extern "C" {

void sostenuto_attention_backward(const AttentionShape* shape, const AttentionInputs* in,
                                  const AttentionGradients* grads) {
  const Layout to(*shape, *in);
  const Turned turned(to, *in);
  std::vector<int64_t> costs, pair_offsets{0};
  for (int64_t b = 0; b < shape->requests; ++b) {
    const int64_t count = shape->query_offsets[b + 1] - shape->query_offsets[b];
    const int64_t length = shape->key_offsets[b + 1] - shape->key_offsets[b];
    costs.push_back(count * (length + 16));
    pair_offsets.push_back(pair_offsets.back() + count * length);
  }
  // Sums of the shared weights are taken in a fixed number of parts, so that threads change no bit of them.
  const std::vector<int64_t> bounds = cut(costs, kParts);
  const int64_t number = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<int64_t> part_costs(number, 0);
  for (int64_t part = 0; part < number; ++part)
    for (int64_t b = bounds[part]; b < bounds[part + 1]; ++b) part_costs[part] += costs[b];
  std::vector<Shared> parts(number, Shared(to));
  in_parts(part_costs, shape->threads, [&](int64_t first, int64_t last) {
    BackwardSpace space;
    for (int64_t part = first; part < last; ++part) {
      for (int64_t b = bounds[part]; b < bounds[part + 1]; ++b)
        backward_request(*shape, *in, *grads, to, turned, b, pair_offsets[b], space, parts[part]);
      parts[part].flush();
    }
  });
  for (size_t part = 1; part < parts.size(); ++part) parts[0].add(parts[part]);
  const Shared& found = parts[0];
  *grads->d_bias += static_cast<float>(found.bias);
  for (int64_t h = 0; h < to.units; ++h) {
    const double below = to.below[h], gain = to.above[h] - to.below[h];
    double above = found.above.whole[h], all = found.all.whole[h];
    for (int64_t d = 0; d < to.dim; ++d) {
      const int64_t i = h * to.dim + d, of_unit = h * to.deep + d, of_all = to.units * to.deep + d;
      above += in->w_key[i] * found.key.whole[of_unit] + in->w_product[i] * found.product.whole[of_unit];
      all += in->w_key[i] * found.key.whole[of_all] + in->w_product[i] * found.product.whole[of_all];
      const std::vector<double>&of_key = found.key.whole, &of_product = found.product.whole;
      grads->d_w_key[i] += static_cast<float>(gain * of_key[of_unit] + below * of_key[of_all]);
      grads->d_w_product[i] += static_cast<float>(gain * of_product[of_unit] + below * of_product[of_all]);
    }
    grads->d_w_above[h] += static_cast<float>(above);
    grads->d_w_below[h] += static_cast<float>(all - above);
  }
}
}
