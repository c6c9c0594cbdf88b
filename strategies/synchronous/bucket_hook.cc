#include <cohort/strategies/bucket_hook.h>

#include <utility>

namespace cohort {
namespace {

class ThenWork final : public Work {
 public:
  ThenWork(std::unique_ptr<Work> first, std::function<Status()> then)
      : first_(std::move(first)), then_(std::move(then)) {}

  bool done() const override { return first_->done(); }
  Status Wait(Deadline deadline) override {
    const Status status = first_->Wait(deadline);
    if (!status.ok() && !first_->done()) {
      return status;  // it goes on
    }
    return Wait();  // over meanwhile, if not before: as its own word says, not the deadline's
  }
  Status Wait() override { return Finish(first_->Wait()); }
  void Order(Stream& stream) override {
    first_->Order(stream);
    stream.Enqueue([this] { return Finish(OkStatus()); });
  }

 private:
  Status Finish(const Status& status) {
    if (then_ != nullptr) {
      const std::function<Status()> then = std::exchange(then_, nullptr);
      outcome_ = status.ok() ? then() : status;
    }
    return outcome_;
  }

  const std::unique_ptr<Work> first_;
  std::function<Status()> then_;
  Status outcome_;
};

}  // namespace

Communicator::Pending AllReduceBucket(const GradientBucket& bucket) {
  return bucket.communicator.AllReduce(bucket.values, ReduceOp::kSum, bucket.options);
}

std::unique_ptr<Work> Then(std::unique_ptr<Work> first, std::function<Status()> then) {
  return std::make_unique<ThenWork>(std::move(first), std::move(then));
}

}  // namespace cohort
