#pragma once

#include <cohort/device/plan.h>

#include <memory>

namespace cohort::cpu {

std::unique_ptr<PoolPlan> MakePool(int threads, const PoolSpec& spec);

}  // namespace cohort::cpu
