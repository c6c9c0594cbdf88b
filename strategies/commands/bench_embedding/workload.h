// What `cohort bench embedding` is asked to measure, and the ids and gradients of its calls.

#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/status.h>

#include "parameter_server/model/table_spec.h"

namespace cohort::embedding {

struct Options {
  std::uint64_t rows = 4'000'000;
  std::int64_t dim = 16;
  std::size_t ids = 4096 * 26;  // of a call
  int calls = 16;               // of a round
  double zipf = 1.05;
  std::string optimizer = "adagrad";
  int rounds = 5;
  bool remote = false;
  int tables = 1;
  int rounds_of = 0;  // parts; 0: no rounds
  std::string transport = "auto";
  ps::TableSpec::Wire wire = ps::TableSpec::Wire::kFloat32;
  std::uint64_t wire_feedback = 0;
  bool json = false;
};

// One call: positions of rows in the flat array, and the ids that the table knows them by.
struct Batch {
  std::vector<std::uint32_t> positions;
  std::vector<std::uint64_t> ids;
};

// As drawn, and each id once.
struct Batches {
  std::vector<Batch> drawn;
  std::vector<Batch> unique;
};

Batches Draw(const Options& options);
double CountOf(const std::vector<Batch>& batches);  // of ids

Result<ps::TableSpec> SpecOf(const Options& options);
std::vector<float> Gradients(std::size_t count);

// All rows, by 65,536 ids at a time.
Status ForAllRows(const Options& options,
                  const std::function<Status(std::span<const std::uint64_t> ids)>& fn);

// Of numbers of two tables that had the same updates: those that differ by more than what is
// rounded on the way.
std::uint64_t CountWrong(const Options& options, std::span<const float> got,
                         std::span<const float> expected);

}  // namespace cohort::embedding
