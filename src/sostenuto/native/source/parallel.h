// Work split over a few threads by cost; each part is contiguous, so results do not depend on timing.

#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

// Cut `costs` into at most `threads` contiguous parts of about equal cost and call work(part, first, last) for each.
// Parts depend on costs and threads alone. The first part runs on the calling thread.
template <typename Work>
inline void in_parts(const std::vector<int64_t>& costs, int64_t threads, const Work& work) {
  const int64_t items = static_cast<int64_t>(costs.size());
  int64_t total = 0;
  for (int64_t cost : costs) total += cost;
  std::vector<int64_t> bounds{0};
  int64_t seen = 0;
  for (int64_t i = 0; i < items; ++i) {
    seen += costs[i];
    const int64_t parts = static_cast<int64_t>(bounds.size());
    if (parts < threads && i + 1 < items && seen * threads >= total * parts) bounds.push_back(i + 1);
  }
  bounds.push_back(items);
  std::vector<std::thread> others;
  for (size_t part = 1; part + 1 < bounds.size(); ++part)
    others.emplace_back([&work, &bounds, part] { work(static_cast<int64_t>(part), bounds[part], bounds[part + 1]); });
  work(0, bounds[0], bounds[1]);
  for (auto& other : others) other.join();
}
