// What a user has done with each item and each kind of item: counts, last times and decayed counts of asked keys only.

#include <algorithm>
#include <cmath>
#include <vector>

#include "interface.h"

namespace {

constexpr int64_t kPerLevel = 5, kPerUser = 2;  // columns, as in features/match.py
constexpr int64_t kAtOnce = 16;                 // searches whose loads are on their way together

// Asked keys, numbered in order of appearance: open addressing, at most half full.
class Numbers {
 public:
  void clear(int64_t most) {
    bits_ = 3;
    while ((int64_t{1} << bits_) < 2 * most) ++bits_;
    places_.assign(size_t{1} << bits_, Place{0, -1});
    count_ = 0;
  }
  int64_t find(int64_t key) const { return places_[place(key)].number; }  // -1: not asked
  int64_t add(int64_t key) {
    Place& found = places_[place(key)];
    if (found.number < 0) found = Place{key, count_++};
    return found.number;
  }
  int64_t count() const { return count_; }

 private:
  struct Place {
    int64_t key;
    int64_t number;
  };
  size_t place(int64_t key) const {
    const size_t mask = places_.size() - 1;
    size_t at = static_cast<size_t>((static_cast<uint64_t>(key) * 0x9E3779B97F4A7C15ull) >> (64 - bits_));
    while (places_[at].number >= 0 && places_[at].key != key) at = (at + 1) & mask;
    return at;
  }
  std::vector<Place> places_;
  int64_t count_ = 0;
  int bits_ = 3;
};

struct Seen {
  int64_t count;
  int64_t last_ms;
  double decayed[kHalfLives];  // as they stand at the latest of the request and all behaviours
};

bool rises(const int64_t* offsets, int64_t rows, int64_t end) {
  bool good = offsets[0] == 0 && offsets[rows] == end;
  for (int64_t b = 0; b < rows; ++b) good = good && offsets[b] <= offsets[b + 1];
  return good;
}

double recency(double age_ms, double day_ms) { return 1.0 / (1.0 + age_ms / day_ms); }

}  // namespace

int64_t sostenuto_match(const MatchShape* shape, const MatchInputs* in, float* out) {
  if (!rises(shape->offsets, shape->requests, shape->behaviours)) return 1;
  if (!rises(shape->candidate_offsets, shape->requests, shape->candidates)) return 2;
  const int64_t width = kPerLevel * shape->levels + kPerUser;
  Numbers numbers;
  std::vector<int64_t> number;
  std::vector<double> weight;
  std::vector<Seen> seen;
  for (int64_t b = 0; b < shape->requests; ++b) {
    const int64_t begin = shape->offsets[b], end = shape->offsets[b + 1], length = end - begin;
    const int64_t first = shape->candidate_offsets[b], last = shape->candidate_offsets[b + 1];
    if (first == last) continue;
    const int64_t moment = in->moment[b];
    const int64_t latest = length ? std::max(moment, in->time_ms[end - 1]) : moment;
    weight.resize(length * kHalfLives);
    for (int64_t i = 0; i < length; ++i) {
      const bool again = i && in->time_ms[begin + i] == in->time_ms[begin + i - 1];  // baskets share a moment
      const double age = static_cast<double>(latest - in->time_ms[begin + i]);
      for (int h = 0; h < kHalfLives; ++h)
        weight[i * kHalfLives + h] = again ? weight[(i - 1) * kHalfLives + h] : std::exp(-age * shape->rate[h]);
    }
    number.resize(last - first);
    for (int64_t level = 0; level < shape->levels; ++level) {
      const int64_t* const asked = in->asked[level] + first * in->asked_stride[level];
      const int64_t* const key = in->key[level] + begin * in->key_stride[level];
      const int64_t step = in->key_stride[level];
      numbers.clear(last - first);
      for (int64_t c = 0; c < last - first; ++c) {
        const int64_t wanted = asked[c * in->asked_stride[level]];
        number[c] = wanted < shape->first_known ? -1 : numbers.add(wanted);
      }
      seen.assign(numbers.count(), Seen{});
      for (int64_t i = 0; i < length; ++i) {
        const int64_t found = numbers.find(key[i * step]);
        if (found < 0) continue;
        Seen& s = seen[found];
        ++s.count;
        s.last_ms = in->time_ms[begin + i];
        for (int h = 0; h < kHalfLives; ++h) s.decayed[h] += weight[i * kHalfLives + h];
      }
      for (int64_t c = 0; c < last - first; ++c) {
        float* const to = out + (first + c) * width + level * kPerLevel;
        const Seen s = number[c] < 0 ? Seen{} : seen[number[c]];
        std::fill(to, to + kPerLevel, 0.0f);
        if (!s.count) continue;
        const double count = static_cast<double>(s.count);
        const int64_t since = std::max(moment, s.last_ms);
        to[0] = static_cast<float>(std::log1p(count));
        for (int h = 0; h < kHalfLives; ++h) {
          const double later = static_cast<double>(latest - since);  // 0 unless behaviours come after the request
          const double decayed = later > 0.0 ? s.decayed[h] * std::exp(later * shape->rate[h]) : s.decayed[h];
          to[1 + h] = static_cast<float>(std::log1p(decayed));
        }
        to[1 + kHalfLives] = static_cast<float>(recency(static_cast<double>(since - s.last_ms), shape->day_ms));
        to[2 + kHalfLives] = static_cast<float>(count / static_cast<double>(length));
      }
    }
    const double idle = length ? static_cast<double>(latest - in->time_ms[end - 1]) : 0.0;
    const float all = static_cast<float>(std::log1p(static_cast<double>(length)));
    const float newest = length ? static_cast<float>(recency(idle, shape->day_ms)) : 0.0f;
    for (int64_t c = first; c < last; ++c) {
      out[c * width + width - 2] = all;
      out[c * width + width - 1] = newest;
    }
  }
  return 0;
}

void sostenuto_met(const MetLevel* level, const int64_t* row, const int64_t* asked, float* out) {
  for (int64_t c = 0; c < level->candidates; ++c) {
    float* const to = out + c * level->width;
    std::fill(to, to + kPerLevel, 0.0f);
    const int64_t b = row[c];
    const int64_t* const end = level->key + level->offsets[b + 1];
    const int64_t* const found = std::lower_bound(level->key + level->offsets[b], end, asked[c]);
    if (asked[c] < level->first_known || found == end || *found != asked[c]) continue;
    const int64_t at = found - level->key;
    const double age_ms = static_cast<double>(std::max<int64_t>(level->moment[b] - level->last_ms[at], 0));
    const double count = static_cast<double>(level->count[at]);
    to[0] = static_cast<float>(std::log1p(count));
    for (int h = 0; h < kHalfLives; ++h) {
      const double fade = std::exp(-age_ms * level->rate[h]);
      to[1 + h] = static_cast<float>(std::log1p(level->decayed[at * kHalfLives + h] * fade));
    }
    to[1 + kHalfLives] = static_cast<float>(recency(age_ms, level->day_ms));
    to[2 + kHalfLives] = static_cast<float>(count / std::max(static_cast<double>(level->length[b]), 1.0));
  }
}

void sostenuto_lower_bounds(const RowsShape* shape, const int64_t* values, const int64_t* bound, const int64_t* low,
                            const int64_t* high, int64_t* position) {
  const int64_t nothing = 0;
  for (int64_t start = 0; start < shape->count; start += kAtOnce) {
    const int64_t lanes = std::min(kAtOnce, shape->count - start);
    const int64_t* from[kAtOnce];
    int64_t left[kAtOnce], begin[kAtOnce], longest = 0;
    for (int64_t i = 0; i < lanes; ++i) {
      begin[i] = std::min(std::max<int64_t>(low[start + i], 0), shape->rows);
      left[i] = std::max<int64_t>(std::min(high[start + i], shape->rows) - begin[i], 0);
      from[i] = left[i] ? values + begin[i] : &nothing;
      longest = std::max(longest, left[i]);
    }
    int64_t taken[kAtOnce] = {};
    for (; longest > 1; longest -= longest / 2) {  // no branch on what is read: the loads of all searches overlap
      for (int64_t i = 0; i < lanes; ++i) {
        const int64_t half = left[i] / 2;
        const int64_t before = from[i][taken[i] + std::max<int64_t>(half - 1, 0)];
        taken[i] += half & -static_cast<int64_t>(before < bound[start + i]);
        left[i] -= half;
      }
    }
    for (int64_t i = 0; i < lanes; ++i)
      position[start + i] = begin[i] + taken[i] + (left[i] && from[i][taken[i]] < bound[start + i]);
  }
}
