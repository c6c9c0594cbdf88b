// `cohort bench reduction`: how fast two blocks of elements become one, for every element type and
// reduction, beside memcpy and beside the limit: the same loads and stores without arithmetic.

#include <immintrin.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "../reduction.h"
#include "command.h"

namespace cohort {
namespace {

using Clock = std::chrono::steady_clock;

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64,  DType::kInt32, DType::kInt64,
                             DType::kFloat16, DType::kBFloat16, DType::kUInt8};
constexpr ReduceOp kReduceOps[] = {ReduceOp::kSum, ReduceOp::kMean, ReduceOp::kMin, ReduceOp::kMax,
                                   ReduceOp::kProduct};
constexpr int kSources = 4;  // of the many-operand rows

struct Options {
  std::vector<std::int64_t> sizes = {64 << 10, 64 << 20};  // in the caches, and beyond them
  int rounds = 7;
  bool json = false;
};

// What is measured at one size; times of all are taken in turns.
struct Contender {
  std::string dtype;
  std::string op;
  std::function<void()> run;
  std::vector<double> seconds;

  double median() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

// Two loads and one store per 32 bytes, and nothing that takes time in between.
void Stream(std::byte* to, const std::byte* from, std::size_t bytes) {
  for (std::size_t at = 0; at + 32 <= bytes; at += 32) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(to + at));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), _mm256_xor_si256(a, b));
  }
}

// The same with kSources blocks read and one written.
void StreamMany(std::byte* to, std::span<const std::byte* const> from, std::size_t bytes) {
  constexpr std::size_t kTile = Reduction::kBlockBytes;  // a stream at a time, for the prefetchers
  for (std::size_t tile = 0; tile < bytes; tile += kTile) {
    const std::size_t end = std::min(tile + kTile, bytes);
    for (std::size_t s = 1; s < from.size(); ++s) {
      const std::byte* const left = s == 1 ? from[0] : to;
      for (std::size_t at = tile; at < end; at += 32) {
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(left + at));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from[s] + at));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), _mm256_xor_si256(a, b));
      }
    }
  }
}

double TimeOnce(const std::function<void()>& run, int repeats) {
  const auto start = Clock::now();
  for (int i = 0; i < repeats; ++i) {
    run();
    asm volatile("" : : : "memory");  // each is wanted
  }
  return std::chrono::duration<double>(Clock::now() - start).count() / repeats;
}

std::vector<Contender> Measure(std::size_t bytes, int rounds) {
  // Small integers of every type alike stay finite under every reduction: all bits zero.
  std::vector<std::vector<std::byte>> blocks(kSources, std::vector<std::byte>(bytes));
  std::vector<std::byte> to(bytes);
  std::vector<const std::byte*> sources;
  for (const std::vector<std::byte>& block : blocks) {
    sources.push_back(block.data());
  }
  std::vector<Contender> contenders;
  contenders.push_back({"-", "memcpy", [&] { std::memcpy(to.data(), sources[0], bytes); }, {}});
  contenders.push_back({"-", "limit", [&] { Stream(to.data(), sources[0], bytes); }, {}});
  contenders.push_back({"-", "limit of 4", [&] { StreamMany(to.data(), sources, bytes); }, {}});
  for (const DType dtype : kDTypes) {
    for (const ReduceOp op : kReduceOps) {
      contenders.push_back({std::string(DTypeName(dtype)),
                            std::string(ReduceOpName(op)),
                            [&, reduction = Reduction(dtype, op), mean = op == ReduceOp::kMean] {
                              if (mean) {  // as a collective does it: segment by segment
                                constexpr std::size_t kSegment = 64 << 10;
                                for (std::size_t at = 0; at < bytes; at += kSegment) {
                                  const std::size_t n = std::min(kSegment, bytes - at);
                                  reduction.Combine(to.data() + at, to.data() + at, sources[0] + at,
                                                    n);
                                  reduction.Finish(to.data() + at, n, 3);
                                }
                              } else {
                                reduction.Combine(to.data(), to.data(), sources[0], bytes);
                              }
                            },
                            {}});
    }
    contenders.push_back({std::string(DTypeName(dtype)),
                          "sum of 4",
                          [&, reduction = Reduction(dtype, ReduceOp::kSum)] {
                            reduction.CombineAll(to.data(), sources, bytes);
                          },
                          {}});
  }
  const int repeats = static_cast<int>(std::clamp<std::size_t>((8 << 20) / bytes, 1, 1000));
  for (int round = -1; round < rounds; ++round) {
    for (Contender& contender : contenders) {
      const double seconds = TimeOnce(contender.run, repeats);
      if (round >= 0) {
        contender.seconds.push_back(seconds);
      }
    }
  }
  return contenders;
}

void Print(std::size_t bytes, const std::vector<Contender>& contenders, bool json) {
  const double memcpy_seconds = contenders[0].median();
  if (!json) {
    std::printf("# %zu bytes a block; GB/s of the block that is written\n", bytes);
    std::printf("#%11s %10s %10s %10s %10s\n", "type", "op", "GB/s", "of memcpy", "of limit");
  }
  for (const Contender& contender : contenders) {
    const bool many = contender.op.ends_with("of 4");
    const double seconds = contender.median();
    const double rate = static_cast<double>(bytes) / seconds / 1e9;
    const double limit = contenders[many ? 2 : 1].median();
    if (!json) {
      std::printf("%12s %10s %10.2f %10.2f %10.2f\n", contender.dtype.c_str(), contender.op.c_str(),
                  rate, memcpy_seconds / seconds, limit / seconds);
    } else {
      const nlohmann::json line = {{"bytes", bytes},
                                   {"dtype", contender.dtype},
                                   {"op", contender.op},
                                   {"gb_per_s", rate},
                                   {"ratio_to_memcpy", memcpy_seconds / seconds},
                                   {"ratio_to_limit", limit / seconds}};
      std::printf("%s\n", line.dump().c_str());
    }
  }
}

}  // namespace

int BenchReductionCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Measures the loops that combine two blocks of elements, beside memcpy and beside the same "
      "loads and stores without arithmetic (the limit).",
      argv[0]);
  app.add_option("--sizes", options.sizes, "bytes of a block, as in 64k,64m")
      ->delimiter(',')
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::int64_t{64}, std::int64_t{1} << 32));
  app.add_option("--rounds", options.rounds, "the median of so many, all taken in turns")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--json", options.json, "machine-readable output");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  for (const std::int64_t size : options.sizes) {
    const auto bytes = static_cast<std::size_t>(size) / 64 * 64;
    Print(bytes, Measure(bytes, options.rounds), options.json);
  }
  return 0;
}

}  // namespace cohort
