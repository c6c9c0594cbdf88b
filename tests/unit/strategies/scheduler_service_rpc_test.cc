// The scheduler's service over real connections, as threads of one process.

#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <thread>

#include "parameter_server/chief/scheduler.h"
#include "parameter_server/chief/scheduler_service.h"
#include "testing/lossy_proxy.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;

class SchedulerServiceTest : public ::testing::Test {
 protected:
  SchedulerServiceTest()
      : scheduler_({.workers = {{TaskType::kWorker, 0}, {TaskType::kWorker, 1}}}),
        server_(OrThrow(SchedulerServer::Start("127.0.0.1:0", scheduler_))) {}
  std::unique_ptr<SchedulerClient> NewWorker(int index) {
    auto client = SchedulerClient::Make(
        "127.0.0.1:" + std::to_string(server_->port()), "chief:0",
        {.task = {TaskType::kWorker, index}, .incarnation = static_cast<std::uint64_t>(index) + 1},
        milliseconds(20'000));
    OrThrow(client->Attach());
    OrThrow(client->OpenDataset(0, {.fingerprint = 5, .examples = 1000, .batch_size = 10}));
    return client;
  }

  Scheduler scheduler_;
  std::unique_ptr<SchedulerServer> server_;
};

TEST_F(SchedulerServiceTest, WorkersShareAnEpochAndLeaveItTogether) {
  OrThrow(scheduler_.Open(0));
  const auto work = [this](int index) {
    const auto worker = NewWorker(index);
    std::int64_t seen = 0;
    std::int64_t finished = 0;
    while (const auto split = OrThrow(worker->NextSplit({}, 0, {.id = finished}))) {
      seen += split->end - split->begin;
      finished = split->id;
    }
    OrThrow(worker->Done());
    return seen;
  };
  std::future<std::int64_t> first = std::async(std::launch::async, work, 0);
  std::future<std::int64_t> second = std::async(std::launch::async, work, 1);
  EXPECT_EQ(first.get() + second.get(), 1000);
  EXPECT_TRUE(OrThrow(scheduler_.WaitOver(milliseconds(0))));
  EXPECT_EQ(scheduler_.coverage().at(0).seen, 1000);
}

TEST_F(SchedulerServiceTest, RoundsPassSumsOn) {
  OrThrow(scheduler_.Open(6));
  const auto work = [this](int index) {
    const auto worker = NewWorker(index);
    std::uint64_t rounds = 0;
    while (const auto part = OrThrow(worker->JoinRound({}, 0))) {
      EXPECT_EQ(part->round, 7 + rounds);
      EXPECT_EQ(part->parts, 2);
      const auto sums =
          OrThrow(worker->FinishRound(*part, {1.0 + index, 2.0, {static_cast<double>(index)}}));
      EXPECT_TRUE(sums.has_value());
      EXPECT_EQ(sums->loss_sum, 3.0);
      EXPECT_EQ(sums->weight, 4.0);
      EXPECT_EQ(sums->metric_sums, std::vector<double>{1.0});
      ++rounds;
    }
    return rounds;
  };
  std::future<std::uint64_t> first = std::async(std::launch::async, work, 0);
  std::future<std::uint64_t> second = std::async(std::launch::async, work, 1);
  EXPECT_EQ(first.get(), 100U);
  EXPECT_EQ(second.get(), 100U);
}

// As behind a firewall that has forgotten the connection; peer_timeout is shorter than gRPC's
// keepalive.
TEST_F(SchedulerServiceTest, AConnectionThatFallsSilentIsReplaced) {
  OrThrow(scheduler_.Open(0));
  testing::LossyProxy proxy({server_->port()}, /*loss=*/0, /*seed=*/1);
  const auto worker = SchedulerClient::Make(
      testing::LossyProxy::AddressOf(server_->port()), "chief:0",
      {.task = {TaskType::kWorker, 0}, .incarnation = 1}, milliseconds(4'000));
  OrThrow(worker->Attach());
  for (int silence = 0; silence < 2; ++silence) {
    proxy.Silence();
    std::this_thread::sleep_for(milliseconds(200));
    EXPECT_EQ(worker->OpenDataset(0, {.fingerprint = 5, .examples = 1000, .batch_size = 10}),
              OkStatus());
  }
}

TEST_F(SchedulerServiceTest, AbortEndsAWait) {
  const auto worker = NewWorker(0);  // nothing is handed out: the scheduler is not open
  auto next = std::async(std::launch::async, [&] { return worker->NextSplit({}, 0, {}).status(); });
  worker->Abort(Unavailable("ps:0 is gone"));
  ASSERT_EQ(next.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_EQ(next.get(), Unavailable("ps:0 is gone"));
}

TEST_F(SchedulerServiceTest, AStrangerIsRefused) {
  const auto stranger = SchedulerClient::Make(
      "127.0.0.1:" + std::to_string(server_->port()), "chief:0",
      {.task = {TaskType::kWorker, 9}, .incarnation = 1}, milliseconds(1'000));
  EXPECT_EQ(stranger->Attach().status().code(), StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace cohort::ps
