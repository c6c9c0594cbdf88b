// JSON as strictly as files of ours are read: one object, no key twice.

#pragma once

#include <cohort/core/status.h>

#include <nlohmann/json.hpp>
#include <string>

namespace cohort::io {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// DataLoss: no JSON, no object, a key that stands twice in one object.
Result<Json> ParseJsonObject(const std::string& text);

}  // namespace cohort::io
