// LateStream: a CPU stream that runs its work late, on a thread of its own, after seeded random
// delays. Where a WaitFor, an event or a Synchronize is missing, whoever reads too early sees old
// memory (and the thread sanitizer sees a race): no GPU needed.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include <cohort/device/stream.h>

namespace cohort::testing {

// Each piece of work starts up to `longest` after it could have.
std::unique_ptr<Stream> MakeLateStream(
    std::uint64_t seed, std::chrono::microseconds longest = std::chrono::microseconds(200));

// For StrategyOptions::make_stream: every stream with delays of its own.
std::function<std::unique_ptr<Stream>()> LateStreams(
    std::uint64_t seed, std::chrono::microseconds longest = std::chrono::microseconds(200));

}  // namespace cohort::testing
