// PushLedger: which of the clients' numbered pushes have had their effect, so that each has it once
// however often it arrives.
//
// Thread rules: any thread.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "parameter_server/sequence_window.h"

namespace cohort::ps {

class PushLedger {
 public:
  enum class Claimed { kNew, kRepeated, kFenced };
  // kNew: the caller is to apply this push, and then calls Finish. kRepeated: it has been applied.
  // kFenced: the client was retired. Blocks while another thread is at it.
  Claimed Claim(std::uint64_t client, std::uint64_t sequence);
  // Not `applied`: it was refused, and a repetition is to be refused again.
  void Finish(std::uint64_t client, std::uint64_t sequence, bool applied);

  // Nothing of the client has an effect from now on; blocks until what is being applied is.
  void Retire(std::uint64_t client);
  bool retired(std::uint64_t client) const;
  // Clients begin to count anew; those that were retired stay so. Nothing is being applied.
  void Reset();

 private:
  static constexpr std::size_t kMaxClients = 4096;  // the longest silent one is forgotten
  struct Client {
    SequenceWindow window;
    std::vector<std::uint64_t> applying;
    std::uint64_t last_use = 0;
  };

  mutable std::mutex mutex_;
  std::condition_variable finished_;
  // Below: under `mutex_`.
  std::map<std::uint64_t, Client> clients_;
  std::set<std::uint64_t> retired_;
  std::uint64_t uses_ = 0;
};

}  // namespace cohort::ps
