// What servers hold, over real connections: values, slots and steps come back as they were given,
// no push is lost, and an epoch keeps those of others out.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <latch>
#include <numeric>
#include <thread>

#include <cohort/core/metrics.h>
#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"
#include "servers_test.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::Each;
using ::testing::HasSubstr;

TEST_F(ServersTest, ValuesComeBackAsTheyWereAssigned) {
  Start(3);
  const auto client = NewClient(1);
  OrThrow(client->Declare());
  std::vector<float> values(elements_);
  std::iota(values.begin(), values.end(), 0.0F);
  OrThrow(client->Assign(values, {}, 7));
  EXPECT_EQ(client->version(), 7U);
  const auto other = NewClient(2);
  OrThrow(other->Declare());
  std::vector<float> got(elements_, -1);
  OrThrow(other->Pull(got, /*everything=*/true));
  EXPECT_EQ(other->version(), 7U);
  for (const Chunk& chunk : other->chunks()) {
    const auto begin = static_cast<std::size_t>(chunk.offset);
    for (std::size_t i = begin; i < begin + static_cast<std::size_t>(chunk.elements); ++i) {
      ASSERT_EQ(got[i], values[i]);
    }
  }
  EXPECT_EQ(got[3000 * 701], -1) << "nothing between the parameters is touched";
}

TEST_F(ServersTest, AnEpochBeginsWithoutValuesAndKeepsThoseOfOthersOut) {
  Start(2);
  spec_.optimizer = Sgd({.learning_rate = 1, .momentum = 0.5})->config();
  const auto chief = ClientOf(1, 1000);
  OrThrow(chief->Declare());
  EXPECT_EQ(OrThrow(chief->Begin({})), 0U);
  OrThrow(chief->Assign(std::vector<float>(elements_, 8), {}, 0));
  const auto worker = ClientOf(1, 1);
  const auto lost = ClientOf(1, 2);
  std::vector<float> values(elements_);
  const auto ones = std::make_shared<std::vector<float>>(elements_, 1.0F);
  OrThrow(worker->Pull(values, true));
  OrThrow(worker->Push(GradientOf(ones), values));
  OrThrow(worker->Push(GradientOf(ones), values));
  ExpectAll(values, 8 - 1 - 1.5);

  const auto again = ClientOf(2, 1000);
  const std::uint64_t retired[] = {2, 2};
  EXPECT_EQ(OrThrow(again->Begin(retired)), 2U) << "updates there were";
  const auto back = ClientOf(2, 1);
  EXPECT_EQ(back->Pull(values, true).code(), StatusCode::kUnavailable) << "it holds no values";
  OrThrow(again->Assign(std::vector<float>(elements_, 4), {}, 0));
  for (const Status& status :
       {worker->Push(GradientOf(ones), values), worker->Pull(values, true)}) {
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(status.message(),
                HasSubstr("a request of epoch 1 of the servers, this is epoch 2"));
  }
  EXPECT_EQ(chief->Begin({}).status().code(), StatusCode::kUnavailable) << "a chief of old";
  EXPECT_EQ(OrThrow(again->Begin(retired)), 2U) << "asked twice, it says the same";
  OrThrow(back->Pull(values, true));
  ExpectAll(values, 4);  // and drops nothing
  OrThrow(back->Push(GradientOf(ones), values));
  ExpectAll(values, 3);  // its numbers begin anew, and so does the momentum
  EXPECT_EQ(ClientOf(2, 2)->Push(GradientOf(ones), values).code(), StatusCode::kAborted)
      << "what was given up stays so";
}

// The process that was replaced: it still is in its epoch, and has all its values.
TEST_F(ServersTest, AServerOfAnEarlierEpochIsOfNoUseToALaterOne) {
  Start(1);
  const auto chief = ClientOf(1, 1000);
  OrThrow(chief->Declare());
  OrThrow(chief->Begin({}).status());
  OrThrow(chief->Assign(std::vector<float>(elements_, 8), {}, 0));
  std::vector<float> values(elements_, -1);
  const auto worker = ClientOf(2, 1);
  EXPECT_EQ(worker->Pull(values, true).code(), StatusCode::kUnavailable);
  EXPECT_EQ(worker->Push(GradientOf(std::make_shared<std::vector<float>>(elements_, 1.0F)), values)
                .code(),
            StatusCode::kUnavailable);
  ExpectAll(values, -1);
  OrThrow(chief->Pull(values, true));
  ExpectAll(values, 8);
}

TEST_F(ServersTest, NothingIsLostOfWhatManyClientsPush) {
  Start(2);
  Initialise();
  constexpr int kClients = 3;
  constexpr int kPushes = 12;
  std::vector<std::future<void>> clients;
  for (int c = 1; c <= kClients; ++c) {
    clients.push_back(std::async(std::launch::async, [&, c] {
      const auto client = NewClient(static_cast<std::uint64_t>(c));
      OrThrow(client->Declare());
      std::vector<float> values(elements_);
      OrThrow(client->Pull(values, true));
      const auto gradient =
          std::make_shared<std::vector<float>>(elements_, static_cast<float>(-2 * c));
      for (int i = 0; i < kPushes; ++i) {
        OrThrow(client->Push(GradientOf(gradient, 2), values));
      }
    }));
  }
  for (std::future<void>& client : clients) {
    client.get();
  }
  const auto reader = NewClient(99);
  std::vector<float> values(elements_);
  OrThrow(reader->Pull(values, true));
  ExpectAll(values, kPushes * (1 + 2 + 3));
  EXPECT_EQ(reader->version(), static_cast<std::uint64_t>(kClients * kPushes));
  const StoreStats stats = OrThrow(reader->Stats());
  EXPECT_EQ(stats.duplicates, 0U);
  EXPECT_EQ(stats.rejected, 0U);
  EXPECT_LE(stats.max_staleness, static_cast<std::uint64_t>(kClients * kPushes));
}

// Each client counts down an element of its own, at its own pace.
TEST_F(ServersTest, AnAsynchronousClientSeesAllOfItsOwnUpdates) {
  Start(2);
  constexpr std::size_t kClients = 4;
  constexpr int kPushes = 40;
  elements_ = 2 * 16;
  spec_.parameters = {{"a", {kClients}, true, 0}, {"b", {kClients}, true, 16}};
  Initialise();
  std::vector<std::future<void>> clients;
  for (std::size_t c = 0; c < kClients; ++c) {
    clients.push_back(std::async(std::launch::async, [&, c] {
      const auto client = NewClient(c + 1);
      OrThrow(client->Declare());
      std::vector<float> values(elements_);
      OrThrow(client->Pull(values, true));
      const auto gradient = std::make_shared<std::vector<float>>(elements_, 0.0F);
      (*gradient)[c] = (*gradient)[16 + c] = 1;
      std::vector<float> before = values;
      const Philox random(c);
      for (int i = 1; i <= kPushes; ++i) {
        std::this_thread::sleep_for(
            std::chrono::microseconds(random.At(static_cast<std::uint64_t>(i))[0] % 500));
        OrThrow(client->Push(GradientOf(gradient), values));
        for (std::size_t p = 0; p < 2; ++p) {
          ASSERT_EQ(values[16 * p + c], -i) << "after push " << i;
          for (std::size_t other = 0; other < kClients; ++other) {
            ASSERT_LE(values[16 * p + other], before[16 * p + other]) << "nothing comes undone";
          }
        }
        before = values;
      }
    }));
  }
  for (std::future<void>& client : clients) {
    client.get();
  }
}

TEST_F(ServersTest, AnEpochEndsWithManyPushesUnderWay) {
  Start(2);
  constexpr std::uint64_t kClients = 64;
  constexpr int kPushes = 3;
  elements_ = 2 * 16;
  spec_.parameters = {{"a", {1}, true, 0}, {"b", {1}, true, 16}};
  const auto chief = ClientOf(1, 1000);
  OrThrow(chief->Declare());
  OrThrow(chief->Begin({}).status());
  OrThrow(chief->Assign(std::vector<float>(elements_, 0), {}, 0));
  std::latch all_push(kClients);
  std::promise<void> begun;
  const std::shared_future<void> next = begun.get_future().share();
  std::atomic<std::uint64_t> answered = 0;  // pushes of the first epoch
  std::vector<std::future<void>> clients;
  for (std::uint64_t c = 1; c <= kClients; ++c) {
    clients.push_back(std::async(std::launch::async, [&, c] {
      const auto ones = std::make_shared<std::vector<float>>(elements_, 1.0F);
      std::vector<float> values(elements_);
      // Those that push already leave little of a busy machine to those that connect.
      const auto client = ClientOf(1, c, milliseconds(60'000));
      for (bool first = true;; first = false) {
        const Status status = client->Push(GradientOf(ones), values);
        if (first) {
          EXPECT_EQ(status, OkStatus());
          all_push.count_down();
        }
        if (!status.ok()) {
          EXPECT_EQ(status.code(), StatusCode::kUnavailable);
          EXPECT_THAT(status.message(), HasSubstr("this is epoch 2"));
          break;
        }
        ++answered;
      }
      ASSERT_EQ(next.wait_for(std::chrono::seconds(60)), std::future_status::ready);
      const auto again = ClientOf(2, c, milliseconds(60'000));
      OrThrow(again->Pull(values, true));
      for (int i = 0; i < kPushes; ++i) {
        OrThrow(again->Push(GradientOf(ones), values));
      }
    }));
  }
  all_push.wait();
  const auto successor = ClientOf(2, 1000);
  const std::uint64_t applied = OrThrow(successor->Begin({}));
  OrThrow(successor->Assign(std::vector<float>(elements_, 0), {}, 0));
  begun.set_value();
  for (std::future<void>& client : clients) {
    client.get();
  }
  EXPECT_GE(applied, answered) << "what was answered was applied";
  EXPECT_LE(applied, answered + kClients) << "and of what was not, each once at most";
  std::vector<float> values(elements_);
  OrThrow(successor->Pull(values, true));
  EXPECT_EQ(values[0], -static_cast<float>(kClients * kPushes)) << "nothing of the first is left";
  EXPECT_EQ(values[16], -static_cast<float>(kClients * kPushes));
}

TEST_F(ServersTest, OnePullBringsOnlyWhatIsNewer) {
  Start(1);
  Initialise();
  const auto a = NewClient(1);
  const auto b = NewClient(2);
  std::vector<float> values(elements_);
  OrThrow(a->Pull(values, true));
  OrThrow(b->Pull(values, true));
  OrThrow(b->Push(GradientOf(std::make_shared<std::vector<float>>(elements_, 1.0F)), values));
  std::fill(values.begin(), values.end(), 5.0F);
  OrThrow(b->Pull(values, false));
  ExpectAll(values, 5);
  OrThrow(a->Pull(values, false));
  ExpectAll(values, -1);
}

TEST_F(ServersTest, SlotsAndStepsGoThereAndBack) {
  Start(2);
  spec_.optimizer = Adam({})->config();
  const auto client = NewClient(1);
  OrThrow(client->Declare());
  std::vector<float> values(elements_, 1);
  std::vector<float> m(elements_, 2);
  std::vector<float> v(elements_, 3);
  const std::vector<std::span<float>> slots = {m, v};
  OrThrow(client->Assign(values, slots, 41));
  for (std::vector<float>* state : {&values, &m, &v}) {
    std::fill(state->begin(), state->end(), 0.0F);
  }
  const auto other = NewClient(2);
  OrThrow(other->PullState(values, slots));
  ExpectAll(values, 1);
  ExpectAll(m, 2);
  ExpectAll(v, 3);
  EXPECT_EQ(other->version(), 41U);
}

TEST_F(ServersTest, CountsWhatItAnswers) {
  Metrics metrics;
  Start(1);
  servers_[0]->CountIn(metrics);
  const auto requests = [&](const std::string& method, const std::string& code) {
    return metrics
        .AddCounter("cohort_ps_requests_total", "Requests that were answered.",
                    {{"method", method}, {"code", code}})
        .value();
  };
  std::vector<float> values(elements_);
  const auto early = NewClient(3);
  OrThrow(early->Declare());
  EXPECT_FALSE(early->Pull(values, true).ok());
  EXPECT_GT(requests("Pull", "NOT_READY"), 0);
  Initialise();
  EXPECT_GT(requests("Assign", "OK"), 0);
  EXPECT_FALSE(metrics.ready());
  const auto slow = NewClient(1);
  const auto quick = NewClient(2);
  OrThrow(slow->Declare());
  OrThrow(quick->Declare());
  OrThrow(slow->Pull(values, true));
  EXPECT_GT(requests("Pull", "OK"), 0);
  EXPECT_TRUE(metrics.ready());
  OrThrow(quick->Pull(values, true));
  const auto ones = std::make_shared<std::vector<float>>(elements_, 1.0F);
  for (int i = 0; i < 3; ++i) {
    OrThrow(quick->Push(GradientOf(ones), values));
  }
  OrThrow(slow->Push(GradientOf(ones), values));
  EXPECT_EQ(slow->staleness(), 3U);
  const double pushes = requests("Push", "OK");
  EXPECT_EQ(pushes, static_cast<double>(servers_[0]->store().stats().pushes));
  const std::string page = metrics.ToText();
  EXPECT_THAT(page, HasSubstr(fmt::format("\ncohort_ps_staleness_steps_count {}\n", pushes)));
  EXPECT_THAT(page, HasSubstr(fmt::format("\ncohort_ps_staleness_steps_bucket{{le=\"0\"}} {}\n",
                                          pushes * 3 / 4)));
  EXPECT_THAT(page, HasSubstr(fmt::format("\ncohort_ps_staleness_steps_bucket{{le=\"2\"}} {}\n",
                                          pushes * 3 / 4)));
  EXPECT_THAT(
      page, HasSubstr(fmt::format("\ncohort_ps_staleness_steps_bucket{{le=\"4\"}} {}\n", pushes)));
}

// The others keep what they have, at once in another epoch, and know which pushes they had.
TEST_F(ServersTest, AServerThatWasLostAloneGetsValues) {
  Start(3);
  const auto first = ClientOf(1, 1000);
  OrThrow(first->Declare());
  OrThrow(first->Begin({}).status());
  OrThrow(first->Assign(std::vector<float>(elements_, 0), {}, 5));
  const auto gradient = std::make_shared<std::vector<float>>(elements_, 1.0F);
  std::vector<float> values(elements_);
  const auto worker = ClientOf(1, 1);
  OrThrow(worker->Pull(values, true));
  const std::vector<std::uint64_t> before = worker->pushes();
  OrThrow(worker->Push(GradientOf(gradient), values));
  servers_[1] = OrThrow(Server::Start("127.0.0.1:0", 1, Log()));
  addresses_[1] = "127.0.0.1:" + std::to_string(servers_[1]->port());
  const auto chief = ClientOf(2, 1000);
  OrThrow(chief->Declare());
  for (int repeated = 0; repeated < 2; ++repeated) {
    const Client::Kept kept = OrThrow(chief->BeginKeeping({}));
    EXPECT_EQ(kept.version, 6U);
    EXPECT_EQ(kept.without, std::vector<int>{1});
  }
  EXPECT_EQ(worker->Push(GradientOf(gradient), values).code(), StatusCode::kUnavailable);
  OrThrow(chief->AssignTo(std::vector<int>{1}, std::vector<float>(elements_, 9), {}, 6));
  // What it does not know to have been applied everywhere it sends again, under the same numbers.
  const auto again = Client::Make(
      spec_, addresses_,
      {.client = 1, .task = "worker:1", .epoch = 2, .comes_again = true, .pushes = before});
  again->TakeOver(*worker);
  const auto expect = [&](float of_lost, float of_others) {
    for (const Chunk& chunk : again->chunks()) {
      EXPECT_EQ(values[static_cast<std::size_t>(chunk.offset)],
                chunk.server == 1 ? of_lost : of_others);
    }
  };
  OrThrow(again->Pull(values, true));
  EXPECT_EQ(again->version(), 6U);
  expect(9, -1);
  OrThrow(again->Push(GradientOf(gradient), values));
  expect(8, -1);
  EXPECT_GT(OrThrow(again->Stats()).duplicates, 0U);
  OrThrow(again->Push(GradientOf(gradient), values));
  expect(7, -2);
}

// A model of tables alone has no values, and steps all the same.
TEST_F(ServersTest, OfTablesAloneTheStepIsPulledWithoutValues) {
  Start(2);
  spec_.parameters.clear();
  spec_.tables = {{.name = "rows", .dim = 1, .optimizer = spec_.optimizer, .buckets = 2}};
  spec_.counts_steps = true;
  const auto chief = NewClient(1000);
  OrThrow(chief->Declare());
  EXPECT_FALSE(servers_[1]->store().ready());
  OrThrow(chief->Assign({}, {}, 4));
  EXPECT_TRUE(servers_[1]->store().ready());
  const auto worker = NewClient(1);
  const auto other = NewClient(2);
  for (const auto& client : {worker.get(), other.get()}) {
    OrThrow(client->Pull({}, true));
    EXPECT_EQ(client->version(), 4U);
  }
  OrThrow(worker->Push({}, std::span<float>()));
  EXPECT_EQ(worker->version(), 5U);
  OrThrow(other->Push({}, {}));
  EXPECT_EQ(other->version(), 4U) << "nothing was asked for";
  EXPECT_EQ(other->staleness(), 1U);
  OrThrow(other->PullState({}, {}));
  EXPECT_EQ(other->version(), 6U);
  EXPECT_EQ(OrThrow(chief->Freeze(1)), 6U);
  OrThrow(worker->Push({}, std::span<float>()));
  OrThrow(chief->PullState({}, {}));
  EXPECT_EQ(chief->version(), 6U) << "as it was frozen";
  OrThrow(chief->Thaw().status());
  OrThrow(chief->PullState({}, {}));
  EXPECT_EQ(chief->version(), 7U);
}

}  // namespace
}  // namespace cohort::ps
