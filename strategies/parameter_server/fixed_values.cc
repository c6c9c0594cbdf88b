#include "parameter_server/fixed_values.h"

#include <algorithm>
#include <cstddef>

namespace cohort::ps {
namespace {

// fn(offset, size) for each parameter that is not trained by gradients.
template <typename Fn>
void ForFixed(const ParameterSet& parameters, const Fn& fn) {
  for (int p = 0; p < parameters.size(); ++p) {
    const ParameterSet::Parameter& parameter = parameters[p];
    if (!parameter.trainable) {
      fn(static_cast<std::size_t>(parameter.offset),
         static_cast<std::size_t>(parameter.shape.elements()));
    }
  }
}

}  // namespace

FixedValues::FixedValues(const ParameterSet& parameters) : parameters_(parameters) {
  std::size_t fixed = 0;
  ForFixed(parameters_, [&](std::size_t /*offset*/, std::size_t size) { fixed += size; });
  kept_.resize(fixed);
}

void FixedValues::Keep(std::span<const float> values) {
  auto to = kept_.begin();
  ForFixed(parameters_, [&](std::size_t offset, std::size_t size) {
    to = std::ranges::copy(values.subspan(offset, size), to).out;
  });
}

void FixedValues::Restore(std::span<float> values) const {
  auto from = kept_.begin();
  ForFixed(parameters_, [&](std::size_t offset, std::size_t size) {
    const auto end = from + static_cast<std::ptrdiff_t>(size);
    std::copy(from, end, values.subspan(offset, size).begin());
    from = end;
  });
}

void FixedValues::Put(std::span<const float> values, std::span<float> gradients,
                      bool difference) const {
  auto before = kept_.begin();
  ForFixed(parameters_, [&](std::size_t offset, std::size_t size) {
    const std::span<const float> value = values.subspan(offset, size);
    const std::span<float> gradient = gradients.subspan(offset, size);
    for (std::size_t i = 0; i < size; ++i) {
      gradient[i] = difference ? value[i] - *before : value[i];
      ++before;
    }
  });
}

}  // namespace cohort::ps
