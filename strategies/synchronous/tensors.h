// Values of several replicas as one: what Reduce and Gather do within a process.

#pragma once

#include <cstdint>
#include <vector>

#include <cohort/comm/communicator.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>

namespace cohort {

// `op` over the tensors, in pairs and then in pairs of pairs, as a tensor of its own; for kMean
// their sum. InvalidArgument: different shapes or element types, or one that has no arithmetic here
// (float32, float64, int32, int64 have).
Result<Tensor> CombineTensors(ReduceOp op, const std::vector<Tensor>& tensors);
// Divides every element; integers truncate toward zero.
void DivideTensor(const Tensor& tensor, std::int64_t divisor);
// The tensors one after the other along the first axis. InvalidArgument if anything but its length
// differs.
Result<Tensor> ConcatenateTensors(const std::vector<Tensor>& tensors);

}  // namespace cohort
