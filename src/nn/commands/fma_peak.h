// The most multiply-adds per second that this machine's cores reach, as a yardstick.
#pragma once

#include <chrono>
#include <string_view>

namespace cohort {

// The instruction set that FmaPeak uses here: "avx512f" or "avx2".
std::string_view FmaInstructions();

// Floating-point operations (two per multiply-add) per second of `threads` threads at once, each on
// registers alone, in the best millisecond of about `duration`.
double FmaPeak(int threads, std::chrono::milliseconds duration);

}  // namespace cohort
