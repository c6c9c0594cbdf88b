// RowAsJson.

#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "rows.h"

namespace cohort::data {
namespace {

// As short as reads back to the same value; null where JSON has no number for it.
template <typename T>
void AppendNumber(std::string& json, T value) {
  if constexpr (std::is_floating_point_v<T>) {
    if (!std::isfinite(value)) {
      json += "null";
      return;
    }
  }
  std::array<char, 64> text{};
  json.append(text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr);
}

void AppendElement(std::string& json, const Tensor& tensor, std::size_t i) {
  switch (tensor.dtype()) {
    case DType::kFloat32:
      return AppendNumber(json, tensor.data<float>()[i]);
    case DType::kFloat64:
      return AppendNumber(json, tensor.data<double>()[i]);
    case DType::kInt32:
      return AppendNumber(json, tensor.data<std::int32_t>()[i]);
    case DType::kInt64:
      return AppendNumber(json, tensor.data<std::int64_t>()[i]);
    case DType::kFloat16:
      return AppendNumber(json, static_cast<float>(tensor.data<Float16>()[i]));
    case DType::kBFloat16:
      return AppendNumber(json, static_cast<float>(tensor.data<BFloat16>()[i]));
    case DType::kUInt8:
      return AppendNumber(json, static_cast<int>(tensor.data<std::uint8_t>()[i]));
  }
}

// Nested lists, as many as the tensor has axes. `at` counts elements.
void AppendTensor(std::string& json, const Tensor& tensor, int axis, std::size_t& at) {
  if (axis == tensor.shape().rank()) {
    AppendElement(json, tensor, at++);
    return;
  }
  json += '[';
  for (std::int64_t i = 0; i < tensor.shape()[axis]; ++i) {
    json += i == 0 ? "" : ",";
    AppendTensor(json, tensor, axis + 1, at);
  }
  json += ']';
}

std::string Base64(std::string_view bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    const std::size_t n = std::min<std::size_t>(3, bytes.size() - i);
    for (std::size_t k = 0; k < 3; ++k) {
      group = (group << 8) | (k < n ? static_cast<unsigned char>(bytes[i + k]) : 0U);
    }
    for (std::size_t k = 0; k < 4; ++k) {
      text += k <= n ? kDigits[(group >> (18 - 6 * k)) & 63] : '=';
    }
  }
  return text;
}

// Text in JSON's quotes; nullopt: it is no UTF-8.
std::optional<std::string> Quoted(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::type_error&) {
    return std::nullopt;
  }
}

void AppendString(std::string& json, const std::string& text, bool base64) {
  if (const auto quoted = Quoted(text); quoted.has_value()) {
    json += *quoted;
  } else if (base64) {
    json += "{\"base64\":\"" + Base64(text) + "\"}";
  } else {
    json += "{\"bytes\":" + std::to_string(text.size()) + "}";
  }
}

}  // namespace

std::string RowAsJson(const Row& row, bool base64) {
  std::string json = "{";
  for (const auto& [name, value] : row) {
    json += json.size() == 1 ? "" : ",";
    json += nlohmann::json(name).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    json += ':';
    if (value.kind == Value::Kind::kMissing) {
      json += "null";
    } else if (value.kind == Value::Kind::kNumbers) {
      std::size_t at = 0;
      AppendTensor(json, value.numbers, 0, at);
    } else if (value.strings.size() == 1) {
      AppendString(json, value.strings[0], base64);
    } else {
      json += '[';
      for (std::size_t i = 0; i < value.strings.size(); ++i) {
        json += i == 0 ? "" : ",";
        AppendString(json, value.strings[i], base64);
      }
      json += ']';
    }
  }
  return json + "}";
}

}  // namespace cohort::data
