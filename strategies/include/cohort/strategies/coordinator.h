// Coordinator: the chief of a parameter-server job calls functions, workers run them.
//
// Closures do not travel: every process runs the same program and registers its functions by name.
// Workers serve them until the coordinator ends; the chief schedules calls and waits for results.
//
//   Functions functions;
//   functions.Add("train", [&](const std::string& argument) -> Result<std::string> { ... });
//   if (strategy->is_chief()) {
//     auto coordinator = OrThrow(Coordinator::Create(*strategy));
//     const RemoteValue loss = OrThrow(coordinator->Schedule("train", "17"));
//     OrThrow(coordinator->Join(DeadlineAfter(10min)));
//     OrThrow(coordinator->Fetch(loss, DeadlineAfter(1min)));
//   } else if (strategy->trains()) {
//     OrThrow(ServeFunctions(*strategy, functions));
//   }
//   OrThrow(strategy->Serve());
//   OrThrow(strategy->Shutdown());
//
// A call runs on any worker, one at a time on each, in the order scheduled but for those that run
// again. A worker holds the next call or so while one runs (ScheduleOptions::calls_in_flight), so
// that it does not wait for the chief between two. A call runs at least once: when a worker is
// lost, or its function returns Unavailable or Aborted, another worker (or the same, come back)
// runs it again, and what else the lost one held. What the first run pushed to the servers stays.
// Its result counts exactly once.
//
// Save keeps what the servers have at a point between two calls (CheckpointManager,
// cohort/train/checkpoint_manager.h, makes a checkpoint of it, and restores the job from it). Where
// a server is lost under ServerLoss::kRollBack, all go back to the last save, or to what the job
// began with, and every call that has returned since, or was under way, runs again, in the order
// scheduled: each is in the values once. A result that was there stays, as the first run had it; a
// second run that fails is an error as any other; where several do, each is told with the first
// one (eight of them with their text, the rest in the log), after Close by Serve. In a call whose
// servers go back Step returns Aborted from then on, which the function returns. A run that ends
// because a server is lost is not one of max_attempts.
//
// What the chief gives the servers between two calls (PushState, LoadTable) comes behind all calls
// that had returned, also where these run again: LoadTable waits for them, and is made again where
// a server is lost meanwhile. PushState is Aborted where servers have gone back since the last
// PullState, which waits for those calls: call that, change what it has brought, and push it. Join
// first: what runs meanwhile goes under. No call makes again what was given: until it is in a save,
// servers cannot go back behind it, and the loss of one ends the job.
//
// Any other error of a function cancels all that waits, is returned once, by the next Schedule,
// Join or Fetch and when no worker holds a call any more, and is then forgotten: the coordinator
// goes on.
//
// Per-worker data sets, as TensorFlow's create_per_worker_dataset: each worker makes its own, with
// a registered function, and goes through it from call to call:
//
//   functions.AddDataset("digits", [](const InputPipeline&) -> Result<data::Dataset> { ... });
//   functions.Add("train", [&](const std::string&, std::span<data::BatchIterator* const> data) {
//     ... OrThrow(data[0]->Next()) ... });
//   const PerWorkerDataset digits = coordinator->CreatePerWorkerDataset("digits");
//   OrThrow(coordinator->Schedule("train", "17", {digits}));

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>
#include <cohort/data/dataset.h>
#include <cohort/strategies/strategy.h>

namespace cohort {

namespace ps {
struct RemoteResult;
}  // namespace ps

// Arguments and results are bytes, at most this many.
inline constexpr std::size_t kMaxFunctionBytes = std::size_t{3} << 20;

// Which of a job's input pipelines a data set is for: a worker's.
struct InputPipeline {
  int index = 0;
  int count = 1;  // workers of the cluster
};

// What a worker can be asked to do. Not synchronised; unchanged while it is served.
class Functions {
 public:
  using Function = std::function<Result<std::string>(const std::string& argument)>;
  // `data`: an iterator for each data set of the call, which stands where the call before left it.
  // After the nullopt at the end of an epoch, Next begins another one.
  using DataFunction = std::function<Result<std::string>(
      const std::string& argument, std::span<data::BatchIterator* const> data)>;
  using DatasetFunction = std::function<Result<data::Dataset>(const InputPipeline& pipeline)>;
  // A name is not empty and is added once.
  void Add(std::string name, Function function);
  void Add(std::string name, DataFunction function);
  void AddDataset(std::string name, DatasetFunction make);
  // NotFound names the function and those there are. An exception is an error: StatusError its
  // status, others Internal. InvalidArgument: data sets for a function without.
  Result<std::string> Call(const std::string& name, const std::string& argument,
                           std::span<data::BatchIterator* const> data = {}) const;
  // Likewise. InvalidArgument: it is not in batches.
  Result<data::Dataset> MakeDataset(const std::string& name, const InputPipeline& pipeline) const;

 private:
  std::map<std::string, DataFunction> functions_;
  std::map<std::string, DatasetFunction> datasets_;
};

// A data set that each worker makes for itself when it is first asked for a call with it, and again
// in the process that takes a lost worker's place; and each worker's iterator. It is kept until
// ServeFunctions ends. Copies are the same data set's.
struct PerWorkerDataset {
  std::int64_t id = 0;
  std::string name;  // that it was added under
};

// Of one scheduled call. Copies are the same call's. Its result is kept while there is a copy.
class RemoteValue {
 public:
  RemoteValue() = default;  // of no call
  explicit RemoteValue(std::shared_ptr<ps::RemoteResult> result) : result_(std::move(result)) {}
  const std::shared_ptr<ps::RemoteResult>& result() const { return result_; }

 private:
  // Owners: the copies of this, and the coordinator until the call is over.
  std::shared_ptr<ps::RemoteResult> result_;
};

struct ScheduleOptions {
  std::size_t max_waiting = 262'144;  // Schedule waits for room while so many calls wait
  std::chrono::milliseconds schedule_timeout{300'000};  // for at most so long
  int max_attempts = 10;  // runs of one call; then what ended the last is the call's error
  // That a worker holds at a time: one runs, the others wait there. A worker that has one gets no
  // further ones of the last few, which are left for the others.
  int calls_in_flight = 2;
  // Of the calls that have returned since the oldest save that the servers could go back to, of the
  // last 8, the chief remembers this many at most, and these bytes of names and arguments (200 more
  // for each), to run them again. Where more have returned since the last save it warns, once, and
  // until the next one the loss of a server ends the job: Unavailable. 0: none are.
  std::size_t max_kept_calls = 262'144;
  std::size_t max_kept_bytes = std::size_t{256} << 20;
};

// Thread rules: all methods from any thread. Waits also end with what failed the job (a server, or
// the lack of any worker for the strategy's join_timeout: Unavailable, naming it). Schedule, Join,
// Fetch and Save wait for another process in a lost server's place, and give it its part: then they
// take up to rejoin_grace longer, and other threads use the strategy, and the parameters, for
// nothing but PullState. Where another thread sees to that server, or saves, they wait for it until
// their deadline: DeadlineExceeded, which says so. PullState, PushState, LoadTable and a data set's
// BeginEpoch for an evaluation wait for that, and until calls that run again have, for at most
// communication.timeout each: DeadlineExceeded [Join, then PullState].
//
// Evaluate looks rows up as they are now. Where servers went back since its values were pulled, it
// pulls them again before: values and rows of a batch are of the same servers.
class Coordinator {
 public:
  // As Close.
  virtual ~Coordinator() = default;

  // On the chief, after Bind, once a job. FailedPrecondition unless the strategy is an asynchronous
  // parameter server's and this process is a chief that does not train. The strategy must outlive
  // the coordinator.
  static Result<std::unique_ptr<Coordinator>> Create(Strategy& strategy,
                                                     const ScheduleOptions& options = {});

  // Waits only for room, and with an error for what still runs, both for at most
  // schedule_timeout (DeadlineExceeded). InvalidArgument: no name, or an argument that is too long.
  Result<RemoteValue> Schedule(std::string function, std::string argument) {
    return Schedule(std::move(function), std::move(argument), {});
  }
  // `data`: what the function is given iterators of, at most 16.
  virtual Result<RemoteValue> Schedule(std::string function, std::string argument,
                                       std::vector<PerWorkerDataset> data) = 0;
  // Does not block: a worker that knows no data set of that name fails the call (NotFound).
  virtual PerWorkerDataset CreatePerWorkerDataset(std::string name) = 0;
  // Until nothing waits and nothing runs. DeadlineExceeded names what does, and where.
  virtual Status Join(Deadline deadline) = 0;
  // Does nothing wait and nothing run? Does not block.
  virtual bool Done() const = 0;
  // The call's result, as often as asked. The error of a call that failed; Cancelled if it was
  // cancelled because another failed.
  virtual Result<std::string> Fetch(const RemoteValue& value, Deadline deadline) = 0;
  // Keeps what the servers have at a point between two calls: begins none, waits until those that
  // were begun are over, has every server keep a snapshot (a call to each, whatever it holds), and
  // lets calls go on while `save` runs, on this thread. What `save` has of the strategy (PullState,
  // SaveTable) is the snapshot's; `calls`: how many of those that were scheduled are over, which
  // are the first ones, and in it. It uses nothing of this object; Save, BeginEpoch, Evaluate,
  // PushState and LoadTable are FailedPrecondition in it.
  //
  // The error of `save`, which ends nothing, or of a call, as Join, and then nothing was saved.
  // Where a server is lost before `save` has returned OK, it is called again, for a later point;
  // where one is lost behind it, the save counts. DeadlineExceeded names what runs where; writing
  // has no deadline. With a way back to it (SavePlan::restore) it is what servers go back to.
  // FailedPrecondition after Close.
  using SaveFn = std::function<Status(std::int64_t calls)>;
  virtual Status Save(const SaveFn& save, Deadline deadline) = 0;
  // No more functions: what waits is Cancelled, what runs is not awaited, and workers'
  // ServeFunctions return OK; but what runs again after a roll-back still does, and as long a lost
  // server can be replaced.
  virtual void Close() = 0;
};

// On a worker, after Bind: runs functions on this thread until the coordinator ends. They may use
// the strategy: Step, with batches of their own making. An error of a function goes to the chief
// and is not this call's; an error is what failed the job or separates this worker from it.
// FailedPrecondition as for Create, or where the chief serves without a coordinator. Unavailable
// where the chief is lost, also where it keeps a journal: restart the job, from its last save.
Status ServeFunctions(Strategy& strategy, const Functions& functions);

}  // namespace cohort
