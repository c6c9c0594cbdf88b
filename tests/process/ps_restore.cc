#include "process/ps_restore.h"

#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <utility>

namespace cohort::testing {

Result<SavePlan> PlanWithoutAWayBack(const std::string& way, Strategy& strategy) {
  if (way != "error" && way != "throws" && way != "nothing") {
    return InvalidArgument("a way back \"" + way + "\" [error, throws, nothing]");
  }
  const auto saved = std::make_shared<std::int64_t>(0);
  SavePlan plan{.every_steps = 10};
  plan.save = [&strategy, saved](std::int64_t /*epoch*/, std::int64_t /*batch*/) -> Status {
    COHORT_RETURN_IF_ERROR(strategy.PullState());
    *saved = strategy.step();
    std::printf("saved step %lld\n", static_cast<long long>(*saved));
    std::fflush(stdout);
    return {};
  };
  plan.restore = [&strategy, saved, way]() -> Result<std::int64_t> {
    if (way == "error") {
      return DataLoss("shelf 7 of the saves is damaged");
    }
    if (way == "throws") {
      COHORT_RETURN_IF_ERROR(strategy.SetStep(*saved));
      COHORT_RETURN_IF_ERROR(strategy.PushState());
      throw std::out_of_range("the saves have no shelf 7");
    }
    return *saved;
  };
  return plan;
}

}  // namespace cohort::testing
