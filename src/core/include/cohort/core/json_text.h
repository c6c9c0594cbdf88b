// JSON, written: objects of text and numbers, one a line, without a library. What is read is read
// by one (io/json.h).

#pragma once

#include <string>
#include <string_view>

namespace cohort {

// In quotes. Bytes outside of ASCII are escaped one by one: names are bytes, not always UTF-8.
std::string JsonQuoted(std::string_view text);

// JsonObject().Text("name", "x").Number("bytes", 4096).End() is {"name": "x", "bytes": 4096}.
class JsonObject {
 public:
  JsonObject& Text(std::string_view key, std::string_view value) {
    return Put(key, JsonQuoted(value));
  }
  template <typename T>
  JsonObject& Number(std::string_view key, T value) {
    return Put(key, std::to_string(value));
  }
  // `value` is JSON already.
  JsonObject& Put(std::string_view key, std::string_view value);
  std::string End() const { return text_ + "}"; }

 private:
  std::string text_ = "{";
};

}  // namespace cohort
