#include "contenders.h"

#include <chrono>
#include <cstdio>

#include "core/commands/processes.h"

namespace cohort::embedding {

double Seconds(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void TakeTurns(const Options& options, std::span<Contender> contenders) {
  for (int round = -1; round < options.rounds; ++round) {
    for (Contender& contender : contenders) {
      const double measured = Seconds(contender.measured);
      const double beside = Seconds(contender.beside);
      if (round >= 0) {
        contender.measured_seconds.push_back(measured);
        contender.beside_seconds.push_back(beside);
      }
    }
  }
}

Status Conclude(const Options& options, nlohmann::ordered_json report, const char* key,
                std::span<const Contender> contenders, const Beside& beside, std::uint64_t wrong,
                const std::string& what) {
  for (const Contender& contender : contenders) {
    const double rate = contender.count / Median(contender.measured_seconds);
    const double other = contender.count / Median(contender.beside_seconds);
    report[key].push_back({{"name", contender.name},
                           {"unit", contender.unit},
                           {"per_second", rate},
                           {beside.rate, other},
                           {beside.ratio, rate / other}});
    if (!options.json) {
      std::printf("%-24s %-12s %12.2f %12.2f %12.2f\n", contender.name.c_str(),
                  contender.unit.c_str(), rate / 1e6, other / 1e6, rate / other);
    }
  }
  if (options.json) {
    std::printf("%s\n", report.dump().c_str());
  }
  return wrong == 0 ? OkStatus() : Internal(std::to_string(wrong) + " " + what + " are wrong");
}

}  // namespace cohort::embedding
