// Products with kGelu as two steps: for devices that have no other way, and to measure others by.

#pragma once

#include <cohort/device/kernels.h>

#include <memory>

namespace cohort {

// The product by a plan of `kernels`, then their Activate or ActivateBackward. nullptr where the
// spec says nothing of gelu. `kernels` must outlive it.
std::unique_ptr<MatMulPlan> MakeGeluApart(Kernels& kernels, const MatMulSpec& spec);

}  // namespace cohort
