// Work split over a few threads by cost; parts are contiguous and fixed, so results do not depend on timing.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

// One call of a job: `call(work, number)` does the part of that number.
struct Part {
  void (*call)(const void* work, int64_t number);
  const void* work;
};

// Do parts 0 .. parts on as many threads, the caller's among them; return when all are done. Torch's setting bounds the
// number of parts, so it bounds the threads too.
void run_parts(int64_t parts, const Part& part);

// Cut `costs` into at most `parts` contiguous parts of about equal cost; returns where they begin, and the end.
inline std::vector<int64_t> cut(const std::vector<int64_t>& costs, int64_t parts) {
  const int64_t items = static_cast<int64_t>(costs.size());
  int64_t total = 0, seen = 0;
  for (int64_t cost : costs) total += cost;
  std::vector<int64_t> bounds{0};
  for (int64_t i = 0; i < items; ++i) {
    seen += costs[i];
    const int64_t begun = static_cast<int64_t>(bounds.size());
    if (begun < parts && i + 1 < items && seen * parts >= total * begun) bounds.push_back(i + 1);
  }
  bounds.push_back(items);
  return bounds;
}

// Call work(first, last) for each of at most `threads` parts of `costs`.
template <typename Work>
inline void in_parts(const std::vector<int64_t>& costs, int64_t threads, const Work& work) {
  const std::vector<int64_t> bounds = cut(costs, threads);
  const auto call = [&](int64_t number) { work(bounds[number], bounds[number + 1]); };
  using Call = decltype(call);
  run_parts(static_cast<int64_t>(bounds.size()) - 1,
            {[](const void* of, int64_t number) { (*static_cast<Call*>(of))(number); }, &call});
}

// Call work(first, last) on about equal parts of 0 .. items, one thread each.
template <typename Work>
inline void in_even_parts(int64_t items, int64_t threads, const Work& work) {
  const int64_t parts = std::max<int64_t>(1, std::min(items, threads));
  in_parts(std::vector<int64_t>(parts, 1), parts,
           [&](int64_t first, int64_t last) { work(items * first / parts, items * last / parts); });
}
