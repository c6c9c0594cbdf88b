// What tests of a server's store begin with.

#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <cohort/optim/optimizer.h>

#include "parameter_server/frames/payload.h"
#include "parameter_server/variables/parameter_store.h"

namespace cohort::ps {

// A store, and frames for it.
class StoreTest : public ::testing::Test {
 protected:
  // Two variables, a [4] and b [2]; `fixed` [1] is not trained by gradients.
  void Declare(const Optimizer& optimizer, const std::string& consistency = "async") {
    spec_ = {.parameters = {{"a", {4}, true, 0}, {"b", {2}, true, 16}, {"fixed", {1}, false, 32}},
             .optimizer = optimizer.config(),
             .consistency = OrThrow(Consistency::Parse(consistency)),
             .servers = 1};
    OrThrow(store_.Declare(spec_, "chief:0"));
  }
  void Assign(std::vector<float> values, std::uint64_t version = 0) {
    FrameHeader header = Header({0, 1, 2}, version);
    ASSERT_EQ(store_.Assign(header, Payload(values)).kind(), Error::NONE);
  }

  FrameHeader Header(std::vector<std::uint32_t> chunks, std::uint64_t version = 0) {
    FrameHeader header;
    header.set_client(1);
    header.set_layout(spec_.Fingerprint());
    for (const std::uint32_t chunk : chunks) {
      header.add_chunks(chunk);
      header.add_versions(version);
    }
    return header;
  }
  FrameHeader PushHeader(double weight = 1) {
    FrameHeader header = Header({0, 1, 2});
    header.set_sequence(++sequence_);
    header.set_weight(weight);
    return header;
  }
  FrameHeader RoundHeader(std::uint64_t round, int part, int parts, double weight,
                          int attempt = 0) {
    FrameHeader header = PushHeader(weight);
    header.set_client(static_cast<std::uint64_t>(part) + 1);
    header.mutable_round()->set_round(round);
    header.mutable_round()->set_part(static_cast<std::uint32_t>(part));
    header.mutable_round()->set_parts(static_cast<std::uint32_t>(parts));
    header.mutable_round()->set_attempt(static_cast<std::uint32_t>(attempt));
    return header;
  }
  // Borrows; `values` must outlive it.
  static PayloadReader Payload(const std::vector<float>& values) {
    return PayloadReader(Segments{std::as_bytes(std::span(values))});
  }
  std::vector<float> Read(int chunk) {
    FrameHeader header = Header({static_cast<std::uint32_t>(chunk)});
    std::vector<ParameterStore::Reading> readings;
    EXPECT_EQ(store_.Plan(header, &readings).kind(), Error::NONE);
    std::vector<float> values(readings.at(0).floats);
    store_.Copy(readings[0], false, values);
    return values;
  }
  Error Push(const FrameHeader& header, const std::vector<float>& values) {
    ParameterStore::Pushed pushed;
    return store_.Push(header, Payload(values), &pushed);
  }

  ParameterStore store_{0};
  ModelSpec spec_;
  std::uint64_t sequence_ = 0;
  const std::vector<float> ones_{1, 1, 1, 1, 1, 1, 1};
};

}  // namespace cohort::ps
