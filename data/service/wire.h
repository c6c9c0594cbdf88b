// What processes of the data service tell each other: pipelines, and raw replies.

#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/data/source.h>

#include <cohort/data_service.pb.h>

namespace cohort::data {

inline constexpr std::int64_t kMostExamples = std::int64_t{1} << 20;  // of one read

// A pipeline as a trainer sees it.
struct PipelineInfo {
  std::string name;
  std::int64_t examples = 0;
  std::uint64_t fingerprint = 0;
  bool by_epoch = false;  // another order in each epoch
  std::vector<FeatureSpec> features;
  std::vector<RaggedSpec> ragged;

  std::int64_t row_bytes() const;  // of the features of an example, without ragged ones
};

void ToWire(const Status& status, wire::Outcome* outcome);
Status FromWire(const wire::Outcome& outcome);
void ToWire(const PipelineInfo& info, wire::Pipeline* pipeline);
Result<PipelineInfo> FromWire(const wire::Pipeline& pipeline);

// A hash of all of it: equal, a reply's bytes mean the same on both sides.
std::uint64_t Contract(const PipelineInfo& info);

// The first feature that one has and the other has not, or has otherwise: "feature 'x' is
// float32[2], int64[] is expected". Empty: there is none.
std::string FeatureDifference(const PipelineInfo& there, const PipelineInfo& expected);
// As that, and the order of the features, the number of examples and the fingerprint.
std::string Difference(const PipelineInfo& there, const PipelineInfo& expected);

// Why an address does not answer: what a connection to it says (ProbeAddress), or, where it is
// accepted, the call's own error.
std::string WhyNoAnswer(const std::string& probe, const std::string& error);

// Memory for `bytes`, aligned as a tensor's, and the slice that owns it.
grpc::Slice NewSlice(std::size_t bytes, std::byte** memory);
// The values of a ragged feature, not copied.
grpc::Slice AdoptSlice(std::vector<std::byte> bytes);

grpc::ByteBuffer Assemble(const wire::ReadReply& header, std::vector<grpc::Slice> payload);

// A received message with the memory that it borrows, and a place in it.
class Received {
 public:
  // False: there is none.
  bool Take(const grpc::ByteBuffer& buffer) { return buffer.Dump(&slices_).ok() && Count(); }
  std::size_t remaining() const { return remaining_; }
  // Copies exactly so many bytes; false, with nothing consumed, if there are fewer.
  bool Read(void* to, std::size_t bytes);
  // What Assemble put before the payload; false if it is none.
  bool ReadHeader(wire::ReadReply* header);

 private:
  bool Count();

  std::vector<grpc::Slice> slices_;
  std::size_t slice_ = 0;
  std::size_t position_ = 0;
  std::size_t remaining_ = 0;
};

}  // namespace cohort::data
