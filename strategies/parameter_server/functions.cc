#include <cohort/strategies/coordinator.h>

#include <exception>
#include <utility>

#include <cohort/strategies/parameter_server.h>

namespace cohort {
namespace {

Result<ParameterServerStrategy*> ParameterServerOf(Strategy& strategy) {
  auto* const parameter_server = dynamic_cast<ParameterServerStrategy*>(&strategy);
  if (parameter_server == nullptr) {
    return FailedPrecondition("functions run on the workers of a parameter server, not under " +
                              std::string(strategy.kind()) +
                              " [cohort launch -n 2 --ps 1 --chief -- PROGRAM]");
  }
  return parameter_server;
}

}  // namespace

void Functions::Add(std::string name, Function function) {
  Require(!name.empty() && function != nullptr, "a function and its name");
  Require(functions_.emplace(std::move(name), std::move(function)).second,
          "functions of different names");
}

Result<std::string> Functions::Call(const std::string& name, const std::string& argument) const {
  const auto found = functions_.find(name);
  if (found == functions_.end()) {
    std::string known;
    for (const auto& [other, function] : functions_) {
      known += (known.empty() ? "" : ", ") + other;
    }
    return NotFound("no function is called '" + name + "' [there are: " + known + "]");
  }
  try {
    return found->second(argument);
  } catch (const StatusError& error) {
    return error.status();
  } catch (const std::exception& error) {
    return Internal(std::string("exception: ") + error.what());
  } catch (...) {
    return Internal("an exception that is no std::exception");
  }
}

Result<std::unique_ptr<Coordinator>> Coordinator::Create(Strategy& strategy,
                                                         const ScheduleOptions& options) {
  COHORT_ASSIGN_OR_RETURN(ParameterServerStrategy * parameter_server, ParameterServerOf(strategy));
  return parameter_server->MakeCoordinator(options);
}

Status ServeFunctions(Strategy& strategy, const Functions& functions) {
  COHORT_ASSIGN_OR_RETURN(ParameterServerStrategy * parameter_server, ParameterServerOf(strategy));
  return parameter_server->ServeFunctions(functions);
}

}  // namespace cohort
