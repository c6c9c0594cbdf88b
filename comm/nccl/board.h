// Board: what the ranks of one NCCL communicator tell each other besides NCCL, in the store.
//
// NCCL neither compares what its ranks call nor tells one of another's failure. Nothing here is
// asked while operations come and go; it is for meeting, for operations that are called for the
// first time, and for trouble:
//
//   gpu/R        the GPU of rank R                          id       NCCL's unique id, by rank 0
//   init/R       rank R has begun to connect                split/N/R  what R said to Split #N
//   group/N.C/   all this again, of the group of color C that Split #N makes
//   print/N/R    collective #N of rank R, where it is new to it
//   trouble      there is a verdict, or somebody needs one
//   where/R      what rank R is in, or had last, when there was trouble
//   verdict      why the communicator failed: the first one is everybody's

#pragma once

#include <cohort/cluster/key_value_store.h>
#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include <memory>
#include <optional>
#include <string>

#include "operation.h"

namespace cohort {

// Where a rank is.
struct Whereabouts {
  enum class State : char { kFresh = 'f', kIn = 'i', kAfter = 'a', kLeft = 'l' };
  State state = State::kFresh;  // has begun no operation; else is in `record`, or had it last
  OperationRecord record;
};

// Thread rules: all methods from any thread.
class Board {
 public:
  // `store` is owned by all boards on it, or by nobody.
  Board(std::shared_ptr<KeyValueStore> store, std::string folder, int rank)
      : store_(std::move(store)), folder_(std::move(folder)), rank_(rank) {}

  // On another folder below this one, for rank `rank` of a group.
  Board Below(const std::string& name, int rank) const {
    return {store_, folder_ + "/" + name, rank};
  }

  // Of this rank, under `name`/RANK; AlreadyExists if it has done so.
  Status Tell(const std::string& name, const std::string& value) {
    return store_->Insert(Key(name, rank_), value);
  }
  // Of all ranks, under `name`.
  Status TellAll(const std::string& name, const std::string& value) {
    return store_->Insert(folder_ + "/" + name, value);
  }
  // What `rank` has told; NotFound if nothing.
  Result<std::string> Look(const std::string& name, int rank) {
    return store_->Get(Key(name, rank));
  }
  Result<std::string> LookAll(const std::string& name) { return store_->Get(folder_ + "/" + name); }
  // Waits for it; DeadlineExceeded.
  Result<std::string> Hear(const std::string& name, int rank, Deadline deadline) {
    return store_->Wait(Key(name, rank), deadline);
  }
  Result<std::string> HearAll(const std::string& name, Deadline deadline) {
    return store_->Wait(folder_ + "/" + name, deadline);
  }

  // The store's verdict after this: `status`, or an earlier one. `status` where the store is gone.
  Status Judge(const Status& status);
  std::optional<Status> Verdict();  // if there is one

  void TellWhere(const Whereabouts& where);  // the first counts
  std::optional<Whereabouts> Where(int rank);

 private:
  std::string Key(const std::string& name, int rank) const {
    return folder_ + "/" + name + "/" + std::to_string(rank);
  }

  std::shared_ptr<KeyValueStore> store_;
  std::string folder_;
  int rank_;
};

std::string EncodeRecord(const OperationRecord& record);
std::optional<OperationRecord> DecodeRecord(const std::string& text);

}  // namespace cohort
