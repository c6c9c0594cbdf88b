// A variable of more than 2^31 bytes on one server: beyond where 32-bit sizes end. As float32, and
// in the other formats in which values travel (TEST_LONG).

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
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

struct Case {
  std::string name;
  FrameTransport transport = FrameTransport::kShared;
  DType wire = DType::kFloat32;
};
void PrintTo(const Case& of, std::ostream* out) { *out << of.name; }

// Whole numbers that every format holds, of all of which each 256 neighbours have the greatest:
// int8 holds them but where a chunk ends with fewer.
float ValueOf(std::size_t i) { return static_cast<float>(i % 127 + 1); }

// Every element is `scale` times its own value.
void ExpectAll(const std::vector<float>& values, float scale, DType wire, std::size_t chunks) {
  std::size_t wrong = 0;
  float most = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float off = std::abs(values[i] - scale * ValueOf(i));
    wrong += off != 0 ? 1 : 0;
    most = std::max(most, off);
  }
  const bool rounded = wire == DType::kUInt8;
  EXPECT_LE(wrong, rounded ? 255 * chunks : 0) << "of " << values.size();
  EXPECT_LE(most, rounded ? 2 : 0) << "a half of what is sent, doubled, and of what comes back";
}

class LargeVariable : public ::testing::TestWithParam<Case> {};

TEST_P(LargeVariable, IsAssignedPushedAndPulled) {
  const Case& of = GetParam();
  const auto server = OrThrow(Server::Start("127.0.0.1:0", 0, Log()));
  ModelSpec spec;
  spec.parameters = {{"large", {kElements}, true, 0}};
  spec.optimizer = Sgd({.learning_rate = 1})->config();
  const auto client = Client::Make(
      spec, {"127.0.0.1:" + std::to_string(server->port())},
      {.task = "worker:0", .wire = {.push = of.wire, .pull = of.wire}, .transport = of.transport});
  OrThrow(client->Declare());
  std::vector<float> gradient(kElements);
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    gradient[i] = ValueOf(i);
  }
  OrThrow(client->Assign(gradient, {}, 1));
  std::vector<float> values(kElements, -1);
  OrThrow(client->Pull(values, /*everything=*/true));
  ExpectAll(values, 1, of.wire, client->chunks().size());
  OrThrow(client->Push({.arena = gradient, .weight = 0.5}, values));
  EXPECT_EQ(client->version(), 2U);
  ExpectAll(values, -1, of.wire, client->chunks().size());
}

std::vector<Case> Cases() {
  if (TEST_LONG == 0) {
    return {{.name = "Tcp", .transport = FrameTransport::kTcp}, {.name = "SharedMemory"}};
  }
  return {{.name = "Float16", .wire = DType::kFloat16},
          {.name = "BFloat16", .wire = DType::kBFloat16},
          {.name = "Int8", .wire = DType::kUInt8}};
}

INSTANTIATE_TEST_SUITE_P(Over, LargeVariable, ::testing::ValuesIn(Cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace cohort::ps
