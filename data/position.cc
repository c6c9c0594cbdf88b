// DataPosition as text.

#include <charconv>
#include <string_view>

#include <cohort/data/dataset.h>

namespace cohort::data {
namespace {

constexpr ShardPolicy kDivisions[] = {ShardPolicy::kOff, ShardPolicy::kFile, ShardPolicy::kData,
                                      ShardPolicy::kHint, ShardPolicy::kOwn};

std::string TextOf(const EpochDivision& division) {
  std::string text = std::string(DivisionName(division.policy)) + " among " +
                     std::to_string(division.num_workers) + " to " + std::to_string(division.batch);
  if (division.overtaken.empty()) {
    return text;
  }
  text += " but";
  for (const std::vector<std::int64_t>& numbers : division.overtaken) {
    std::string list;
    for (const std::int64_t number : numbers) {
      list += (list.empty() ? "" : ",") + std::to_string(number);
    }
    text += " [" + list + "]";
  }
  return text;
}

// What is left of a text, while it is read.
class Reader {
 public:
  explicit Reader(std::string_view text) : rest_(text) {}

  bool Skip(std::string_view word) {
    const bool there = rest_.starts_with(word);
    rest_.remove_prefix(there ? word.size() : 0);
    return there;
  }
  template <typename Number>
  bool Read(Number& value) {
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
    return error == std::errc() && value >= 0;
  }
  bool Read(EpochDivision& division) {
    for (const ShardPolicy policy : kDivisions) {
      if (Skip(DivisionName(policy))) {
        division.policy = policy;
        return Skip(" among ") && Read(division.num_workers) && Skip(" to ") &&
               Read(division.batch) && (!Skip(" but") || ReadOvertaken(division));
      }
    }
    return false;
  }
  bool AtEnd() const { return rest_.empty(); }

 private:
  bool ReadOvertaken(EpochDivision& division) {
    while (Skip(" [")) {
      std::vector<std::int64_t>& numbers = division.overtaken.emplace_back();
      while (!Skip("]")) {
        if ((!numbers.empty() && !Skip(",")) || !Read(numbers.emplace_back())) {
          return false;
        }
      }
    }
    return std::ssize(division.overtaken) == division.num_workers;
  }

  std::string_view rest_;
};

bool Read(Reader& reader, DataPosition& position) {
  if (!reader.Skip("epoch ") || !reader.Read(position.epoch)) {
    return false;
  }
  if (reader.Skip(" batch ")) {
    if (!reader.Read(position.batch) || !reader.Skip(" of ") || !reader.Read(position.batch_size) ||
        !reader.Skip(" examples,")) {
      return false;
    }
    do {
      if (!reader.Skip(" ") || !reader.Read(position.begun.emplace_back())) {
        return false;
      }
    } while (reader.Skip(","));
  } else if (!reader.Skip(" example ") || !reader.Read(position.example)) {
    return false;
  }
  return reader.Skip(" of ") && reader.Read(position.fingerprint) && reader.AtEnd();
}

}  // namespace

std::string DataPosition::ToString() const {
  std::string text = "epoch " + std::to_string(epoch);
  if (begun.empty()) {
    text += " example " + std::to_string(example);
  } else {
    text += " batch " + std::to_string(batch) + " of " + std::to_string(batch_size) + " examples";
    for (const EpochDivision& division : begun) {
      text += ", " + TextOf(division);
    }
  }
  return text + " of " + std::to_string(fingerprint);
}

Result<DataPosition> DataPosition::Parse(const std::string& text) {
  DataPosition position;
  Reader reader(text);
  if (!Read(reader, position)) {
    return InvalidArgument("no place in a data set: '" + text.substr(0, 100) + "'");
  }
  return position;
}

}  // namespace cohort::data
