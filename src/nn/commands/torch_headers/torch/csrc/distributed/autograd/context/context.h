// Debian's LibTorch leaves this header out, which its own c10d/reducer.hpp includes. That needs a
// pointer to the class and a type's name, and no more: DistributedDataParallel without RPC makes
// none of it.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

namespace torch::distributed::autograd {

class DistAutogradContext {
 public:
  using GradCallback = std::function<bool(at::Tensor&)>;
};
using ContextPtr = std::shared_ptr<DistAutogradContext>;

}  // namespace torch::distributed::autograd
