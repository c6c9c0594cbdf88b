// Servers of two sparse tables, as threads of a test, and what is pushed to them.

#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>

#include "parameter_server/rows/row_client.h"
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"

namespace cohort::ps {

// Servers of a model with two tables.
class TwoTables {
 public:
  explicit TwoTables(int servers, std::uint32_t buckets = 64) {
    spec_.parameters = {{"bias", {3}, true, 0}};
    spec_.optimizer = Sgd({.learning_rate = 1})->config();
    spec_.servers = servers;
    TableSpec users;
    users.name = "users";
    users.dim = 5;
    users.seed = 3;
    users.buckets = buckets;
    users.initializer = {RowInitializer::Kind::kNormal, 0.1};
    users.optimizer = Adam({.learning_rate = 0.01})->config();
    TableSpec items = users;
    items.name = "items";
    items.dim = 1;
    items.optimizer = Ftrl({.learning_rate = 0.1})->config();
    spec_.tables = {users, items};
    for (int s = 0; s < servers; ++s) {
      servers_.push_back(OrThrow(Server::Start("127.0.0.1:0", s, Log())));
      addresses_.push_back("127.0.0.1:" + std::to_string(servers_.back()->port()));
    }
  }
  void Initialise() {
    const auto chief = Client::Make(spec_, addresses_, Options(1000));
    OrThrow(chief->Declare());
    OrThrow(chief->Assign(std::vector<float>(16), {}, 0));
  }
  static ClientOptions Options(std::uint64_t number, std::chrono::milliseconds patience =
                                                         std::chrono::milliseconds(20'000)) {
    return {.client = number, .task = "worker:0", .peer_timeout = patience};
  }
  std::unique_ptr<RowClient> NewClient(
      std::uint64_t number = 1,
      std::chrono::milliseconds patience = std::chrono::milliseconds(20'000)) const {
    return RowClient::Make(spec_, addresses_, Options(number, patience));
  }

  ModelSpec spec_;
  std::vector<std::unique_ptr<Server>> servers_;
  std::vector<std::string> addresses_;
};

// One push.
struct Call {
  std::vector<std::uint64_t> ids;
  std::vector<float> gradients;
};
// Ids that repeat, and gradients whose sums depend on the order.
inline Call RandomCall(std::size_t count, std::size_t dim, std::uint64_t step) {
  const Philox random(step, "calls");
  Call call;
  for (std::size_t i = 0; i < count; ++i) {
    const double u = random.Uniform(i);
    call.ids.push_back(static_cast<std::uint64_t>(u * u * 3000) * 0x9E3779B97F4A7C15ULL);
  }
  for (std::size_t i = 0; i < count * dim; ++i) {
    call.gradients.push_back(random.Normal(i, 1));
  }
  return call;
}

// What each bucket of the table has.
inline std::map<std::uint32_t, std::string> DumpOf(RowClient& client, int table) {
  std::map<std::uint32_t, std::string> dumps;
  OrThrow(client.Dump(table, [&](std::uint32_t bucket, std::string_view dump) {
    dumps[bucket] = dump;
    return OkStatus();
  }));
  return dumps;
}

}  // namespace cohort::ps
