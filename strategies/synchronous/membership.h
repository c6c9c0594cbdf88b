// Membership: a process's place among the processes that train together.
//
// What a synchronous strategy needs of the others beyond its collectives: to learn why one failed,
// to be told of, and to leave in order.
//
// Where servers hold the job's tables it may go on when one of them is lost, or a worker: CheckLoss
// tells that this is what happened, Renew brings the processes together again, with another
// communicator, which may have fewer ranks.
//
// Thread rules: from the strategy's thread; implementations may fail the communicator from a thread
// of their own.

#pragma once

#include <functional>
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
  // This process gives up; collectives of all the others return `error`. The job is over, unless
  // CheckLoss says otherwise.
  virtual void GiveUp(const Status& error) = 0;
  // The same, of an error that came neither from another process nor from a server: does not wait
  // for a loss that is not known.
  virtual void GiveUpOwn(const Status& error) { GiveUp(error); }
  // The same, and the job is over.
  virtual void EndJob(const Status& error) { GiveUp(error); }
  virtual Status Leave() = 0;

  // Parameter servers that hold the job's sparse tables; 0: a process holds its own.
  virtual int num_row_servers() const { return 0; }
  // Tells them what they hold, and how this process reaches it from so many threads. Where there
  // are servers, once. FailedPrecondition: another process told them otherwise. What is returned
  // is outlived by the membership, and fails when the job does. After Renew, once more.
  virtual Result<std::unique_ptr<StepRows>> ConnectRows(const ps::ModelSpec& model, int threads);

  // All processes call, at the same places: between these the loss of a process need not end the
  // job. False: it does in this job. EndTraining waits for all; its error may be such a loss.
  virtual Result<bool> BeginTraining() { return false; }
  virtual Status EndTraining() { return {}; }
  // Has this process come to others that were training, in a lost one's place? They go back to
  // their last save just now. Until EndTraining.
  virtual bool joined_in_training() const { return false; }
  // OK: a process is lost, of which `error`, of any call, may be the consequence, and the job can
  // go on. Else `error`. May block for about the heartbeat timeout, until the loss is known.
  virtual Status CheckLoss(const Status& error) { return error; }
  // After CheckLoss, on all processes: blocks until each that is left has called, and there is
  // another process for every one that was lost and is not done without; or the job is over, with
  // that error. Then communicator() is another one; `let_go` is called before the old one goes, and
  // what ConnectRows returned.
  virtual Status Renew(const std::function<void()>& let_go);
};

// Of a communicator alone (which may be nullptr), and a store that outlives it.
std::unique_ptr<Membership> MakeMembership(std::unique_ptr<Communicator> communicator,
                                           KeyValueStore* store = nullptr);

}  // namespace cohort
