// Membership: a process's place among the processes that train together.
//
// What a synchronous strategy needs of the others beyond its collectives: to learn why one failed,
// to be told of, and to leave in order.
//
// Thread rules: from the strategy's thread; implementations may fail the communicator from a thread
// of their own.

#pragma once

#include <memory>
#include <string_view>

#include <cohort/cluster/key_value_store.h>
#include <cohort/comm/communicator.h>
#include <cohort/core/status.h>

namespace cohort {
class StepRows;
namespace ps {
struct ModelSpec;
}

class Membership {
 public:
  virtual ~Membership() = default;  // leaves without waiting

  // Among the job's processes; nullptr: there is only this one.
  virtual Communicator* communicator() = 0;
  // Where they meet besides; nullptr: nowhere.
  virtual KeyValueStore* store() = 0;
  // What the job knows of the reason why a collective returned `status`: the same, or the error of
  // the task that failed first.
  virtual Status Explain(const Status& status) = 0;
  // This process gives up; collectives of all the others return `error`.
  virtual void GiveUp(const Status& error) = 0;
  virtual Status Leave() = 0;

  // Parameter servers that hold the job's sparse tables; 0: a process holds its own.
  virtual int num_row_servers() const { return 0; }
  // Tells them what they hold, and how this process reaches it from so many threads. Where there
  // are servers, once. FailedPrecondition: another process told them otherwise. What is returned
  // is outlived by the membership, and fails when the job does.
  virtual Result<std::unique_ptr<StepRows>> ConnectRows(const ps::ModelSpec& model, int threads);
};

// Of a communicator alone (which may be nullptr), and a store that outlives it.
std::unique_ptr<Membership> MakeMembership(std::unique_ptr<Communicator> communicator,
                                           KeyValueStore* store = nullptr);

}  // namespace cohort
