#include <cohort/core/json_text.h>

#include <array>
#include <cstdio>

namespace cohort {

std::string JsonQuoted(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (byte < 0x20 || byte >= 0x7f) {
      std::array<char, 8> code;
      std::snprintf(code.data(), code.size(), "\\u%04x", byte);
      result += code.data();
    } else {
      result += c;
    }
  }
  return result + "\"";
}

JsonObject& JsonObject::Put(std::string_view key, std::string_view value) {
  text_ += text_.size() > 1 ? ", " : "";
  text_ += JsonQuoted(key);
  text_ += ": ";
  text_ += value;
  return *this;
}

}  // namespace cohort
