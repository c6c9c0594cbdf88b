// People of a census, and the wide & deep model of who of them earns more than 50,000 a year.
//
// The wide part adds up one weight for each feature and each cross of features that a person has (a
// table of dim 1, FTRL). The deep part looks up a vector for each feature (a table of its own,
// Adagrad) and puts dense layers on them. Ids are 64-bit hashes: there is no vocabulary.
//
// Cheng et al., "Wide & deep learning for recommender systems", DLRS 2016.

#pragma once

#include <cstdint>
#include <string>

#include <cohort/core/status.h>
#include <cohort/data/batch.h>
#include <cohort/data/dataset.h>
#include <cohort/nn/layers.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/workloads/binary_step.h>

namespace cohort::workloads {

// Of the census income data set (UCI, "Adult"), a file with a header line; `stop` stands behind its
// labels. Features "number" float32 [5], "text" int64 [8] (hashes) and "label" int64 [1].
Result<data::Dataset> ReadPeople(const std::string& path, const std::string& stop);
// The same features of people whose income depends on their numbers, on some texts, and on pairs of
// texts. In memory; a pure function of both.
Result<data::Dataset> DrawPeople(std::int64_t count, std::uint64_t seed);

// For Dataset::Map: what the model reads of a person, instead of these. "wide" and "deep" ids,
// "dense" numbers, the "target".
Status CensusFeatures(data::Example& person);

struct WideAndDeepOptions {
  std::int64_t embedding = 16;  // floats of a feature's vector in the deep part
  double wide_learning_rate = 0.05;
  double deep_learning_rate = 0.02;
  std::uint64_t seed = 0;
};

// Thread rules: Logit from any number of replicas at the same time.
class WideAndDeep {
 public:
  // Declares the parameters and tables; Build is the caller's.
  WideAndDeep(ParameterSet& parameters, const WideAndDeepOptions& options);
  // [batch, 1], of CensusFeatures.
  nn::Variable Logit(nn::Tape& tape, const data::Batch& batch) const;

 private:
  nn::Embedding wide_;
  nn::Embedding deep_;
  nn::Dense hidden1_;
  nn::Dense hidden2_;
  nn::Dense out_;
};

// The model outlives it.
BinaryStep CensusStep(const WideAndDeep& model, nn::Precision precision);

}  // namespace cohort::workloads
