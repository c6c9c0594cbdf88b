// What goes into a training step and what comes out: the step function that a program writes, what
// it is given for each replica and returns, and what the step amounts to over the job.
//
// Thread rules: a StepFn runs on the replicas' threads, at the same time for different replicas;
// each call has a ReplicaContext of its own.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/data/dataset.h>
#include <cohort/device/device.h>
#include <cohort/device/stream.h>
#include <cohort/optim/gradient_sink.h>
#include <cohort/optim/parameter_set.h>

namespace cohort {

// What a step function is given: the replica is an argument, never a thread-local.
struct ReplicaContext {
  int replica = 0;  // 0 .. num_replicas-1 over the whole job
  int num_replicas = 1;
  std::int64_t step = 0;  // of this strategy, from 1
  // In `device`'s memory. Read only during the step, but for those that are not trainable, such as
  // running averages: local replica 0 may write these, and those of process 0 then hold on
  // all.
  ParameterSet& parameters;
  GradientSink& gradients;
  Stream& stream;                                // the replica's compute stream
  int intra_op_threads = 1;                      // that its operations may use
  int local_replica = 0;                         // among those of this process
  std::shared_ptr<Device> device = CpuDevice();  // whose memory `parameters` and gradients are in
};

// What a step function returns of its part: sums, so that parts add up.
struct ReplicaResult {
  double loss_sum = 0;  // mean loss * weight
  double weight = 0;    // examples, or whatever the mean was taken over
  // As many on every replica and step, and at most 28; e.g. correct predictions. Longer ones, say
  // the counts of an AUC, go through Strategy::Reduce.
  std::vector<double> metric_sums;
};

// Not called for a part without examples, which contributes nothing. An error or an exception gives
// the step up on every process: the others' Step returns it with this task's name, this one's
// returns the error or throws the exception on.
using StepFn = std::function<Result<ReplicaResult>(ReplicaContext&, const data::Batch&)>;

struct StepResult {
  double loss = 0;              // weighted mean over the global batch
  double weight = 0;            // of the global batch; 0: nothing was updated
  std::vector<double> metrics;  // weighted means
  std::int64_t step = 0;
  // The gradients overflowed (StrategyOptions::grad_scaler): values and slots are as before. The
  // step counts.
  bool skipped = false;
  // Of this process, for this step: how long it waited for the others after its own backward passes
  // had ended. What was hidden behind them does not count.
  double exposed_communication_seconds = 0;
  // Under a parameter server: the most updates by others that a part of the gradient met which its
  // values did not have.
  std::int64_t staleness = 0;
};

// One value per local replica; and one value that all replicas share. Distinct types on purpose.
template <typename T>
struct PerReplica {
  std::vector<T> values;
};
template <typename T>
struct Mirrored {
  T value;
};

}  // namespace cohort
