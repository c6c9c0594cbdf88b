// What is read of sparse tables to be saved, and what is restored, over real connections.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <cohort/core/file_system.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "parameter_server/rows/row_client.h"
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"
#include "testing/temp_dir.h"
#include "two_tables.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

// What a chief saves is one state of all servers, rows and values, whatever workers do meanwhile;
// buckets of 64 KiB and of several frames.
TEST(RowClientTest, ASnapshotIsOneStateOfAllServersWhileWorkersTrain) {
  for (const std::uint32_t buckets : {64U, 2U}) {
    TwoTables cluster(2, buckets);
    cluster.spec_.tables[0].dim = buckets == 2 ? 400 : 5;  // times 3, and 3000 rows: 14 MB
    cluster.Initialise();
    const auto dim = static_cast<std::size_t>(cluster.spec_.tables[0].dim);
    const auto train = [&](RowClient& client, std::uint64_t first, std::uint64_t steps) {
      for (std::uint64_t step = first; step < first + steps; ++step) {
        const Call call = RandomCall(600, dim, step);
        std::vector<float> rows(call.gradients.size());
        OrThrow(client.Pull(0, call.ids, static_cast<std::int64_t>(step), true, rows));
        const RowClient::Gradients gradients{.table = 0, .ids = call.ids, .values = call.gradients};
        OrThrow(client.Push(std::span(&gradients, 1), static_cast<std::int64_t>(step), 1));
      }
    };
    const auto rows = cluster.NewClient(1);
    const auto client = Client::Make(cluster.spec_, cluster.addresses_, TwoTables::Options(1));
    train(*rows, 1, 6);
    const auto before = DumpOf(*rows, 0);
    EXPECT_EQ(OrThrow(client->Freeze(1)), 0U);
    rows->ReadSnapshot(1);
    std::atomic<bool> stop{false};
    std::thread worker([&] {
      const auto its = cluster.NewClient(2);
      const auto dense = Client::Make(cluster.spec_, cluster.addresses_, TwoTables::Options(2));
      std::vector<float> values(16);
      std::uint64_t step = 100;
      do {
        train(*its, step++, 1);
        OrThrow(dense->Push({.arena = std::vector<float>(16, 1.0F)}, values));
      } while (!stop && step < 1000);
    });
    EXPECT_TRUE(DumpOf(*rows, 0) == before);
    stop = true;
    worker.join();
    std::vector<float> values(16, 1.0F);
    OrThrow(client->PullState(values, {}));
    EXPECT_EQ(values[0], 0.0F);
    EXPECT_EQ(client->version(), 0U);
    EXPECT_GT(OrThrow(client->Thaw()), 0U) << "something was copied";
    EXPECT_EQ(OrThrow(client->Thaw()), 0U);
    EXPECT_FALSE(rows->Dump(0, [](std::uint32_t, std::string_view) { return OkStatus(); }).ok())
        << "it is gone";
    rows->ReadSnapshot(0);
    EXPECT_FALSE(DumpOf(*rows, 0) == before) << "nothing was trained";
    OrThrow(client->PullState(values, {}));
    EXPECT_LT(values[0], 0.0F);
  }
}

TEST(RowClientTest, WhatWasDumpedIsRestoredOnAnyNumberOfServers) {
  TwoTables saved(3, /*buckets=*/2);  // buckets of several frames
  saved.Initialise();
  const auto from = saved.NewClient();
  std::vector<std::uint64_t> ids(250'000);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = i * i;
  }
  std::vector<float> rows(ids.size() * 5);
  OrThrow(from->Pull(0, ids, 1, true, rows));
  const std::vector<RowClient::Gradients> gradients = {{.table = 0, .ids = ids, .values = rows}};
  OrThrow(from->Push(gradients, 1, 1));
  const auto dumps = DumpOf(*from, 0);
  ASSERT_EQ(dumps.size(), 2);
  ASSERT_GT(dumps.at(0).size(), 8U << 20);
  for (const int servers : {1, 2}) {
    TwoTables other(servers, /*buckets=*/2);
    other.Initialise();
    const auto to = other.NewClient();
    const Call before = RandomCall(100, 5, 1);  // what is there is replaced
    const std::vector<RowClient::Gradients> garbage = {
        {.table = 0, .ids = before.ids, .values = before.gradients}};
    OrThrow(to->Push(garbage, 1, 1));
    OrThrow(to->Restore(
        0, [&](std::uint32_t bucket) -> Result<std::string> { return dumps.at(bucket); }, nullptr));
    EXPECT_EQ(DumpOf(*to, 0), dumps) << servers;
    // The last server's alone; the others keep the garbage.
    OrThrow(to->Push(garbage, 2, 1));
    const auto with_garbage = DumpOf(*to, 0);
    const std::vector<int> last = {servers - 1};
    OrThrow(to->Restore(
        0, [&](std::uint32_t bucket) -> Result<std::string> { return dumps.at(bucket); }, &last));
    const auto mixed = DumpOf(*to, 0);
    const BucketRange range = BucketsOf(servers - 1, servers, 2);
    for (const auto& [bucket, dump] : mixed) {
      const bool restored = bucket >= range.begin && bucket < range.end;
      EXPECT_TRUE(dump == (restored ? dumps : with_garbage).at(bucket)) << servers << " " << bucket;
    }
  }
}

// A file of which a half is there is found out before servers are given any of it. Other bytes than
// were written are found out as they are read, and servers may have the buckets before; nobody is
// to go on with these, and the whole file replaces them.
TEST(RowClientTest, ADamagedFileIsNamedAndAWholeOneReplacesWhatItLeft) {
  const testing::TempDir dir;
  FileSystem& files = FileSystem::Local();
  TwoTables cluster(2, /*buckets=*/4);
  cluster.Initialise();
  const TableSpec& users = cluster.spec_.tables[0];
  const auto client = cluster.NewClient();
  const auto train = [&](std::uint64_t step) {
    const Call call = RandomCall(400, 5, step);
    std::vector<float> rows(call.gradients.size());
    OrThrow(client->Pull(0, call.ids, static_cast<std::int64_t>(step), true, rows));
    const RowClient::Gradients gradients{.table = 0, .ids = call.ids, .values = call.gradients};
    OrThrow(client->Push(std::span(&gradients, 1), static_cast<std::int64_t>(step), 1));
  };
  const std::vector<std::string> paths = {dir / "users.rows"};
  train(1);
  const auto saved = DumpOf(*client, 0);
  OrThrow(SaveTable(*client, 0, users, files, paths[0]));
  train(2);
  const auto there = DumpOf(*client, 0);
  const std::string good = OrThrow(ReadFile(files, paths[0]));
  const auto expect_refused = [&](const std::string& bytes, bool sends) {
    OrThrow(WriteFileAtomically(files, paths[0], bytes));
    bool sent = false;
    const Status status = LoadTable(*client, 0, users, files, paths, nullptr, &sent);
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.ToString();
    EXPECT_THAT(status.message(), AllOf(HasSubstr("table \"users\""), HasSubstr(paths[0])));
    EXPECT_EQ(sent, sends);
  };
  expect_refused(good.substr(0, good.size() / 2), /*sends=*/false);
  EXPECT_TRUE(DumpOf(*client, 0) == there);
  std::string last_byte = good;
  last_byte.back() = static_cast<char>(last_byte.back() ^ 0x10);
  expect_refused(last_byte, /*sends=*/true);
  for (const auto& [bucket, dump] : DumpOf(*client, 0)) {
    EXPECT_TRUE(dump == saved.at(bucket) || dump == there.at(bucket)) << bucket;
  }
  OrThrow(WriteFileAtomically(files, paths[0], good));
  OrThrow(LoadTable(*client, 0, users, files, paths));
  EXPECT_TRUE(DumpOf(*client, 0) == saved);
}

// A server that has 100 bytes of each bucket, and gives ten of them and then none.
class StingyServer final : public Rows::WithRawCallbackMethod_Dump<Rows::Service> {
 public:
  grpc::ServerUnaryReactor* Dump(grpc::CallbackServerContext* context,
                                 const grpc::ByteBuffer* request,
                                 grpc::ByteBuffer* reply) override {
    ++asked_;
    const ReceivedFrame received = OrThrow(Receive(*request));
    BucketPiece piece = received.frame.header.buckets(0);
    piece.set_bytes(piece.offset() == 0 ? 10 : 0);
    piece.set_total(100);
    FrameHeader header;
    *header.add_buckets() = piece;
    *reply = Assemble(header, {OwnedSlice(std::string(piece.bytes(), 'x'))});
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  int asked() const { return asked_; }

 private:
  std::atomic<int> asked_{0};
};

TEST(RowClientTest, AServerThatHasNoMoreOfABucketIsNamed) {
  StingyServer service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  const std::string address = "127.0.0.1:" + std::to_string(port);
  TwoTables cluster(0, /*buckets=*/4);
  cluster.spec_.servers = 1;
  const auto client = RowClient::Make(cluster.spec_, {address}, TwoTables::Options(1));
  std::atomic<bool> over{false};
  std::thread watch([&] {  // a dump that never ends is an error of this test, too
    const Deadline late = DeadlineAfter(std::chrono::seconds(20));
    while (!over && std::chrono::steady_clock::now() < late) {
      std::this_thread::sleep_for(milliseconds(5));
    }
    if (!over) {
      client->Abort(DeadlineExceeded("the dump has not ended"));
    }
  });
  const Status status = client->Dump(0, [](std::uint32_t, std::string_view) { return Status(); });
  over = true;
  watch.join();
  EXPECT_EQ(status.code(), StatusCode::kInternal) << status.ToString();
  EXPECT_THAT(status.message(), AllOf(HasSubstr("ps:0 (" + address + ")"), HasSubstr("\"users\""),
                                      HasSubstr("what follows byte 10"), HasSubstr("bucket 0")));
  EXPECT_EQ(service.asked(), 5) << "once for each bucket, and for what is left of the first";
}

}  // namespace
}  // namespace cohort::ps
