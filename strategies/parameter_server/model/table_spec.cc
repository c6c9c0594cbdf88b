#include "parameter_server/model/table_spec.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include <cohort/core/random.h>
#include <cohort/io/wire.h>

namespace cohort::ps {
namespace {

namespace wire = io::wire;

// Of TableMessage.
enum TableField {
  kName = 1,
  kDim = 2,
  kSeed = 3,
  kOptimizer = 4,
  kInitializer = 5,
  kInitializerScale = 6,
  kMissing = 7,
  kBiasScope = 8,
  kNotFinite = 9,
  kMeanOfOccurrences = 10,
  kAdmitAfter = 11,
  kAdmitProbability = 12,
  kTimeToLive = 13,
  kCapacity = 14,
  kEviction = 15,
  kBuckets = 16,
  kWire = 17,
};

// As proto3 has them: fields of their default value are not written.
void PutText(std::string& to, TableField field, std::string_view text) {
  if (!text.empty()) {
    wire::AppendField(to, field, text);
  }
}
void PutNumber(std::string& to, TableField field, std::uint64_t number) {
  if (number != 0) {
    wire::AppendVarintField(to, field, number);
  }
}
void PutFixed(std::string& to, TableField field, std::uint64_t bits) {
  if (bits != 0) {
    wire::AppendFixedField(to, field, bits);
  }
}

std::uint64_t Fixed64(const wire::Field& field) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, field.bytes.data(), sizeof(bits));
  return bits;
}

// A field of another type than its number has is unknown, and unknown ones are skipped.
void TakeText(TableSpec& spec, const wire::Field& field) {
  if (field.number == kName) {
    spec.name = field.bytes;
  } else if (field.number == kOptimizer) {
    spec.optimizer = field.bytes;
  }
}
void TakeFixed(TableSpec& spec, const wire::Field& field) {
  if (field.number == kSeed) {
    spec.seed = Fixed64(field);
  } else if (field.number == kInitializerScale) {
    spec.initializer.scale = std::bit_cast<double>(Fixed64(field));
  } else if (field.number == kAdmitProbability) {
    spec.admit_probability = std::bit_cast<double>(Fixed64(field));
  }
}
// False: a setting that this program does not know.
template <typename Setting>
bool Choose(Setting& setting, std::uint32_t number, std::uint32_t last) {
  setting = static_cast<Setting>(std::min(number, last));
  return number <= last;
}
bool TakeNumber(TableSpec& spec, const wire::Field& field) {
  const auto number = static_cast<std::uint32_t>(field.varint);
  switch (field.number) {
    case kDim:
      spec.dim = static_cast<std::int64_t>(field.varint);
      return true;
    case kInitializer:
      return Choose(spec.initializer.kind, number, 2);
    case kMissing:
      return Choose(spec.missing, number, 2);
    case kBiasScope:
      return Choose(spec.bias_scope, number, 1);
    case kNotFinite:
      return Choose(spec.not_finite, number, 1);
    case kMeanOfOccurrences:
      spec.mean_of_occurrences = field.varint != 0;
      return true;
    case kAdmitAfter:
      spec.admit_after = number;
      return true;
    case kTimeToLive:
      spec.time_to_live = number;
      return true;
    case kCapacity:
      spec.capacity = field.varint;
      return true;
    case kEviction:
      return Choose(spec.eviction, number, 1);
    case kBuckets:
      spec.buckets = number;
      return true;
    case kWire:
      return Choose(spec.wire, number, 3);
    default:
      return true;
  }
}

// What an empty message says.
TableSpec NoFields() {
  TableSpec spec;
  spec.admit_after = 0;
  spec.admit_probability = 0;
  spec.buckets = 0;
  return spec;
}

}  // namespace

std::string ToMessage(const TableSpec& spec) {
  std::string message;
  PutText(message, kName, spec.name);
  PutNumber(message, kDim, static_cast<std::uint64_t>(spec.dim));
  PutFixed(message, kSeed, spec.seed);
  PutText(message, kOptimizer, spec.optimizer);
  PutNumber(message, kInitializer, static_cast<std::uint32_t>(spec.initializer.kind));
  PutFixed(message, kInitializerScale, std::bit_cast<std::uint64_t>(spec.initializer.scale));
  PutNumber(message, kMissing, static_cast<std::uint32_t>(spec.missing));
  PutNumber(message, kBiasScope, static_cast<std::uint32_t>(spec.bias_scope));
  PutNumber(message, kNotFinite, static_cast<std::uint32_t>(spec.not_finite));
  PutNumber(message, kMeanOfOccurrences, spec.mean_of_occurrences ? 1 : 0);
  PutNumber(message, kAdmitAfter, spec.admit_after);
  PutFixed(message, kAdmitProbability, std::bit_cast<std::uint64_t>(spec.admit_probability));
  PutNumber(message, kTimeToLive, spec.time_to_live);
  PutNumber(message, kCapacity, spec.capacity);
  PutNumber(message, kEviction, static_cast<std::uint32_t>(spec.eviction));
  PutNumber(message, kBuckets, spec.buckets);
  PutNumber(message, kWire, static_cast<std::uint32_t>(spec.wire));
  return message;
}

Result<TableSpec> SpecOf(std::string_view message) {
  TableSpec spec = NoFields();
  bool known = true;
  const bool sound = wire::ForEachField(message, [&](const wire::Field& field) {
    if (field.type == wire::kBytes) {
      TakeText(spec, field);
    } else if (field.type == wire::kFixed64) {
      TakeFixed(spec, field);
    } else if (field.type == wire::kVarint) {
      known = TakeNumber(spec, field) && known;
    }
    return true;
  });
  if (!sound) {
    return DataLoss("the description of a table is damaged");
  }
  if (!known) {
    return Unimplemented("table \"" + spec.name +
                         "\": a setting of a newer version [update this program]");
  }
  COHORT_RETURN_IF_ERROR(spec.Check());
  return spec;
}

std::uint32_t BucketOf(std::uint64_t id, std::uint32_t buckets) {
  const int bits = std::countr_zero(buckets);
  return bits == 0 ? 0 : static_cast<std::uint32_t>(HashId(id) >> (64 - bits));
}

BucketRange BucketsOf(int server, int servers, std::uint32_t buckets) {
  Require(server >= 0 && server < servers, "0 <= server < servers");
  const auto edge = [&](int s) {
    return static_cast<std::uint32_t>(std::uint64_t{buckets} * static_cast<std::uint64_t>(s) /
                                      static_cast<std::uint64_t>(servers));
  };
  return {edge(server), edge(server + 1)};
}

int ServerOf(std::uint32_t bucket, int servers, std::uint32_t buckets) {
  Require(servers >= 1 && bucket < buckets, "a bucket of the table, and a server");
  // The greatest s with buckets * s / servers <= bucket.
  return static_cast<int>(((std::uint64_t{bucket} + 1) * static_cast<std::uint64_t>(servers) - 1) /
                          buckets);
}

void InitialRow(const TableSpec& spec, std::uint64_t id, std::span<float> row) {
  if (spec.initializer.kind == RowInitializer::Kind::kZeros) {
    std::ranges::fill(row, 0.0F);
    return;
  }
  const Philox random(spec.seed, spec.name);
  const auto scale = static_cast<float>(spec.initializer.scale);
  if (spec.initializer.kind == RowInitializer::Kind::kNormal) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      row[i] = scale * random.Normal(i, id);
    }
    return;
  }
  for (std::size_t i = 0; i < row.size(); i += 4) {
    const Philox::Block block = random.At(i / 4, id);
    for (std::size_t k = 0; k < std::min<std::size_t>(4, row.size() - i); ++k) {
      const float uniform = static_cast<float>(block[k] >> 8) * 0x1p-24F;  // Philox::Uniform
      row[i + k] = scale * (2 * uniform - 1);
    }
  }
}

}  // namespace cohort::ps
