#include <algorithm>
#include <charconv>

#include <cohort/strategies/partitioner.h>

namespace cohort {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 40;

// "4", or with `suffix` "256k". 0: no such number.
std::int64_t Number(std::string_view text, bool suffix) {
  std::int64_t number = 0;
  const char* const end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || number < 1 || number > kMost) {
    return 0;
  }
  const std::string_view unit(at, static_cast<std::size_t>(end - at));
  const std::int64_t factor = unit.empty()            ? 1
                              : suffix && unit == "k" ? std::int64_t{1} << 10
                              : suffix && unit == "m" ? std::int64_t{1} << 20
                              : suffix && unit == "g" ? std::int64_t{1} << 30
                                                      : 0;
  return number <= kMost / std::max<std::int64_t>(factor, 1) ? number * factor : 0;
}

}  // namespace

Result<Partitioner> Partitioner::Parse(std::string_view text) {
  const std::size_t colon = std::min(text.find(':'), text.size());
  const std::string_view name = text.substr(0, colon);
  const std::string_view rest = text.substr(std::min(colon + 1, text.size()));
  const std::size_t second = rest.find(':');
  Partitioner partitioner;
  bool good = false;
  if (name == "pieces") {
    good = colon == text.size();
  } else if (name == "fixed") {
    partitioner.kind = Kind::kFixedShards;
    partitioner.shards = Number(rest, /*suffix=*/false);
    good = partitioner.shards > 0;
  } else if (name == "min" || name == "max") {
    partitioner.kind = name == "min" ? Kind::kMinSize : Kind::kMaxSize;
    partitioner.bytes = Number(rest.substr(0, second), /*suffix=*/true);
    partitioner.shards =
        second == std::string_view::npos ? 0 : Number(rest.substr(second + 1), /*suffix=*/false);
    good = partitioner.bytes > 0 && (second == std::string_view::npos || partitioner.shards > 0);
  }
  if (!good) {
    return InvalidArgument("partitioner '" + std::string(text) +
                           "' [pieces, fixed:SHARDS, min:BYTES, max:BYTES, or "
                           "min|max:BYTES:MOST_SHARDS, bytes as 256k]");
  }
  return partitioner;
}

std::string Partitioner::ToString() const {
  const std::string limit = shards == 0 ? "" : ":" + std::to_string(shards);
  switch (kind) {
    case Kind::kFixedShards:
      return "fixed" + limit;
    case Kind::kMinSize:
      return "min:" + std::to_string(bytes) + limit;
    case Kind::kMaxSize:
      return "max:" + std::to_string(bytes) + limit;
    case Kind::kPieces:
      break;
  }
  return "pieces";
}

Status Partitioner::Check() const {
  COHORT_ASSIGN_OR_RETURN(const Partitioner parsed, Parse(ToString()));
  return parsed == *this
             ? OkStatus()
             : InvalidArgument("partitioner '" + ToString() + "' with " + std::to_string(shards) +
                               " shards and " + std::to_string(bytes) +
                               " bytes [leave what its kind does not use at 0]");
}

std::int64_t Partitioner::ShardsOf(const Shape& shape, int servers) const {
  if (shape.rank() == 0 || shape.elements() == 0) {
    return 1;
  }
  const std::int64_t rows = shape[0];
  const std::int64_t row_bytes = shape.elements() / rows * static_cast<std::int64_t>(sizeof(float));
  std::int64_t count = 1;
  switch (kind) {
    case Kind::kPieces:
      break;
    case Kind::kFixedShards:
      return std::min(shards, rows);
    case Kind::kMinSize:
      count = std::min((rows * row_bytes + bytes - 1) / bytes, shards == 0 ? servers : shards);
      break;
    case Kind::kMaxSize: {
      const std::int64_t of_shard = std::max<std::int64_t>(1, bytes / row_bytes);
      count = (rows + of_shard - 1) / of_shard;
      count = shards == 0 ? count : std::min(count, shards);
      break;
    }
  }
  return std::clamp<std::int64_t>(count, 1, rows);
}

}  // namespace cohort
