#pragma once

#include <cohort/device/plan.h>

#include <memory>

namespace cohort::cpu {

std::unique_ptr<AttentionPlan> MakeAttention(int threads, const AttentionSpec& spec);

}  // namespace cohort::cpu
