#include "hierarchical/host_layout.h"

#include <algorithm>
#include <bit>

namespace cohort {

HostLayout::HostLayout(const std::vector<std::string>& hosts) {
  std::vector<std::string> names;
  for (const std::string& name : hosts) {
    const auto host = std::find(names.begin(), names.end(), name) - names.begin();
    if (host == static_cast<std::ptrdiff_t>(names.size())) {
      names.push_back(name);
      ranks_.emplace_back();
    }
    ranks_[static_cast<std::size_t>(host)].push_back(static_cast<int>(host_.size()));
    host_.push_back(static_cast<int>(host));
  }
}

int HostLayout::local_rank(int rank) const {
  const std::vector<int>& local = ranks(host(rank));
  return static_cast<int>(std::find(local.begin(), local.end(), rank) - local.begin());
}

bool HostLayout::even() const {
  return std::all_of(ranks_.begin(), ranks_.end(), [this](const std::vector<int>& ranks) {
    return ranks.size() == ranks_.front().size();
  });
}

// A host's ranks are then a whole subtree of the canonical tree, and the hosts' results are
// combined as numbers of the canonical order over hosts: the first hosts pair up just where their
// ranks would.
bool HostLayout::keeps_order() const {
  return even() && std::has_single_bit(ranks_.front().size()) &&
         std::is_sorted(host_.begin(), host_.end());
}

}  // namespace cohort
