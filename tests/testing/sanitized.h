// Whether this build runs under a sanitizer: what it costs, and what it adds to memory.
#pragma once

namespace cohort::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
inline constexpr int kPatience = kSanitized ? 10 : 1;  // factor on what a test may take at most

}  // namespace cohort::testing
