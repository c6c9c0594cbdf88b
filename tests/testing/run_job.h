// Jobs of the synchronous strategy whose processes are threads.
#pragma once

#include <cohort/strategies/strategy.h>

#include <functional>

namespace cohort::testing {

struct World {
  int processes = 1;
  int devices = 1;
};

// fn(process, strategy) on every process of a job; all must return OK.
void RunJob(const World& world, const StrategyOptions& options,
            const std::function<Status(int process, Strategy& strategy)>& fn);

}  // namespace cohort::testing
