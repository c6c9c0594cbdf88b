#include <cohort/io/safetensors.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "json.h"

namespace cohort::io {
namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::string_view kMetadata = "__metadata__";

constexpr std::array<std::pair<DType, std::string_view>, 7> kNames = {{
    {DType::kFloat32, "F32"},
    {DType::kFloat64, "F64"},
    {DType::kInt32, "I32"},
    {DType::kInt64, "I64"},
    {DType::kFloat16, "F16"},
    {DType::kBFloat16, "BF16"},
    {DType::kUInt8, "U8"},
}};

std::string_view NameOf(DType dtype) {
  return std::find_if(kNames.begin(), kNames.end(), [&](const auto& n) { return n.first == dtype; })
      ->second;
}

bool IsSize(const Json& json) {
  return json.is_number_unsigned() || (json.is_number_integer() && json.get<std::int64_t>() >= 0);
}

// bytes of `dims` elements; nullopt if they do not fit into 63 bits.
std::optional<std::uint64_t> CheckedBytes(const std::vector<std::int64_t>& dims, std::size_t each) {
  if (std::find(dims.begin(), dims.end(), 0) != dims.end()) {
    return 0;
  }
  std::int64_t bytes = static_cast<std::int64_t>(each);
  for (const std::int64_t d : dims) {
    if (__builtin_mul_overflow(bytes, d, &bytes)) {
      return std::nullopt;
    }
  }
  return static_cast<std::uint64_t>(bytes);
}

// One tensor's entry, `data` being where the data begins and `size` how long the file is.
Result<SafetensorsEntry> ParseEntry(const std::string& name, const Json& json, std::uint64_t data,
                                    std::uint64_t size) {
  const auto bad = [&name](const std::string& what) {
    return DataLoss("tensor \"" + name + "\" " + what);
  };
  if (!json.is_object() || json.size() != 3 || !json.contains("dtype") || !json.contains("shape") ||
      !json.contains("data_offsets")) {
    return bad("needs exactly dtype, shape and data_offsets");
  }
  SafetensorsEntry entry;
  entry.name = name;
  const auto* const dtype = std::find_if(kNames.begin(), kNames.end(), [&](const auto& n) {
    return json["dtype"].is_string() && json["dtype"].get_ref<const std::string&>() == n.second;
  });
  if (dtype == kNames.end()) {
    return bad("has dtype " + json["dtype"].dump() + ", which is not supported");
  }
  entry.dtype = dtype->first;

  std::vector<std::int64_t> dims;
  const Json& shape = json["shape"];
  if (!shape.is_array() || !std::all_of(shape.begin(), shape.end(), IsSize)) {
    return bad("has shape " + shape.dump() + ", which is no list of sizes");
  }
  for (const Json& d : shape) {
    if (d.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX)) {
      return bad("has shape " + shape.dump() + ", which is too large");
    }
    dims.push_back(d.get<std::int64_t>());
  }
  const auto expected = CheckedBytes(dims, SizeOf(entry.dtype));
  if (!expected) {
    return bad("has shape " + shape.dump() + ", which is too large");
  }
  entry.shape = Shape(std::move(dims));

  const Json& offsets = json["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !IsSize(offsets[0]) || !IsSize(offsets[1])) {
    return bad("has data_offsets " + offsets.dump() + ", which are no [begin, end]");
  }
  const auto begin = offsets[0].get<std::uint64_t>();
  const auto end = offsets[1].get<std::uint64_t>();
  if (begin > end || end > size - data) {
    return bad("has data_offsets " + offsets.dump() + " outside of the " +
               std::to_string(size - data) + " bytes of data");
  }
  if (end - begin != *expected) {
    return bad("takes " + std::to_string(end - begin) + " bytes, but its dtype and shape make " +
               std::to_string(*expected));
  }
  entry.begin = data + begin;
  entry.end = data + end;
  return entry;
}

Status CheckMetadata(const Json& json) {
  if (!json.is_object() ||
      !std::all_of(json.begin(), json.end(), [](const Json& value) { return value.is_string(); })) {
    return DataLoss("__metadata__ must hold strings only");
  }
  return {};
}

Result<std::vector<SafetensorsEntry>> ParseHeader(const std::string& text, std::uint64_t size) {
  if (text.empty() || text.front() != '{') {
    return DataLoss("the header does not begin with {");
  }
  COHORT_ASSIGN_OR_RETURN(const Json json, ParseJsonObject(text));
  const std::uint64_t data = 8 + text.size();
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, value] : json.items()) {
    if (name == kMetadata) {
      COHORT_RETURN_IF_ERROR(CheckMetadata(value));
      continue;
    }
    COHORT_ASSIGN_OR_RETURN(entries.emplace_back(), ParseEntry(name, value, data, size));
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  std::uint64_t covered = data;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != covered) {
      return DataLoss("tensor \"" + entry.name + "\" " +
                      (entry.begin > covered ? "leaves a gap before it" : "overlaps another"));
    }
    covered = entry.end;
  }
  if (covered != size) {
    return DataLoss(std::to_string(size - covered) + " bytes at the end belong to no tensor");
  }
  return entries;
}

}  // namespace

std::string EncodeSafetensorsHeader(std::span<const SafetensorsEntry> entries,
                                    const std::map<std::string, std::string>& metadata) {
  OrderedJson json = OrderedJson::object();
  if (!metadata.empty()) {
    json[std::string(kMetadata)] = metadata;
  }
  std::uint64_t begin = 0;
  for (const SafetensorsEntry& entry : entries) {
    Require(!json.contains(entry.name) && entry.name != kMetadata,
            "tensor names are unique: " + entry.name);
    const std::uint64_t end =
        begin + static_cast<std::uint64_t>(entry.shape.elements()) * SizeOf(entry.dtype);
    json[entry.name] = {{"dtype", NameOf(entry.dtype)},
                        {"shape", entry.shape.dims()},
                        {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text;
  try {
    text = json.dump();
  } catch (const OrderedJson::type_error& error) {
    throw ContractError("tensor names are UTF-8: " + std::string(error.what()));
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t n = text.size();
  return std::string(reinterpret_cast<const char*>(&n), sizeof(n)) + text;
}

Result<std::vector<SafetensorsEntry>> ReadSafetensorsHeader(const RandomAccessFile& file,
                                                            const std::string& path) {
  const std::uint64_t size = file.size();
  std::uint64_t n = 0;
  COHORT_ASSIGN_OR_RETURN(const std::size_t got,
                          file.Read(0, std::as_writable_bytes(std::span(&n, 1))));
  if (got < sizeof(n)) {
    return DataLoss(path + ": " + std::to_string(got) + " bytes are too few for a header");
  }
  if (n > size - sizeof(n) || n > kMaxHeaderBytes) {
    return DataLoss(path + ": a header of " + std::to_string(n) + " bytes is larger than " +
                    (n > kMaxHeaderBytes ? "the format allows" : "the file"));
  }
  std::string text(n, '\0');
  COHORT_ASSIGN_OR_RETURN(const std::size_t read,
                          file.Read(sizeof(n), std::as_writable_bytes(std::span(text))));
  if (read < n) {
    return DataLoss(path + " became shorter while it was read");
  }
  auto entries = ParseHeader(text, size);
  if (!entries.ok()) {
    return entries.status().Annotate(path);
  }
  return entries;
}

}  // namespace cohort::io
