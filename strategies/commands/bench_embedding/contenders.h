// What `cohort bench embedding` measures in turns, and how it tells of it.

#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/status.h>

#include "workload.h"

namespace cohort::embedding {

double Seconds(const std::function<void()>& run);

// Two ways to do the same: the measured one, and the one beside it.
struct Contender {
  std::string name;
  std::string unit;
  std::function<void()> measured;
  std::function<void()> beside;
  double count;  // in a round
  std::vector<double> measured_seconds{};
  std::vector<double> beside_seconds{};
};

// Each does its work once for nothing, and then in every round.
void TakeTurns(const Options& options, std::span<Contender> contenders);

// What a report calls the contender beside the measured one, and the ratio to it.
struct Beside {
  const char* rate;
  const char* ratio;
};

// The end of a report: each contender's rates under `key`, as a table or with all of it in JSON.
// Internal if anything is wrong.
Status Conclude(const Options& options, nlohmann::ordered_json report, const char* key,
                std::span<const Contender> contenders, const Beside& beside, std::uint64_t wrong,
                const std::string& what);

}  // namespace cohort::embedding
