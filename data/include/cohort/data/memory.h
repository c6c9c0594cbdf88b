// Data that is in memory already.

#pragma once

#include <cohort/core/status.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

// Tensors whose first axis is the example; feature `name` of example i is row i of tensors[name].
// The memory is shared with the caller's handles and must not change any more.
// InvalidArgument: no tensor, a tensor without an axis, or first axes that differ.
Result<Dataset> FromTensors(const Example& tensors);

}  // namespace cohort::data
