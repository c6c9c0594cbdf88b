// Reducer: how the gradients of all replicas become one while they are still being computed.
//
// A PASS is one step function on each of this process's replicas, all at once. Each replica has a
// gradient ARENA, and each PARAMETER a place in it, in a BUCKET (bucket_plan.h). The backward pass
// writes a gradient where it will be sent from, and says Ready.
//
// When a replica has said Ready for all of a bucket's parameters, it RECORDS a point of its stream:
// the bucket is COMPLETE there. The replica that completes it last, of this process, may LAUNCH it:
// on its own stream, behind the recorded points of the others, the local arenas are SUMMED into
// that of replica 0, in replica order, and behind that the all-reduce among the processes begins.
// The replica goes on with its backward pass meanwhile.
//
// Buckets are launched strictly by index, whatever the order in which they become complete: a
// bucket that is complete too early is launched by whoever completes the one before it. So every
// process calls the same collectives in the same order, though its replicas finish in any.
//
// Bucket 0 is the first to be launched and carries the replicas' WEIGHTS in its header. Once it has
// landed the weight of the global batch is known, and every bucket can be applied as it lands.
//
// A process that trains alone has nothing to hide behind the backward pass: nothing is launched,
// and the arenas are summed chunk by chunk when they are applied, while the chunk is in the cache.
//
// Thread rules: Begin, End and the sink from the replica's own thread; everything else from the
// strategy's while no replica is in a pass, Sum also from many at once for different chunks.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include <cohort/comm/communicator.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/device/stream.h>
#include <cohort/optim/gradient_sink.h>
#include <cohort/optim/parameter_set.h>

#include "synchronous/bucket_plan.h"

namespace cohort {

class Reducer {
 public:
  struct Options {
    int replicas = 1;                      // of this process
    Communicator* communicator = nullptr;  // among the processes; nullptr: alone
    bool seed_with_weight = true;          // loss_seed(): the replica's weight, or 1
    std::int64_t first_bucket_bytes = 0;
    std::int64_t bucket_bytes = 0;
    std::chrono::milliseconds timeout{0};  // of one bucket's all-reduce
    Log log;
  };

  // `parameters` must outlive this.
  Reducer(const ParameterSet& parameters, const Options& options);
  ~Reducer();

  const BucketPlan& plan() const { return plan_; }
  std::span<const float> gradients() const { return arena(0); }  // where the sums land

  // Before the replicas of a pass begin.
  void StartPass();
  // A replica begins: `weight` is its number of examples, until it says otherwise.
  void Begin(int replica, double weight, Stream& stream);
  GradientSink& sink(int replica);
  double weight(int replica) const;
  // Its step function has returned: what is not Ready is taken as it stands. `ran` false: it had no
  // examples and was not called.
  void End(int replica, bool ran);

  // Blocks until bucket b holds the sum over all processes. For buckets in order.
  Status Landed(int bucket);
  // Of the global batch. After Landed(0); alone, after every End.
  double total_weight() const;
  // Alone: makes replica 0's chunk the sum over the replicas. Otherwise it is, once landed.
  void Sum(const BucketPlan::Chunk& chunk);
  // The pass failed, and so did the communicator: blocks until no collective uses the arenas.
  void GiveUp();

 private:
  class Sink;
  struct Flight;

  std::span<float> arena(int replica) const;
  std::span<float> SpanOf(int replica, int bucket) const;
  void Complete(int replica, int bucket, Stream& stream);
  void Launch(int bucket, Stream& stream);
  void SumBucket(int bucket);

  const ParameterSet& parameters_;
  const Options options_;
  const BucketPlan plan_;
  std::vector<Tensor> arenas_;
  std::vector<std::unique_ptr<Sink>> sinks_;

  std::mutex mutex_;  // guards the following, and flights_ but for what a launch under way writes
  std::vector<Flight> flights_;  // by bucket
  int next_launch_ = 0;
  bool launching_ = false;
  bool warned_ = false;
};

}  // namespace cohort
