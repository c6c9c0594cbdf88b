#include <cohort/device/ahead_copy.h>

#include <utility>

namespace cohort {

AheadCopy::AheadCopy(std::shared_ptr<const Device> device, std::shared_ptr<std::byte> memory)
    : device_(std::move(device)), memory_(std::move(memory)) {}

void AheadCopy::Begun(std::shared_ptr<Event> done) { done_ = std::move(done); }

std::optional<Tensor> AheadCopy::Of(const Tensor& tensor, const Device& device, Stream& stream) {
  const auto* const copy = dynamic_cast<const AheadCopy*>(tensor.twin());
  if (copy == nullptr || copy->device_.get() != &device || copy->done_ == nullptr) {
    return std::nullopt;
  }
  stream.WaitFor(copy->done_);
  copy->used_.store(true, std::memory_order_relaxed);
  return Tensor(tensor.dtype(), tensor.shape(), copy->memory_, MemorySpace::kDevice);
}

}  // namespace cohort
