// Padding of windows that slide over an image: convolutions and pools.

#pragma once

#include <cohort/nn/operations.h>

#include <algorithm>
#include <cstdint>

namespace cohort::nn {

struct WindowPadding {
  std::int64_t before = 0;
  std::int64_t after = 0;
};

WindowPadding PadWindow(Padding padding, std::int64_t size, std::int64_t window,
                        std::int64_t stride);

}  // namespace cohort::nn
