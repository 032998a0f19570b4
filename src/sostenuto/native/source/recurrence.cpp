// Gated recurrent states along jagged rows, forward and backward, for the cells of ops/recurrence.py.
//
// Rows that are about equally long are worked off side by side, a tile at a time: a step is one small matrix product
// for all states of the tile and one pass over its gates, vectorised over units. Rows that end drop out of the tile.
// The candidates of a request share its inputs; nothing of the size (pairs, units) is ever made. The backward pass goes
// over a row in stretches of K steps from the last to the first, starts each from a state that the forward pass kept,
// and makes the gates of the stretch anew: 1 / K of the states is what training holds.

#include <algorithm>
#include <numeric>

#include "attention.h"  // Buffer
#include "interface.h"
#include "parallel.h"
#include "vectors.h"

namespace {

constexpr int64_t kTile = 12;       // rows side by side; whole tiles of the matrix product on every processor
constexpr int64_t kSumParts = 8;    // sums of the shared weights, whatever the threads: these change no bit of them

enum Cell : int64_t { kPlain, kAugru, kReleased, kAgru, kAigru };

// One row of states: a candidate and the steps of its request.
struct Track {
  int64_t number, step0, length, pair0, kept0;
};

struct Tracks {
  std::vector<Track> all;
  std::vector<int64_t> begin{0};  // (B + 1,)
  int64_t kept = 0;

  explicit Tracks(const RecurrenceShape& s) {
    all.reserve(s.candidates);
    int64_t pairs = 0;
    for (int64_t b = 0; b < s.requests; ++b) {
      const int64_t length = s.key_offsets[b + 1] - s.key_offsets[b];
      for (int64_t c = s.query_offsets[b]; c < s.query_offsets[b + 1]; ++c) {
        all.push_back({c, s.key_offsets[b], length, pairs, kept});
        pairs += length;
        kept += length ? (length - 1) / s.every : 0;
      }
      begin.push_back(static_cast<int64_t>(all.size()));
    }
  }

  // Those from first to last, longest first.
  std::vector<Track> sorted(int64_t first, int64_t last) const {
    std::vector<Track> some(all.begin() + first, all.begin() + last);
    std::stable_sort(some.begin(), some.end(), [](const Track& a, const Track& b) { return a.length > b.length; });
    return some;
  }
};

inline Vec magnitude(Vec x) { return x > Vec{} ? x : -x; }
inline Vec sigmoid(Vec x) {
  const Vec e = exp_of_negative(-magnitude(x)), share = spread(1.0f) / (spread(1.0f) + e);
  return x > Vec{} ? share : e * share;
}
inline Vec hyperbolic_tangent(Vec x) {
  const Vec e = exp_of_negative(spread(-2.0f) * magnitude(x));
  const Vec found = (spread(1.0f) - e) / (spread(1.0f) + e);
  return x > Vec{} ? found : -found;
}

// What share of the new content a state takes on.
template <int64_t C>
inline Vec share_of(Vec u, Vec a) {
  if constexpr (C == kAugru) return a * u;
  if constexpr (C == kReleased) return u + a * (spread(1.0f) - u);
  if constexpr (C == kAgru) return a;
  return u;
}

// Weights as the products want them.
struct Weights {
  int64_t units, wide;  // H, 3 H
  std::vector<float> turned;  // (H, 3 H)
  const float *weight, *bias;

  Weights(const RecurrenceShape& s, const RecurrenceInputs& in)
      : units(s.units), wide(3 * s.units), turned(s.units * 3 * s.units), weight(in.weight), bias(in.bias) {
    for (int64_t g = 0; g < wide; ++g)
      for (int64_t k = 0; k < units; ++k) turned[k * wide + g] = in.weight[g * units + k];
  }
};

// products (rows, 3 H) = states (rows, H) . U, with the bias of update and reset
inline void multiply_states(const Weights& w, int64_t rows, const float* states, float* products) {
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(w.bias, 2 * w.units, products + r * w.wide);
    std::fill_n(products + r * w.wide + 2 * w.units, w.units, 0.0f);
  }
  add_product(rows, w.wide, w.units, states, w.units, 1, w.turned.data(), w.wide, products, w.wide);
}

// One step of one row. `products` (3 H) becomes update, reset and the product of the candidate, with Keeps; `content`
// (H) the candidate.
template <int64_t C, bool Keeps>
inline void step(const Weights& w, const float* x, float attention, float* products, float* content, float* state) {
  const int64_t H = w.units;
  const Vec a = spread(attention), one = spread(1.0f);
  for (int64_t h = 0; h < H; h += kWidth) {
    const auto in = [&](int64_t gate) {
      const Vec found = load(x + gate * H + h);
      return C == kAigru ? a * found : found;
    };
    Vec u = Vec{};
    if constexpr (C != kAgru) u = sigmoid(in(0) + load(products + h));
    const Vec r = sigmoid(in(1) + load(products + H + h)), q = load(products + 2 * H + h);
    const Vec c = hyperbolic_tangent(in(2) + load(w.bias + 2 * H + h) + r * q);
    const Vec share = share_of<C>(u, a);
    store(state + h, (one - share) * load(state + h) + share * c);
    if constexpr (Keeps) {
      store(products + h, u);
      store(products + H + h, r);
      store(content + h, c);
    }
  }
}

// The same step back: `d` (H) is of the state behind it and becomes the part of the state before it that passed by the
// products; `products` become gradients of the products, `content` that of the candidate before its activation.
// Returns the gradient of the attention.
template <int64_t C>
inline float step_back(const Weights& w, const float* x, float attention, const float* before, float* products,
                       float* content, float* d, float* d_x) {
  const int64_t H = w.units;
  const Vec a = spread(attention), one = spread(1.0f);
  Vec d_attention = {};
  for (int64_t h = 0; h < H; h += kWidth) {
    const Vec u = load(products + h), r = load(products + H + h), q = load(products + 2 * H + h);
    const Vec c = load(content + h), up = load(d + h);
    const Vec share = share_of<C>(u, a), d_share = up * (c - load(before + h));
    Vec d_u = d_share;
    if constexpr (C == kAugru) d_u = a * d_share, d_attention += u * d_share;
    if constexpr (C == kReleased) d_u = (one - a) * d_share, d_attention += (one - u) * d_share;
    if constexpr (C == kAgru) d_u = Vec{}, d_attention += d_share;
    const Vec d_c = up * share * (one - c * c);
    const Vec gate_u = d_u * u * (one - u), gate_r = d_c * q * r * (one - r);
    store(d + h, up * (one - share));
    store(products + h, gate_u);
    store(products + H + h, gate_r);
    store(products + 2 * H + h, d_c * r);
    store(content + h, d_c);
    const Vec gates[3] = {gate_u, gate_r, d_c};
    for (int g = 0; g < 3; ++g) {
      if constexpr (C == kAigru) {
        d_attention += load(x + g * H + h) * gates[g];
        store(d_x + g * H + h, load(d_x + g * H + h) + a * gates[g]);
      } else {
        store(d_x + g * H + h, load(d_x + g * H + h) + gates[g]);
      }
    }
  }
  return C == kPlain ? 0.0f : sum(d_attention);
}

struct Tile {
  const Track* tracks;
  int64_t count;

  // How many rows have a step t; tracks are sorted.
  int64_t active(int64_t t) const {
    int64_t rows = count;
    while (rows && tracks[rows - 1].length <= t) --rows;
    return rows;
  }
};

inline float attention_at(const RecurrenceInputs& in, const Track& track, int64_t t) {
  return in.attention ? in.attention[track.pair0 + t] : 1.0f;
}

inline void first_states(const RecurrenceInputs& in, const Tile& tile, int64_t units, float* states) {
  for (int64_t i = 0; i < tile.count; ++i) {
    if (in.initial) {
      std::copy_n(in.initial + tile.tracks[i].number * units, units, states + i * units);
    } else {
      std::fill_n(states + i * units, units, 0.0f);
    }
  }
}

template <int64_t C>
void forward_tile(const RecurrenceShape& s, const RecurrenceInputs& in, const RecurrenceOutputs& out,
                  const Weights& w, const Tile& tile, Buffer& space) {
  const int64_t H = s.units, length = tile.tracks[0].length;
  float* states = space.at(kTile * (H + w.wide));
  float* products = states + kTile * H;
  first_states(in, tile, H, states);
  for (int64_t t = 0; t < length; ++t) {
    const int64_t rows = tile.active(t);
    if (out.kept && t && t % s.every == 0)
      for (int64_t i = 0; i < rows; ++i)
        std::copy_n(states + i * H, H, out.kept + (tile.tracks[i].kept0 + t / s.every - 1) * H);
    multiply_states(w, rows, states, products);
    for (int64_t i = 0; i < rows; ++i) {
      const Track& track = tile.tracks[i];
      const int64_t at = track.step0 + t;
      step<C, false>(w, in.inputs + at * w.wide, attention_at(in, track, t), products + i * w.wide, nullptr,
                     states + i * H);
      if (out.states) std::copy_n(states + i * H, H, out.states + at * H);
    }
  }
  for (int64_t i = 0; i < tile.count; ++i) std::copy_n(states + i * H, H, out.last + tile.tracks[i].number * H);
}

// Sums for the shared weights: a stretch in float32, stretches in float64.
struct Sums {
  std::vector<double> weight, bias;
  std::vector<float> recent;

  explicit Sums(int64_t units) : weight(3 * units * units), bias(3 * units), recent(3 * units * units) {}

  void add(const Sums& other) {
    for (size_t i = 0; i < weight.size(); ++i) weight[i] += other.weight[i];
    for (size_t i = 0; i < bias.size(); ++i) bias[i] += other.bias[i];
  }
};

template <int64_t C>
void backward_tile(const RecurrenceShape& s, const RecurrenceInputs& in, const RecurrenceGradients& g,
                   const Weights& w, const Tile& tile, Buffer& space, Sums& sums) {
  const int64_t H = s.units, length = tile.tracks[0].length, most = kTile * s.every;
  float* states = space.at(kTile * 2 * H + most * (2 * H + w.wide));
  float* d = states + kTile * H;
  float* before = d + kTile * H;        // packed rows of a stretch: the state before each step
  float* content = before + most * H;
  float* products = content + most * H;
  for (int64_t i = 0; i < tile.count; ++i) {
    if (g.d_last) {
      std::copy_n(g.d_last + tile.tracks[i].number * H, H, d + i * H);
    } else {
      std::fill_n(d + i * H, H, 0.0f);
    }
  }
  std::vector<int64_t> starts(s.every + 1);
  for (int64_t begin = length ? (length - 1) / s.every * s.every : -1; begin >= 0; begin -= s.every) {
    const int64_t end = std::min(begin + s.every, length);
    if (begin == 0) {
      first_states(in, tile, H, states);
    } else {
      const int64_t rows = tile.active(begin);
      for (int64_t i = 0; i < rows; ++i) {
        const Track& track = tile.tracks[i];
        const float* from = g.states ? g.states + (track.step0 + begin - 1) * H
                                     : g.kept + (track.kept0 + begin / s.every - 1) * H;
        std::copy_n(from, H, states + i * H);
      }
    }
    int64_t packed = 0;
    for (int64_t t = begin; t < end; ++t) {  // once more forward
      const int64_t rows = tile.active(t);
      starts[t - begin] = packed;
      std::copy_n(states, rows * H, before + packed * H);
      multiply_states(w, rows, states, products + packed * w.wide);
      for (int64_t i = 0; i < rows; ++i) {
        const Track& track = tile.tracks[i];
        step<C, true>(w, in.inputs + (track.step0 + t) * w.wide, attention_at(in, track, t),
                      products + (packed + i) * w.wide, content + (packed + i) * H, states + i * H);
      }
      packed += rows;
    }
    starts[end - begin] = packed;
    for (int64_t t = end - 1; t >= begin; --t) {
      const int64_t first = starts[t - begin], rows = starts[t - begin + 1] - first;
      for (int64_t i = 0; i < rows; ++i) {
        const Track& track = tile.tracks[i];
        const int64_t at = track.step0 + t;
        if (g.d_states)
          for (int64_t h = 0; h < H; ++h) d[i * H + h] += g.d_states[at * H + h];
        const float found = step_back<C>(w, in.inputs + at * w.wide, attention_at(in, track, t),
                                         before + (first + i) * H, products + (first + i) * w.wide,
                                         content + (first + i) * H, d + i * H, g.d_inputs + at * w.wide);
        if (g.d_attention) g.d_attention[track.pair0 + t] = found;
      }
      add_product(rows, H, w.wide, products + first * w.wide, w.wide, 1, w.weight, H, d, H);
    }
    std::fill(sums.recent.begin(), sums.recent.end(), 0.0f);
    add_product(w.wide, H, packed, products, 1, w.wide, before, H, sums.recent.data(), H);
    for (size_t i = 0; i < sums.weight.size(); ++i) sums.weight[i] += sums.recent[i];
    for (int64_t r = 0; r < packed; ++r) {
      for (int64_t h = 0; h < 2 * H; ++h) sums.bias[h] += products[r * w.wide + h];
      for (int64_t h = 0; h < H; ++h) sums.bias[2 * H + h] += content[r * H + h];
    }
  }
  if (g.d_initial)
    for (int64_t i = 0; i < tile.count; ++i) std::copy_n(d + i * H, H, g.d_initial + tile.tracks[i].number * H);
}

template <typename Work>
void in_tiles(const std::vector<Track>& tracks, const Work& work) {
  const int64_t count = static_cast<int64_t>(tracks.size());
  for (int64_t i = 0; i < count; i += kTile) work(Tile{tracks.data() + i, std::min(kTile, count - i)});
}

using Forward = decltype(&forward_tile<kPlain>);
using Backward = decltype(&backward_tile<kPlain>);
constexpr Forward kForward[] = {forward_tile<kPlain>, forward_tile<kAugru>, forward_tile<kReleased>,
                                forward_tile<kAgru>, forward_tile<kAigru>};
constexpr Backward kBackward[] = {backward_tile<kPlain>, backward_tile<kAugru>, backward_tile<kReleased>,
                                  backward_tile<kAgru>, backward_tile<kAigru>};

}  // namespace

extern "C" {

int64_t sostenuto_recurrence_kept(const RecurrenceShape* shape) {
  const auto rises = [&](const int64_t* offsets, int64_t rows) {
    bool good = offsets[0] == 0 && offsets[shape->requests] == rows;
    for (int64_t b = 0; b < shape->requests; ++b) good = good && offsets[b] <= offsets[b + 1];
    return good;
  };
  if (!rises(shape->query_offsets, shape->candidates)) return -1;
  if (!rises(shape->key_offsets, shape->steps)) return -2;
  int64_t kept = 0;
  for (int64_t b = 0; b < shape->requests; ++b) {
    const int64_t length = shape->key_offsets[b + 1] - shape->key_offsets[b];
    if (length) kept += (shape->query_offsets[b + 1] - shape->query_offsets[b]) * ((length - 1) / shape->every);
  }
  return kept;
}

void sostenuto_recurrence_forward(const RecurrenceShape* shape, const RecurrenceInputs* in,
                                  const RecurrenceOutputs* out) {
  const Weights w(*shape, *in);
  const Tracks tracks(*shape);
  std::vector<int64_t> costs;
  for (const Track& track : tracks.all) costs.push_back(track.length + 1);
  in_parts(costs, shape->threads, [&](int64_t first, int64_t last) {
    Buffer space;
    in_tiles(tracks.sorted(first, last),
             [&](const Tile& tile) { kForward[shape->cell](*shape, *in, *out, w, tile, space); });
  });
}

void sostenuto_recurrence_backward(const RecurrenceShape* shape, const RecurrenceInputs* in,
                                   const RecurrenceGradients* grads) {
  const Weights w(*shape, *in);
  const Tracks tracks(*shape);
  std::vector<int64_t> costs;
  for (int64_t b = 0; b < shape->requests; ++b)
    costs.push_back((tracks.begin[b + 1] - tracks.begin[b]) * (shape->key_offsets[b + 1] - shape->key_offsets[b]) + 1);
  const std::vector<int64_t> bounds = cut(costs, kSumParts);
  const int64_t number = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<Sums> parts(number, Sums(shape->units));
  in_even_parts(number, shape->threads, [&](int64_t first, int64_t last) {
    Buffer space;
    for (int64_t part = first; part < last; ++part)
      in_tiles(tracks.sorted(tracks.begin[bounds[part]], tracks.begin[bounds[part + 1]]), [&](const Tile& tile) {
        kBackward[shape->cell](*shape, *in, *grads, w, tile, space, parts[part]);
      });
  });
  for (int64_t part = 1; part < number; ++part) parts[0].add(parts[part]);
  const Sums& found = parts[0];
  for (size_t i = 0; i < found.weight.size(); ++i) grads->d_weight[i] = static_cast<float>(found.weight[i]);
  for (size_t i = 0; i < found.bias.size(); ++i) grads->d_bias[i] = static_cast<float>(found.bias[i]);
}
}
