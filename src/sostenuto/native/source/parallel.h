// Work split over a few threads by cost; parts are contiguous and fixed, so results do not depend on timing.

#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

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

// Call work(first, last) for each part of `costs`, one thread each; the first part runs on the calling thread.
template <typename Work>
inline void in_parts(const std::vector<int64_t>& costs, int64_t threads, const Work& work) {
  const std::vector<int64_t> bounds = cut(costs, threads);
  std::vector<std::thread> others;
  for (size_t part = 1; part + 1 < bounds.size(); ++part)
    others.emplace_back([&work, &bounds, part] { work(bounds[part], bounds[part + 1]); });
  work(bounds[0], bounds[1]);
  for (auto& other : others) other.join();
}

// Call work(first, last) on about equal parts of 0 .. items, one thread each.
template <typename Work>
inline void in_even_parts(int64_t items, int64_t threads, const Work& work) {
  const int64_t parts = std::max<int64_t>(1, std::min(items, threads));
  in_parts(std::vector<int64_t>(parts, 1), parts,
           [&](int64_t first, int64_t last) { work(items * first / parts, items * last / parts); });
}
