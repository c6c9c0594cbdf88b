// A target as libFuzzer runs it; the build says which.

#include <cstddef>
#include <cstdint>

#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  cohort::fuzz::RunTarget(cohort::fuzz::kTargets[COHORT_FUZZ_TARGET],
                          {reinterpret_cast<const char*>(bytes), size});
  return 0;
}
