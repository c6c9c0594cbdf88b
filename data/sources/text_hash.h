// Text as a number, equal on every machine and in every release: models store rows by it.

#pragma once

#include <cstdint>
#include <string_view>

#include <cohort/core/random.h>

namespace cohort::data {

// With buckets: in [0, buckets). Without: any int64.
inline std::int64_t TextHash(std::string_view text, std::int64_t buckets) {
  const std::uint64_t hash = Hash64(text);
  return static_cast<std::int64_t>(buckets > 0 ? hash % static_cast<std::uint64_t>(buckets) : hash);
}

}  // namespace cohort::data
