// A variable of more than 2^31 bytes on one server: beyond where 32-bit sizes end.

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <cohort/optim/optimizers.h>

#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"

namespace cohort::ps {
namespace {

constexpr std::int64_t kElements = (std::int64_t{1} << 29) + 3;  // 2 GiB and 12 bytes

float ValueOf(std::size_t i) { return static_cast<float>(i % 4093); }

// Every element is `scale` times its own value.
void ExpectAll(const std::vector<float>& values, float scale) {
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    wrong += values[i] != scale * ValueOf(i) ? 1 : 0;
  }
  EXPECT_EQ(wrong, 0U) << "of " << values.size();
}

class LargeVariable : public ::testing::TestWithParam<FrameTransport> {};

TEST_P(LargeVariable, IsAssignedPushedAndPulled) {
  const auto server = OrThrow(Server::Start("127.0.0.1:0", 0, Log()));
  ModelSpec spec;
  spec.parameters = {{"large", {kElements}, true, 0}};
  spec.optimizer = Sgd({.learning_rate = 1})->config();
  const auto client = Client::Make(spec, {"127.0.0.1:" + std::to_string(server->port())},
                                   {.task = "worker:0", .transport = GetParam()});
  OrThrow(client->Declare());
  std::vector<float> gradient(kElements);
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    gradient[i] = ValueOf(i);
  }
  OrThrow(client->Assign(gradient, {}, 1));
  std::vector<float> values(kElements, -1);
  OrThrow(client->Pull(values, /*everything=*/true));
  ExpectAll(values, 1);
  OrThrow(client->Push({.arena = gradient, .weight = 0.25}, values));
  EXPECT_EQ(client->version(), 2U);
  ExpectAll(values, -3);
}

INSTANTIATE_TEST_SUITE_P(Over, LargeVariable,
                         ::testing::Values(FrameTransport::kTcp, FrameTransport::kShared),
                         [](const auto& of) {
                           return of.param == FrameTransport::kTcp ? "Tcp" : "SharedMemory";
                         });

}  // namespace
}  // namespace cohort::ps
