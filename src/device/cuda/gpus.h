// The GPUs that this process uses.

#pragma once

#include <memory>
#include <vector>

#include "cuda/gpu.h"

namespace cohort::cuda {

// Any thread.
std::vector<std::shared_ptr<Gpu>> GpusInUse();

}  // namespace cohort::cuda
