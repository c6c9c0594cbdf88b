#include "parameter_server/remote_functions.h"

#include <utility>

namespace cohort::ps {
namespace {

constexpr std::size_t kMaxErrorBytes = std::size_t{64} << 10;

class FunctionCoordinator final : public cohort::Coordinator {
 public:
  FunctionCoordinator(ps::Coordinator& state, const ScheduleOptions& options)
      : state_(state), options_(options) {}
  ~FunctionCoordinator() override { state_.CloseFunctions(); }
  FunctionCoordinator(const FunctionCoordinator&) = delete;
  FunctionCoordinator& operator=(const FunctionCoordinator&) = delete;

  Result<RemoteValue> Schedule(std::string function, std::string argument) override {
    if (function.empty() || function.size() + argument.size() > kMaxFunctionBytes) {
      return InvalidArgument("a call of '" + function.substr(0, 100) + "' with an argument of " +
                             std::to_string(argument.size()) +
                             " bytes [a name is not empty; large data is read by the worker]");
    }
    COHORT_ASSIGN_OR_RETURN(
        std::shared_ptr<RemoteResult> result,
        state_.Schedule(std::move(function), std::move(argument), options_.max_waiting,
                        DeadlineAfter(options_.schedule_timeout)));
    return RemoteValue(std::move(result));
  }
  Status Join(Deadline deadline) override { return state_.Join(deadline); }
  bool Done() const override { return state_.Idle(); }
  Result<std::string> Fetch(const RemoteValue& value, Deadline deadline) override {
    Require(value.result() != nullptr, "Fetch of a value that Schedule returned");
    return state_.Fetch(*value.result(), deadline);
  }
  void Close() override { state_.CloseFunctions(); }

 private:
  ps::Coordinator& state_;
  const ScheduleOptions options_;
};

}  // namespace

Result<std::unique_ptr<cohort::Coordinator>> OpenFunctions(Coordinator& state,
                                                           const ScheduleOptions& options) {
  if (options.max_waiting < 1 || options.max_attempts < 1) {
    return InvalidArgument("a coordinator of " + std::to_string(options.max_waiting) +
                           " waiting calls and " + std::to_string(options.max_attempts) +
                           " attempts [each at least 1]");
  }
  COHORT_RETURN_IF_ERROR(state.OpenFunctions(options.max_attempts));
  return std::make_unique<FunctionCoordinator>(state, options);
}

Status RunFunctions(CoordinatorClient& coordinator, const Functions& functions,
                    const std::function<Status()>& idle) {
  for (;;) {
    if (idle) {
      COHORT_RETURN_IF_ERROR(idle());
    }
    COHORT_ASSIGN_OR_RETURN(const std::optional<Closure> closure, coordinator.NextClosure());
    if (!closure.has_value()) {
      return {};
    }
    Result<std::string> outcome = functions.Call(closure->function, closure->argument);
    if (outcome.ok() && outcome->size() > kMaxFunctionBytes) {
      outcome = ResourceExhausted("a result of " + std::to_string(outcome->size()) +
                                  " bytes is more than " + std::to_string(kMaxFunctionBytes) +
                                  " [write large results to files]");
    }
    if (!outcome.ok() && outcome.status().message().size() > kMaxErrorBytes) {
      outcome =
          Status(outcome.status().code(), outcome.status().message().substr(0, kMaxErrorBytes));
    }
    // Where the job has failed, this is what fails: the client knows the reason.
    COHORT_RETURN_IF_ERROR(coordinator.FinishClosure(closure->id, outcome));
  }
}

}  // namespace cohort::ps
