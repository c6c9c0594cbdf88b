// The wire format of tf.train.Example, as far as needed to pick single features out of a message.

#pragma once

#include <cstddef>
#include <functional>
#include <string_view>
#include <vector>

#include <cohort/data/tf_example.h>

namespace cohort::data {

// The most that a protobuf message may have.
inline constexpr std::size_t kMaxTfMessage = 0x7FFFFFFF;

// Calls entry(key, map entry) for each entry of the feature map, in the order of the message.
Status ForEachTfFeature(
    std::string_view message,
    const std::function<Status(std::string_view key, std::string_view entry)>& entry);

// The same for the feature lists of a SequenceExample.
Status ForEachTfStepList(
    std::string_view message,
    const std::function<Status(std::string_view key, std::string_view entry)>& entry);

// The features of the steps in a map entry; replaces what `steps` holds.
Status ParseTfStepList(std::string_view entry, std::vector<TfFeature>& steps);

// The feature in a map entry; replaces what `feature` holds.
Status ParseTfEntry(std::string_view entry, TfFeature& feature);

}  // namespace cohort::data
