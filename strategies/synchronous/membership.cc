#include "synchronous/membership.h"

#include <utility>

#include "synchronous/agreement.h"
#include "synchronous/step_rows.h"

namespace cohort {
namespace {

class CommunicatorMembership final : public Membership {
 public:
  CommunicatorMembership(std::unique_ptr<Communicator> communicator, KeyValueStore* store)
      : communicator_(std::move(communicator)), store_(store) {}

  Communicator* communicator() override { return communicator_.get(); }
  KeyValueStore* store() override { return store_; }
  Status Explain(const Status& status) override { return status; }
  void GiveUp(const Status& error) override {
    if (communicator_ != nullptr) {
      communicator_->Abort(error);
    }
  }
  Status Leave() override {
    if (communicator_ == nullptr) {
      return {};
    }
    CollectiveOptions options;
    options.name = "shutdown";
    return Await(communicator_->Barrier(options));
  }

 private:
  const std::unique_ptr<Communicator> communicator_;
  KeyValueStore* const store_;
};

}  // namespace

Result<std::unique_ptr<StepRows>> Membership::ConnectRows(const ps::ModelSpec& /*model*/,
                                                          int /*threads*/) {
  return FailedPrecondition("this job has no parameter servers");
}

Status Membership::Renew(const std::function<void()>& /*let_go*/) {
  return FailedPrecondition("this job ends when one of its processes is lost");
}

std::unique_ptr<Membership> MakeMembership(std::unique_ptr<Communicator> communicator,
                                           KeyValueStore* store) {
  return std::make_unique<CommunicatorMembership>(std::move(communicator), store);
}

}  // namespace cohort
