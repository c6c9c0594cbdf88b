#pragma once

#include <array>
#include <cstddef>
#include <cstdio>
#include <string>

namespace cohort::cuda {

// "512 bytes", "3.2 MiB".
inline std::string ByteCount(std::size_t bytes) {
  if (bytes < 1024) {
    return std::to_string(bytes) + " bytes";
  }
  constexpr std::array<const char*, 6> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes) / 1024.0;
  std::size_t unit = 0;
  while (value >= 1024.0 && unit + 1 < kUnits.size()) {
    value /= 1024.0;
    ++unit;
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f %s", value, kUnits[unit]);
  return text.data();
}

}  // namespace cohort::cuda
