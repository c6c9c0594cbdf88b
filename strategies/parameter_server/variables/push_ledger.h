// PushLedger: which of the clients' numbered pushes have had their effect, so that each has it once
// however often it arrives.
//
// Thread rules: any thread.

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include <cohort/parameter_server.pb.h>
#include "parameter_server/frames/sequence_window.h"
#include "parameter_server/variables/retired_clients.h"

namespace cohort::ps {

class PushLedger {
 public:
  // Live ones, at a time. One that is silent is not forgotten: its repetitions would count again.
  static constexpr std::size_t kMaxClients = 65'536;

  // How long a push waits for another thread that is at the same one.
  static constexpr std::chrono::milliseconds kPatience{200};

  enum class Claimed { kNew, kRepeated, kElsewhere, kFailed, kFenced, kTooMany, kBusy };
  // Clients have fewer pushes unanswered than the window is long (frame_channel.h), so what comes
  // again is in it. kNew: the caller is to apply this push, and then calls Finish. kRepeated: it
  // has been applied. kElsewhere: Applying::FinishElsewhere was called for it. kFailed:
  // FinishFailed, and AnswerTo says with what. kFenced: the client was retired. kTooMany: it is
  // new, and there are kMaxClients. Blocks while another thread is at it, until `deadline`; kBusy:
  // that one still is, and whether this push is to have an effect is open: it is to come again.
  // `behind_all`: the client's pushes with lower numbers are waited for in the same way.
  Claimed Claim(std::uint64_t client, std::uint64_t sequence,
                Deadline deadline = DeadlineAfter(kPatience), bool behind_all = false);
  Error AnswerTo(std::uint64_t client, std::uint64_t sequence) const;
  // Has it had its effect, as far as it is to have one? Blocks while another thread is at it, until
  // `deadline`. False: that one still is, or the push has not come; it is not waited for then. Of a
  // client that was retired nothing more is to come: true.
  bool AwaitApplied(std::uint64_t client, std::uint64_t sequence, Deadline deadline);
  // Not `applied`: it was refused, and a repetition is to be refused again.
  void Finish(std::uint64_t client, std::uint64_t sequence, bool applied);
  // Finishes a claimed push at the end of its scope, also where applying it throws: who waits for
  // it would wait for ever.
  class Applying {
   public:
    Applying(PushLedger& ledger, std::uint64_t client, std::uint64_t sequence)
        : ledger_(ledger), client_(client), sequence_(sequence) {}
    ~Applying() {
      if (!finished_) {
        ledger_.Finish(client_, sequence_, applied);
      }
    }
    Applying(const Applying&) = delete;
    Applying& operator=(const Applying&) = delete;

    // What it is for is at another server, where the client sends it under another number: it never
    // has an effect here, also where a repetition comes when what it is for is back.
    void FinishElsewhere() {
      ledger_.FinishElsewhere(client_, sequence_);
      finished_ = true;
    }

    // It has had its effect in part, and never has more: a repetition gets the same answer.
    void FinishFailed(const Error& answer) {
      ledger_.FinishFailed(client_, sequence_, answer);
      finished_ = true;
    }

    bool applied = false;

   private:
    bool finished_ = false;
    PushLedger& ledger_;
    const std::uint64_t client_;
    const std::uint64_t sequence_;
  };

  // Of the clients from `first` to `last` nothing is taken from now on. Blocks until what is being
  // applied is, or until `deadline`. False: some still is, of which the caller is to ask again;
  // nothing else is.
  bool Retire(std::uint64_t first, std::uint64_t last, Deadline deadline);
  bool Retire(std::uint64_t client, Deadline deadline = DeadlineAfter(kPatience)) {
    return Retire(client, client, deadline);
  }
  bool retired(std::uint64_t client) const;
  // What is known of pushes, those that failed or are for another server included, and that it is
  // what another ledger knew; clients that were retired stay so. Nothing is being applied.
  // InvalidArgument: `pushes` is nothing that Tell makes; this is as before.
  using Pushes = google::protobuf::RepeatedPtrField<ClientPushes>;
  void Tell(Pushes* pushes) const;
  Status Learn(const Pushes& pushes);
  // Clients begin to count anew; those that were retired stay so. Nothing is being applied.
  void Reset();

 private:
  void FinishElsewhere(std::uint64_t client, std::uint64_t sequence);
  void FinishFailed(std::uint64_t client, std::uint64_t sequence, const Error& answer);

  struct Client {
    SequenceWindow window;
    std::vector<std::uint64_t> applying;
    std::set<std::uint64_t> elsewhere;      // of the window
    std::map<std::uint64_t, Error> failed;  // likewise
  };
  // With the lock: no thread is at this push any more.
  void Applied(std::uint64_t client, std::uint64_t sequence);

  mutable std::mutex mutex_;
  std::condition_variable finished_;
  // Below: under `mutex_`.
  std::map<std::uint64_t, Client> clients_;
  RetiredClients retired_;
};

// Why a push has no effect, or has none yet; or NONE.
Error RefusalOf(PushLedger::Claimed claimed);

}  // namespace cohort::ps
