#include "json_document.h"

#include <algorithm>
#include <limits>
#include <unordered_set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace cohort {
namespace {

using Kind = JsonNode::Kind;

constexpr std::size_t kDeepest = 32;

// Builds the tree from the parser's events; nlohmann's own tree would keep the last of duplicate
// keys and convert numbers silently.
class TreeBuilder {
 public:
  TreeBuilder(std::string_view source, std::string_view text, Problems& problems)
      : source_(source), text_(text), problems_(problems) {}

  JsonNode TakeRoot() { return std::move(root_); }

  bool null() { return Scalar(Kind::kNull, "null"); }
  bool boolean(bool value) { return Scalar(Kind::kBool, value ? "true" : "false"); }
  bool number_integer(std::int64_t value) {
    return Scalar(Kind::kInteger, std::to_string(value), value);
  }
  bool number_unsigned(std::uint64_t value) {
    constexpr std::uint64_t kMost = std::numeric_limits<std::int64_t>::max();
    return Scalar(Kind::kInteger, std::to_string(value),
                  static_cast<std::int64_t>(std::min(value, kMost)));
  }
  bool number_float(double /*value*/, const std::string& written) {
    return Scalar(Kind::kFloat, written);
  }
  bool string(std::string& value) { return Scalar(Kind::kString, std::move(value)); }
  bool binary(std::vector<std::uint8_t>& /*value*/) { return false; }  // never in text

  bool start_object(std::size_t /*size*/) { return Open(Kind::kObject); }
  bool start_array(std::size_t /*size*/) { return Open(Kind::kArray); }
  bool end_array() { return Close(); }
  bool end_object() {
    Frame& frame = frames_.back();
    for (auto i = frame.duplicates.rbegin(); i != frame.duplicates.rend(); ++i) {
      frame.node->keys.erase(frame.node->keys.begin() + static_cast<std::ptrdiff_t>(*i));
      frame.node->items.erase(frame.node->items.begin() + static_cast<std::ptrdiff_t>(*i));
    }
    return Close();
  }
  bool key(std::string& name) {
    Frame& frame = frames_.back();
    if (!frame.seen.insert(name).second) {
      frame.duplicates.push_back(frame.node->keys.size());
      problems_.Error(
          fmt::format("{}: {}: this key appears twice", source_, MemberPath(frame.path, name)));
    }
    frame.node->keys.push_back(std::move(name));
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& error) {
    const TextPosition at = LocateByte(text_, position == 0 ? 0 : position - 1);
    std::string_view what = error.what();  // "[...] parse error at line 1, column 3: the reason"
    const std::size_t column = what.find("column ");
    const std::size_t colon = what.find(": ", column == what.npos ? 0 : column);
    what.remove_prefix(colon == what.npos ? 0 : colon + 2);
    problems_.Error(fmt::format("{}: line {}, column {}: {}{}", source_, at.line, at.column,
                                what.substr(0, 300), at.excerpt));
    return false;
  }

 private:
  struct Frame {
    JsonNode* node;  // its ancestors do not grow while it is open, so this stays valid
    std::string path;
    std::unordered_set<std::string> seen;
    std::vector<std::size_t> duplicates;
  };

  JsonNode& Add() { return frames_.empty() ? root_ : frames_.back().node->items.emplace_back(); }
  bool Scalar(Kind kind, std::string text, std::int64_t integer = 0) {
    JsonNode& node = Add();
    node.kind = kind;
    node.text = std::move(text);
    node.integer = integer;
    return true;
  }
  bool Open(Kind kind) {
    std::string path;
    if (!frames_.empty()) {
      const Frame& parent = frames_.back();
      path = parent.node->kind == Kind::kObject ? MemberPath(parent.path, parent.node->keys.back())
                                                : ItemPath(parent.path, parent.node->items.size());
    }
    if (frames_.size() >= kDeepest) {
      problems_.Error(
          fmt::format("{}: {}: nested more than {} deep", source_, path.substr(0, 80), kDeepest));
      return false;
    }
    JsonNode& node = Add();
    node.kind = kind;
    frames_.push_back({&node, std::move(path), {}, {}});
    return true;
  }
  bool Close() {
    frames_.pop_back();
    return true;
  }

  std::string_view source_;
  std::string_view text_;
  Problems& problems_;
  JsonNode root_;
  std::vector<Frame> frames_;
};

}  // namespace

const JsonNode* JsonNode::Find(std::string_view key) const {
  const auto found = std::find(keys.begin(), keys.end(), key);
  return found == keys.end() ? nullptr : &items[static_cast<std::size_t>(found - keys.begin())];
}

std::string JsonNode::Describe() const {
  switch (kind) {
    case Kind::kString:
      return fmt::format("the string \"{}\"", text.substr(0, 80));
    case Kind::kArray:
      return "a list";
    case Kind::kObject:
      return "an object";
    case Kind::kInteger:
    case Kind::kFloat:
      return "the number " + text.substr(0, 80);
    default:
      return text;
  }
}

std::optional<JsonNode> ParseJson(std::string_view source, std::string_view text,
                                  Problems& problems) {
  TreeBuilder builder(source, text, problems);
  if (!nlohmann::json::sax_parse(text, &builder)) {
    return std::nullopt;
  }
  return builder.TakeRoot();
}

TextPosition LocateByte(std::string_view text, std::size_t byte) {
  byte = std::min(byte, text.size());
  const std::size_t before = text.substr(0, byte).rfind('\n');
  const std::size_t begin = before == text.npos ? 0 : before + 1;
  const std::size_t end = std::min(text.find('\n', begin), text.size());
  TextPosition position;
  position.line = 1 + static_cast<int>(std::count(text.begin(), text.begin() + begin, '\n'));
  position.column = 1 + static_cast<int>(byte - begin);

  constexpr std::size_t kAround = 40;  // of a long line, only what surrounds the place
  const std::size_t from = byte - begin > kAround ? byte - kAround : begin;
  const std::size_t to = std::min(end, std::max(byte, from) + kAround);
  std::string line(text.substr(from, to - from));
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  position.excerpt = fmt::format("\n    {}\n    {}^", line, std::string(byte - from, ' '));
  return position;
}

std::string MemberPath(std::string_view path, std::string_view key) {
  const bool plain =
      !key.empty() && key.size() <= 40 && std::all_of(key.begin(), key.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
      });
  if (!plain) {
    return fmt::format("{}[\"{}\"]", path, key.substr(0, 80));
  }
  return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
}

std::string ItemPath(std::string_view path, std::size_t index) {
  return fmt::format("{}[{}]", path, index);
}

}  // namespace cohort
