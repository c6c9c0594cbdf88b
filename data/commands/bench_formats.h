// What reading a file takes, beside a limit of the machine: `cohort bench input --format`.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <cohort/core/status.h>

namespace cohort::data {

struct BenchFormatOptions {
  std::string format;
  std::vector<std::string> paths;
  std::int64_t batch = 64;
  int threads = 2;
  int rounds = 5;
  std::int64_t repeat = 1;  // passes over the files in each round
  bool json = false;
};

const std::vector<std::string>& BenchFormats();
// Prints the median and every round. Each round measures the limit and then the format.
Status BenchFormat(const BenchFormatOptions& options);

}  // namespace cohort::data
