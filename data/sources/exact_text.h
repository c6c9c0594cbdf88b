// A number as text that no other number has: for digests.

#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string>

namespace cohort::data {

inline std::string ExactText(double value) {
  return std::to_string(std::bit_cast<std::uint64_t>(value));
}
inline std::string ExactText(const std::optional<double>& value) {
  return value.has_value() ? ExactText(*value) : "none";
}

}  // namespace cohort::data
