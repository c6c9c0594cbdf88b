#include "json.h"

#include <set>
#include <vector>

namespace cohort::io {

Result<Json> ParseJsonObject(const std::string& text) {
  std::vector<std::set<std::string>> keys;
  std::string twice;
  const auto callback = [&](int /*depth*/, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start) {
      keys.emplace_back();
    } else if (event == Event::object_end) {
      keys.pop_back();
    } else if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second) {
      twice = parsed.get<std::string>();
    }
    return true;
  };
  Json json;
  try {
    json = Json::parse(text, callback);
  } catch (const Json::exception& error) {
    return DataLoss("no JSON: " + std::string(error.what()));
  }
  if (!twice.empty()) {
    return DataLoss("the key \"" + twice + "\" stands twice");
  }
  if (!json.is_object()) {
    return DataLoss("no JSON object");
  }
  return json;
}

}  // namespace cohort::io
