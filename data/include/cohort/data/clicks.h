// Generated clicks: a click log with Criteo's columns (a label, 13 integers, 26 categories of 32
// bits), whose probabilities are known.
//
// Category f has about ids / 2^(f+1) values, at least 4, drawn by Zipf's law. A click's log-odds
// are the sum of a bias, an effect of each category's value, which fades with its rank, a bounded
// effect of each integer's logarithm, and the inner products of hidden vectors of neighbouring
// categories among those with fewest values. Integers are missing now and then, without a meaning.
// So a model needs embeddings, and gains by products of them; and the area under the curve of the
// probabilities themselves is the best that any model can reach.
//
// Example i is a pure function of (seed, first + i): no files, equal everywhere, streamed for ever.
// Drawing one costs some microseconds.

#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/core/zipf.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

struct ClicksOptions {
  std::int64_t count = 100'000;
  std::uint64_t seed = 1;
  // Different ranges [first, first + count) of one seed have no example in common: train and test.
  std::int64_t first = 0;
  std::int64_t ids = 10'000'000;  // of all categories together, about
  double zipf = 1.05;             // the exponent of their popularity
};

struct Click {
  bool clicked = false;
  float probability = 0;  // of a click
  std::array<std::optional<std::int32_t>, 13> integers;
  std::array<std::uint32_t, 26> categories = {};
};

// Draws the examples of one description. Thread rules: immutable.
class ClickModel {
 public:
  explicit ClickModel(const ClicksOptions& options);
  Click Draw(std::int64_t index) const;  // example first + index
  std::uint64_t values(int category) const {
    return popularity_[static_cast<std::size_t>(category)].ranks();
  }

 private:
  std::int64_t first_;
  Philox examples_;
  Philox effects_;
  Philox hidden_;
  std::vector<Zipf> popularity_;  // by category
};

// The area under the receiver operating characteristic of the probabilities, for these examples.
double BayesAuc(const ClicksOptions& options);

// A line of Criteo's format: label, integers, categories in 8 hexadecimal digits, separated by
// tabs, empty where missing; with its end of line.
std::string CriteoLine(const Click& click);

// Features "label" (float32, a scalar), "integers" (float32 [13]: log(1 + x) where x > 0, else 0; 0
// where missing) and "categories" (int64 [26]; distinct between categories: the category's number
// in the bits from 32).
Dataset GeneratedClicks(const ClicksOptions& options = {});

}  // namespace cohort::data
