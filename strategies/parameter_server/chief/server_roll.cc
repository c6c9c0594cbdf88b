#include "parameter_server/chief/server_roll.h"

#include <cohort/cluster/cluster_spec.h>

namespace cohort::ps {

ServerRoll::ServerRoll(int num_servers) : processes_(static_cast<std::size_t>(num_servers), 0) {}

void ServerRoll::Enter(int server, std::uint64_t process) {
  processes_[static_cast<std::size_t>(server)] = process;
  lost_.erase(server);
}

void ServerRoll::Lost(int server, const Status& why) {
  ++losses_;
  lost_.try_emplace(server, Loss{why, std::chrono::steady_clock::now()});
}

const ServerRoll::Loss* ServerRoll::loss(int server) const {
  const auto at = lost_.find(server);
  return at == lost_.end() ? nullptr : &at->second;
}

std::string ServerRoll::NamesOfLost() const {
  std::string names;
  for (const auto& [server, loss] : lost_) {
    names += (names.empty() ? "" : ", ") + TaskId{TaskType::kPs, server}.ToString();
  }
  return names;
}

}  // namespace cohort::ps
