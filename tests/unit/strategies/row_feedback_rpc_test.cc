// What rounding takes of the gradients of rows comes with the next ones, over real connections:
// once, whatever is refused, moves, is lost on the way or sent again.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/random.h>

#include "row_cluster.h"
#include "row_feedback_model.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;
using Wire = TableSpec::Wire;

constexpr std::uint64_t kMany = 1'000'000;

TableSpec RoundedSums(Wire wire, std::uint64_t feedback = kMany) {
  TableSpec spec = SumsTable();
  spec.wire = wire;
  spec.wire_feedback = feedback;
  return spec;
}

// Of a table of sums: what is pushed of one id, in one step.
using Rows = std::map<std::uint64_t, std::vector<float>>;
void Apply(Rows& rows, std::uint64_t id, const std::vector<float>& arrived, float scale = 1) {
  std::vector<float>& row = rows.try_emplace(id, std::vector<float>(kDim, 0)).first->second;
  for (std::size_t k = 0; k < kDim; ++k) {
    row[k] -= arrived[k] * scale;
  }
}
void ExpectRows(RowClient& client, const Rows& expected) {
  const std::map<std::uint64_t, Row> there = RowsOf(client);
  ASSERT_EQ(there.size(), expected.size());
  for (const auto& [id, row] : expected) {
    ASSERT_EQ(there.at(id).weights, row) << "id " << id;
  }
}

Status PushOne(RowClient& client, const std::vector<std::uint64_t>& ids,
               const std::vector<float>& gradients, std::int64_t step, double weight = 1) {
  const RowClient::Gradients push{.table = 0, .ids = ids, .values = gradients};
  return client.Push({&push, 1}, step, weight);
}

// Gradients of which int8 takes one value entirely; ids 1, 2 or 4 times in a call.
struct Call {
  std::vector<std::uint64_t> ids;
  std::vector<float> gradients;
};
Call RandomCall(std::uint64_t worker, std::uint64_t step) {
  const Philox random(worker, "calls");
  Call call;
  for (std::uint64_t i = 0; i < 30; ++i) {
    const std::uint64_t draw = step * 1000 + i * 10;
    const std::uint64_t id = 1'000'000 * worker + 100 * i + random.Below(5, draw);
    for (std::uint64_t times = std::uint64_t{1} << random.Below(3, draw, 1); times > 0; --times) {
      call.ids.push_back(id);
      call.gradients.push_back(random.Normal(draw + times, 2) * 50);
      call.gradients.push_back(0.1F);
    }
  }
  return call;
}

// Pushes of a worker whose ids nobody else has, and what is there afterwards, to the bit.
struct FeedbackWorker {
  explicit FeedbackWorker(const TableSpec& spec) : spec_(spec), model_{.wire = spec.wire} {}

  void Train(RowClient& client, std::uint64_t number, std::uint64_t steps) {
    for (std::uint64_t step = 1; step <= steps; ++step) {
      const Call call = RandomCall(number, step);
      const double weight = std::ldexp(1, static_cast<int>(step % 3));
      OrThrow(PushOne(client, call.ids, call.gradients, static_cast<std::int64_t>(step), weight));
      for (const auto& [id, sum] : SumsById(call.ids, call.gradients)) {
        const auto count = static_cast<float>(std::ranges::count(call.ids, id));
        const float scale =
            1 / static_cast<float>(weight) / (spec_.mean_of_occurrences ? count : 1);
        Apply(rows_, id, model_.Push(id, sum, scale), scale);
      }
    }
  }

  const TableSpec spec_;
  FeedbackModel model_;
  Rows rows_;
};

TEST(RowFeedbackRpc, PushesArriveWithWhatTheOnesBeforeHaveLost) {
  for (const Wire wire : {Wire::kInt8, Wire::kBFloat16, Wire::kFloat16}) {
    for (const bool mean : {false, true}) {
      TableSpec spec = RoundedSums(wire);
      spec.mean_of_occurrences = mean;
      const Cluster cluster(3, 0, spec);
      const auto client = cluster.NewClient(1);
      FeedbackWorker worker(spec);
      worker.Train(*client, 1, 40);
      ExpectRows(*client, worker.rows_);
      EXPECT_GT(client->residuals().rows, 100U);
      EXPECT_EQ(client->residuals().dropped, 0U);
    }
  }
}

// The smaller of two values is always rounded to 0: with feedback the row gets it all the same.
TEST(RowFeedbackRpc, AValueThatRoundingAlwaysTakesArrives) {
  constexpr int kSteps = 300;
  for (const std::uint64_t feedback : {std::uint64_t{0}, kMany}) {
    const Cluster cluster(2, 0, RoundedSums(Wire::kInt8, feedback));
    const auto client = cluster.NewClient(1);
    for (int step = 1; step <= kSteps; ++step) {
      OrThrow(PushOne(*client, {5, 9}, {100, 0.3F, -100, 0.3F}, step));
    }
    for (const auto& [id, row] : RowsOf(*client)) {
      const float exact = -0.3F * kSteps;
      EXPECT_NEAR(row.weights[1], feedback == 0 ? 0 : exact, feedback == 0 ? 0 : 101.0 / 254) << id;
    }
    EXPECT_EQ(client->residuals().rows > 0, feedback > 0);
    EXPECT_EQ(client->residuals().bytes > 0, feedback > 0) << "nothing where there is none";
  }
}

TEST(RowFeedbackRpc, NothingIsTakenTwiceWhereBucketsMoveAndConnectionsBreak) {
  const TableSpec spec = RoundedSums(Wire::kInt8);
  const Cluster cluster(3, 0.02, spec);
  RandomMoves moves(cluster, 5);
  std::vector<FeedbackWorker> workers(2, FeedbackWorker(spec));
  TrainBeside(cluster, workers, 150, [&] { moves.Move(); });
  EXPECT_GT(moves.moves(), 20U);
  EXPECT_GT(cluster.lost(), 0);
  Rows all = workers[0].rows_;
  all.merge(workers[1].rows_);
  ExpectRows(*cluster.NewChief(), all);
}

TEST(RowFeedbackRpc, WhatIsRefusedLeavesThemAlone) {
  const TableSpec spec = RoundedSums(Wire::kBFloat16);
  const Cluster cluster(1, 0, spec);
  const auto client = cluster.NewClient(1);
  FeedbackModel model{.wire = spec.wire};
  Rows rows;
  const std::vector<float> gradient = {1.001F, 0.3F};
  const auto push = [&](std::int64_t step) {
    OrThrow(PushOne(*client, {7}, gradient, step));
    Apply(rows, 7, model.Push(7, gradient, 1));
  };
  push(1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Status refused = PushOne(*client, {7, 8}, {5.001F, 1, nan, 1}, 2);
  EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.message(), HasSubstr("id 8"));
  const Status too_large =
      PushOne(*client, {7, 8}, {5.001F, 1, std::numeric_limits<float>::max(), 1}, 2);
  EXPECT_EQ(too_large.code(), StatusCode::kInvalidArgument);
  push(2);
  push(3);
  ExpectRows(*client, rows);
}

// ---- Rounds -------------------------------------------------------------------------------------

Status PushPart(RowClient& client, const std::vector<float>& gradient, double weight,
                const RowClient::Part& part) {
  const std::vector<std::uint64_t> ids = {7};
  const RowClient::Gradients push{.table = 0, .ids = ids, .values = gradient};
  return client.PushPart({&push, 1}, static_cast<std::int64_t>(part.round), weight, part);
}

// A batch that is cut anew, among fewer, counts once, and so does what was kept.
TEST(RowFeedbackRpc, OfABatchThatIsCutAnewTheLastAttemptCounts) {
  const TableSpec spec = RoundedSums(Wire::kInt8);
  const Cluster cluster(2, 0, spec);
  const auto client = cluster.NewClient(1);
  FeedbackModel model{.wire = spec.wire};
  Rows rows;
  for (std::uint64_t round = 1; round <= 20; ++round) {
    const float size = 40 + static_cast<float>(round);
    if (round % 3 == 0) {
      OrThrow(PushPart(*client, {-3 * size, 0.1F}, 2, {.round = round, .parts = 2}));
    }
    const std::vector<float> gradient = {size, 0.1F};
    const double weight = round % 2 == 0 ? 4 : 1;
    OrThrow(PushPart(*client, gradient, weight, {.round = round, .attempt = 1}));
    const auto scale = static_cast<float>(1 / weight);
    Apply(rows, 7, model.Push(7, gradient, scale), scale);
  }
  OrThrow(PushPart(*client, {0, 0}, 0, {.round = 21}));  // a part that weighs nothing
  client->ReadAfter(21);
  ExpectRows(*client, rows);
  const float kept = model.kept.at(7)[1];
  double exact = 0;
  for (int round = 1; round <= 20; ++round) {
    exact -= 0.1 / (round % 2 == 0 ? 4 : 1);
  }
  EXPECT_NEAR(rows.at(7)[1] - kept, exact, 1e-4);
}

// Two workers, of whose parts one is dropped in each round.
TEST(RowFeedbackRpc, WithBackupWorkersThePartsThatAreElectedCount) {
  const TableSpec spec = RoundedSums(Wire::kInt8);
  ModelSpec model;
  model.parameters = {{"bias", {3}, true, 0}};
  model.optimizer = spec.optimizer;
  model.consistency = OrThrow(Consistency::Parse("sync:1"));
  model.tables = {spec};
  const auto server = OrThrow(Server::Start("127.0.0.1:0", 0, Log()));
  const std::vector<std::string> addresses = {"127.0.0.1:" + std::to_string(server->port())};
  const auto chief = Client::Make(model, addresses, {.client = 1000});
  OrThrow(chief->Declare());
  OrThrow(chief->Assign(std::vector<float>(3), {}, 0));
  std::array<std::unique_ptr<RowClient>, 2> clients;
  std::array<FeedbackModel, 2> models = {FeedbackModel{.wire = spec.wire},
                                         FeedbackModel{.wire = spec.wire}};
  for (std::uint64_t w = 0; w < 2; ++w) {
    clients[w] = RowClient::Make(model, addresses, {.client = w + 1});
  }
  Rows rows;
  const Philox random(1, "winners");
  constexpr std::uint64_t kRounds = 60;
  for (std::uint64_t round = 1; round <= kRounds; ++round) {
    const std::uint64_t winner = random.Below(2, round);
    for (std::uint64_t w = 0; w < 2; ++w) {
      const std::vector<float> gradient = {w == 0 ? 100.0F : -70.0F, 0.3F};
      OrThrow(PushPart(*clients[w], gradient, 1,
                       {.round = round, .part = static_cast<int>(w), .parts = 2}));
      const std::vector<float> arrived = models[w].Push(7, gradient, 1, w == winner);
      if (w == winner) {
        Apply(rows, 7, arrived);
      }
    }
    Commit commit;
    commit.set_round(round);
    commit.add_winners(static_cast<std::uint32_t>(winner));
    for (const auto& client : clients) {
      client->Elected(commit);
      client->ReadAfter(round);
    }
    OrThrow(clients[round % 2]->AwaitRounds());
  }
  ExpectRows(*clients[0], rows);
  EXPECT_NEAR(rows.at(7)[1], -0.3F * kRounds, 101.0 / 254 + 71.0 / 254);
}

// ---- Copies -------------------------------------------------------------------------------------

// A step that is sent again, by a client that goes on from the one before, is the same for a part
// and its copy, and what it lost is kept once: where rows were sent and nothing failed, and where
// some servers have not got them.
TEST(RowFeedbackRpc, AStepThatIsSentAgainIsTheSameForPartAndCopy) {
  constexpr int kServers = 3;
  constexpr std::int64_t kFloats = 600'000;  // a chunk on each
  const TableSpec spec = RoundedSums(Wire::kInt8);
  ModelSpec model;
  model.parameters = {{"w", {kFloats}, true, 0}};
  model.optimizer = spec.optimizer;
  model.servers = kServers;
  model.copies = true;
  model.tables = {spec};
  std::vector<std::unique_ptr<Server>> servers;
  std::vector<std::string> addresses;
  for (int s = 0; s < kServers; ++s) {
    servers.push_back(OrThrow(Server::Start("127.0.0.1:0", s, Log())));
    addresses.push_back("127.0.0.1:" + std::to_string(servers.back()->port()));
  }
  const auto options = [](std::uint64_t number, std::uint64_t epoch,
                          const std::vector<std::uint64_t>& row_pushes = {}) {
    return ClientOptions{.client = number,
                         .epoch = epoch,
                         .peer_timeout = milliseconds(1000),
                         .row_pushes = row_pushes};
  };
  const auto chief = Client::Make(model, addresses, options(1000, 1));
  OrThrow(chief->Declare());
  OrThrow(chief->Begin({}));
  OrThrow(chief->Assign(std::vector<float>(kFloats), {}, 0));

  FeedbackModel expected{.wire = spec.wire};
  Rows rows;
  std::vector<std::uint64_t> ids;
  std::vector<float> gradients;
  for (std::uint64_t id = 0; id < 60; ++id) {
    ids.push_back(id);
    gradients.push_back(10 + static_cast<float>(id));
    gradients.push_back(0.01F);
  }
  auto client = RowClient::Make(model, addresses, options(7, 1));
  const auto go_on = [&](const std::vector<std::string>& to,
                         const std::vector<std::uint64_t>& pushes) {
    auto next = RowClient::Make(model, to, options(7, 1, pushes));
    next->TakeOver(*client);
    client = std::move(next);
  };
  std::vector<std::string> others = addresses;
  others[0] = "127.0.0.1:1";  // nobody
  for (int step = 1; step <= 12; ++step) {
    const std::vector<std::uint64_t> before = client->pushes();
    if (step % 3 == 1) {
      OrThrow(PushOne(*client, ids, gradients, step));  // and the variables' push fails
      go_on(addresses, before);
    } else if (step % 6 == 2) {
      go_on(others, before);
      EXPECT_EQ(PushOne(*client, ids, gradients, step).code(), StatusCode::kUnavailable);
      go_on(addresses, before);
    }
    OrThrow(PushOne(*client, ids, gradients, step));
    for (const auto& [id, sum] : SumsById(ids, gradients)) {
      Apply(rows, id, expected.Push(id, sum, 1));
    }
  }
  const auto reader = RowClient::Make(model, addresses, options(1001, 1));
  ExpectRows(*reader, rows);
  // What the copies have, each part in turn.
  for (int s = 0; s < kServers; ++s) {
    const auto at = static_cast<std::size_t>(s);
    servers[at].reset();
    servers[at] = OrThrow(Server::Start("127.0.0.1:0", s, Log()));
    addresses[at] = "127.0.0.1:" + std::to_string(servers[at]->port());
    const auto epoch = static_cast<std::uint64_t>(s) + 2;
    const auto dense = Client::Make(model, addresses, options(1000, epoch));
    const auto mender = RowClient::Make(model, addresses, options(1000, epoch));
    OrThrow(dense->Declare());
    OrThrow(dense->BeginKeeping({}));
    for (const auto& [server, which] :
         {std::pair{s, Client::Mend::kServer},
          std::pair{CopiedServer(s, kServers), Client::Mend::kCopy}}) {
      OrThrow(mender->CopyPart(0, server, which));
      OrThrow(dense->CopyPushes(server, which));
      OrThrow(dense->CopyPart(server, which));
    }
    ExpectRows(*mender, rows);
  }
}

TEST(RowFeedbackRpc, AnotherClientsAreNotTakenOver) {
  const Cluster cluster(1, 0, RoundedSums(Wire::kInt8));
  const auto client = cluster.NewClient(1);
  OrThrow(PushOne(*client, {7}, {100, 0.3F}, 1));
  EXPECT_EQ(client->residuals().rows, 1U);
  const auto other = cluster.NewClient(2);
  other->TakeOver(*client);
  EXPECT_EQ(other->residuals().rows, 0U);
  const auto same = cluster.NewClient(1);
  same->TakeOver(*client);
  EXPECT_EQ(same->residuals().rows, 1U);
}

}  // namespace
}  // namespace cohort::ps
