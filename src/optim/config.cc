// The JSON of optimizers. One list of fields (VisitFields of each rule) serves four visitors:
// write, read, check, and list the names for a suggestion.

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "rule.h"

namespace cohort {
namespace optim {
namespace {

using Json = nlohmann::ordered_json;

std::string_view KindName(Schedule::Kind kind) {
  switch (kind) {
    case Schedule::Kind::kConstant:
      return "constant";
    case Schedule::Kind::kStep:
      return "step";
    case Schedule::Kind::kExponential:
      return "exponential";
    case Schedule::Kind::kCosine:
      return "cosine";
  }
  return "";
}

constexpr std::array<Schedule::Kind, 4> kKinds = {Schedule::Kind::kConstant, Schedule::Kind::kStep,
                                                  Schedule::Kind::kExponential,
                                                  Schedule::Kind::kCosine};

std::size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) {
    row[j] = j;
  }
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replace = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, replace}));
    }
  }
  return row[b.size()];
}

// " [did you mean x?]", or the names there are.
std::string Suggest(std::string_view name, const std::vector<std::string>& known) {
  std::string all;
  std::string_view closest;
  std::size_t least = std::max<std::size_t>(2, name.size() / 3) + 1;
  for (const std::string& candidate : known) {
    if (const std::size_t distance = EditDistance(name, candidate); distance < least) {
      least = distance;
      closest = candidate;
    }
    all += (all.empty() ? "" : ", ") + candidate;
  }
  return closest.empty() ? " [known: " + all + "]"
                         : " [did you mean \"" + std::string(closest) + "\"?]";
}

std::string RangeText(const Range& range) {
  std::string text = (range.above_least ? "above " : "at least ") + Json(range.least).dump();
  return range.below >= 1e30 ? text : text + " and below " + Json(range.below).dump();
}

bool InRange(double x, const Range& range) {
  return (range.above_least ? x > range.least : x >= range.least) && x < range.below;
}

Json ScheduleJson(const Schedule& s) {
  if (s == Schedule(s.rate)) {
    return s.rate;
  }
  Json json = {{"schedule", KindName(s.kind)}, {"rate", s.rate}};
  if (s.kind != Schedule::Kind::kConstant) {
    json["steps"] = s.steps;
  }
  if (s.kind == Schedule::Kind::kStep || s.kind == Schedule::Kind::kExponential) {
    json["factor"] = s.factor;
  }
  if (s.kind == Schedule::Kind::kCosine) {
    json["final_rate"] = s.final_rate;
  }
  if (s.warm_up_steps != 0) {
    json["warm_up_steps"] = s.warm_up_steps;
  }
  return json;
}

class Writer final : public FieldVisitor {
 public:
  explicit Writer(std::string_view name) : json_({{"name", name}}) {}
  void Rate(std::string_view name, Schedule& schedule) override {
    json_[std::string(name)] = ScheduleJson(schedule);
  }
  void Number(std::string_view name, double& number, Range /*range*/) override {
    json_[std::string(name)] = number;
  }
  void Flag(std::string_view name, bool& flag) override { json_[std::string(name)] = flag; }
  void Check(std::string_view /*name*/, bool /*holds*/, std::string_view /*rule*/) override {}
  std::string text() const { return json_.dump(); }

 private:
  Json json_;
};

// Collects what is wrong with options, all of it.
class Checker : public FieldVisitor {
 public:
  explicit Checker(std::string_view optimizer) : optimizer_(optimizer) {}

  void Rate(std::string_view name, Schedule& schedule) override {
    if (const Status status = schedule.Check(); !status.ok()) {
      Blame(name, "." + status.message());
    }
  }
  void Number(std::string_view name, double& number, Range range) override {
    if (!InRange(number, range)) {
      Blame(name, " is " + Json(number).dump() + " [" + RangeText(range) + "]");
    }
  }
  void Flag(std::string_view /*name*/, bool& /*flag*/) override {}
  void Check(std::string_view name, bool holds, std::string_view rule) override {
    if (!holds) {
      Blame(name, " " + std::string(rule));
    }
  }

  const std::string& errors() const { return errors_; }

 protected:
  void Blame(std::string_view field, const std::string& what) {
    errors_ +=
        (errors_.empty() ? "optimizer " : "; ") + optimizer_ + ": " + std::string(field) + what;
  }

 private:
  std::string optimizer_;
  std::string errors_;
};

class Reader final : public Checker {
 public:
  Reader(std::string_view optimizer, const Json& json) : Checker(optimizer), json_(json) {}

  void Rate(std::string_view name, Schedule& schedule) override {
    const Json* const json = Take(name);
    if (json == nullptr) {
      return;
    }
    if (json->is_number()) {
      schedule = Schedule(json->get<double>());
    } else if (!json->is_object() || !ReadSchedule(name, *json, schedule)) {
      if (!json->is_object()) {
        Blame(name, " is " + json->dump() + " [a number, or an object with \"schedule\"]");
      }
      return;
    }
    Checker::Rate(name, schedule);
  }

  void Number(std::string_view name, double& number, Range range) override {
    if (const Json* const json = Take(name); json != nullptr) {
      if (!json->is_number()) {
        return Blame(name, " is " + json->dump() + " [a number]");
      }
      number = json->get<double>();
      Checker::Number(name, number, range);
    }
  }

  void Flag(std::string_view name, bool& flag) override {
    if (const Json* const json = Take(name); json != nullptr) {
      if (!json->is_boolean()) {
        return Blame(name, " is " + json->dump() + " [true or false]");
      }
      flag = json->get<bool>();
    }
  }

  // After all fields were visited.
  void RejectUnknown() {
    for (const auto& [key, value] : json_.items()) {
      if (key != "name" && std::find(known_.begin(), known_.end(), key) == known_.end()) {
        Blame(key, " is no field" + Suggest(key, known_));
      }
    }
  }

 private:
  const Json* Take(std::string_view name) {
    known_.emplace_back(name);
    const auto it = json_.find(known_.back());
    return it == json_.end() ? nullptr : &*it;
  }

  bool ReadSchedule(std::string_view name, const Json& json, Schedule& schedule) {
    const std::string where(name);
    if (!json.contains("schedule") || !json["schedule"].is_string()) {
      Blame(where + ".schedule", " is missing [constant, step, exponential or cosine]");
      return false;
    }
    Schedule read(0);
    const auto wanted = json["schedule"].get<std::string>();
    const auto* const kind = std::find_if(kKinds.begin(), kKinds.end(),
                                          [&](Schedule::Kind k) { return KindName(k) == wanted; });
    if (kind == kKinds.end()) {
      Blame(where + ".schedule",
            " is \"" + wanted + "\"" +
                Suggest(wanted, {"constant", "step", "exponential", "cosine"}));
      return false;
    }
    read.kind = *kind;
    const Json written = ScheduleJson([&] {
      Schedule all = read;
      all.warm_up_steps = 1;
      return all;
    }());
    bool good = true;
    for (const auto& [key, value] : json.items()) {
      if (key == "schedule") {
        continue;
      }
      if (!written.contains(key)) {
        std::vector<std::string> known;
        for (const auto& [field, unused] : written.items()) {
          known.push_back(field);
        }
        Blame(where + "." + key, " is no field of " + wanted + Suggest(key, known));
        good = false;
      } else if (const bool whole = key == "steps" || key == "warm_up_steps";
                 whole ? !value.is_number_integer() : !value.is_number()) {
        Blame(where + "." + key,
              " is " + value.dump() + (whole ? " [a whole number]" : " [a number]"));
        good = false;
      }
    }
    for (const auto& [key, value] : written.items()) {
      if (key != "warm_up_steps" && key != "final_rate" && !json.contains(key)) {
        Blame(where + "." + key, " is missing");
        good = false;
      }
    }
    if (good) {
      read.rate = json["rate"].get<double>();
      read.steps = json.value("steps", std::int64_t{0});
      read.factor = json.value("factor", 1.0);
      read.final_rate = json.value("final_rate", 0.0);
      read.warm_up_steps = json.value("warm_up_steps", std::int64_t{0});
      schedule = read;
    }
    return good;
  }

  const Json& json_;
  std::vector<std::string> known_;
};

template <typename Options>
Result<Options> ReadOptions(std::string_view name, const Json& json) {
  Options options;
  Reader reader(name, json);
  VisitFields(reader, options);
  reader.RejectUnknown();
  if (!reader.errors().empty()) {
    return InvalidArgument(reader.errors());
  }
  return options;
}

template <typename Options>
Result<std::unique_ptr<Optimizer>> Read(std::string_view name, const Json& json,
                                        std::unique_ptr<Optimizer> (*make)(Options)) {
  COHORT_ASSIGN_OR_RETURN(Options options, ReadOptions<Options>(name, json));
  return make(std::move(options));
}

// The object, refusing a key that stands twice: JSON readers keep one of them silently.
Result<Json> ParseObject(const std::string& text) {
  std::vector<std::set<std::string>> keys;
  std::string twice;
  const auto callback = [&](int /*depth*/, nlohmann::json::parse_event_t event, Json& parsed) {
    using Event = nlohmann::json::parse_event_t;
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
    return InvalidArgument("optimizer configuration is no JSON: " + std::string(error.what()));
  }
  if (!twice.empty()) {
    return InvalidArgument("optimizer configuration: field " + twice + " stands twice");
  }
  if (!json.is_object()) {
    return InvalidArgument("optimizer configuration is no JSON object: " + text.substr(0, 80));
  }
  return json;
}

Result<std::string> NameIn(const Json& json) {
  const auto name = json.find("name");
  if (name == json.end() || !name->is_string()) {
    return InvalidArgument("optimizer configuration: field name is missing or no string");
  }
  return name->get<std::string>();
}

}  // namespace

Result<std::string> ReadName(const std::string& config) {
  COHORT_ASSIGN_OR_RETURN(const Json json, ParseObject(config));
  return NameIn(json);
}

Result<RowWiseAdagradOptions> ReadRowWiseAdagrad(const std::string& config) {
  COHORT_ASSIGN_OR_RETURN(const Json json, ParseObject(config));
  return ReadOptions<RowWiseAdagradOptions>(kRowWiseAdagrad, json);
}

std::string WriteConfig(std::string_view name,
                        const std::function<void(FieldVisitor&)>& visit_fields) {
  Writer writer(name);
  visit_fields(writer);
  return writer.text();
}

Result<ServerSideConfig> SplitServerSide(const std::string& config) {
  COHORT_ASSIGN_OR_RETURN(Json rule, ParseObject(config));
  COHORT_ASSIGN_OR_RETURN(const std::string name, NameIn(rule));
  ServerSideConfig split;
  const auto visit = [&](FieldVisitor& fields) { VisitFields(fields, split.options); };
  Json mine = Json::object();
  const Json known = Json::parse(WriteConfig(name, visit));
  for (const auto& [field, unused] : known.items()) {
    if (field != "name" && rule.contains(field)) {
      mine[field] = rule[field];
      rule.erase(field);
    }
  }
  COHORT_ASSIGN_OR_RETURN(split.options, ReadOptions<ServerSideOptions>(name, mine));
  COHORT_RETURN_IF_ERROR(CheckServerSide(name, split.options));
  split.rule = rule.dump();
  return split;
}

void CheckOptions(std::string_view name, const std::function<void(FieldVisitor&)>& visit_fields) {
  Checker checker(name);
  visit_fields(checker);
  Require(checker.errors().empty(), checker.errors());
}

}  // namespace optim

std::string ServerSide(const std::string& config, ServerSideOptions options) {
  const auto visit = [&options](optim::FieldVisitor& fields) { VisitFields(fields, options); };
  const std::string name = OrThrow(optim::ReadName(config));
  optim::CheckOptions(name, visit);
  auto all = optim::Json::parse(config);
  const auto mine = optim::Json::parse(optim::WriteConfig(name, visit));
  for (const auto& [field, value] : mine.items()) {
    Require(field == "name" || !all.contains(field), field + " twice");
    all[field] = value;
  }
  if (options.weight_decay == 0) {  // so that what was written before there was this is the same
    all.erase(std::string(optim::kDecoupledDecay));
  }
  return all.dump();
}

Result<std::unique_ptr<Optimizer>> MakeOptimizer(const std::string& config) {
  COHORT_ASSIGN_OR_RETURN(const optim::ServerSideConfig split, optim::SplitServerSide(config));
  if (split.options != ServerSideOptions()) {
    COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Optimizer> rule, MakeOptimizer(split.rule));
    return ServerSide(std::move(rule), split.options);
  }
  COHORT_ASSIGN_OR_RETURN(const optim::Json json, optim::ParseObject(split.rule));
  COHORT_ASSIGN_OR_RETURN(const std::string name, optim::NameIn(json));
  if (name == "sgd") {
    return optim::Read(name, json, &Sgd);
  }
  if (name == "adagrad") {
    return optim::Read(name, json, &Adagrad);
  }
  if (name == "rmsprop") {
    return optim::Read(name, json, &RmsProp);
  }
  if (name == "adam") {
    return optim::Read(name, json, &Adam);
  }
  if (name == "adamw") {
    return optim::Read(name, json, &AdamW);
  }
  if (name == "ftrl") {
    return optim::Read(name, json, &Ftrl);
  }
  if (name == kRowWiseAdagrad) {
    return InvalidArgument("optimizer row_wise_adagrad is for tables of rows [adagrad]");
  }
  return InvalidArgument(
      "no optimizer is named \"" + name + "\"" +
      optim::Suggest(name, {"sgd", "adagrad", "rmsprop", "adam", "adamw", "ftrl"}));
}

}  // namespace cohort
