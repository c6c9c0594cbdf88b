// RetiredClients: which clients were given up, as ranges of their numbers.
//
// A scheduler numbers a job's clients one after the other, so what lies between two ranges is
// alive: there is at most one range more than live clients, however many there have been.
//
// Thread rules: the owner's lock.

#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <vector>

namespace cohort::ps {

class RetiredClients {
 public:
  // From `first` to `last`, both included.
  void Add(std::uint64_t first, std::uint64_t last) {
    auto next = last_of_.upper_bound(first);
    if (next != last_of_.begin()) {
      const auto before = std::prev(next);
      if (before->second >= first || before->second + 1 == first) {
        first = before->first;
        last = std::max(last, before->second);
        next = last_of_.erase(before);
      }
    }
    while (next != last_of_.end() && (next->first <= last || next->first - 1 == last)) {
      last = std::max(last, next->second);
      next = last_of_.erase(next);
    }
    last_of_.emplace_hint(next, first, last);
  }
  void Add(std::uint64_t client) { Add(client, client); }

  bool contains(std::uint64_t client) const {
    const auto next = last_of_.upper_bound(client);
    return next != last_of_.begin() && std::prev(next)->second >= client;
  }

  // The first and the last of each range.
  std::vector<std::uint64_t> Ranges() const {
    std::vector<std::uint64_t> ranges;
    for (const auto& [first, last] : last_of_) {
      ranges.push_back(first);
      ranges.push_back(last);
    }
    return ranges;
  }

 private:
  std::map<std::uint64_t, std::uint64_t> last_of_;  // by the first of a range
};

}  // namespace cohort::ps
