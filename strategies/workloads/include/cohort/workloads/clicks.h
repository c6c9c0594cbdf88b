// What a DLRM is trained with: its tables, a step on clicks.

#pragma once

#include <cstdint>

#include <cohort/nn/models.h>
#include <cohort/workloads/binary_step.h>

namespace cohort::workloads {

struct ClickOptions {
  std::int64_t embedding = 16;   // floats of a category's vector
  double learning_rate = 0.05;   // of the dense networks' Adagrad
  double row_learning_rate = 1;  // of the vectors'
  std::uint64_t seed = 0;
};

// For 13 integers and 26 categories, whose vectors are a table with Adagrad.
nn::DlrmOptions DlrmOfClicks(const ClickOptions& options);

// On features "integers", "categories" and "label", as data::GeneratedClicks has them. The model
// outlives this.
BinaryStep ClickStep(const nn::Dlrm& model, nn::Precision precision);

}  // namespace cohort::workloads
