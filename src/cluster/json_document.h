// JsonNode: a JSON document read strictly.
//
// Numbers keep their kind (1.0 and true are no integers), a key that appears twice is an error, and
// so is nesting deeper than any configuration is. Values, no references into the text.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "problems.h"

namespace cohort {

struct JsonNode {
  enum class Kind : std::uint8_t { kNull, kBool, kInteger, kFloat, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  std::string text;               // kString: the value; of other scalars: as written
  std::int64_t integer = 0;       // kInteger, saturated
  std::vector<JsonNode> items;    // kArray, and the values of kObject
  std::vector<std::string> keys;  // kObject: distinct, keys[i] of items[i]

  const JsonNode* Find(std::string_view key) const;  // null if absent
  // "the number 1.5", "true", "a list": for messages.
  std::string Describe() const;
};

// Mistakes go to `problems`, each beginning with `source`; nothing is returned if the text is no
// JSON at all. A document with duplicate keys is returned (with the first of each), so that the
// rest of it is checked too.
std::optional<JsonNode> ParseJson(std::string_view source, std::string_view text,
                                  Problems& problems);

// "line 2, column 7" of a byte of the text, and the line with a caret under it.
struct TextPosition {
  int line = 1;
  int column = 1;
  std::string excerpt;  // two indented lines, each with a newline before it
};
TextPosition LocateByte(std::string_view text, std::size_t byte);

// "cluster.worker[2]", "cluster.worker["a b"]".
std::string MemberPath(std::string_view path, std::string_view key);
std::string ItemPath(std::string_view path, std::size_t index);

}  // namespace cohort
