// Functions that the chief calls and workers run: both ends over real connections.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <numeric>

#include <cohort/data/memory.h>
#include <cohort/strategies/coordinator.h>

#include "parameter_server/chief/closure_queue.h"
#include "parameter_server/chief/remote_functions.h"
#include "parameter_server/chief/scheduler.h"
#include "parameter_server/chief/scheduler_service.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr milliseconds kAtOnce{0};
constexpr std::chrono::minutes kPatience{1};

TaskId Worker(int index) { return {TaskType::kWorker, index}; }
Sender Process(int index, std::uint64_t incarnation) {
  return {.task = Worker(index), .incarnation = incarnation};
}

class RemoteFunctionsTest : public ::testing::Test {
 protected:
  RemoteFunctionsTest()
      : state_({.workers = {Worker(0), Worker(1), Worker(2)}}),
        server_(OrThrow(SchedulerServer::Start("127.0.0.1:0", state_))),
        coordinator_(OrThrow(OpenFunctions(state_, {}))) {}
  std::unique_ptr<SchedulerClient> NewWorker(int index) {
    auto client = SchedulerClient::Make("127.0.0.1:" + std::to_string(server_->port()), "chief:0",
                                        Process(index, static_cast<std::uint64_t>(index) + 1),
                                        milliseconds(20'000));
    OrThrow(client->Attach());
    return client;
  }
  std::future<Status> Serve(SchedulerClient& client, const Functions& functions) {
    return std::async(std::launch::async, [&] { return RunFunctions(client, functions); });
  }

  ps::Scheduler state_;
  std::unique_ptr<SchedulerServer> server_;
  std::unique_ptr<cohort::Coordinator> coordinator_;
};

TEST_F(RemoteFunctionsTest, EveryCallRunsAndEveryResultComesBack) {
  std::atomic<int> runs = 0;
  Functions functions;
  functions.Add("square", [&](const std::string& text) -> Result<std::string> {
    ++runs;
    return std::to_string(std::stoi(text) * std::stoi(text));
  });
  const auto a = NewWorker(0);
  const auto b = NewWorker(1);
  const auto c = NewWorker(2);
  std::vector<RemoteValue> values(60);
  auto first = Serve(*a, functions);
  for (int i = 0; i < 60; ++i) {
    values[static_cast<std::size_t>(i)] =
        OrThrow(coordinator_->Schedule("square", std::to_string(i)));
  }
  auto second = Serve(*b, functions);  // workers may come later
  auto third = Serve(*c, functions);
  OrThrow(coordinator_->Join(DeadlineAfter(kPatience)));
  for (int i = 0; i < 60; ++i) {
    EXPECT_EQ(
        OrThrow(coordinator_->Fetch(values[static_cast<std::size_t>(i)], DeadlineAfter(kAtOnce))),
        std::to_string(i * i));
  }
  EXPECT_EQ(runs, 60);
  coordinator_->Close();
  for (auto* worker : {&first, &second, &third}) {
    EXPECT_TRUE(worker->get().ok());
  }
}

TEST_F(RemoteFunctionsTest, ALostWorkersCallRunsElsewhereAndItsOwnResultIsRefused) {
  std::promise<void> started;
  std::promise<void> released;
  Functions slow;
  slow.Add("who", [&](const std::string&) -> Result<std::string> {
    started.set_value();
    released.get_future().wait();
    return std::string("the lost one");
  });
  Functions functions;
  functions.Add("who", [](const std::string&) { return std::string("the other"); });
  const auto a = NewWorker(0);
  const auto b = NewWorker(1);
  const RemoteValue value = OrThrow(coordinator_->Schedule("who", ""));
  auto lost = Serve(*a, slow);
  started.get_future().wait();
  state_.Lost(Worker(0), Unavailable("silent for 10 s"));
  auto other = Serve(*b, functions);
  EXPECT_EQ(OrThrow(coordinator_->Fetch(value, DeadlineAfter(kPatience))), "the other");
  released.set_value();
  EXPECT_EQ(lost.get().code(), StatusCode::kAborted);
  EXPECT_EQ(OrThrow(coordinator_->Fetch(value, DeadlineAfter(kAtOnce))), "the other");
  coordinator_->Close();
  EXPECT_TRUE(other.get().ok());
}

TEST_F(RemoteFunctionsTest, AWorkerHoldsTheNextCallWhileOneRunsAndLosesBoth) {
  std::promise<void> started;
  std::promise<void> released;
  Functions slow;
  slow.Add("who", [&](const std::string& call) -> Result<std::string> {
    if (call == "0") {
      started.set_value();
      released.get_future().wait();
    }
    return "the lost one";
  });
  Functions functions;
  functions.Add("who", [](const std::string&) { return std::string("the other"); });
  const auto a = NewWorker(0);
  std::vector<RemoteValue> values;
  for (int i = 0; i < 4; ++i) {
    values.push_back(OrThrow(coordinator_->Schedule("who", std::to_string(i))));
  }
  auto lost = Serve(*a, slow);
  started.get_future().wait();
  // The second is fetched by itself; then the worker holds as many as it may.
  const Deadline deadline = DeadlineAfter(kPatience);
  std::string where;
  while (where.find("2 wait, who (1) runs on worker:0, who (2) behind it") == std::string::npos &&
         std::chrono::steady_clock::now() < deadline) {
    where = coordinator_->Join(DeadlineAfter(milliseconds(10))).message();
  }
  EXPECT_THAT(where, HasSubstr("2 wait, who (1) runs on worker:0, who (2) behind it"));
  const auto b = NewWorker(1);
  state_.Lost(Worker(0), Unavailable("silent for 10 s"));
  auto other = Serve(*b, functions);
  OrThrow(coordinator_->Join(deadline));
  released.set_value();
  EXPECT_EQ(lost.get().code(), StatusCode::kAborted);
  for (const RemoteValue& value : values) {
    EXPECT_EQ(OrThrow(coordinator_->Fetch(value, DeadlineAfter(kAtOnce))), "the other");
  }
  coordinator_->Close();
  EXPECT_TRUE(other.get().ok());
}

// Ten numbers in batches of two, which begin elsewhere on each worker.
Functions Reading(std::atomic<int>* made) {
  Functions functions;
  functions.AddDataset("numbers", [made](const InputPipeline& pipeline) -> Result<data::Dataset> {
    ++*made;
    Tensor numbers(DType::kInt64, Shape{10});
    std::iota(numbers.data<std::int64_t>().begin(), numbers.data<std::int64_t>().end(),
              100 * pipeline.index);
    COHORT_ASSIGN_OR_RETURN(const data::Dataset dataset, data::FromTensors({{"n", numbers}}));
    return dataset.Batch(2);
  });
  functions.Add("read",
                [](const std::string& which,
                   std::span<data::BatchIterator* const> data) -> Result<std::string> {
                  COHORT_ASSIGN_OR_RETURN(const auto batch, data[std::stoul(which)]->Next());
                  return batch.has_value() ? std::to_string((*batch)["n"].data<std::int64_t>()[0])
                                           : "end";
                });
  functions.Add("plain", [](const std::string&) { return std::string("plain"); });
  return functions;
}

TEST_F(RemoteFunctionsTest, EachWorkerGoesThroughItsOwnDataSetWhichItsSuccessorMakesAnew) {
  std::atomic<int> made = 0;
  const Functions functions = Reading(&made);
  const auto read = [&](const PerWorkerDataset& one, const std::string& which = "0") {
    const RemoteValue value =
        OrThrow(coordinator_->Schedule("read", which, {one, {.id = 99, .name = "numbers"}}));
    return OrThrow(coordinator_->Fetch(value, DeadlineAfter(kPatience)));
  };
  const PerWorkerDataset numbers = coordinator_->CreatePerWorkerDataset("numbers");
  const PerWorkerDataset others = coordinator_->CreatePerWorkerDataset("numbers");
  const auto first = NewWorker(0);
  auto served = std::async(std::launch::async, [&] {
    return RunFunctions(*first, functions, {.index = 0, .count = 3});
  });
  EXPECT_EQ(made, 0) << "when a call asks for it";
  EXPECT_EQ(read(numbers), "0");
  EXPECT_EQ(read(numbers), "2");
  EXPECT_EQ(made, 2);
  EXPECT_EQ(read(others), "0") << "another iterator";
  EXPECT_EQ(read(numbers, "1"), "0");
  EXPECT_EQ(made, 3);
  for (const char* next : {"4", "6", "8", "end", "0"}) {
    EXPECT_EQ(read(numbers), next);
  }
  // Another process in its place begins anew; another worker has its own.
  state_.Lost(Worker(0), Unavailable("killed"));
  EXPECT_EQ(served.get().code(), StatusCode::kAborted);
  const auto second = NewWorker(1);
  auto elsewhere = std::async(std::launch::async, [&] {
    return RunFunctions(*second, functions, {.index = 1, .count = 3});
  });
  EXPECT_EQ(read(numbers), "100");
  EXPECT_EQ(read(numbers), "102");
  EXPECT_EQ(made, 5);
  coordinator_->Close();
  EXPECT_TRUE(elsewhere.get().ok());
}

TEST_F(RemoteFunctionsTest, ADataSetThatIsUnknownOrNotWantedIsTheCallsError) {
  std::atomic<int> made = 0;
  const Functions functions = Reading(&made);
  const auto worker = NewWorker(0);
  auto served = Serve(*worker, functions);
  OrThrow(coordinator_->Schedule("read", "0", {coordinator_->CreatePerWorkerDataset("digits")}));
  EXPECT_EQ(coordinator_->Join(DeadlineAfter(kPatience)),
            NotFound("read (1) on worker:0: data set 'digits': no data set is called 'digits' "
                     "[there are: numbers]"));
  OrThrow(coordinator_->Schedule("plain", "", {coordinator_->CreatePerWorkerDataset("numbers")}));
  EXPECT_EQ(coordinator_->Join(DeadlineAfter(kPatience)).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(
      coordinator_->Schedule("read", "0", std::vector<PerWorkerDataset>(17, PerWorkerDataset()))
          .status()
          .code(),
      StatusCode::kInvalidArgument);
  coordinator_->Close();
  EXPECT_TRUE(served.get().ok());
}

TEST_F(RemoteFunctionsTest, ErrorsAndBytesOfAnySizeTravel) {
  Functions functions;
  functions.Add("repeat", [](const std::string& text) { return text + text; });
  const auto worker = NewWorker(0);
  auto served = Serve(*worker, functions);
  std::string bytes(kMaxFunctionBytes / 2, '\xff');
  bytes[7] = '\0';
  const RemoteValue largest = OrThrow(coordinator_->Schedule("repeat", bytes));
  EXPECT_TRUE(OrThrow(coordinator_->Fetch(largest, DeadlineAfter(kPatience))) == bytes + bytes);
  const RemoteValue larger = OrThrow(coordinator_->Schedule("repeat", bytes + "x"));
  EXPECT_EQ(coordinator_->Fetch(larger, DeadlineAfter(kPatience)).status().code(),
            StatusCode::kResourceExhausted);
  const RemoteValue unknown = OrThrow(coordinator_->Schedule("\xff", ""));
  const Status status = coordinator_->Join(DeadlineAfter(kPatience));
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("on worker:0: no function is called"));
  coordinator_->Close();
  EXPECT_TRUE(served.get().ok()) << "errors of functions are the chief's";
}

// The servers have gone back since it was handed out, and the worker knows.
TEST_F(RemoteFunctionsTest, ACallThatDoesNotCountIsNotBegun) {
  state_.SetView(3, {});
  std::atomic<int> runs = 0;
  Functions functions;
  functions.Add("count", [&](const std::string&) { return std::to_string(++runs); });
  int asked = 0;
  CallHooks hooks;
  hooks.begin = [&](std::uint64_t epoch) -> Result<bool> {
    EXPECT_EQ(epoch, 3U) << "in which it was handed out";
    ++asked;
    if (asked == 3) {
      return Unavailable("ps:0 is gone");
    }
    return asked == 2;
  };
  const auto worker = NewWorker(0);
  auto served =
      std::async(std::launch::async, [&] { return RunFunctions(*worker, functions, {}, hooks); });
  const RemoteValue value = OrThrow(coordinator_->Schedule("count", ""));
  EXPECT_EQ(OrThrow(coordinator_->Fetch(value, DeadlineAfter(kPatience))), "1");
  EXPECT_EQ(runs, 1);
  OrThrow(coordinator_->Schedule("count", ""));
  EXPECT_EQ(served.get(), Unavailable("ps:0 is gone"));
  EXPECT_EQ(runs, 1);
  EXPECT_EQ(asked, 3);
}

TEST_F(RemoteFunctionsTest, AbortEndsTheWorkersWait) {
  const auto worker = NewWorker(0);
  const Functions none;
  auto served = Serve(*worker, none);
  worker->Abort(Unavailable("ps:0 is gone"));
  EXPECT_EQ(served.get(), Unavailable("ps:0 is gone"));
}

}  // namespace
}  // namespace cohort::ps
