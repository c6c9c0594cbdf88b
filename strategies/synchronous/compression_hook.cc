// Gradients as 16-bit floats.
//
// Between two processes each sends its values and gets the other's: half the bytes of an all-reduce
// in float, and the sum is taken in float, so that a process's own rounding is all that is lost,
// and error feedback makes up for all of it. Among n > 2 an all-gather would send n/2 times as much
// as an all-reduce; so the 16-bit values are all-reduced, and each addition rounds again.

#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cohort/strategies/bucket_hook.h>

#include "synchronous/feedback.h"

namespace cohort {
namespace {

template <typename Half>
class CompressionHook final : public BucketHook {
 public:
  explicit CompressionHook(bool error_feedback) : error_feedback_(error_feedback) {}

  std::string name() const override {
    return std::string(DTypeName(DTypeOf<Half>::value)) +
           (error_feedback_ ? " with error feedback" : " without error feedback");
  }

  std::optional<CompressionOptions> on_devices() const override {
    return CompressionOptions{.dtype = DTypeOf<Half>::value, .error_feedback = error_feedback_};
  }

  Status Bind(const ParameterSet& parameters, Communicator& communicator) override {
    feedback_.Bind(parameters, error_feedback_);
    gathers_ = communicator.size() == 2;
    rank_ = communicator.rank();
    return {};
  }

  Communicator::Pending Launch(const GradientBucket& bucket) override {
    const std::size_t size = bucket.values.size();
    std::vector<Half>& wire = wires_[bucket.index];
    wire.resize(gathers_ ? 2 * size : size);
    const std::span<Half> mine =
        std::span(wire).subspan(gathers_ ? static_cast<std::size_t>(rank_) * size : 0, size);
    bucket.stream.Enqueue([this, &bucket, mine]() -> Status {
      Compress(bucket, mine);
      return {};
    });
    Communicator::Pending sent =
        gathers_ ? Gather(bucket, mine, wire)
                 : bucket.communicator.AllReduce(mine, ReduceOp::kSum, bucket.options);
    COHORT_RETURN_IF_ERROR(sent.status());
    return Then(std::move(sent).value(), [&bucket, &wire]() -> Status {
      const std::size_t n = bucket.values.size();
      const Half* first = wire.data();
      const Half* second = wire.size() > n ? first + n : nullptr;
      for (std::size_t i = 0; i < n; ++i) {
        bucket.values[i] = static_cast<float>(first[i]) +
                           (second == nullptr ? 0.0F : static_cast<float>(second[i]));
      }
      return {};
    });
  }

 private:
  static Communicator::Pending Gather(const GradientBucket& bucket, std::span<Half> mine,
                                      std::vector<Half>& all) {
    CollectiveOptions options = bucket.options;
    options.algorithm = "auto";
    return bucket.communicator.AllGather(mine, std::span(all), options);
  }

  void Compress(const GradientBucket& bucket, std::span<Half> to) {
    for (const BucketPart& part : bucket.parts) {
      const auto begin = static_cast<std::size_t>(part.begin);
      const auto elements = static_cast<std::size_t>(part.shape.elements());
      const std::span<float> values = bucket.values.subspan(begin, elements);
      const std::span<Half> halves = to.subspan(begin, elements);
      feedback_.Add(part, bucket.weight, values);
      for (std::size_t i = 0; i < elements; ++i) {
        halves[i] = Half(values[i]);
      }
      const std::span<float> residual = feedback_.Of(part);
      const auto unit = bucket.weight > 0 ? static_cast<float>(1 / bucket.weight) : 0.0F;
      for (std::size_t i = 0; unit > 0 && i < residual.size(); ++i) {
        const float lost = values[i] - static_cast<float>(halves[i]);
        residual[i] = lost - lost == 0 ? lost * unit : 0.0F;  // what overflowed is no residual
      }
    }
  }

  const bool error_feedback_;
  Feedback feedback_;
  std::map<int, std::vector<Half>> wires_;  // by bucket: memory that stays
  bool gathers_ = false;
  int rank_ = 0;
};

}  // namespace

std::unique_ptr<BucketHook> MakeCompressionHook(const CompressionOptions& options) {
  Require(options.dtype == DType::kBFloat16 || options.dtype == DType::kFloat16,
          "compression to bfloat16 or float16");
  if (options.dtype == DType::kFloat16) {
    return std::make_unique<CompressionHook<Float16>>(options.error_feedback);
  }
  return std::make_unique<CompressionHook<BFloat16>>(options.error_feedback);
}

}  // namespace cohort
