// What travels as 16 bits: the same bits on every device, and what rounding lost is kept.

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "device_conformance.h"

namespace cohort::testing {
namespace {

TEST_P(DeviceHalves, CompressionKeepsWhatRoundingLost) {
  for (const std::int64_t n : sizes()) {
    SCOPED_TRACE(n);
    for (const DType half : kHalves) {
      SCOPED_TRACE(std::string(DTypeName(half)));
      // Beyond float16 at both ends.
      const auto spread = [n](std::uint64_t seed, int from) {
        std::vector<float> values = RandomFloats(n, seed);
        for (std::size_t i = 0; i < values.size(); ++i) {
          values[i] *= std::ldexp(1.0F, static_cast<int>(i % 48) + from);
        }
        return values;
      };
      const std::vector<float> x = spread(1, -30);
      const std::vector<float> residual = spread(2, -40);
      Check(0, [&](const Call& c) {
        for (const double weight : {24.0, 1.0, 3.0, 0.0}) {
          const FloatSpan kept = c.memory.InOut(residual);
          c.kernels.Compress(c.stream, c.memory.In(x), weight, kept, c.memory.Out(n, half));
        }
        c.kernels.Compress(c.stream, c.memory.In(x), 24, {}, c.memory.Out(n, half));
      });
    }
  }
  // Halfway to the next of bfloat16, which is lost to the even one; what float16 does not reach
  // leaves nothing behind.
  Check(
      0,
      [](const Call& c) {
        const FloatSpan kept = c.memory.InOut({0.25F, 0, 0, -8});
        const Elements narrow = c.memory.Out(4, DType::kBFloat16);
        c.kernels.Compress(c.stream, c.memory.In({1 + 0x1p-8F, INFINITY, 3, 17}), 2, kept, narrow);
        const FloatSpan kept16 = c.memory.InOut({0.5F, 1});
        const Elements narrow16 = c.memory.Out(2, DType::kFloat16);
        c.kernels.Compress(c.stream, c.memory.In({70000, 2048}), 1, kept16, narrow16);
      },
      {{0x1p-9, 0, 0, 0}, {1.5, INFINITY, 3, 1}, {0, 1}, {INFINITY, 2048}});
}

}  // namespace
}  // namespace cohort::testing
