// tf.train.Example on the wire, parsed without protobuf.
//
// Accepts all that a protobuf parser does: packed and unpacked lists and mixtures of both, fields
// that occur several times (lists are joined; of two map entries with one key the last counts),
// unknown fields. A feature whose kind is not set is missing; one whose list is empty is not.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/status.h>

namespace cohort::data {

struct TfFeature {
  enum class Kind { kNone = 0, kBytes = 1, kFloat = 2, kInt64 = 3 };  // the field numbers

  Kind kind = Kind::kNone;
  std::vector<std::string_view> bytes;  // into the message
  std::vector<float> floats;
  std::vector<std::int64_t> ints;

  std::size_t size() const;  // of the list of its kind
};

std::string_view TfKindName(TfFeature::Kind kind);  // "bytes", "float", "int64"; "missing"

using TfFeatures = std::map<std::string, TfFeature, std::less<>>;

// The features that are not missing. DataLoss: not a message of this kind.
Result<TfFeatures> ParseTfExample(std::string_view message);
// Keys in bytewise order, lists packed: equal bytes for equal features. A feature of kind kNone is
// left out.
std::string EncodeTfExample(const TfFeatures& features);

// tf.train.SequenceExample: features of the whole, and features of each step.
struct TfSequenceExample {
  TfFeatures context;
  // A step whose feature is missing is of kind kNone.
  std::map<std::string, std::vector<TfFeature>, std::less<>> steps;
};
Result<TfSequenceExample> ParseTfSequenceExample(std::string_view message);
std::string EncodeTfSequenceExample(const TfSequenceExample& example);

}  // namespace cohort::data
