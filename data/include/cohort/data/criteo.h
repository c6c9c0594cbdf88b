// Criteo click logs: lines of a label, 13 integers and 26 categories of 32-bit hexadecimal text,
// with tabs between; integers and categories may be empty.
//
//   const auto line = data::CriteoLine({.buckets = 100000});
//   auto train = OrThrow(data::TextLines(days, {.decoder = line}));
//
// Kaggle's set has 45,840,617 lines, the 1 TB set 24 files; text_lines.h says what a file costs.

#pragma once

#include <cstdint>

#include <cohort/data/text_lines.h>

namespace cohort::data {

struct CriteoOptions {
  bool label = true;  // false: lines without it, as in test files
  char delimiter = '\t';
  // Integers: log(1 + x), negative ones as 0; false: as they are.
  bool log = true;
  float missing_integer = 0;  // stands for an empty one, after `log`
  // Categories: 0 for an empty one, and 1 + a hash of column and value, below `buckets`. With
  // buckets 0: the 32-bit value itself, and -1 for an empty one.
  std::int64_t buckets = 0;
};

// Features "label" (float32, 0 or 1; only with options.label), "dense" (float32 [13]) and "sparse"
// (int64 [26]). An error names the column: another number of columns, a label that is not 0 or 1,
// no number, more than 8 hexadecimal digits.
LineDecoder CriteoLine(const CriteoOptions& options = {});

}  // namespace cohort::data
