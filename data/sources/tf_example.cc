// Example{1: Features}; Features{1: map entry{1: key, 2: Feature}};
// Feature{oneof 1: BytesList, 2: FloatList, 3: Int64List}; each list {1: repeated value}.
// SequenceExample{1: Features, 2: FeatureLists}; FeatureLists{1: map entry{1: key, 2:
// FeatureList}}; FeatureList{1: repeated Feature}.

#include <cohort/data/tf_example.h>

#include <cstring>

#include <cohort/io/wire.h>

#include "sources/tf_wire.h"

namespace cohort::data {
namespace {

using io::wire::AppendField;
using io::wire::AppendVarint;
using io::wire::Field;
using io::wire::Fields;
using io::wire::ForEachField;
using io::wire::kBytes;
using io::wire::kFixed32;
using io::wire::kVarint;

float FloatAt(const char* bytes) {
  float value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

bool ParseFloats(std::string_view list, std::vector<float>& floats) {
  return ForEachField(list, [&floats](const Field& field) {
    if (field.number != 1 || (field.type != kFixed32 && field.type != kBytes)) {
      return true;  // an unknown field
    }
    if (field.bytes.size() % sizeof(float) != 0) {
      return false;
    }
    for (std::size_t i = 0; i < field.bytes.size(); i += sizeof(float)) {
      floats.push_back(FloatAt(field.bytes.data() + i));
    }
    return true;
  });
}

bool ParseInts(std::string_view list, std::vector<std::int64_t>& ints) {
  return ForEachField(list, [&ints](const Field& field) {
    if (field.number == 1 && field.type == kVarint) {
      ints.push_back(static_cast<std::int64_t>(field.varint));
    } else if (field.number == 1 && field.type == kBytes) {
      Fields packed(field.bytes);
      while (!packed.done()) {
        std::uint64_t value = 0;
        if (!packed.Varint(value)) {
          return false;
        }
        ints.push_back(static_cast<std::int64_t>(value));
      }
    }
    return true;
  });
}

bool ParseBytes(std::string_view list, std::vector<std::string_view>& bytes) {
  return ForEachField(list, [&bytes](const Field& field) {
    if (field.number == 1 && field.type == kBytes) {
      bytes.push_back(field.bytes);
    }
    return true;
  });
}

// Adds what a Feature message holds; another kind than before replaces it.
bool MergeFeature(std::string_view message, TfFeature& feature) {
  return ForEachField(message, [&feature](const Field& field) {
    if (field.type != kBytes || field.number > 3) {
      return true;
    }
    const auto kind = static_cast<TfFeature::Kind>(field.number);
    if (kind != feature.kind) {
      feature = {};
      feature.kind = kind;
    }
    switch (kind) {
      case TfFeature::Kind::kFloat:
        return ParseFloats(field.bytes, feature.floats);
      case TfFeature::Kind::kInt64:
        return ParseInts(field.bytes, feature.ints);
      default:
        return ParseBytes(field.bytes, feature.bytes);
    }
  });
}

Status NotAMessage(std::string_view what) {
  return DataLoss("not a tf.train.Example: " + std::string(what) + " is malformed");
}

// The entries of the map in field 1 of the message in field `number`.
Status ForEachEntry(
    std::string_view message, std::uint64_t number,
    const std::function<Status(std::string_view key, std::string_view entry)>& entry) {
  Status status;
  const auto each_entry = [&](const Field& field) {
    if (field.number != 1 || field.type != kBytes) {
      return true;
    }
    std::string_view key;
    const bool sound = ForEachField(field.bytes, [&key](const Field& part) {
      if (part.number == 1 && part.type == kBytes) {
        key = part.bytes;
      }
      return true;
    });
    status = sound ? entry(key, field.bytes) : NotAMessage("an entry of its feature map");
    return status.ok();
  };
  const bool sound = ForEachField(message, [&](const Field& field) {
    return field.number != number || field.type != kBytes || ForEachField(field.bytes, each_entry);
  });
  return !sound && status.ok() ? NotAMessage("the message") : status;
}

void AppendEntry(std::string& to, std::string_view key, std::string_view value) {
  std::string entry;
  AppendField(entry, 1, key);
  AppendField(entry, 2, value);
  AppendField(to, 1, entry);
}

std::string FeatureMessage(const TfFeature& feature) {
  std::string list;
  switch (feature.kind) {
    case TfFeature::Kind::kNone:
      return {};
    case TfFeature::Kind::kBytes:
      for (const std::string_view bytes : feature.bytes) {
        AppendField(list, 1, bytes);
      }
      break;
    case TfFeature::Kind::kFloat:
      if (!feature.floats.empty()) {
        AppendField(list, 1,
                    {reinterpret_cast<const char*>(feature.floats.data()),
                     feature.floats.size() * sizeof(float)});
      }
      break;
    case TfFeature::Kind::kInt64:
      if (!feature.ints.empty()) {
        std::string packed;
        for (const std::int64_t value : feature.ints) {
          AppendVarint(packed, static_cast<std::uint64_t>(value));
        }
        AppendField(list, 1, packed);
      }
      break;
  }
  std::string message;
  AppendField(message, static_cast<std::uint64_t>(feature.kind), list);
  return message;
}

std::string FeaturesMessage(const TfFeatures& features) {
  std::string message;
  for (const auto& [key, feature] : features) {
    if (feature.kind != TfFeature::Kind::kNone) {
      AppendEntry(message, key, FeatureMessage(feature));
    }
  }
  return message;
}

}  // namespace

std::size_t TfFeature::size() const {
  switch (kind) {
    case Kind::kBytes:
      return bytes.size();
    case Kind::kFloat:
      return floats.size();
    case Kind::kInt64:
      return ints.size();
    case Kind::kNone:
      break;
  }
  return 0;
}

std::string_view TfKindName(TfFeature::Kind kind) {
  switch (kind) {
    case TfFeature::Kind::kBytes:
      return "bytes";
    case TfFeature::Kind::kFloat:
      return "float";
    case TfFeature::Kind::kInt64:
      return "int64";
    case TfFeature::Kind::kNone:
      break;
  }
  return "missing";
}

Status ForEachTfFeature(
    std::string_view message,
    const std::function<Status(std::string_view key, std::string_view entry)>& entry) {
  if (message.size() > kMaxTfMessage) {
    return InvalidArgument("a record of " + std::to_string(message.size()) +
                           " bytes is no tf.train.Example, which has at most " +
                           std::to_string(kMaxTfMessage) +
                           ", as every protobuf message [it may be one of "
                           "raw bytes]");
  }
  return ForEachEntry(message, 1, entry);
}

Status ForEachTfStepList(
    std::string_view message,
    const std::function<Status(std::string_view key, std::string_view entry)>& entry) {
  return ForEachEntry(message, 2, entry);
}

Status ParseTfEntry(std::string_view entry, TfFeature& feature) {
  feature = {};
  const bool sound = ForEachField(entry, [&feature](const Field& field) {
    return field.number != 2 || field.type != kBytes || MergeFeature(field.bytes, feature);
  });
  return sound ? Status() : NotAMessage("a feature");
}

Result<TfFeatures> ParseTfExample(std::string_view message) {
  TfFeatures features;
  COHORT_RETURN_IF_ERROR(
      ForEachTfFeature(message, [&](std::string_view key, std::string_view entry) {
        Status status = ParseTfEntry(entry, features[std::string(key)]);
        return status.ok() ? status : status.Annotate("feature '" + std::string(key) + "'");
      }));
  std::erase_if(features,
                [](const auto& item) { return item.second.kind == TfFeature::Kind::kNone; });
  return features;
}

Status ParseTfStepList(std::string_view entry, std::vector<TfFeature>& steps) {
  steps.clear();
  const bool sound = ForEachField(entry, [&steps](const Field& field) {
    return field.number != 2 || field.type != kBytes ||
           ForEachField(field.bytes, [&steps](const Field& step) {
             return step.number != 1 || step.type != kBytes ||
                    MergeFeature(step.bytes, steps.emplace_back());
           });
  });
  return sound ? Status() : NotAMessage("a list of features");
}

Result<TfSequenceExample> ParseTfSequenceExample(std::string_view message) {
  TfSequenceExample example;
  COHORT_ASSIGN_OR_RETURN(example.context, ParseTfExample(message));
  COHORT_RETURN_IF_ERROR(
      ForEachTfStepList(message, [&](std::string_view key, std::string_view entry) {
        Status status = ParseTfStepList(entry, example.steps[std::string(key)]);
        return status.ok() ? status : status.Annotate("feature list '" + std::string(key) + "'");
      }));
  return example;
}

std::string EncodeTfExample(const TfFeatures& features) {
  std::string message;
  AppendField(message, 1, FeaturesMessage(features));
  return message;
}

std::string EncodeTfSequenceExample(const TfSequenceExample& example) {
  std::string message = EncodeTfExample(example.context);
  std::string lists;
  for (const auto& [key, steps] : example.steps) {
    std::string list;
    for (const TfFeature& step : steps) {
      AppendField(list, 1, FeatureMessage(step));
    }
    AppendEntry(lists, key, list);
  }
  AppendField(message, 2, lists);
  return message;
}

}  // namespace cohort::data
