// What tests of servers over real connections begin with.

#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <cohort/optim/optimizers.h>

#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"
#include "testing/process_cluster.h"

namespace cohort::ps {

// One, two or three servers of a model of two parameters, as threads of the test, and clients of
// them.
class ServersTest : public ::testing::Test {
 protected:
  void Start(int servers) {
    // Ports that are still theirs where a test ends a server and starts it again.
    for (const int port : testing::UnusedPorts(servers)) {
      addresses_.push_back("127.0.0.1:" + std::to_string(port));
      servers_.push_back(
          OrThrow(Server::Start(addresses_.back(), static_cast<int>(servers_.size()), Log())));
    }
    // Several chunks and frames, and odd sizes.
    spec_.parameters = {{"wide", {3000, 701}, true, 0}, {"bias", {13}, true, 3000 * 701 + 8}};
    elements_ = 3000 * 701 + 8 + 16;
    spec_.optimizer = Sgd({.learning_rate = 1})->config();
    spec_.servers = servers;
  }
  std::unique_ptr<Client> NewClient(std::uint64_t number, std::chrono::milliseconds patience =
                                                              std::chrono::milliseconds(20'000)) {
    return Client::Make(spec_, addresses_,
                        {.client = number,
                         .task = "worker:" + std::to_string(number),
                         .peer_timeout = patience,
                         .transport = TransportOf(number)});
  }
  std::unique_ptr<Client> ClientOf(
      std::uint64_t epoch, std::uint64_t number,
      std::chrono::milliseconds patience = std::chrono::milliseconds(10'000)) {
    return Client::Make(spec_, addresses_,
                        {.client = number,
                         .task = "worker:" + std::to_string(number),
                         .epoch = epoch,
                         .peer_timeout = patience,
                         .transport = TransportOf(number)});
  }
  // Both, side by side.
  static FrameTransport TransportOf(std::uint64_t number) {
    return number % 2 == 0 ? FrameTransport::kTcp : FrameTransport::kShared;
  }
  // Declares, and assigns `value` everywhere.
  void Initialise(float value = 0) {
    const auto chief = NewClient(1000);
    OrThrow(chief->Declare());
    OrThrow(chief->Assign(std::vector<float>(elements_, value), {}, 0));
  }
  static Gradient GradientOf(const std::shared_ptr<std::vector<float>>& values, double weight = 1) {
    return {.arena = *values, .weight = weight};
  }
  // Whether all chunks' elements are `value`: the gaps between parameters belong to none.
  void ExpectAll(std::span<const float> arena, float value) const {
    for (std::size_t i = 0; i < 3000 * 701; ++i) {
      ASSERT_EQ(arena[i], value) << i;
    }
    for (std::size_t i = 0; i < 13; ++i) {
      ASSERT_EQ(arena[3000 * 701 + 8 + i], value) << i;
    }
  }

  std::vector<std::unique_ptr<Server>> servers_;
  std::vector<std::string> addresses_;
  ModelSpec spec_;
  std::size_t elements_ = 0;
};

}  // namespace cohort::ps
