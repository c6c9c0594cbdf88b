// Servers, clients and the coordinator's service over real connections, as threads of one process.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <future>
#include <latch>
#include <limits>
#include <memory>
#include <numeric>
#include <thread>

#include <cohort/core/metrics.h>
#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/parameter_server.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "parameter_server/chief/coordinator.h"
#include "parameter_server/chief/coordinator_service.h"
#include "parameter_server/chief/journal.h"
#include "parameter_server/frames/frame_link.h"
#include "parameter_server/frames/frame_stream.h"
#include "parameter_server/frames/wire.h"
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"
#include "testing/lossy_proxy.h"
#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::Each;
using ::testing::HasSubstr;

class ServersTest : public ::testing::Test {
 protected:
  void Start(int servers) {
    for (int s = 0; s < servers; ++s) {
      servers_.push_back(OrThrow(Server::Start("127.0.0.1:0", s, Log())));
      addresses_.push_back("127.0.0.1:" + std::to_string(servers_.back()->port()));
    }
    // Several chunks and frames, and odd sizes.
    spec_.parameters = {{"wide", {3000, 701}, true, 0}, {"bias", {13}, true, 3000 * 701 + 8}};
    elements_ = 3000 * 701 + 8 + 16;
    spec_.optimizer = Sgd({.learning_rate = 1})->config();
    spec_.servers = servers;
  }
  std::unique_ptr<Client> NewClient(std::uint64_t number,
                                    milliseconds patience = milliseconds(20'000)) {
    return Client::Make(spec_, addresses_,
                        {.client = number,
                         .task = "worker:" + std::to_string(number),
                         .peer_timeout = patience,
                         .transport = TransportOf(number)});
  }
  std::unique_ptr<Client> ClientOf(std::uint64_t epoch, std::uint64_t number,
                                   milliseconds patience = milliseconds(10'000)) {
    return Client::Make(spec_, addresses_,
                        {.client = number,
                         .task = "worker:" + std::to_string(number),
                         .epoch = epoch,
                         .peer_timeout = patience,
                         .transport = TransportOf(number)});
  }
  // Both, side by side.
  static FrameTransport TransportOf(std::uint64_t number) {
    return number % 2 == 0 ? FrameTransport::kTcp : FrameTransport::kShared;
  }
  // Declares, and assigns `value` everywhere.
  void Initialise(float value = 0) {
    const auto chief = NewClient(1000);
    OrThrow(chief->Declare());
    OrThrow(chief->Assign(std::vector<float>(elements_, value), {}, 0));
  }
  static Gradient GradientOf(const std::shared_ptr<std::vector<float>>& values, double weight = 1) {
    return {.arena = *values, .weight = weight};
  }
  // Whether all chunks' elements are `value`: the gaps between parameters belong to none.
  void ExpectAll(std::span<const float> arena, float value) const {
    for (std::size_t i = 0; i < 3000 * 701; ++i) {
      ASSERT_EQ(arena[i], value) << i;
    }
    for (std::size_t i = 0; i < 13; ++i) {
      ASSERT_EQ(arena[3000 * 701 + 8 + i], value) << i;
    }
  }

  std::vector<std::unique_ptr<Server>> servers_;
  std::vector<std::string> addresses_;
  ModelSpec spec_;
  std::size_t elements_ = 0;
};

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

TEST_F(ServersTest, AServerThatWasStartedAgainServesNothingUntilTheChiefHasBegun) {
  Start(1);
  const auto worker = ClientOf(3, 1);
  OrThrow(worker->Declare());
  OrThrow(ClientOf(0, 1000)->Assign(std::vector<float>(elements_, 8), {}, 0));
  std::vector<float> values(elements_, -1);
  const Status status = worker->Pull(values, true);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("has just been started"));
  ExpectAll(values, -1);
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

TEST_F(ServersTest, AnotherModelIsRefusedByName) {
  Start(2);
  Initialise();
  spec_.parameters[1].shape = Shape{14};
  const auto client = NewClient(1);
  const Status status = client->Declare();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("declared bias [13], worker:1 has bias [14]"));
  std::vector<float> values(elements_ + 16);
  EXPECT_EQ(client->Pull(values, true).code(), StatusCode::kFailedPrecondition);
}

// F27: a process of an earlier version said nothing of a protocol, one of a later says more.
TEST_F(ServersTest, AnotherVersionIsRefusedAndTheServerGoesOn) {
  Start(1);
  const auto stub = Servers::NewStub(NewChannel(addresses_[0]));
  for (const std::uint32_t protocol : {0U, kProtocol + 1}) {
    DeclareRequest request;
    request.set_sender("worker:1");
    request.set_servers(1);
    request.set_protocol(protocol);
    grpc::ClientContext context;
    context.set_deadline(GrpcTimeout(std::chrono::seconds(10)));
    DeclareReply reply;
    const Status status = FromGrpc(stub->Declare(&context, request, &reply));
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("worker:1 speaks protocol " + std::to_string(protocol) +
                                            ", ps:0 protocol"));
  }
  Initialise();
  std::vector<float> values(elements_);
  EXPECT_TRUE(NewClient(1)->Pull(values, true).ok());
}

TEST_F(ServersTest, SwappedAddressesAreNoticed) {
  Start(2);
  std::swap(addresses_[0], addresses_[1]);
  const Status status = NewClient(1)->Declare();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("takes this process for ps:0, it is ps:1"));
}

TEST_F(ServersTest, AGradientThatIsNotFiniteIsRefusedAndTheServerLives) {
  Start(1);
  Initialise();
  const auto client = NewClient(1);
  std::vector<float> values(elements_);
  OrThrow(client->Pull(values, true));
  const auto gradient = std::make_shared<std::vector<float>>(elements_, 1.0F);
  (*gradient)[3000 * 701 + 10] = std::numeric_limits<float>::quiet_NaN();
  const Status status = client->Push(GradientOf(gradient), values);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("gradient of bias"));
  (*gradient)[3000 * 701 + 10] = 1;
  EXPECT_TRUE(client->Push(GradientOf(gradient), values).ok());
}

// Where a server takes frames.
std::string FramesAt(const std::string& address) {
  const auto stub = Servers::NewStub(NewChannel(address));
  grpc::ClientContext context;
  EndpointReply reply;
  EXPECT_TRUE(stub->Endpoint(&context, EndpointRequest(), &reply).ok());
  return WithPort(address, static_cast<int>(reply.port()));
}

TEST_F(ServersTest, FuzzedFramesGetErrorsOrAreHungUpOnAndTheServerLives) {
  Start(1);
  Initialise();
  const std::string address = FramesAt(addresses_[0]);
  FrameHeader header;
  header.set_client(5);
  header.set_sequence(1);
  header.set_layout(spec_.Fingerprint());
  header.set_weight(1);
  header.add_chunks(0);
  header.add_versions(0);
  const Deadline deadline = DeadlineAfter(std::chrono::seconds(30));
  const Philox random(4);
  int refused = 0;
  for (std::uint64_t i = 0; i < 300; ++i) {
    const Philox::Block draw = random.At(i);
    const FrameMethod methods[] = {FrameMethod::kPush, FrameMethod::kAssign, FrameMethod::kPull};
    // Cut, flipped, or whole with a payload that is too short for its chunk.
    std::string bytes = EncodeFrame(methods[i % 3], header, 64) + std::string(64, 'x');
    if (i % 4 != 0) {
      bytes[draw[1] % bytes.size()] = static_cast<char>(draw[2]);
      bytes.resize(i % 2 == 0 ? bytes.size() : draw[0] % (bytes.size() + 1));
    }
    const Socket socket = OrThrow(Connect(address, deadline));
    OrThrow(WriteAll(socket, bytes.data(), bytes.size(), deadline));
    ::shutdown(socket.fd(), SHUT_WR);
    // An answer, or the end of the connection; never silence.
    FramePrefix prefix;
    const Status answered = ReadAll(socket, &prefix, sizeof(prefix), deadline);
    if (answered.ok()) {
      ASSERT_TRUE(prefix.Check().ok());
      std::string text(prefix.header_bytes, '\0');
      OrThrow(ReadAll(socket, text.data(), text.size(), deadline));
      FrameHeader reply;
      ASSERT_TRUE(reply.ParseFromString(text));
      if (methods[i % 3] != FrameMethod::kPull && prefix.method != 1) {
        EXPECT_NE(reply.error().kind(), Error::NONE);
        EXPECT_NE(reply.error().message(), "");
        ++refused;
      }
    } else {
      ASSERT_NE(answered.code(), StatusCode::kDeadlineExceeded) << i;
    }
  }
  EXPECT_GT(refused, 50);
  const auto client = NewClient(1);
  std::vector<float> values(elements_, 9);
  OrThrow(client->Pull(values, true));
  ExpectAll(values, 0);
}

// Passes a connection on, but the first `losses` of them lose what the server answers: when its
// first bytes come, both sides are closed.
class LosesReplies {
 public:
  LosesReplies(std::string target, int losses)
      : listener_(OrThrow(Listen("127.0.0.1:0", {}))), target_(std::move(target)), left_(losses) {
    thread_ = std::thread([this] { Run(); });
  }
  ~LosesReplies() {
    stop_ = true;
    thread_.join();
  }
  const std::string& address() const { return listener_.address; }
  int lost() const { return lost_; }

 private:
  void Run() {
    Socket client;
    Socket server;
    while (!stop_) {
      if (!client.open()) {
        pollfd event = {listener_.socket.fd(), POLLIN, 0};
        if (::poll(&event, 1, 10) > 0) {
          client = Socket(::accept(listener_.socket.fd(), nullptr, nullptr));
          server = OrThrow(Connect(target_, DeadlineAfter(std::chrono::seconds(5))));
        }
        continue;
      }
      pollfd events[2] = {{client.fd(), POLLIN, 0}, {server.fd(), POLLIN, 0}};
      ::poll(events, 2, 10);
      bool open = true;
      if (events[0].revents != 0) {
        open = Pass(client, server);
      }
      if (open && events[1].revents != 0) {
        if (left_ > 0) {
          --left_;
          ++lost_;
          open = false;
        } else {
          open = Pass(server, client);
        }
      }
      if (!open) {
        client.Close();
        server.Close();
      }
    }
  }
  static bool Pass(const Socket& from, const Socket& to) {
    std::vector<char> bytes(64 << 10);
    const ssize_t got = ::recv(from.fd(), bytes.data(), bytes.size(), 0);
    return got > 0 && WriteAll(to, bytes.data(), static_cast<std::size_t>(got),
                               DeadlineAfter(std::chrono::seconds(5)))
                          .ok();
  }

  const Listener listener_;
  const std::string target_;
  std::atomic<bool> stop_ = false;
  int left_;
  std::atomic<int> lost_ = 0;
  std::thread thread_;
};

TEST_F(ServersTest, APushWhoseAnswersAreLostIsRepeatedAndAppliedOnce) {
  Start(1);
  Initialise();
  constexpr int kLosses = 3;
  LosesReplies proxy(FramesAt(addresses_[0]), kLosses);
  const auto link = FrameLink::Make(
      {"ps:0"}, [&](int, bool) { return Result(proxy.address()); }, milliseconds(20'000),
      milliseconds(20'000));
  const auto reader = NewClient(9);
  std::vector<float> values(elements_);
  OrThrow(reader->Pull(values, true));
  std::vector<FrameRequest> requests;
  std::vector<float> ones(elements_, 1);
  for (std::size_t c = 0; c < reader->chunks().size(); ++c) {
    const Chunk& chunk = reader->chunks()[c];
    FrameRequest& request = requests.emplace_back(FrameRequest{0, FrameMethod::kPush, {}, {}});
    request.header.set_client(5);
    request.header.set_sequence(c + 1);
    request.header.set_layout(spec_.Fingerprint());
    request.header.set_weight(1);
    request.header.add_chunks(static_cast<std::uint32_t>(c));
    request.header.add_versions(0);
    request.payload.push_back(
        std::span<const float>(ones).first(static_cast<std::size_t>(chunk.elements)));
  }
  int answered = 0;
  OrThrow(link->Run(requests, {.place = [](int, const FrameHeader&) { return Places(); },
                               .done =
                                   [&](int, const FrameHeader&) {
                                     ++answered;
                                     return Status();
                                   }}));
  EXPECT_EQ(answered, static_cast<int>(requests.size()));
  EXPECT_EQ(proxy.lost(), kLosses);
  OrThrow(reader->Pull(values, true));
  ExpectAll(values, -1);
  EXPECT_GE(OrThrow(reader->Stats()).duplicates, static_cast<std::uint64_t>(kLosses));
}

TEST_F(ServersTest, FramesThatComeTwiceOrOutOfOrderCountOnce) {
  Start(1);
  Initialise();
  const auto reader = NewClient(9);
  const Chunk& chunk = reader->chunks()[0];
  const std::vector<float> ones(static_cast<std::size_t>(chunk.elements), 1);
  const Deadline deadline = DeadlineAfter(std::chrono::seconds(20));
  const Socket socket = OrThrow(Connect(FramesAt(addresses_[0]), deadline));
  for (const std::uint64_t sequence : {3, 1, 3, 2, 1, 2, 3}) {
    FrameHeader header;
    header.set_client(5);
    header.set_sequence(sequence);
    header.set_layout(spec_.Fingerprint());
    header.set_weight(1);
    header.add_chunks(0);
    header.add_versions(0);
    const std::string head = EncodeFrame(FrameMethod::kPush, header, ones.size() * sizeof(float));
    OrThrow(WriteAll(socket, head.data(), head.size(), deadline));
    OrThrow(WriteAll(socket, ones.data(), ones.size() * sizeof(float), deadline));
  }
  for (int i = 0; i < 7; ++i) {
    FramePrefix prefix;
    OrThrow(ReadAll(socket, &prefix, sizeof(prefix), deadline));
    std::string text(prefix.header_bytes, '\0');
    OrThrow(ReadAll(socket, text.data(), text.size(), deadline));
    FrameHeader reply;
    ASSERT_TRUE(reply.ParseFromString(text));
    EXPECT_FALSE(reply.has_error());
  }
  std::vector<float> values(elements_);
  OrThrow(reader->Pull(values, true));
  EXPECT_EQ(values[static_cast<std::size_t>(chunk.offset)], -3);
  EXPECT_EQ(OrThrow(reader->Stats()).duplicates, 4U);
}

TEST_F(ServersTest, WhoSendsFasterThanItReadsIsHeldUpAndNobodyElse) {
  Start(1);
  Initialise();
  const Socket socket =
      OrThrow(Connect(FramesAt(addresses_[0]), DeadlineAfter(std::chrono::seconds(20))));
  FrameHeader header;
  header.set_client(5);
  header.set_layout(spec_.Fingerprint());
  header.add_chunks(0);
  header.add_versions(0);
  const std::string pull = EncodeFrame(FrameMethod::kPull, header, 0);
  // A megabyte is asked for with each frame, and none is read.
  constexpr std::size_t kMost = std::size_t{64} << 20;
  std::size_t sent = 0;
  pollfd event = {socket.fd(), POLLOUT, 0};
  while (sent<kMost&& ::poll(&event, 1, 300)> 0) {
    const ssize_t n = ::send(socket.fd(), pull.data(), pull.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    sent += n > 0 ? static_cast<std::size_t>(n) : 0;
    if (n >= 0 && static_cast<std::size_t>(n) < pull.size()) {
      break;
    }
  }
  EXPECT_LT(sent, kMost) << "the server takes requests without an end";
  const auto client = NewClient(1);
  std::vector<float> values(elements_, 9);
  OrThrow(client->Pull(values, true));
  ExpectAll(values, 0);
}

TEST_F(ServersTest, AWorkerThatWasGivenUpIsToldAndChangesNothing) {
  Start(2);
  Initialise();
  const auto zombie = NewClient(1);
  std::vector<float> values(elements_);
  OrThrow(zombie->Pull(values, true));
  OrThrow(NewClient(1000)->Retire(1));
  const auto gradient = std::make_shared<std::vector<float>>(elements_, 1.0F);
  const Status status = zombie->Push(GradientOf(gradient), values);
  EXPECT_EQ(status.code(), StatusCode::kAborted);
  EXPECT_THAT(status.message(), HasSubstr("was given up"));
  OrThrow(NewClient(3)->Pull(values, true));
  ExpectAll(values, 0);
}

// `bias` is not trained: it moves by differences, and travels as it is.
TEST_F(ServersTest, GradientsAndValuesTravelIn16Bits) {
  for (const DType wire : {DType::kFloat16, DType::kBFloat16}) {
    servers_.clear();
    addresses_.clear();
    Start(2);
    spec_.parameters[1].trainable = false;
    Initialise();
    const float step = wire == DType::kFloat16 ? 0x1p-10F : 0x1p-7F;  // of values from 1 to 2
    const auto client = Client::Make(
        spec_, addresses_, {.client = 1, .task = "worker:1", .wire = {.push = wire, .pull = wire}});
    std::vector<float> values(elements_);
    OrThrow(client->Pull(values, true));
    const auto gradient = std::make_shared<std::vector<float>>(elements_, -(1 + step / 4));
    (*gradient)[3000 * 701 + 8] = step / 4;
    for (int i = 0; i < 8; ++i) {
      OrThrow(client->Push(GradientOf(gradient, /*weight=*/8), values));
    }
    // Eight times (1 + step/4)/8: without feedback the quarter would be lost.
    std::vector<float> exact(elements_);
    OrThrow(NewClient(2)->Pull(exact, true));
    EXPECT_NEAR(exact[0], 1 + step / 4, step / 16);
    EXPECT_NEAR(exact[3000 * 701 - 1], 1 + step / 4, step / 16);
    EXPECT_EQ(values[0], 1) << "rounded";
    EXPECT_EQ(exact[3000 * 701 + 8], 8 * step / 4) << "a difference";
    EXPECT_EQ(values[3000 * 701 + 8], 8 * step / 4);
    EXPECT_EQ(client->version(), 8U);
  }
}

// What rounding took of a push is applied with the next one's clipping, and was with its own.
TEST_F(ServersTest, WhatIsFedBackIsClippedAsItsGradientWas) {
  constexpr float kStep = 0x1p-7F;  // of values from 1 to 2
  Start(1);
  Initialise();
  const auto client = Client::Make(
      spec_, addresses_, {.client = 1, .task = "worker:1", .wire = {.push = DType::kBFloat16}});
  std::vector<float> values(elements_);
  OrThrow(client->Pull(values, true));
  const std::vector<float> first(elements_, -(1 + kStep / 4));
  const std::vector<float> second(elements_, -1.0F / 256);
  OrThrow(client->Push({.arena = first, .weight = 1, .clip = 0.125}, values));
  ExpectAll(values, 0.125F);
  OrThrow(client->Push({.arena = second, .weight = 1}, values));
  ExpectAll(values, 0.125F + 0.125F * kStep / 4 + 1.0F / 256);
}

// So it is with a round, whose clipping is known when all of it is there.
TEST_F(ServersTest, WhatARoundFeedsBackIsClippedAsItWas) {
  constexpr double kMost = 0.125;
  Start(2);
  spec_.consistency.mode = Consistency::Mode::kSynchronous;
  spec_.optimizer = Sgd({.learning_rate = 1, .global_clip_norm = kMost})->config();
  Initialise();
  const auto client = Client::Make(
      spec_, addresses_, {.client = 1, .task = "worker:1", .wire = {.push = DType::kBFloat16}});
  std::vector<float> gradient(elements_, 0);
  std::vector<float> values(elements_);
  const auto round = [&](std::uint64_t number, float first) {
    gradient[0] = first;
    Gradient pushed = {.arena = gradient, .weight = 1};
    pushed.round.emplace();
    pushed.round->set_round(number);
    pushed.round->set_parts(1);
    OrThrow(client->Push(pushed, {}));
    for (int repeated = 0; repeated < 2; ++repeated) {
      OrThrow(client->Settle(number, {}, kMost));
    }
    OrThrow(client->Pull(values, false));
  };
  round(1, -(1 + 0x1p-9F));  // arrives as -1
  EXPECT_EQ(values[0], 0.125F);
  round(2, -0x1p-8F);
  EXPECT_EQ(values[0], 0.125F + 0x1p-12F + 0x1p-8F);
}

// With backup workers. What rounding took of a part that was dropped is as little applied as the
// part, and an empty part takes nothing.
TEST_F(ServersTest, OfAPartThatWasDroppedNothingIsFedBack) {
  constexpr double kMost = 0.125;
  constexpr float kLong = -(1 + 0x1p-9F);  // arrives as -1
  constexpr float kShort = -0x1p-8F;
  Start(2);
  spec_.consistency.mode = Consistency::Mode::kSynchronous;
  spec_.consistency.backup_workers = 1;
  spec_.optimizer = Sgd({.learning_rate = 1, .global_clip_norm = kMost})->config();
  Initialise();
  const auto client = Client::Make(
      spec_, addresses_, {.client = 1, .task = "worker:1", .wire = {.push = DType::kBFloat16}});
  const auto other = NewClient(2);
  std::vector<float> gradient(elements_, 0);
  std::vector<float> values(elements_);
  const auto push = [&](Client& by, std::uint64_t round, std::uint32_t attempt, std::uint32_t part,
                        std::uint32_t parts, float first) {
    gradient[0] = first;
    Gradient pushed = {.arena = gradient, .weight = first == 0 ? 0.0 : 1.0};
    pushed.round.emplace();
    pushed.round->set_round(round);
    pushed.round->set_attempt(attempt);
    pushed.round->set_part(part);
    pushed.round->set_parts(parts);
    OrThrow(by.Push(pushed, {}));
  };
  const auto finish = [&](std::uint64_t round, std::uint32_t attempt,
                          const std::vector<std::uint32_t>& winners) {
    Commit commit;
    commit.set_round(round);
    commit.set_attempt(attempt);
    commit.mutable_winners()->Assign(winners.begin(), winners.end());
    OrThrow(client->Settle(round, commit, kMost));
    OrThrow(client->PullForStep(values, commit));
    return values[0];
  };
  push(*client, 1, 0, 0, 2, kLong);
  push(*other, 1, 0, 1, 2, 0);
  EXPECT_EQ(finish(1, 0, {1}), 0) << "it was late";
  push(*client, 2, 0, 0, 2, kShort);
  EXPECT_EQ(finish(2, 0, {0}), 0x1p-8F);

  push(*client, 3, 0, 0, 2, kLong);
  push(*client, 3, 1, 0, 1, kShort);
  EXPECT_EQ(finish(3, 1, {0}), 2 * 0x1p-8F) << "the round was cut anew";

  push(*client, 4, 0, 0, 2, kLong);
  EXPECT_EQ(finish(4, 0, {0}), 2 * 0x1p-8F + 0.125F) << "clipped to an eighth, as is what is left";
  push(*client, 5, 0, 0, 2, 0);
  push(*other, 5, 0, 1, 2, -1);
  EXPECT_EQ(finish(5, 0, {0, 1}), 2 * 0x1p-8F + 0.25F) << "clipped, with an empty part of its own";
  push(*client, 6, 0, 0, 2, kShort);
  EXPECT_EQ(finish(6, 0, {0}), 3 * 0x1p-8F + 0x1p-12F + 0.25F);

  push(*client, 7, 0, 0, 2, kLong);
  push(*other, 7, 0, 1, 2, kShort);
  OrThrow(other->Settle(
      7,
      [] {
        Commit commit;
        commit.set_round(7);
        commit.add_winners(1);
        return commit;
      }(),
      kMost));
  push(*other, 8, 0, 1, 2, kShort);
  EXPECT_EQ(finish(8, 0, {1}), 5 * 0x1p-8F + 0x1p-12F + 0.25F) << "late for two rounds";
  push(*client, 9, 0, 0, 2, kShort);
  EXPECT_EQ(finish(9, 0, {0}), 6 * 0x1p-8F + 0x1p-12F + 0.25F);
}

TEST_F(ServersTest, ValuesTooLargeFor16BitsAreErrorsWithTheirName) {
  Start(1);
  Initialise(70'000);
  const auto client = Client::Make(spec_, addresses_,
                                   {.client = 1,
                                    .task = "worker:1",
                                    .wire = {.push = DType::kFloat16, .pull = DType::kFloat16}});
  std::vector<float> values(elements_);
  EXPECT_THAT(client->Pull(values, true).message(),
              HasSubstr("wide holds a value that float16 cannot [let values travel"));
  const auto gradient = std::make_shared<std::vector<float>>(elements_, 70'000.0F);
  EXPECT_THAT(client->Push(GradientOf(gradient), {}).message(),
              HasSubstr("the gradient of wide holds a value that float16 cannot"));
  OrThrow(NewClient(2)->Pull(values, true));  // the server goes on
  ExpectAll(values, 70'000);
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

TEST_F(ServersTest, ABoundedReadWaitsForAWorkerThatIsBehindButNotForEver) {
  Start(2);
  spec_.consistency = OrThrow(Consistency::Parse("ssp:1"));
  Initialise();
  const auto fast = Client::Make(
      spec_, addresses_, {.client = 1, .task = "worker:1", .read_timeout = milliseconds(1)});
  const auto slow = Client::Make(spec_, addresses_, {.client = 2, .task = "worker:7"});
  std::vector<float> values(elements_);
  OrThrow(fast->PullForStep(values, {}));
  OrThrow(slow->PullForStep(values, {}));
  const auto gradient = std::make_shared<std::vector<float>>(elements_, 1.0F);
  OrThrow(fast->Push(GradientOf(gradient), values));
  const Status status = fast->Push(GradientOf(gradient), values);
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(),
              HasSubstr("worker:7 is 2 steps behind this one, in the middle of its "
                        "work; ssp:1 allows 1"));
  OrThrow(slow->Push(GradientOf(gradient), values));
  ExpectAll(values, -3);
  OrThrow(fast->PullForStep(values, {}));
  EXPECT_EQ(OrThrow(slow->Stats()).max_lead, 1U);
  // Between two pieces of work nobody is waited for.
  OrThrow(slow->Pause());
  OrThrow(fast->Push(GradientOf(gradient), values));
  OrThrow(fast->Push(GradientOf(gradient), values));
  ExpectAll(values, -5);
}

// The end of a step is still being applied for another connection, whose place this one took: the
// read that is behind it on the way is not served before it, nor does it tell of the step.
TEST_F(ServersTest, ABoundedReadDoesNotOvertakeAPushThatIsAskedForAgain) {
  Start(1);
  spec_.consistency = OrThrow(Consistency::Parse("ssp:1"));
  Initialise();
  ParameterStore& store = servers_[0]->store();
  const auto clock = [&] {
    ClockTable::Clocks clocks;
    store.TellClocks(&clocks);
    return clocks.empty() ? 0 : clocks[0].clock();
  };
  for (const std::uint64_t number : {1, 2}) {  // through memory, and over TCP
    Initialise();
    const auto worker = NewClient(number);
    std::vector<float> values(elements_);
    const auto gradient = std::make_shared<std::vector<float>>(elements_, 1.0F);
    OrThrow(worker->Push(GradientOf(gradient), values));
    ExpectAll(values, -1);
    const std::uint64_t before = clock();
    const std::uint64_t end_of_step = 2 * worker->pushes()[0];
    ASSERT_EQ(store.pushes().Claim(number, end_of_step), PushLedger::Claimed::kNew);
    auto pushed =
        std::async(std::launch::async, [&] { return worker->Push(GradientOf(gradient), values); });
    EXPECT_EQ(pushed.wait_for(milliseconds(700)), std::future_status::timeout);
    EXPECT_EQ(clock(), before) << "others would take the step for made";
    store.pushes().Finish(number, end_of_step, /*applied=*/false);
    OrThrow(pushed.get());
    ExpectAll(values, -2);
    EXPECT_EQ(clock(), before + 1);
    store.Retire(number);
  }
}

TEST_F(ServersTest, AServerThatIsGoneIsNamed) {
  Start(2);
  Initialise();
  const auto client = NewClient(1, milliseconds(300));
  std::vector<float> values(elements_);
  OrThrow(client->Pull(values, true));
  servers_[1].reset();
  const Status status =
      client->Push(GradientOf(std::make_shared<std::vector<float>>(elements_, 1.0F)), values);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("ps:1 (" + addresses_[1] + ")"));
}

TEST_F(ServersTest, ARestartedServerIsNotTakenForTheOldOne) {
  Start(1);
  Initialise();
  const auto client = NewClient(1);
  std::vector<float> values(elements_);
  OrThrow(client->Pull(values, true));
  servers_[0].reset();
  servers_[0] = OrThrow(Server::Start(addresses_[0], 0, Log()));
  const Status status =
      client->Push(GradientOf(std::make_shared<std::vector<float>>(elements_, 1.0F)), values);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("has lost its variables"));
}

TEST_F(ServersTest, AbortEndsACallThatWaits) {
  Start(1);
  Initialise();
  servers_[0].reset();
  const auto client = NewClient(1, milliseconds(60'000));
  std::vector<float> values(elements_);
  std::future<Status> pull =
      std::async(std::launch::async, [&] { return client->Pull(values, true); });
  client->Abort(Unavailable("worker:3 is gone"));
  ASSERT_EQ(pull.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_EQ(pull.get(), Unavailable("worker:3 is gone"));
  EXPECT_EQ(client->Drain(), Unavailable("worker:3 is gone"));
}

TEST_F(ServersTest, DrainEndsTheWait) {
  Start(2);
  EXPECT_FALSE(servers_[0]->WaitDrained(DeadlineAfter(milliseconds(1))));
  OrThrow(NewClient(1)->Drain());
  EXPECT_TRUE(servers_[0]->WaitDrained(DeadlineAfter(milliseconds(1))));
  EXPECT_TRUE(servers_[1]->WaitDrained(DeadlineAfter(milliseconds(1))));
}

// A server that was told ends, and may be gone when those that were not are told again.
TEST_F(ServersTest, ADrainThatFailedTellsTheRest) {
  Start(2);
  const auto client = NewClient(1, milliseconds(3'000));
  servers_[1].reset();
  const Status failed = client->Drain();
  EXPECT_EQ(failed.code(), StatusCode::kUnavailable);
  EXPECT_THAT(failed.message(), HasSubstr("ps:1 (" + addresses_[1] + ")"));
  EXPECT_TRUE(servers_[0]->WaitDrained(DeadlineAfter(milliseconds(1))));
  servers_[0].reset();
  servers_[1] = OrThrow(Server::Start(addresses_[1], 1, Log()));
  EXPECT_EQ(client->Drain(), OkStatus());
  EXPECT_TRUE(servers_[1]->WaitDrained(DeadlineAfter(milliseconds(1))));
}

TEST_F(ServersTest, APortThatIsTakenIsAnError) {
  Start(1);
  EXPECT_EQ(Server::Start(addresses_[0], 1, Log()).status().code(), StatusCode::kAlreadyExists);
}

// ---- Coordinator --------------------------------------------------------------------------------

class CoordinatorServiceTest : public ::testing::Test {
 protected:
  CoordinatorServiceTest()
      : coordinator_({.workers = {{TaskType::kWorker, 0}, {TaskType::kWorker, 1}}}),
        server_(OrThrow(CoordinatorServer::Start("127.0.0.1:0", coordinator_))) {}
  std::unique_ptr<CoordinatorClient> NewWorker(int index) {
    auto client = CoordinatorClient::Make(
        "127.0.0.1:" + std::to_string(server_->port()), "chief:0",
        {.task = {TaskType::kWorker, index}, .incarnation = static_cast<std::uint64_t>(index) + 1},
        milliseconds(20'000));
    OrThrow(client->Attach());
    OrThrow(client->OpenDataset(0, {.fingerprint = 5, .examples = 1000, .batch_size = 10}));
    return client;
  }

  Coordinator coordinator_;
  std::unique_ptr<CoordinatorServer> server_;
};

TEST_F(CoordinatorServiceTest, WorkersShareAnEpochAndLeaveItTogether) {
  OrThrow(coordinator_.Open(0));
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
  EXPECT_TRUE(OrThrow(coordinator_.WaitOver(milliseconds(0))));
  EXPECT_EQ(coordinator_.coverage().at(0).seen, 1000);
}

TEST_F(CoordinatorServiceTest, RoundsPassSumsOn) {
  OrThrow(coordinator_.Open(6));
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
TEST_F(CoordinatorServiceTest, AConnectionThatFallsSilentIsReplaced) {
  OrThrow(coordinator_.Open(0));
  testing::LossyProxy proxy({server_->port()}, /*loss=*/0, /*seed=*/1);
  const auto worker = CoordinatorClient::Make(
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

TEST_F(CoordinatorServiceTest, AbortEndsAWait) {
  const auto worker = NewWorker(0);  // nothing is handed out: the coordinator is not open
  auto next = std::async(std::launch::async, [&] { return worker->NextSplit({}, 0, {}).status(); });
  worker->Abort(Unavailable("ps:0 is gone"));
  ASSERT_EQ(next.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_EQ(next.get(), Unavailable("ps:0 is gone"));
}

TEST_F(CoordinatorServiceTest, AStrangerIsRefused) {
  const auto stranger = CoordinatorClient::Make(
      "127.0.0.1:" + std::to_string(server_->port()), "chief:0",
      {.task = {TaskType::kWorker, 9}, .incarnation = 1}, milliseconds(1'000));
  EXPECT_EQ(stranger->Attach().status().code(), StatusCode::kFailedPrecondition);
}

// ---- A whole job --------------------------------------------------------------------------------

// Who had ended in the job that the journal is of is no less missing in one that begins.
TEST(JobTest, AJournalOfAnotherJobSkipsNobodyInTheRollCall) {
  const testing::TempDir folder;
  {
    const auto journal = OrThrow(Journal::Open(FileSystem::Local(), folder.path(), 0));
    OrThrow(journal->Begin(false, 7));
    OrThrow(journal->Await(journal->Worker({TaskType::kWorker, 1}, JournalState::End::kDone)));
  }
  const TaskId chief = {TaskType::kChief, 0};
  ClusterConfig config;
  config.cluster = ClusterSpec({{chief, "127.0.0.1:" + std::to_string(testing::UnusedPorts(1)[0])},
                                {{TaskType::kWorker, 0}, "127.0.0.1:0"},
                                {{TaskType::kWorker, 1}, "127.0.0.1:0"},
                                {{TaskType::kPs, 0}, "127.0.0.1:0"}});
  std::map<TaskId, std::future<Status>> tasks;
  for (const TaskId& task : config.cluster.Tasks()) {
    if (task == TaskId{TaskType::kWorker, 1}) {
      continue;
    }
    config.task = task;
    tasks[task] = std::async(std::launch::async, [config, folder = folder.path()]() -> Status {
      COHORT_ASSIGN_OR_RETURN(const auto strategy, ParameterServerStrategy::Make(
                                                       config, {.join_timeout = milliseconds(3'000),
                                                                .rejoin_grace = milliseconds(3'000),
                                                                .journal_folder = folder}));
      return strategy->Serve();  // of the server
    });
  }
  for (auto& [task, running] : tasks) {
    const Status status = running.get();
    EXPECT_FALSE(status.ok()) << task.ToString();
    if (task == chief) {
      EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
      EXPECT_THAT(status.message(),
                  HasSubstr("waiting for worker:1 (127.0.0.1:0, not registered)"));
    }
  }
}

}  // namespace
}  // namespace cohort::ps
