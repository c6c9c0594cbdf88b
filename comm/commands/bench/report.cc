#include "report.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace cohort::bench {
namespace {

// As nccl-tests' doc/PERFORMANCE.md.
double BusFactor(Operation operation, int ranks) {
  switch (operation) {
    case Operation::kAllReduce:
      return 2.0 * (ranks - 1) / ranks;
    case Operation::kReduceScatter:
    case Operation::kAllGather:
      return 1.0 * (ranks - 1) / ranks;
    case Operation::kBroadcast:
      return 1;
  }
  return 1;
}

// Round by round, so that both sides of a quotient saw the same machine.
double Ratio(const Row& row, const Row& cohort) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < std::min(row.rounds.size(), cohort.rounds.size()); ++i) {
    ratios.push_back(row.rounds[i] / cohort.rounds[i]);
  }
  return Median(std::move(ratios));
}

}  // namespace

Status CheckResults(const std::vector<SubjectSpec>& specs, const std::vector<Row>& rows) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].wrong != 0) {
      return Internal("wrong results: " + specs[i].name() + ", " + std::to_string(rows[i].wrong) +
                      " elements of " + std::to_string(rows[i].bytes) + " bytes");
    }
  }
  return {};
}

void Report::Begin() const {
  if (options_.json) {
    return;
  }
  std::printf("# %s of %s, %d ranks, transport %s, algorithm %s\n",
              std::string(OperationName(options_.operation)).c_str(),
              std::string(DTypeName(options_.dtype)).c_str(), options_.ranks,
              options_.transport.c_str(), options_.algorithm.c_str());
  std::printf(
      "# algbw, busbw: 10^9 bytes/s, as nccl-tests; ratio: time / cohort's time, medians\n");
  if (options_.late.count() > 0) {
    std::printf(
        "# the last rank %lld ms late; cpu/wait: seconds of cores for each that one waits\n",
        static_cast<long long>(options_.late.count()));
  }
  std::printf("#%11s  %-18s %12s %9s %9s %7s %7s%s\n", "bytes", "impl", "time us", "algbw", "busbw",
              "#wrong", "ratio", options_.late.count() > 0 ? "  cpu/wait" : "");
  std::fflush(stdout);  // all ranks are ready
}

void Report::Print(const std::vector<SubjectSpec>& specs, const std::vector<Row>& rows) const {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const SubjectSpec& spec = specs[i];
    const Row& row = rows[i];
    const double algbw = static_cast<double>(row.bytes) / row.seconds() / 1e9;
    const double busbw = algbw * BusFactor(options_.operation, options_.ranks);
    const double ratio = Ratio(row, rows[0]);
    if (!options_.json) {
      std::printf("%12lld  %-18s %12.2f %9.2f %9.2f %7lld %7.2f", static_cast<long long>(row.bytes),
                  spec.name().c_str(), row.seconds() * 1e6, algbw, busbw,
                  static_cast<long long>(row.wrong), ratio);
      if (options_.late.count() > 0) {
        std::printf(" %9.3f", row.cpu_per_waiting_second());
      }
      std::printf("\n");
      continue;
    }
    nlohmann::ordered_json line = {{"op", OperationName(options_.operation)},
                                   {"impl", spec.implementation},
                                   {"transport", spec.transport},
                                   {"ranks", options_.ranks},
                                   {"bytes", row.bytes},
                                   {"time_us", row.seconds() * 1e6},
                                   {"algbw_gbps", algbw},
                                   {"busbw_gbps", busbw},
                                   {"wrong", row.wrong},
                                   {"dtype", DTypeName(options_.dtype)},
                                   {"iterations", row.iterations},
                                   {"read", options_.read},
                                   {"ratio", ratio}};
    if (options_.late.count() > 0) {
      line["late_ms"] = options_.late.count();
      line["cpu_per_waiting_second"] = row.cpu_per_waiting_second();
    }
    for (const double seconds : row.rounds) {
      line["rounds_us"].push_back(seconds * 1e6);
    }
    if (spec.implementation == "cohort") {
      line["algorithm"] = options_.algorithm;
      line["buffer"] = spec.buffer;
    }
    if (!spec.configuration.empty()) {
      line["configuration"] = spec.configuration;
    }
    std::printf("%s\n", line.dump().c_str());
  }
  std::fflush(stdout);
}

}  // namespace cohort::bench
