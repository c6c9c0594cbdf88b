// HostLayout: which rank of a group is on which host.

#pragma once

#include <string>
#include <vector>

namespace cohort {

class HostLayout {
 public:
  // `hosts[r]`: what the host of rank r calls itself. Hosts are numbered by their first rank.
  explicit HostLayout(const std::vector<std::string>& hosts);

  int hosts() const { return static_cast<int>(ranks_.size()); }
  int host(int rank) const { return host_[static_cast<std::size_t>(rank)]; }
  // The ranks on a host, in ascending order.
  const std::vector<int>& ranks(int host) const { return ranks_[static_cast<std::size_t>(host)]; }
  int local_rank(int rank) const;  // the rank's place among them

  bool even() const;  // every host has equally many ranks
  // Combining inside the hosts and then across them is the canonical order over all ranks.
  bool keeps_order() const;

 private:
  std::vector<int> host_;                // by rank
  std::vector<std::vector<int>> ranks_;  // by host
};

}  // namespace cohort
