// PushLedger: which of the clients' numbered pushes have had their effect, so that each has it once
// however often it arrives.
//
// Thread rules: any thread.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "parameter_server/sequence_window.h"

namespace cohort::ps {

class PushLedger {
 public:
  // True: the caller is to apply this push, and then calls Finish. False: it has been applied.
  // Blocks while another thread is at it.
  bool Claim(std::uint64_t client, std::uint64_t sequence);
  // Not `applied`: it was refused, and a repetition is to be refused again.
  void Finish(std::uint64_t client, std::uint64_t sequence, bool applied);

 private:
  static constexpr std::size_t kMaxClients = 4096;  // the longest silent one is forgotten
  struct Client {
    SequenceWindow window;
    std::vector<std::uint64_t> applying;
    std::uint64_t last_use = 0;
  };

  std::mutex mutex_;
  std::condition_variable finished_;
  // Below: under `mutex_`.
  std::map<std::uint64_t, Client> clients_;
  std::uint64_t uses_ = 0;
};

}  // namespace cohort::ps
