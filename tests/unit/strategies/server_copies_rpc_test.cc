// Servers that keep copies of each other's parts: what one loses the next one has, to the last
// push, and what is sent again counts once.

#include <gmock/gmock.h>

#include <thread>

#include "row_cluster.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kServers = 3;
constexpr std::size_t kFloats = 600'000;  // three chunks

// Servers as threads of the test; one may be lost, and another take its place.
class Copies : public ::testing::Test {
 protected:
  Copies() {
    spec_.parameters = {{"w", {static_cast<std::int64_t>(kFloats)}, true, 0}};
    spec_.optimizer = Sgd({.learning_rate = 1, .momentum = 0.5})->config();
    spec_.servers = kServers;
    spec_.copies = true;
    TableSpec items;
    items.name = "items";
    items.dim = kDim;
    items.buckets = kBuckets;
    items.initializer = {RowInitializer::Kind::kZeros, 0};
    items.optimizer = Sgd({.learning_rate = 1})->config();
    spec_.tables = {items};
    for (int s = 0; s < kServers; ++s) {
      servers_.push_back(OrThrow(Server::Start("127.0.0.1:0", s, Log())));
      addresses_.push_back("127.0.0.1:" + std::to_string(servers_.back()->port()));
    }
    const auto chief = Chief(1);
    OrThrow(chief.dense->Declare());
    OrThrow(chief.dense->Begin({}));
    OrThrow(chief.dense->Assign(std::vector<float>(kFloats), {}, 0));
  }

  struct Process {
    std::unique_ptr<Client> dense;
    std::unique_ptr<RowClient> rows;
  };
  // A process's clients, of an epoch, which go on numbering their pushes from these.
  Process Make(std::uint64_t number, std::uint64_t epoch,
               const std::vector<std::uint64_t>& pushes = {},
               const std::vector<std::uint64_t>& row_pushes = {}) const {
    const ClientOptions options{.client = number,
                                .task = "worker:" + std::to_string(number),
                                .epoch = epoch,
                                .peer_timeout = std::chrono::milliseconds(2000),
                                .pushes = pushes,
                                .row_pushes = row_pushes};
    return {Client::Make(spec_, addresses_, options), RowClient::Make(spec_, addresses_, options)};
  }
  Process Chief(std::uint64_t epoch) const { return Make(1000, epoch); }

  void Lose(int server) {
    servers_[static_cast<std::size_t>(server)].reset();
    servers_[static_cast<std::size_t>(server)] =
        OrThrow(Server::Start("127.0.0.1:0", server, Log()));
    addresses_[static_cast<std::size_t>(server)] =
        "127.0.0.1:" + std::to_string(servers_[static_cast<std::size_t>(server)]->port());
  }

  // As ps::Job does it.
  static void Mend(const Process& chief, int server, Client::Mend which) {
    OrThrow(chief.rows->CopyPart(0, server, which));
    OrThrow(chief.dense->CopyPushes(server, which));
    OrThrow(chief.dense->CopyPart(server, which));
  }

  // A step: -1 to every float, and to the rows of 8 ids, two of which others have as well.
  static Status PushRows(const Process& worker, std::uint64_t number, int step) {
    std::vector<std::uint64_t> ids = {1, 2};
    for (std::uint64_t i = 0; i < 6; ++i) {
      ids.push_back(number * 1000 + static_cast<std::uint64_t>(step) * 6 + i);
    }
    const std::vector<float> gradients(ids.size() * kDim, -1);
    const RowClient::Gradients one{.table = 0, .ids = ids, .values = gradients};
    return worker.rows->Push({&one, 1}, step + 1, 1);
  }
  static Status PushDense(const Process& worker) {
    const std::vector<float> gradient(kFloats, -1);
    return worker.dense->Push({.arena = gradient}, {});
  }

  // Values, slots and rows, as the servers have them.
  struct All {
    std::vector<float> values = std::vector<float>(kFloats);
    std::vector<float> slots = std::vector<float>(kFloats);
    std::map<std::uint64_t, Row> rows;
  };
  All Read(std::uint64_t epoch) const {
    All all;
    const Process chief = Chief(epoch);
    std::span<float> slot = all.slots;
    OrThrow(chief.dense->PullState(all.values, {&slot, 1}));
    all.rows = RowsOf(*chief.rows);
    return all;
  }
  static void ExpectSame(const All& a, const All& b) {
    EXPECT_EQ(a.values, b.values);
    EXPECT_EQ(a.slots, b.slots);
    ASSERT_EQ(a.rows.size(), b.rows.size());
    for (const auto& [id, row] : a.rows) {
      EXPECT_EQ(row.weights, b.rows.at(id).weights) << id;
      EXPECT_EQ(row.updates, b.rows.at(id).updates) << id;
    }
  }

  ModelSpec spec_;
  std::vector<std::unique_ptr<Server>> servers_;
  std::vector<std::string> addresses_;
};

// Each server is lost in turn, of which the copies that it kept are made anew: those are what the
// next one's loss is mended from.
TEST_F(Copies, WhatEveryServerLosesTheNextOneHas) {
  std::uint64_t epoch = 1;
  std::vector<std::uint64_t> pushes;
  std::vector<std::uint64_t> row_pushes;
  int steps = 0;
  for (int lost = 0; lost < 2 * kServers; ++lost) {
    const Process worker = Make(7, epoch, pushes, row_pushes);
    for (int i = 0; i < 3; ++i) {
      OrThrow(PushRows(worker, 7, steps++));
      OrThrow(PushDense(worker));
    }
    pushes = worker.dense->pushes();
    row_pushes = worker.rows->pushes();
    const All before = Read(epoch);
    const int server = lost % kServers;
    Lose(server);
    const Process chief = Chief(++epoch);
    OrThrow(chief.dense->Declare());
    const Client::Kept kept = OrThrow(chief.dense->BeginKeeping({}));
    EXPECT_THAT(kept.without, ElementsAre(server));
    EXPECT_THAT(kept.without_a_copy, ElementsAre((server + kServers - 1) % kServers));
    Mend(chief, server, Client::Mend::kServer);
    Mend(chief, kept.without_a_copy[0], Client::Mend::kCopy);
    ExpectSame(Read(epoch), before);
  }
  EXPECT_EQ(Read(epoch).rows.at(1).updates, static_cast<std::uint32_t>(steps));
}

// The server is lost with a step on some servers and not on others; the step is done again.
TEST_F(Copies, AStepThatIsSentAgainCountsOnce) {
  const Process before = Make(7, 1);
  OrThrow(PushRows(before, 7, 0));
  OrThrow(PushDense(before));
  const std::vector<std::uint64_t> pushes = before.dense->pushes();
  const std::vector<std::uint64_t> row_pushes = before.rows->pushes();
  // All rows of the next step are there, and the dense part of it but on the server that is lost.
  OrThrow(PushRows(before, 7, 1));
  servers_[1].reset();
  EXPECT_EQ(PushDense(before).code(), StatusCode::kUnavailable);
  Lose(1);
  const Process chief = Chief(2);
  OrThrow(chief.dense->Declare());
  OrThrow(chief.dense->BeginKeeping({}));
  Mend(chief, 1, Client::Mend::kServer);
  Mend(chief, 0, Client::Mend::kCopy);
  for (const bool again : {true, false}) {
    // What went on from the numbers of the step before; and one more.
    const Process worker = Make(7, 2, again ? pushes : std::vector<std::uint64_t>(3, 100),
                                again ? row_pushes : std::vector<std::uint64_t>(3, 100));
    OrThrow(PushRows(worker, 7, again ? 1 : 2));
    OrThrow(PushDense(worker));
    const All all = Read(2);
    const float steps = again ? 2 : 3;
    // Momentum 0.5: 1, then 2.5, then 4.25.
    EXPECT_EQ(all.values, std::vector<float>(kFloats, again ? 2.5F : 4.25F));
    EXPECT_EQ(all.rows.at(1).updates, static_cast<std::uint32_t>(steps));
    EXPECT_THAT(all.rows.at(1).weights, ElementsAre(steps, steps));
    EXPECT_EQ(all.rows.size(), 2 + 6 * static_cast<std::size_t>(steps));
  }
  // The copy has all of it, too.
  const All all = Read(2);
  Lose(1);
  const Process next = Chief(3);
  OrThrow(next.dense->Declare());
  OrThrow(next.dense->BeginKeeping({}));
  Mend(next, 1, Client::Mend::kServer);
  ExpectSame(Read(3), all);
}

// What is rounded off one gradient is in the next one: sent again, that is still what it was.
TEST_F(Copies, ARoundedStepThatIsSentAgainIsTheSameForPartAndCopy) {
  const auto make = [&](const std::vector<std::string>& addresses,
                        const std::vector<std::uint64_t>& pushes) {
    return Client::Make(spec_, addresses,
                        {.client = 7,
                         .epoch = 1,
                         .peer_timeout = std::chrono::milliseconds(1000),
                         .wire = {.push = DType::kUInt8},
                         .pushes = pushes});
  };
  std::vector<float> gradient(kFloats);
  for (std::size_t i = 0; i < kFloats; ++i) {
    gradient[i] = static_cast<float>(i % 1000) * 0.0123F;
  }
  const auto first = make(addresses_, {});
  OrThrow(first->Push({.arena = gradient}, {}));
  const std::vector<std::uint64_t> pushes = first->pushes();
  // The second step comes to the parts and copies of two servers alone.
  std::vector<std::string> others = addresses_;
  others[0] = "127.0.0.1:1";
  const auto broken = make(others, pushes);
  broken->TakeOver(*first);
  EXPECT_EQ(broken->Push({.arena = gradient}, {}).code(), StatusCode::kUnavailable);
  const auto again = make(addresses_, pushes);
  again->TakeOver(*broken);
  OrThrow(again->Push({.arena = gradient}, {}));
  OrThrow(again->Push({.arena = gradient}, {}));  // and another one
  const All all = Read(1);
  for (int s = 0; s < kServers; ++s) {
    Lose(s);
    const auto epoch = static_cast<std::uint64_t>(s) + 2;
    const Process chief = Chief(epoch);
    OrThrow(chief.dense->Declare());
    OrThrow(chief.dense->BeginKeeping({}));
    Mend(chief, s, Client::Mend::kServer);
    Mend(chief, CopiedServer(s, kServers), Client::Mend::kCopy);
    ExpectSame(Read(epoch), all);
  }
}

TEST_F(Copies, SumsAreWholeWhereManyWorkersPushAtOnce) {
  spec_.optimizer = Sgd({.learning_rate = 1})->config();
  for (std::unique_ptr<Server>& server : servers_) {
    const int index = static_cast<int>(&server - servers_.data());
    server = OrThrow(Server::Start("127.0.0.1:0", index, Log()));
    addresses_[static_cast<std::size_t>(index)] = "127.0.0.1:" + std::to_string(server->port());
  }
  const Process first = Chief(1);
  OrThrow(first.dense->Declare());
  OrThrow(first.dense->Begin({}));
  OrThrow(first.dense->Assign(std::vector<float>(kFloats), {}, 0));
  constexpr int kSteps = 10;
  std::vector<std::thread> workers;
  std::vector<Status> results(4);
  for (std::uint64_t w = 0; w < 4; ++w) {
    workers.emplace_back([this, w, &results] {
      const Process worker = Make(w + 1, 1);
      for (int step = 0; step < kSteps && results[w].ok(); ++step) {
        results[w] = PushRows(worker, w + 1, step);
        results[w] = results[w].ok() ? PushDense(worker) : results[w];
      }
    });
  }
  for (std::thread& worker : workers) {
    worker.join();
  }
  for (const Status& result : results) {
    OrThrow(result);
  }
  Lose(2);
  const Process chief = Chief(2);
  OrThrow(chief.dense->Declare());
  OrThrow(chief.dense->BeginKeeping({}));
  Mend(chief, 2, Client::Mend::kServer);
  std::vector<float> values(kFloats);
  OrThrow(chief.dense->Pull(values, /*everything=*/true));
  EXPECT_EQ(values, std::vector<float>(kFloats, 4 * kSteps));
  EXPECT_EQ(RowsOf(*chief.rows).at(1).weights, std::vector<float>(kDim, 4 * kSteps));
}

TEST_F(Copies, AProcessWithoutCopiesIsRefused) {
  ModelSpec other = spec_;
  other.copies = false;
  const Status status =
      Client::Make(other, addresses_, {.client = 9, .task = "worker:9", .epoch = 1})->Declare();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("server_loss differs: declared kReplica, worker:9 has"));
}

}  // namespace
}  // namespace cohort::ps
