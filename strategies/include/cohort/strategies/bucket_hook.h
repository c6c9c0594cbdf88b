// BucketHook: how one bucket of gradients becomes the sum over the processes.
//
// Gradients travel in buckets, launched while the backward pass goes on. What a bucket's journey is
// can be replaced: by a compression, another communicator, a filter. Without a hook it is one
// all-reduce, straight from the memory that the backward pass wrote.
//
//   class Halves final : public BucketHook { ... Launch: compress, AllReduce, decompress ... };
//   options.make_bucket_hook = [] { return std::make_unique<Halves>(); };
//
// Every process has a hook of its own, of the same name. Launch is called for the same buckets in
// the same order on all of them, so a hook may call any of the communicator's operations, in the
// same order everywhere: those of Launch at once, later ones from its Work's Wait(), which the
// strategy calls in the order of the buckets, when the pass is over. After step 1, and when the
// bucket size is adapted, other buckets come: what is kept from step to step belongs to parameters,
// not to buckets.
//
// Thread rules: Launch from one thread at a time, which may be any replica's; Wait from the
// strategy's. Neither runs while the other does for the same bucket.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <cohort/comm/communicator.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/device/stream.h>
#include <cohort/optim/parameter_set.h>

namespace cohort {

// Where a parameter's gradient lies in a bucket.
struct BucketPart {
  int parameter = 0;
  std::int64_t begin = 0;  // element of GradientBucket::values
  Shape shape;
  std::int64_t offset = 0;  // in ParameterSet::all(): where to keep what belongs to it
};

struct GradientBucket {
  int index = 0;  // in this pass
  // What to replace by its sum over the processes: gradients as sums over this process's examples,
  // there when `stream` has run what it holds at Launch. Between the parts lie zeros.
  std::span<float> values;
  std::span<const BucketPart> parts;
  // What the gradients were scaled by: this process's examples (or its weight). 0: all values are
  // 0, and count for nothing. What is kept for a later step is kept per unit of it, since that
  // step's batch may be smaller. 1 where gradients are not scaled by weights.
  double weight = 0;
  std::int64_t step = 0;  // from 1
  Communicator& communicator;
  Stream& stream;
  // For the communicator: name, timeout, algorithm, and `stream` for what starts behind it.
  CollectiveOptions options;
};

// Of gradients that travel as 16-bit floats, see MakeCompressionHook.
struct CompressionOptions {
  DType dtype = DType::kBFloat16;  // or kFloat16, whose values end at 65504: larger ones become inf
  bool error_feedback = true;
};

class BucketHook {
 public:
  virtual ~BucketHook() = default;
  // With all settings that must be equal: compared between the processes in Bind.
  virtual std::string name() const = 0;
  // Of a hook that does nothing but round: what GPUs may do in its place, with their own kernels,
  // where gradients do not leave their memory (cross_device_ops nccl). It is not bound then. Of
  // others buckets come to the host's memory, and NCCL has no part in them.
  virtual std::optional<CompressionOptions> on_devices() const { return std::nullopt; }
  // Once, before the first Launch.
  virtual Status Bind(const ParameterSet& parameters, Communicator& communicator) = 0;
  // `bucket` and its spans stay as they are until the Work's Wait() has returned.
  virtual Communicator::Pending Launch(const GradientBucket& bucket) = 0;
};

// The default: bucket.values are all-reduced in place.
Communicator::Pending AllReduceBucket(const GradientBucket& bucket);

// A work that is `first`, and when that is over `then`, which Wait() runs on its caller's thread,
// once, unless `first` failed.
std::unique_ptr<Work> Then(std::unique_ptr<Work> first, std::function<Status()> then);

// Halves the bytes: gradients travel as bfloat16 or float16. Between two processes each gets the
// other's values and adds in float; among more, and among GPUs by NCCL, they are all-reduced in
// that type, which rounds each sum. With error feedback a process (by NCCL: a GPU) adds what its
// rounding lost to its next gradient: 4 bytes more per parameter, not saved in checkpoints (a
// resumed run starts without).
std::unique_ptr<BucketHook> MakeCompressionHook(const CompressionOptions& options = {});

// PowerSGD (Vogels, Karimireddy, Jaggi, 2019): a gradient matrix travels as two thin ones of `rank`
// columns, found by one step of power iteration from the last step's (warm start). What is lost is
// added to the next gradient (error feedback). A parameter of one axis, or whose factors would be
// no smaller than itself, travels as it is. Parameters of more axes are matrices of their last
// axis. Factors and feedback are not saved in checkpoints.
struct PowerSgdOptions {
  int rank = 4;
  std::int64_t start_step = 10;  // plain all-reduce before: the first gradients change fast
  bool error_feedback = true;
  std::uint64_t seed = 0;  // of the first factors
};
std::unique_ptr<BucketHook> MakePowerSgdHook(const PowerSgdOptions& options = {});

}  // namespace cohort
