#include <cohort/device/stream.h>

#include <chrono>
#include <utility>

namespace cohort {
namespace {

// How long WaitFor lets another stream keep this thread. Operations on streams have deadlines of
// their own, far shorter; this one only makes a lost one end in an error.
constexpr std::chrono::minutes kWaitForTimeout{10};

// All work before it has run when it is made.
class PastEvent final : public Event {
 public:
  explicit PastEvent(Status status) : status_(std::move(status)) {}
  bool done() const override { return true; }
  Status Wait(Deadline /*deadline*/) override { return status_; }

 private:
  const Status status_;
};

class InlineStream final : public Stream {
 public:
  void Enqueue(std::function<Status()> work) override {
    if (status_.ok()) {
      status_ = work();
    }
  }
  std::shared_ptr<Event> Record() override { return std::make_shared<PastEvent>(status_); }
  void WaitFor(std::shared_ptr<Event> event) override {
    Require(event != nullptr, "WaitFor needs an event");
    if (status_.ok()) {
      status_ = event->Wait(DeadlineAfter(kWaitForTimeout));
    }
  }
  Status Synchronize(Deadline /*deadline*/) override { return std::exchange(status_, OkStatus()); }

 private:
  Status status_;  // the first error since the last Synchronize
};

}  // namespace

std::unique_ptr<Stream> MakeInlineStream() { return std::make_unique<InlineStream>(); }

}  // namespace cohort
