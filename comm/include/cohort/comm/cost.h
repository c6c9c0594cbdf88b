// What collectives cost on a communicator, and what "auto" makes of it.
//
// The time of an algorithm is taken to be
//   steps * latency + (messages - steps) * per_message
//   + bytes * per_byte + reduced * per_reduced_byte
// with the messages on the critical path one after the other (steps), all messages that one rank
// sends, the bytes it sends and the bytes it combines: the table in comm/README.md.

#pragma once

#include <cohort/core/clock.h>

#include <optional>
#include <string_view>
#include <vector>

namespace cohort {

struct CostParameters {
  double latency = 0;           // seconds from a rank's sending a message to its peer's having it
  double per_message = 0;       // seconds for each further message sent meanwhile
  double per_byte = 0;          // seconds, while as much comes the other way
  double per_reduced_byte = 0;  // seconds to combine, over and above receiving

  friend bool operator==(const CostParameters&, const CostParameters&) = default;
};

struct AlgorithmCost {
  std::string_view algorithm;
  std::optional<double> seconds;  // none: taken where it can be, without reckoning
  bool in_order = true;           // keeps the canonical order: a candidate of "auto"
};

struct CostEstimate {
  CostParameters parameters;
  Duration calibration{0};                // what measuring them took; 0: they were given
  std::vector<AlgorithmCost> algorithms;  // all that there are for this size
  std::string_view chosen;                // one of them
};

}  // namespace cohort
