// The wire format of tf.train.Example, as far as needed to pick single features out of a message.

#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include <cohort/data/tf_example.h>

namespace cohort::data {

// What nearly every map entry is: one key and one list. Others, whose parts are merged, are read by
// ParseTfEntry, which takes these too.
struct TfList {
  TfFeature::Kind kind = TfFeature::Kind::kNone;
  std::string_view values;  // the message FloatList, Int64List or BytesList
};
std::optional<TfList> PlainTfList(std::string_view entry);
// Whether the list is exactly so many values, packed or not, which are then in `to`.
bool PlainTfFloats(std::string_view list, std::span<float> to);
bool PlainTfInts(std::string_view list, std::span<std::int64_t> to);
// The one string of a list; null: none, or several.
std::optional<std::string_view> PlainTfString(std::string_view list);

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
