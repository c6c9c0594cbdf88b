// What servers and their clients do where a connection falls silent, answers are lost late, or a
// chief goes on that another one has replaced.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <map>
#include <new>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

#include "grpc_util.h"
#include "guarded.h"
#include "parameter_server/chief/retirements.h"
#include "parameter_server/remote_rows.h"
#include "parameter_server/rows/row_frames.h"
#include "row_cluster.h"
#include "testing/process_cluster.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Whose bucket is of the first of two servers at first, in tables of any number of buckets.
std::uint64_t IdOfTheFirst() {
  std::uint64_t id = 1;
  while (BucketOf(id, 2) != 0) {
    ++id;
  }
  return id;
}

Status Push(RowClient& client, std::span<const int> tables, std::uint64_t id, std::int64_t step) {
  const std::vector<float> gradient(kDim, -1);
  std::vector<RowClient::Gradients> gradients;
  for (const int table : tables) {
    gradients.push_back({.table = table, .ids = {&id, 1}, .values = gradient});
  }
  return client.Push(gradients, step, 1);
}

TEST(ServerFaults, AChiefInWhosePlaceThereIsAnotherEndsNothing) {
  const Cluster cluster(2);
  const auto chief = [&](std::uint64_t epoch) {
    return Client::Make(cluster.spec_, cluster.addresses_, {.client = 1000, .epoch = epoch});
  };
  const auto before = chief(1);
  OrThrow(before->Declare());
  OrThrow(before->Begin({}));
  const auto after = chief(2);
  OrThrow(after->Declare());  // before its epoch begins
  OrThrow(after->Begin({}));
  OrThrow(after->Assign(std::vector<float>(3), {}, 0));
  for (const Status& status : {before->Drain(), before->Retire(7), before->Declare()}) {
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(status.message(), HasSubstr("of epoch 1 of the servers, this is epoch 2"));
  }
  EXPECT_FALSE(cluster.servers_[0]->WaitDrained(DeadlineAfter(milliseconds(10))));
  const auto worker = RowClient::Make(cluster.spec_, cluster.addresses_, {.client = 7, .epoch = 2});
  const int table = 0;
  EXPECT_EQ(Push(*worker, {&table, 1}, 1, 1), OkStatus()) << "nobody has given it up";
  OrThrow(after->Retire(7));
  EXPECT_EQ(Push(*worker, {&table, 1}, 1, 2).code(), StatusCode::kAborted);
  OrThrow(after->Drain());
  EXPECT_TRUE(cluster.servers_[0]->WaitDrained(DeadlineAfter(milliseconds(10))));
}

// As behind a firewall that has forgotten the connections, those of gRPC too: nobody says so.
TEST(ServerFaults, AConnectionThatFallsSilentIsReplacedAndNothingCountsTwice) {
  const Cluster cluster(2, /*loss=*/0, SumsTable(), /*proxies=*/true);
  const auto worker = cluster.NewClient(1, milliseconds(8000));
  const int table = 0;
  const std::uint64_t id = IdOfTheFirst();
  OrThrow(Push(*worker, {&table, 1}, id, 1));
  for (std::uint32_t silences = 1; silences <= 2; ++silences) {
    cluster.proxy(0).Silence();
    std::this_thread::sleep_for(milliseconds(100));
    EXPECT_EQ(Push(*worker, {&table, 1}, id, 1 + silences), OkStatus());
    const Row row = RowsOf(*cluster.NewChief()).at(id);
    EXPECT_EQ(row.updates, 1 + silences);
    const auto sum = static_cast<float>(1 + silences);
    EXPECT_THAT(row.weights, ElementsAre(sum, sum));
  }
}

// peer_timeout is shorter than gRPC's keepalive: nobody else finds it in time.
TEST(ServerFaults, AConnectionOfControlCallsThatFallsSilentIsReplaced) {
  const Cluster cluster(2, /*loss=*/0, SumsTable(), /*proxies=*/true);
  std::vector<std::string> proxied;
  for (const auto& server : cluster.servers_) {
    proxied.push_back(testing::LossyProxy::AddressOf(server->port()));
  }
  const auto chief = Client::Make(
      cluster.spec_, proxied, {.client = 1000, .epoch = 1, .peer_timeout = milliseconds(12'000)});
  OrThrow(chief->Declare());
  OrThrow(chief->Begin({}));
  for (std::size_t server = 0; server < 2; ++server) {
    cluster.proxy(server).Silence();
  }
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(chief->Retire(1), OkStatus());
}

// The same of dumps of buckets, of moves, and of the way to the connection for frames.
TEST(ServerFaults, AConnectionOfBucketsThatFallsSilentIsReplaced) {
  const Cluster cluster(2, /*loss=*/0, SumsTable(), /*proxies=*/true);
  const int table = 0;
  const std::uint64_t id = IdOfTheFirst();
  OrThrow(Push(*cluster.NewClient(1), {&table, 1}, id, 1));
  const auto chief = cluster.NewChief(milliseconds(12'000));
  EXPECT_EQ(RowsOf(*chief).size(), 1U);
  for (std::size_t server = 0; server < 2; ++server) {
    cluster.proxy(server).Silence();
  }
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(RowsOf(*chief).at(id).updates, 1U);
  for (std::size_t server = 0; server < 2; ++server) {
    cluster.proxy(server).Silence();
  }
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(chief->Move(0, BucketOf(id, kBuckets), 1), OkStatus());
  EXPECT_EQ(RowsOf(*chief).at(id).updates, 1U);
}

// Calls are under way when what takes their answers throws: none writes to what is gone.
TEST(ServerFaults, AfterAnExceptionInWhatTakesADumpTheNextDumpIsWhole) {
  const Cluster cluster(1);
  const int table = 0;
  const auto worker = cluster.NewClient(1);
  for (std::uint64_t id = 1; id <= 100; ++id) {
    OrThrow(Push(*worker, {&table, 1}, id, 1));
  }
  const auto chief = cluster.NewChief();
  const std::map<std::uint64_t, Row> before = RowsOf(*chief);
  EXPECT_EQ(before.size(), 100U);
  for (std::uint32_t at = 0; at < kBuckets; at += 5) {
    EXPECT_THROW(static_cast<void>(chief->Dump(table,
                                               [&](std::uint32_t bucket, std::string_view) {
                                                 if (bucket == at) {
                                                   throw std::bad_alloc();
                                                 }
                                                 return OkStatus();
                                               })),
                 std::bad_alloc);
    EXPECT_EQ(RowsOf(*chief).size(), before.size());
  }
}

// Of which nothing but that is answered.
class ThrowingServers final : public Servers::WithCallbackMethod_Drain<Servers::Service> {
 public:
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context, const DrainRequest* request,
                                  DrainReply* /*reply*/) override {
    return Guarded(context, "ps:0 in Drain", [&]() -> grpc::ServerUnaryReactor* {
      if (request->epoch() == 1) {
        throw std::bad_alloc();
      }
      throw std::runtime_error("a bug");
    });
  }
};

TEST(ServerFaults, AnExceptionInACallComesBackWithItsText) {
  ThrowingServers service;
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  int port = 0;
  const auto server = OrThrow(StartServer(builder, "127.0.0.1:0", &port));
  const auto stub = Servers::NewStub(NewChannel("127.0.0.1:" + std::to_string(port)));
  const auto drain = [&](std::uint64_t epoch) {
    grpc::ClientContext context;
    context.set_deadline(GrpcTimeout(std::chrono::seconds(20)));
    DrainRequest request;
    request.set_epoch(epoch);
    DrainReply reply;
    return FromGrpc(stub->Drain(&context, request, &reply));
  };
  const Status memory = drain(1);
  EXPECT_EQ(memory.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(memory.message(), HasSubstr("ps:0 in Drain: no memory is left"));
  EXPECT_EQ(drain(2), Internal("ps:0 in Drain: a bug"));
}

TEST(ServerFaults, AnExceptionOnAThreadOfGrpcComesBackWithItsText) {
  const grpc::Status memory =
      GuardedAnswer("the chief in Attach", []() -> grpc::Status { throw std::bad_alloc(); });
  EXPECT_EQ(memory.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(memory.error_message(), HasSubstr("the chief in Attach: no memory is left"));
  const grpc::Status bug = GuardedAnswer(
      "the chief in Attach", []() -> grpc::Status { throw std::runtime_error("a bug"); });
  EXPECT_EQ(FromGrpc(bug), Internal("the chief in Attach: a bug"));
}

data::Batch BatchOfIds(const std::vector<std::uint64_t>& ids) {
  data::Batch batch;
  batch.size = static_cast<std::int64_t>(ids.size());
  Tensor tensor(DType::kInt64, {batch.size});
  std::ranges::copy(ids, tensor.data<std::int64_t>().begin());
  batch.features["user"] = std::move(tensor);
  return batch;
}

TEST(ServerFaults, WhatLookingAheadThrowsIsTheErrorOfTheLookupsBehindIt) {
  const Cluster cluster(1);
  const auto client = cluster.NewClient(1);
  std::vector<TableSpec> tables = {SumsTable()};
  ++tables[0].dim;  // than the client's: it refuses the rows' memory, by an exception
  const std::int64_t step = 0;
  RemoteRows rows([&]() -> RowClient& { return *client; }, tables, [] { return std::uint64_t{0}; },
                  step);
  const std::vector<std::uint64_t> ids = {3, 4};
  std::vector<float> values(ids.size() * kDim);
  rows.StartBatch(BatchOfIds(ids), 1);
  OrThrow(rows.Lookup(0, ids, /*training=*/true, values));
  for (std::uint64_t number = 2; number <= 3; ++number) {
    std::vector<NumberedBatch> next;
    next.push_back({.number = number, .batch = BatchOfIds(ids)});
    rows.LookAhead(std::move(next), {}, 0, step);
    rows.StartBatch(BatchOfIds(ids), number);
    const Status status = rows.Lookup(0, ids, /*training=*/true, values);
    EXPECT_EQ(status.code(), StatusCode::kInternal);
    EXPECT_THAT(status.message(), HasSubstr("looked up ahead: "));
    EXPECT_THAT(status.message(), HasSubstr("room for a row of each id"));
  }
  rows.Wait();
}

TEST(ServerFaults, WithoutMemoryToLookAheadRowsAreLookedUp) {
  const Cluster cluster(1);
  const auto client = cluster.NewClient(1);
  std::atomic<bool> full = false;  // asked next in the thread that looks ahead
  const std::int64_t step = 0;
  RemoteRows rows(
      [&]() -> RowClient& {
        if (full.exchange(false)) {
          throw std::bad_alloc();
        }
        return *client;
      },
      {SumsTable()}, [] { return std::uint64_t{0}; }, step);
  const std::vector<std::uint64_t> ids = {3, 4};
  std::vector<float> values(ids.size() * kDim);
  rows.StartBatch(BatchOfIds(ids), 1);
  OrThrow(rows.Lookup(0, ids, /*training=*/true, values));
  for (std::uint64_t number = 2; number <= 3; ++number) {
    full = number == 2;
    std::vector<NumberedBatch> next;
    next.push_back({.number = number, .batch = BatchOfIds(ids)});
    rows.LookAhead(std::move(next), {}, 0, step);
    rows.StartBatch(BatchOfIds(ids), number);
    EXPECT_EQ(rows.Lookup(0, ids, /*training=*/true, values), OkStatus());
    EXPECT_EQ(rows.foreseen(), number == 2 ? 0 : 1);
  }
  rows.Wait();
}

// The first of many frames is for a bucket that has moved, as the last is, and the answers that say
// so are lost with those to all the others.
TEST(ServerFaults, WhatMovedIsSentThereHoweverManyFramesCameBehindIt) {
  std::vector<TableSpec> more;
  constexpr std::size_t kFrames = 1200;
  for (int t = 0; t < 100; ++t) {
    more.push_back(SumsTable());
    more.back().name += std::to_string(t);
    more.back().buckets = 2;
  }
  const Cluster cluster(2, /*loss=*/0, SumsTable(), /*proxies=*/true, more);
  const std::uint64_t id = IdOfTheFirst();
  const auto worker = cluster.NewClient(1, milliseconds(30'000));
  const int second = 1;
  OrThrow(Push(*worker, {&second, 1}, id, 1));  // it is connected
  const auto chief = cluster.NewChief();
  OrThrow(chief->Move(0, BucketOf(id, kBuckets), 1));
  OrThrow(chief->Move(static_cast<int>(more.size()), BucketOf(id, 2), 1));
  cluster.proxy(0).HoldReplies();
  std::this_thread::sleep_for(milliseconds(100));
  // The first and the last table once, the others so often that there are more frames than a server
  // remembers.
  const int last = static_cast<int>(more.size());
  std::vector<int> tables = {0};
  while (tables.size() + 1 < kFrames * kMaxRowBlocks) {
    tables.push_back(1 + static_cast<int>(tables.size() % static_cast<std::size_t>(last - 1)));
  }
  tables.push_back(last);
  auto pushed = std::async(std::launch::async, [&] { return Push(*worker, tables, id, 2); });
  const auto served = [&] { return cluster.servers_[0]->rows().stats().pushes; };
  for (std::uint64_t before = 0; before < 400 || before != served();) {
    before = served();
    std::this_thread::sleep_for(milliseconds(500));
  }
  cluster.proxy(0).Break();
  EXPECT_EQ(pushed.get(), OkStatus());
  const Row row = RowsOf(*chief).at(id);
  EXPECT_EQ(row.updates, 1U);
  EXPECT_THAT(row.weights, ElementsAre(1, 1));
  for (int t = 1; t <= last; ++t) {
    std::vector<float> weights(kDim);
    OrThrow(chief->Pull(t, {&id, 1}, 2, /*training=*/false, weights));
    const auto sent = static_cast<float>(std::ranges::count(tables, t) + (t == second ? 1 : 0));
    ASSERT_THAT(weights, ElementsAre(sent, sent)) << t;
  }
}

// It says so at once, for as long as that takes: a thread of gRPC's is not held up.
TEST(ServerFaults, AServerThatStillAppliesAPushOfAWorkerIsAskedAgain) {
  Cluster cluster(1);
  PushLedger& ledger = cluster.servers_[0]->rows().pushes();
  ASSERT_EQ(ledger.Claim(7, 1), PushLedger::Claimed::kNew);
  const auto chief = [&](milliseconds patience) {
    return Client::Make(cluster.spec_, cluster.addresses_,
                        {.client = 1000, .peer_timeout = patience});
  };
  const Status late = chief(milliseconds(1500))->Retire(7);
  EXPECT_THAT(late.message(), HasSubstr("a push of the worker that was given up is being applied"));
  const auto patient = chief(milliseconds(60'000));
  auto retired = std::async(std::launch::async, [&] { return patient->Retire(7); });
  EXPECT_EQ(retired.wait_for(milliseconds(200)), std::future_status::timeout);
  ledger.Finish(7, 1, true);
  OrThrow(retired.get());
}

// The server's process is there, and does not answer yet.
TEST(ServerFaults, AServerThatCouldNotBeToldOfAWorkerIsToldAgain) {
  Cluster cluster(1);
  const int port = testing::UnusedPorts(1)[0];
  const std::vector<std::string> addresses = {"127.0.0.1:" + std::to_string(port)};
  const auto chief =
      Client::Make(cluster.spec_, addresses, {.client = 1000, .peer_timeout = milliseconds(200)});
  std::atomic<int> failed{0};
  Retirements retirements([&](std::uint64_t client) { return chief->Retire(client); },
                          [&](const Status& /*why*/) { ++failed; }, milliseconds(50));
  retirements.Add(7);
  for (int i = 0; i < 200 && failed == 0; ++i) {
    std::this_thread::sleep_for(milliseconds(50));
  }
  EXPECT_EQ(failed, 1);
  EXPECT_FALSE(retirements.idle());
  const auto server = OrThrow(Server::Start(addresses[0], 0, Log()));
  for (int i = 0; i < 400 && !retirements.idle(); ++i) {
    std::this_thread::sleep_for(milliseconds(50));
  }
  EXPECT_TRUE(retirements.idle());
  const auto other = Client::Make(cluster.spec_, addresses, {.client = 1001});
  OrThrow(other->Declare());
  OrThrow(other->Assign(std::vector<float>(3), {}, 0));
  const auto worker = RowClient::Make(cluster.spec_, addresses, {.client = 7});
  const int table = 0;
  EXPECT_EQ(Push(*worker, {&table, 1}, 1, 1).code(), StatusCode::kAborted);
  EXPECT_EQ(failed, 1) << "it is said once";
}

}  // namespace
}  // namespace cohort::ps
