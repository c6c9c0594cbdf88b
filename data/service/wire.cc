#include "wire.h"

#include <grpc/slice.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <set>
#include <utility>

#include <cohort/core/random.h>

#include "grpc_util.h"

namespace cohort::data {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr std::int64_t kMostDim = std::int64_t{1} << 40;

std::string Describe(DType dtype, const Shape& shape) {
  return std::string(DTypeName(dtype)) + shape.ToString();
}

std::string Describe(const PipelineInfo& info, const std::string& name) {
  for (const FeatureSpec& feature : info.features) {
    if (feature.name == name) {
      return Describe(feature.dtype, feature.shape);
    }
  }
  for (const RaggedSpec& feature : info.ragged) {
    if (feature.name == name) {
      return std::string(DTypeName(feature.dtype)) + " of any length";
    }
  }
  return "";
}

// In their order.
std::string Names(const PipelineInfo& info) {
  std::string names;
  for (const FeatureSpec& feature : info.features) {
    names += (names.empty() ? "'" : ", '") + feature.name + "'";
  }
  for (const RaggedSpec& feature : info.ragged) {
    names += (names.empty() ? "'" : ", '") + feature.name + "'";
  }
  return names;
}

bool IsDType(int dtype) {
  return dtype >= static_cast<int>(DType::kFloat32) && dtype <= static_cast<int>(DType::kUInt8);
}

}  // namespace

std::int64_t PipelineInfo::row_bytes() const {
  std::size_t bytes = 0;
  for (const FeatureSpec& feature : features) {
    bytes += feature.bytes();
  }
  return static_cast<std::int64_t>(bytes);
}

void ToWire(const Status& status, wire::Outcome* outcome) {
  outcome->set_code(static_cast<int>(status.code()));
  outcome->set_message(status.message());
}

Status FromWire(const wire::Outcome& outcome) {
  if (outcome.code() == 0) {
    return {};
  }
  const bool known = outcome.code() > 0 && outcome.code() <= 15;
  return {known ? static_cast<StatusCode>(outcome.code()) : StatusCode::kUnknown,
          outcome.message()};
}

void ToWire(const PipelineInfo& info, wire::Pipeline* pipeline) {
  pipeline->set_name(info.name);
  pipeline->set_examples(info.examples);
  pipeline->set_fingerprint(info.fingerprint);
  pipeline->set_by_epoch(info.by_epoch);
  for (const FeatureSpec& spec : info.features) {
    wire::Feature* feature = pipeline->add_features();
    feature->set_name(spec.name);
    feature->set_dtype(static_cast<int>(spec.dtype));
    for (const std::int64_t dim : spec.shape.dims()) {
      feature->add_dims(dim);
    }
  }
  for (const RaggedSpec& spec : info.ragged) {
    wire::Feature* feature = pipeline->add_features();
    feature->set_name(spec.name);
    feature->set_dtype(static_cast<int>(spec.dtype));
    feature->set_ragged(true);
  }
}

Result<PipelineInfo> FromWire(const wire::Pipeline& pipeline) {
  PipelineInfo info{.name = pipeline.name(),
                    .examples = pipeline.examples(),
                    .fingerprint = pipeline.fingerprint(),
                    .by_epoch = pipeline.by_epoch()};
  if (info.examples < 0) {
    return InvalidArgument("pipeline '" + info.name + "': a negative number of examples");
  }
  std::set<std::string> names;
  for (const wire::Feature& feature : pipeline.features()) {
    std::int64_t elements = 8;  // bytes of the largest element type
    for (const std::int64_t dim : feature.dims()) {
      if (dim < 0 || __builtin_mul_overflow(elements, std::max<std::int64_t>(dim, 1), &elements) ||
          elements > kMostDim) {
        return InvalidArgument("pipeline '" + info.name + "': feature '" + feature.name() +
                               "' has an impossible shape");
      }
    }
    if (!IsDType(feature.dtype()) || !names.insert(feature.name()).second) {
      return InvalidArgument("pipeline '" + info.name + "': feature '" + feature.name() +
                             "' has an unknown element type, or is there twice");
    }
    const auto dtype = static_cast<DType>(feature.dtype());
    if (feature.ragged()) {
      info.ragged.push_back({feature.name(), dtype});
    } else {
      info.features.push_back(
          {feature.name(), dtype,
           Shape(std::vector<std::int64_t>(feature.dims().begin(), feature.dims().end()))});
    }
  }
  return info;
}

std::uint64_t Contract(const PipelineInfo& info) {
  wire::Pipeline pipeline;
  ToWire(info, &pipeline);
  return Hash64(pipeline.SerializeAsString());
}

std::string FeatureDifference(const PipelineInfo& there, const PipelineInfo& expected) {
  std::set<std::string> names;
  for (const PipelineInfo* info : {&there, &expected}) {
    for (const FeatureSpec& feature : info->features) {
      names.insert(feature.name);
    }
    for (const RaggedSpec& feature : info->ragged) {
      names.insert(feature.name);
    }
  }
  for (const std::string& name : names) {
    const std::string is = Describe(there, name);
    const std::string wanted = Describe(expected, name);
    if (is != wanted) {
      return "feature '" + name + "' " +
             (is.empty()       ? "is missing, " + wanted + " is expected"
              : wanted.empty() ? "(" + is + ") is not expected"
                               : "is " + is + ", " + wanted + " is expected");
    }
  }
  return "";
}

std::string Difference(const PipelineInfo& there, const PipelineInfo& expected) {
  if (std::string difference = FeatureDifference(there, expected); !difference.empty()) {
    return difference;
  }
  if (there.features != expected.features || there.ragged != expected.ragged) {
    return "the same features in another order: " + Names(there) + ", " + Names(expected) +
           " is expected";
  }
  if (there.examples != expected.examples) {
    return std::to_string(there.examples) + " examples, " + std::to_string(expected.examples) +
           " are expected";
  }
  return there.fingerprint == expected.fingerprint && there.by_epoch == expected.by_epoch
             ? ""
             : "other data, another order, other maps or another version (fingerprints differ)";
}

std::string WhyNoAnswer(const std::string& probe, const std::string& error) {
  return probe == kAcceptsConnections
             ? probe + ", but does not answer as a data service (" + error + ")"
             : probe;
}

grpc::Slice NewSlice(std::size_t bytes, std::byte** memory) {
  *memory = static_cast<std::byte*>(::operator new(std::max<std::size_t>(bytes, 1), kAlignment));
  return {*memory, bytes, [](void* owned) { ::operator delete(owned, kAlignment); }, *memory};
}

grpc::Slice AdoptSlice(std::vector<std::byte> bytes) {
  auto* owned = new std::vector<std::byte>(std::move(bytes));
  return {owned->data(), owned->size(),
          [](void* user) { delete static_cast<std::vector<std::byte>*>(user); }, owned};
}

grpc::ByteBuffer Assemble(const wire::ReadReply& header, std::vector<grpc::Slice> payload) {
  std::string head = header.SerializeAsString();
  const auto length = static_cast<std::uint32_t>(head.size());
  head.insert(0, reinterpret_cast<const char*>(&length), sizeof(length));
  payload.insert(payload.begin(), grpc::Slice(head));
  return {payload.data(), payload.size()};
}

bool Received::Count() {
  for (const grpc::Slice& slice : slices_) {
    remaining_ += slice.size();
  }
  return true;
}

bool Received::Read(void* to, std::size_t bytes) {
  if (bytes > remaining_) {
    return false;
  }
  remaining_ -= bytes;
  auto* out = static_cast<std::byte*>(to);
  while (bytes > 0) {
    const grpc::Slice& slice = slices_[slice_];
    const std::size_t count = std::min(bytes, slice.size() - position_);
    if (count > 0) {
      std::memcpy(out, slice.begin() + position_, count);
    }
    out += count;
    bytes -= count;
    position_ += count;
    if (position_ == slice.size()) {
      ++slice_;
      position_ = 0;
    }
  }
  return true;
}

bool Received::ReadHeader(wire::ReadReply* header) {
  std::uint32_t length = 0;
  if (!Read(&length, sizeof(length)) || length > remaining_) {
    return false;
  }
  std::string head(length, '\0');
  return Read(head.data(), length) && header->ParseFromString(head);
}

}  // namespace cohort::data
