// Servers that keep copies of each other's parts: what one loses the next one has, to the last
// push, and what is sent again counts once.

#include <gmock/gmock.h>

#include <numeric>
#include <thread>

#include <cohort/optim/gradients.h>
#include <cohort/optim/server_side.h>

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
    Begin();
  }

  // With other servers, none of which knows anything.
  void Begin() {
    servers_.clear();
    addresses_.clear();
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
  // Another process is in its place, and has what the copies have; all are in this epoch.
  void LoseAndMend(int server, std::uint64_t epoch) {
    Lose(server);
    const Process chief = Chief(epoch);
    OrThrow(chief.dense->Declare());
    const Client::Kept kept = OrThrow(chief.dense->BeginKeeping({}));
    EXPECT_THAT(kept.without, ElementsAre(server));
    Mend(chief, server, Client::Mend::kServer);
    Mend(chief, CopiedServer(server, kServers), Client::Mend::kCopy);
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

  static std::unique_ptr<Servers::Stub> Control(const std::string& address) {
    return Servers::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  }

  ModelSpec spec_;
  double clip_ = 0;  // of the norm, where rounds are clipped
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

// Late gradients of rows: how late they are is in the push, also in one that is sent again after
// its rows were pulled anew.
TEST_F(Copies, ALateStepThatIsSentAgainIsAsLateAsItWas) {
  spec_.tables[0].optimizer = ServerSide(Sgd({.learning_rate = 1})->config(),
                                         {.delay_compensation = 0.125, .staleness_scaling = true});
  Begin();
  std::vector<std::uint64_t> ids(40);  // on every server
  std::iota(ids.begin(), ids.end(), 0U);
  std::vector<float> rows(ids.size() * kDim);
  const auto push = [&](RowClient& client, float gradient) {
    const std::vector<float> gradients(rows.size(), gradient);
    const RowClient::Gradients one{.table = 0, .ids = ids, .values = gradients};
    return client.Push({&one, 1}, 1, 1);
  };
  const Process first = Make(8, 1);
  OrThrow(first.rows->Pull(0, ids, 1, /*training=*/true, rows));
  const Process other = Make(7, 1);
  OrThrow(push(*other.rows, -1));
  OrThrow(push(*other.rows, -1));
  const std::vector<std::string> addresses = addresses_;
  addresses_[0] = "127.0.0.1:1";  // parts and copies of two servers alone get it
  const Process broken = Make(8, 1);
  addresses_ = addresses;
  broken.rows->TakeOver(*first.rows);
  EXPECT_EQ(push(*broken.rows, -4).code(), StatusCode::kUnavailable);
  const Process again = Make(8, 1);
  again.rows->TakeOver(*broken.rows);
  std::vector<std::uint32_t> updates(ids.size());
  const RowClient::Lookup ahead{
      .table = 0, .ids = ids, .training = false, .rows = rows, .updates = updates};
  OrThrow(again.rows->Pull(std::span(&ahead, 1), 2));
  again.rows->Use(0, ids, updates, rows);
  OrThrow(push(*again.rows, -4));
  All all = Read(1);
  for (const std::uint64_t id : ids) {
    // (-4 + 0.125 * 16 * (2 - 0)) / 2 = 0 is taken off 2.
    EXPECT_THAT(all.rows.at(id).weights, ElementsAre(2, 2)) << id;
    EXPECT_EQ(all.rows.at(id).updates, 3U) << id;
  }
  OrThrow(again.rows->Pull(0, ids, 3, /*training=*/true, rows));
  OrThrow(push(*again.rows, -4));  // which is not late
  all = Read(1);
  EXPECT_THAT(all.rows.at(1).weights, ElementsAre(6, 6));
  for (int s = 0; s < kServers; ++s) {
    const auto epoch = static_cast<std::uint64_t>(s) + 2;
    LoseAndMend(s, epoch);
    ExpectSame(Read(epoch), all);
  }
}

// The same of dense values, whose pushes carry what they were computed from.
TEST_F(Copies, ALateDenseStepThatIsSentAgainIsAsLateAsItWas) {
  for (const char* consistency : {"async", "ssp:5"}) {
    spec_.consistency = OrThrow(Consistency::Parse(consistency));
    spec_.optimizer = ServerSide(Sgd({.learning_rate = 1, .momentum = 0.5}),
                                 {.delay_compensation = 0.5, .staleness_scaling = true})
                          ->config();
    Begin();
    const Process late = Make(8, 1);
    std::vector<float> values(kFloats, 7);
    OrThrow(late.dense->Pull(values, /*everything=*/true));
    OrThrow(late.dense->PullForStep(values, {}));
    const Process other = Make(7, 1);
    std::vector<float> others(kFloats);
    OrThrow(other.dense->Pull(others, /*everything=*/true));
    OrThrow(other.dense->PullForStep(others, {}));
    const std::vector<float> one(kFloats, -1);
    const std::vector<float> two(kFloats, -2);
    OrThrow(other.dense->Push({.arena = one}, others));
    OrThrow(other.dense->Push({.arena = one}, others));  // momentum 0.5: 1, then 2.5
    EXPECT_EQ(others, std::vector<float>(kFloats, 2.5F));
    const std::vector<std::uint64_t> pushes = late.dense->pushes();
    servers_[1].reset();
    EXPECT_EQ(late.dense->Push({.arena = two}, values).code(), StatusCode::kUnavailable);
    LoseAndMend(1, 2);
    const Process again = Make(8, 2, pushes);
    again.dense->TakeOver(*late.dense);
    OrThrow(again.dense->Pull(values, /*everything=*/true));  // as a worker does
    OrThrow(again.dense->Push({.arena = two}, values));
    // -2 + 0.5 * 4 * (2.5 - 0) = 3, of which half counts; the momentum was 1.5.
    EXPECT_EQ(values, std::vector<float>(kFloats, 2.5F + 0.5F * 1.5F - 1.5F)) << consistency;
    const All all = Read(2);
    for (int s = 0; s < kServers; ++s) {
      const auto epoch = static_cast<std::uint64_t>(s) + 3;
      LoseAndMend(s, epoch);
      ExpectSame(Read(epoch), all);
    }
  }
}

TEST_F(Copies, SumsAreWholeWhereManyWorkersPushAtOnce) {
  spec_.optimizer = Sgd({.learning_rate = 1})->config();
  Begin();
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

// Bounded staleness: who is at work, and how far, the servers that were mended know as well, though
// nobody reads from copies.
TEST_F(Copies, ServersThatAreMendedKnowWhoIsAtWork) {
  spec_.consistency = OrThrow(Consistency::Parse("ssp:1"));
  Begin();
  std::uint64_t epoch = 1;
  const auto lose_all = [&] {
    for (int s = 0; s < kServers; ++s) {
      LoseAndMend(s, ++epoch);
    }
  };
  // The worker of `before` in the epoch of now.
  const auto go_on = [&](std::uint64_t number, Client* before) {
    auto client = Client::Make(
        spec_, addresses_,
        {.client = number,
         .task = "worker:" + std::to_string(number),
         .epoch = epoch,
         .peer_timeout = std::chrono::milliseconds(2000),
         .read_timeout = std::chrono::milliseconds(700),
         .pushes = before == nullptr ? std::vector<std::uint64_t>() : before->pushes()});
    if (before != nullptr) {
      client->TakeOver(*before);
    }
    return client;
  };
  const std::vector<float> gradient(kFloats, -1);
  std::vector<float> values(kFloats);
  const auto step = [&](Client& client) { return client.Push({.arena = gradient}, values); };
  auto one = go_on(7, nullptr);
  auto other = go_on(8, nullptr);
  for (int i = 0; i < 3; ++i) {
    OrThrow(step(*one));
    OrThrow(step(*other));
  }
  OrThrow(other->Pause());
  lose_all();
  one = go_on(7, one.get());
  for (int i = 0; i < 3; ++i) {
    OrThrow(step(*one));  // nobody waits for who is between two pieces of work
  }
  other = go_on(8, other.get());
  OrThrow(other->PullForStep(values, {}));  // is back, at the clock of the other, 6
  EXPECT_EQ(values, Read(epoch).values);
  lose_all();
  one = go_on(7, one.get());
  OrThrow(step(*one));  // one ahead
  const Status ahead = step(*one);
  EXPECT_EQ(ahead.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(ahead.message(), HasSubstr("worker:8 is 2 steps behind this one"));
  other = go_on(8, other.get());
  OrThrow(step(*other));
  OrThrow(step(*one));
}

// Rounds of two parts, one of which has come when a server is lost; "clip": by the norm of all.
// What is sent again counts once, and all is, bit by bit, what it would have been.
class CopiesOfRounds : public Copies, public ::testing::WithParamInterface<std::string> {
 protected:
  static constexpr int kRounds = 4;

  CopiesOfRounds() {
    clip_ = GetParam() == "clip" ? 0.5 : 0;
    spec_.consistency = OrThrow(Consistency::Parse(GetParam() == "clip" ? "sync" : GetParam()));
    spec_.optimizer =
        Sgd({.learning_rate = 0.3, .momentum = 0.7, .global_clip_norm = clip_})->config();
  }
  bool backs_up() const { return spec_.consistency.backup_workers > 0; }
  // With backup workers one of two parts wins, in turns.
  Commit CommitOf(std::uint64_t round) const {
    Commit commit;
    if (round == 0) {
      return commit;
    }
    commit.set_round(round);
    if (backs_up()) {
      commit.add_winners(static_cast<std::uint32_t>(round % 2));
    } else {
      commit.add_winners(0);
      commit.add_winners(1);
    }
    return commit;
  }
  // As it is told to servers of rows.
  Commit RowCommitOf(std::uint64_t round) const { return backs_up() ? CommitOf(round) : Commit(); }

  // What is not whole in floats, so that the order of additions is in the result.
  static float Fraction(std::uint64_t round, std::uint64_t part, std::size_t i) {
    return static_cast<float>((i * 7 + round * 13 + part * 5) % 1000) *
           (part == 0 ? 0.0123F : -3.7F);
  }
  // Of the second attempt there is one part.
  Status PushRows(const Process& worker, std::uint64_t round, int part, int attempt = 0) const {
    std::vector<std::uint64_t> ids;
    std::vector<float> gradients;
    for (std::uint64_t i = 0; i < 40; ++i) {
      ids.push_back(i < 20 ? i : round * 100 + i);
      for (std::size_t k = 0; k < kDim; ++k) {
        gradients.push_back(Fraction(round, static_cast<std::uint64_t>(part + 3 * attempt), i + k));
      }
    }
    const RowClient::Gradients one{.table = 0, .ids = ids, .values = gradients};
    worker.rows->Elected(RowCommitOf(round - 1));
    return worker.rows->PushPart(
        {&one, 1}, static_cast<std::int64_t>(round), 1 + part,
        {.round = round, .attempt = attempt, .part = part, .parts = 2 - attempt});
  }
  Status PushDense(const Process& worker, std::uint64_t round, int part, int attempt = 0) const {
    std::vector<float> arena(kFloats);
    for (std::size_t i = 0; i < kFloats; ++i) {
      arena[i] = Fraction(round, static_cast<std::uint64_t>(part + 3 * attempt), i);
    }
    Gradient gradient{.arena = arena, .weight = 1.0 + part, .commit = CommitOf(round - 1)};
    gradient.round.emplace();
    gradient.round->set_round(round);
    gradient.round->set_part(static_cast<std::uint32_t>(part));
    gradient.round->set_attempt(static_cast<std::uint32_t>(attempt));
    gradient.round->set_parts(static_cast<std::uint32_t>(2 - attempt));
    return worker.dense->Push(gradient, {});
  }
  // The round is complete.
  Status Take(const Process& worker, const Commit& commit) const {
    if (clip_ > 0) {
      COHORT_RETURN_IF_ERROR(worker.dense->Settle(commit.round(), commit, clip_));
    }
    std::vector<float> values(kFloats);
    return worker.dense->PullForStep(values, commit);
  }
  Status Take(const Process& worker, std::uint64_t round) const {
    return Take(worker, CommitOf(round));
  }
  All ReadAfter(std::uint64_t epoch, std::uint64_t round) const {
    All all;
    const Process chief = Chief(epoch);
    std::span<float> slot = all.slots;
    OrThrow(Take(chief, round));  // a copy may not have been told which parts it has
    OrThrow(chief.dense->PullState(all.values, {&slot, 1}));
    chief.rows->Elected(RowCommitOf(round));
    chief.rows->ReadAfter(round);
    all.rows = RowsOf(*chief.rows);
    return all;
  }

  // All rounds, in the second of which `lost` is lost; -1: none is. With `sent` the second part has
  // come to the others then, and to the copy of what is lost.
  All Train(int lost, bool sent, std::uint64_t* epoch) {
    Begin();
    *epoch = 1;
    std::vector<std::vector<std::uint64_t>> pushes(2);
    std::vector<std::vector<std::uint64_t>> row_pushes(2);
    std::vector<Process> workers;
    const auto renew = [&] {
      workers.clear();
      for (std::size_t w = 0; w < 2; ++w) {
        workers.push_back(Make(w + 1, *epoch, pushes[w], row_pushes[w]));
      }
    };
    renew();
    for (std::uint64_t round = 1; round <= kRounds; ++round) {
      for (int w = 0; w < 2; ++w) {
        const auto at = static_cast<std::size_t>(w);
        if (round == 2 && w == 1 && lost >= 0) {
          servers_[static_cast<std::size_t>(lost)].reset();
          if (sent) {
            EXPECT_EQ(PushDense(workers[at], round, w).code(), StatusCode::kUnavailable);
          }
          LoseAndMend(lost, ++*epoch);
          renew();
        }
        OrThrow(PushRows(workers[at], round, w));
        OrThrow(PushDense(workers[at], round, w));
        pushes[at] = workers[at].dense->pushes();
        row_pushes[at] = workers[at].rows->pushes();
      }
      for (const Process& worker : workers) {
        OrThrow(Take(worker, round));
      }
    }
    return ReadAfter(*epoch, kRounds);
  }
};

TEST_P(CopiesOfRounds, AreBitByBitWhatTheyAreCopiesOf) {
  std::uint64_t epoch = 0;
  const All whole = Train(/*lost=*/-1, /*sent=*/false, &epoch);
  EXPECT_NE(whole.values[1], 0);
  EXPECT_EQ(whole.rows.at(1).updates, static_cast<std::uint32_t>(kRounds));
  for (int s = 0; s < 2 * kServers; ++s) {
    LoseAndMend(s % kServers, ++epoch);
    ExpectSame(ReadAfter(epoch, kRounds), whole);
  }
}

TEST_P(CopiesOfRounds, ARoundThatHadBegunIsTheSameWhereItsServerIsLost) {
  std::uint64_t epoch = 0;
  const All whole = Train(/*lost=*/-1, /*sent=*/false, &epoch);
  for (int lost = 0; lost < kServers; ++lost) {
    for (const bool sent : {false, true}) {
      ExpectSame(Train(lost, sent, &epoch), whole);
      // And so is the copy of each.
      for (int s = 0; s < kServers; ++s) {
        LoseAndMend(s, ++epoch);
      }
      ExpectSame(ReadAfter(epoch, kRounds), whole);
    }
  }
}

// The last worker of the first attempt is lost when some servers have its part and others do not,
// of each part and its copy one: the attempt counts nowhere, and the next one on all of them.
TEST_P(CopiesOfRounds, AnAttemptThatOnlySomeServersHaveCountsOnNone) {
  const auto first_round = [&](bool superseded) {
    Begin();
    const Process one = Make(1, 1);
    if (superseded) {
      OrThrow(PushRows(one, 1, 0));
      OrThrow(PushDense(one, 1, 0));
      const std::vector<std::string> all = addresses_;
      addresses_[0] = "127.0.0.1:1";  // where nobody is
      const Process two = Make(2, 1);
      addresses_ = all;
      EXPECT_EQ(PushRows(two, 1, 1).code(), StatusCode::kUnavailable);
      EXPECT_EQ(PushDense(two, 1, 1).code(), StatusCode::kUnavailable);
    }
    OrThrow(PushRows(one, 1, 0, /*attempt=*/1));
    OrThrow(PushDense(one, 1, 0, /*attempt=*/1));
    Commit commit;
    commit.set_round(1);
    commit.set_attempt(1);
    commit.add_winners(0);
    OrThrow(Take(one, commit));
    // The copies hear of it with what follows.
    for (int w = 0; w < 2; ++w) {
      const Process worker = w == 0 ? Process() : Make(3, 1);
      const Process& of = w == 0 ? one : worker;
      of.rows->Elected(backs_up() ? commit : Commit());
      OrThrow(of.rows->PushPart({}, 2, 0, {.round = 2, .attempt = 0, .part = w, .parts = 2}));
      Gradient nothing{.arena = {}, .weight = 0, .commit = commit};
      nothing.round.emplace();
      nothing.round->set_round(2);
      nothing.round->set_part(static_cast<std::uint32_t>(w));
      nothing.round->set_parts(2);
      OrThrow(of.dense->Push(nothing, {}));
    }
    return ReadAfter(1, 2);
  };
  const All whole = first_round(/*superseded=*/false);
  EXPECT_NE(whole.values[1], 0);
  ExpectSame(first_round(/*superseded=*/true), whole);
  std::uint64_t epoch = 1;
  for (int s = 0; s < kServers; ++s) {
    LoseAndMend(s, ++epoch);
    ExpectSame(ReadAfter(epoch, 2), whole);
  }
}

class CopiesOfClippedRounds : public CopiesOfRounds {};

// All parts are there, and the factor of the clipping is known to some servers only.
TEST_P(CopiesOfClippedRounds, AFactorThatSomeServersHaveIsFoundAgain) {
  const auto first_round = [&](bool lose) {
    Begin();
    const Process one = Make(1, 1);
    const Process two = Make(2, 1);
    OrThrow(PushRows(one, 1, 0));
    OrThrow(PushDense(one, 1, 0));
    OrThrow(PushRows(two, 1, 1));
    OrThrow(PushDense(two, 1, 1));
    std::uint64_t epoch = 1;
    if (lose) {
      // ps:0 is told first, with the copy of ps:2's part; the next one is not there any more.
      NormsRequest ask;
      ask.set_layout(spec_.Fingerprint());
      ask.set_round(1);
      ask.set_epoch(1);
      *ask.mutable_commit() = CommitOf(1);
      std::vector<double> squares(MakeChunks(spec_).size());
      double weight = 0;
      for (const std::string& address : addresses_) {
        grpc::ClientContext context;
        NormsReply reply;
        EXPECT_TRUE(Control(address)->Norms(&context, ask, &reply).ok());
        weight = reply.chunks_size() > 0 ? reply.weight() : weight;
        for (int i = 0; i < reply.chunks_size(); ++i) {
          squares[reply.chunks(i)] = reply.squares(i);
        }
      }
      const double norm = std::accumulate(squares.begin(), squares.end(), 0.0);
      const double scale = static_cast<float>(1.0 / weight);
      SettleRequest settle;
      settle.set_layout(spec_.Fingerprint());
      settle.set_round(1);
      settle.set_epoch(1);
      settle.set_factor(ClipFactor(norm * scale * scale, clip_));
      EXPECT_LT(settle.factor(), 1);
      grpc::ClientContext context;
      SettleReply settled;
      EXPECT_TRUE(Control(addresses_[0])->Settle(&context, settle, &settled).ok());
      for (int s = kServers - 1; s >= 0; --s) {  // ps:2 gets what has its factor already
        LoseAndMend(s, ++epoch);
      }
    }
    OrThrow(Take(Make(1, epoch), 1));
    return ReadAfter(epoch, 1);
  };
  ExpectSame(first_round(/*lose=*/true), first_round(/*lose=*/false));
}

INSTANTIATE_TEST_SUITE_P(Copies, CopiesOfClippedRounds, ::testing::Values("clip"));
INSTANTIATE_TEST_SUITE_P(Copies, CopiesOfRounds, ::testing::Values("sync", "clip", "sync:1"),
                         [](const ::testing::TestParamInfo<std::string>& of) {
                           return of.param == "sync:1" ? std::string("backup") : of.param;
                         });

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
