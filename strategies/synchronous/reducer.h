// Reducer: how the gradients of all replicas become one while they are still being computed.
//
// A PASS is one step function on each of this process's replicas, all at once. Each replica has a
// gradient ARENA, and each PARAMETER a place in it, in a BUCKET (bucket_plan.h). The backward pass
// writes a gradient where it will be sent from, and says Ready.
//
// When a replica has said Ready for all of a bucket's parameters, it RECORDS a point of its stream:
// the bucket is COMPLETE there. The replica that completes it last, of this process, may LAUNCH it:
// on its own stream, behind the recorded points of the others, the local arenas are SUMMED into
// that of replica 0, and behind that the bucket's journey among the processes begins: an
// all-reduce, a hook's (bucket_hook.h), or an exchange of rows (row_exchange.h). The replica goes
// on with its backward pass meanwhile.
//
// Buckets are launched strictly by index, whatever the order in which they become complete: a
// bucket that is complete too early is launched by whoever completes the one before it. So every
// process calls the same collectives in the same order, though its replicas finish in any.
//
// Bucket 0 is the first to be launched and carries the replicas' WEIGHTS in its header. Once it has
// landed the weight of the global batch is known, and every bucket can be applied as it lands.
//
// TURNS. A replica may take several turns before its gradients are sent: one for each of its
// virtual shards, or one for each micro-batch of an accumulated step. A turn writes into the
// replica's CURRENT arena; what earlier turns left lies in the LEVELS of a stack. As a parameter
// becomes Ready its gradient is added to that of the levels which this turn closes, while it is in
// the cache: for shards those of a binary counter (turn 5 closes none, turn 7 the levels of 6, of 4
// and 5, and of 0 to 3), so that k shards add up in one balanced tree with log2(k) levels; for
// micro-batches the one level that holds their sum so far.
//
// Sums among the replicas are the same tree's next levels: pairs, then pairs of pairs.
//
// DEVICES. Where a replica's memory is a device's, so are its arenas, and only kernels write there:
// a turn's gradients are zeroed, and levels added, by the replica's own kernels on its stream. Each
// device has a stream for the rest (device_copy.h, device_sums.h), on which arenas of one device
// are summed behind the recorded points, arenas of another fetched first. A bucket's sum is copied
// to a LANDING arena of the host, takes its journey there, and is copied to every device when it
// has landed: to the arena of the device's first replica. Without devices, arenas are the host's,
// and a sum lands where it was made. Gradients of devices never travel as rows.
//
// With NCCL (nccl_sums.h) a bucket does not leave the devices: each sums its own replicas, and the
// journey is an all-reduce among the devices of all processes, in place. Weights alone travel from
// the host. So it is within one process too, whose buckets then are launched like others. A hook
// that only rounds is the devices' own to do there (device_compression.h).
//
// A process that trains alone has nothing to hide behind the backward pass: nothing is launched,
// and the arenas are summed chunk by chunk when they are applied, while the chunk is in the cache.
//
// AFTER THE PASS. Two processes of one host may have no core for communication: nothing is hidden
// where the backward pass waits meanwhile. Dense buckets, one as a rule, are then launched when
// they are landed, by who waits for them.
//
// What a replica writes to is its sink (replica_sink.h); launches are in reducer_launch.cc, the
// rest in reducer.cc.
//
// Thread rules: Begin, End and the sink from the replica's own thread; everything else from the
// strategy's while no replica is in a pass, Sum also from many at once for different chunks.

#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include <cohort/comm/communicator.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/device/stream.h>
#include <cohort/optim/gradient_sink.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/bucket_hook.h>

#include "synchronous/arena.h"
#include "synchronous/bucket_plan.h"
#include "synchronous/device_compression.h"
#include "synchronous/device_copy.h"
#include "synchronous/device_sums.h"
#include "synchronous/nccl_sums.h"
#include "synchronous/step_rows.h"

namespace cohort {

class ReplicaSink;

class Reducer {
 public:
  struct Options {
    int replicas = 1;  // of this process
    int shards = 1;    // of each replica: a power of two
    // By replica: its device's copy of the model, and kernels for its stream. Empty: all are in the
    // host's memory.
    std::vector<DeviceCopy*> copies;
    std::vector<Kernels*> kernels;
    DeviceSums::Way way = DeviceSums::Way::kTree;  // kEach with `nccl`
    NcclSums* nccl = nullptr;                      // among the devices of all processes
    Communicator* communicator = nullptr;          // among the processes; nullptr: alone
    BucketHook* hook = nullptr;                    // nullptr: all-reduce
    StepRows* rows = nullptr;                      // of the model's tables, if it has any
    bool seed_with_weight = true;                  // loss_seed(): the replica's weight, or 1
    BucketLimits limits;
    bool after_pass = false;         // dense buckets are launched late; without hook and copies
    std::string algorithm = "auto";  // of the all-reduces
    std::chrono::milliseconds timeout{0};  // of one bucket's journey
    Log log;
  };
  // How parameters were used in a pass, as this process saw it.
  struct Use {
    std::vector<int> ready;             // replica 0's parameters in the order of Ready
    std::vector<std::int32_t> as_rows;  // by parameter: 1 if rows came, on any replica
    std::vector<std::int32_t> dense;    // by parameter: 1 if it was written otherwise
  };

  // `parameters` must outlive this.
  static Result<std::unique_ptr<Reducer>> Make(const ParameterSet& parameters,
                                               const Options& options);
  ~Reducer();

  const BucketPlan& plan() const { return plan_; }
  // Another plan for the passes to come.
  void Rebuild(const BucketOrder& order, const BucketLimits& limits);
  // Whether buckets are launched in a pass, and then Landed.
  bool launches() const { return options_.communicator != nullptr || options_.nccl != nullptr; }
  const Use& use() const { return use_; }  // of the last pass whose replicas all returned

  // Before the replicas of a pass begin. `step` is the one that it is for; not `sent`: its
  // gradients stay here, and the next pass adds to them. `loss_scale`: of loss_seed(), beside the
  // weight.
  void StartPass(std::int64_t step, bool sent, double loss_scale = 1);
  // A replica begins a turn: `weight` is its number of examples, until it says otherwise.
  void Begin(int replica, int shard, double weight, Stream& stream);
  GradientSink& sink(int replica);
  double weight(int replica) const;  // of the replica's last turn
  // The turn's step function has returned: what is not Ready is taken as it stands. `ran` false: it
  // had no examples and was not called.
  void End(int replica, bool ran);
  // The turn's stream has run dry.
  void CloseTurn(int replica, int shard);
  // Every replica has ended its turns. ResourceExhausted: no memory for what stays here.
  Status FinishPass();

  // Blocks until bucket b holds the sum over all processes, and puts it on the streams of the
  // devices. For buckets in order. Launches it first, after_pass.
  Status Landed(int bucket);
  bool has_landed(int bucket) const;
  std::chrono::steady_clock::time_point launched_at(int bucket) const;
  // Whether none before it was on its way when it was launched.
  bool launched_alone(int bucket) const;
  // Of the global batch. After Landed(0); where nothing is launched, after every End.
  double total_weight() const;
  std::span<const float> gradients() const;  // where the sums land
  // Alone, on the host: makes replica 0's chunk the sum over the replicas. Otherwise it is, once
  // landed.
  void Sum(const BucketPlan::Chunk& chunk);
  // With devices: where the sums land on one, for what its stream is given. Where nothing is
  // launched, behind SumOnDevices, which puts the sums over the replicas there.
  std::span<const float> gradients(const DeviceCopy& copy) const;
  void SumOnDevices();
  // The pass failed, and so did the communicator: blocks until no collective uses the arenas. What
  // earlier passes left is lost.
  void GiveUp();

 private:
  // One bucket's way in the current pass.
  struct Flight {
    int replicas_left = 0;
    std::vector<std::shared_ptr<Event>> complete;  // by replica; owners: this and who waits for it
    std::unique_ptr<Work> header;                  // of bucket 0, where a hook has the rest
    std::unique_ptr<GradientBucket> bucket;        // what the hook was given
    std::unique_ptr<Work> work;
    Status launched;  // the launch's own error
    std::chrono::steady_clock::time_point launched_at;
    bool alone = false;  // then
  };
  // A replica's arenas.
  struct Stack {
    Arena current;
    std::vector<Arena> levels;
    bool accumulated = false;  // levels[0] holds what passes that were not sent left
    double weight = 0;         // of the turns so far
  };

  Reducer(const ParameterSet& parameters, const Options& options);

  Stack& stack(int replica) { return stacks_[static_cast<std::size_t>(replica)]; }
  const Stack& stack(int replica) const { return stacks_[static_cast<std::size_t>(replica)]; }
  bool launches_late(int bucket) const {
    return options_.after_pass && !plan_.buckets[static_cast<std::size_t>(bucket)].rows;
  }
  std::span<float> LandingOf(int bucket);
  double BucketWeight() const;
  void Complete(int replica, int bucket, Stream& stream);
  void Launch(int bucket, Stream& stream);
  void StopLaunching(int bucket);  // with the lock held
  CollectiveOptions OptionsOf(const BucketPlan::Bucket& bucket) const;
  void SumReplicas(const BucketPlan::Bucket& bucket, Stream& stream);
  Status LaunchLate(Flight& flight, int index);
  Communicator::Pending LaunchDense(Flight& flight, int index, const CollectiveOptions& options);
  Communicator::Pending LaunchOnDevices(Flight& flight, int index,
                                        const CollectiveOptions& options);
  Communicator::Pending LaunchWeight(const CollectiveOptions& options);
  Communicator::Pending LaunchRows(const BucketPlan::Bucket& bucket,
                                   const CollectiveOptions& options);
  void SumSpan(std::int64_t begin, std::int64_t end);
  void ZeroOnHost(const Arena& arena) const;
  void SumHeaders();
  DeviceSums::Arenas Arenas() const;
  Result<Arena> MakeArena(int replica);
  Status AddLevel(int replica);
  std::unique_ptr<ReplicaSink> MakeSink(int replica);
  void MakeCompression();
  void Expand(int bucket);

  const ParameterSet& parameters_;
  const Options options_;
  BucketPlan plan_;
  std::vector<Stack> stacks_;                       // by replica
  std::unique_ptr<DeviceSums> devices_;             // nullptr: without devices
  std::unique_ptr<DeviceCompression> compression_;  // of what NCCL adds; nullptr: none
  std::vector<std::unique_ptr<ReplicaSink>> sinks_;
  Use use_;
  std::int64_t step_ = 0;
  bool sent_ = true;

  std::mutex mutex_;  // guards the following, and flights_ but for what a launch under way writes
  std::vector<Flight> flights_;  // by bucket
  int next_launch_ = 0;
  bool launching_ = false;
  double pass_weight_ = 0;  // of the replicas that completed bucket 0
  bool warned_ = false;
};

}  // namespace cohort
