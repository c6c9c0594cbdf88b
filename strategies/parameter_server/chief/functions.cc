#include <cohort/strategies/coordinator.h>

#include <utility>

#include <cohort/strategies/parameter_server.h>

#include "parameter_server/chief/caught.h"

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

template <typename T>
Result<const T*> Find(const std::map<std::string, T>& all, const std::string& name,
                      const std::string& what) {
  const auto found = all.find(name);
  if (found != all.end()) {
    return &found->second;
  }
  std::string known;
  for (const auto& [other, value] : all) {
    known += (known.empty() ? "" : ", ") + other;
  }
  return NotFound("no " + what + " is called '" + name + "' [there are: " + known + "]");
}

}  // namespace

void Functions::Add(std::string name, DataFunction function) {
  Require(!name.empty() && function != nullptr, "a function and its name");
  Require(functions_.emplace(std::move(name), std::move(function)).second,
          "functions of different names");
}

void Functions::Add(std::string name, Function function) {
  Require(function != nullptr, "a function and its name");
  Add(std::move(name),
      DataFunction([function = std::move(function)](
                       const std::string& argument,
                       std::span<data::BatchIterator* const> data) -> Result<std::string> {
        if (!data.empty()) {
          return InvalidArgument(std::to_string(data.size()) +
                                 " data set(s) for a function that takes none [Functions::Add one "
                                 "with a second argument]");
        }
        return function(argument);
      }));
}

void Functions::AddDataset(std::string name, DatasetFunction make) {
  Require(!name.empty() && make != nullptr, "a data set and its name");
  Require(datasets_.emplace(std::move(name), std::move(make)).second,
          "data sets of different names");
}

Result<std::string> Functions::Call(const std::string& name, const std::string& argument,
                                    std::span<data::BatchIterator* const> data) const {
  COHORT_ASSIGN_OR_RETURN(const DataFunction* const function, Find(functions_, name, "function"));
  return ps::CaughtAsStatus([&] { return (*function)(argument, data); });
}

Result<data::Dataset> Functions::MakeDataset(const std::string& name,
                                             const InputPipeline& pipeline) const {
  COHORT_ASSIGN_OR_RETURN(const DatasetFunction* const make, Find(datasets_, name, "data set"));
  Result<data::Dataset> dataset = ps::CaughtAsStatus([&] { return (*make)(pipeline); });
  if (dataset.ok() && dataset->batch_size() < 1) {
    return InvalidArgument("it is not in batches [Batch(size)]");
  }
  return dataset;
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
