#include "nn/commands/fma_peak.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace cohort {
namespace {

constexpr int kChains = 16;  // independent sums: more than latency times issue width
constexpr std::int64_t kIterations = 20'000;

// Each runs kIterations rounds of kChains multiply-adds and returns how many operations that was.
// The sum goes out through `sink` so that it is computed.
__attribute__((target("avx512f"))) double RunAvx512(float* sink) {
  __m512 sums[kChains];
  for (__m512& sum : sums) {
    sum = _mm512_set1_ps(*sink);
  }
  const __m512 a = _mm512_set1_ps(0.999F);
  const __m512 b = _mm512_set1_ps(0.001F);
  for (std::int64_t i = 0; i < kIterations; ++i) {
#pragma GCC unroll 16
    for (__m512& sum : sums) {
      sum = _mm512_fmadd_ps(sum, a, b);
    }
  }
  float lanes[16];
  for (const __m512& sum : sums) {
    _mm512_storeu_ps(lanes, sum);
    *sink += lanes[0] * 1e-9F;
  }
  return 2.0 * 16 * kChains * static_cast<double>(kIterations);
}

__attribute__((target("avx2,fma"))) double RunAvx2(float* sink) {
  __m256 sums[kChains - 2];  // two registers hold the factors
  for (__m256& sum : sums) {
    sum = _mm256_set1_ps(*sink);
  }
  const __m256 a = _mm256_set1_ps(0.999F);
  const __m256 b = _mm256_set1_ps(0.001F);
  for (std::int64_t i = 0; i < kIterations; ++i) {
#pragma GCC unroll 16
    for (__m256& sum : sums) {
      sum = _mm256_fmadd_ps(sum, a, b);
    }
  }
  float lanes[8];
  for (const __m256& sum : sums) {
    _mm256_storeu_ps(lanes, sum);
    *sink += lanes[0] * 1e-9F;
  }
  return 2.0 * 8 * (kChains - 2) * static_cast<double>(kIterations);
}

bool HasAvx512() { return __builtin_cpu_supports("avx512f") != 0; }

// The fastest of pieces of about a millisecond: one that another program interrupts does not count.
double PeakOfOneThread(std::chrono::milliseconds duration) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRunsPerPiece = 25;
  float sink = 1.0F;
  double best = 0;
  const auto run = HasAvx512() ? RunAvx512 : RunAvx2;
  const Clock::time_point end = Clock::now() + duration;
  for (Clock::time_point start = Clock::now(); start < end;) {
    double operations = 0;
    for (int i = 0; i < kRunsPerPiece; ++i) {
      operations += run(&sink);
    }
    const Clock::time_point now = Clock::now();
    best = std::max(best, operations / std::chrono::duration<double>(now - start).count());
    start = now;
  }
  return sink == 0.0F ? 0.0 : best;
}

}  // namespace

std::string_view FmaInstructions() { return HasAvx512() ? "avx512f" : "avx2"; }

double FmaPeak(int threads, std::chrono::milliseconds duration) {
  std::vector<double> peaks(static_cast<std::size_t>(threads));
  std::vector<std::jthread> others;
  for (std::size_t i = 1; i < peaks.size(); ++i) {
    others.emplace_back([&, i] { peaks[i] = PeakOfOneThread(duration); });
  }
  peaks[0] = PeakOfOneThread(duration);
  others.clear();  // joins
  double sum = 0;
  for (const double peak : peaks) {
    sum += peak;
  }
  return sum;
}

}  // namespace cohort
