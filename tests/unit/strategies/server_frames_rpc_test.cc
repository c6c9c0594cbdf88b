// Frames that are wrong, come twice or out of order, lose their answers, or come too fast.

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <optional>
#include <thread>
#include <utility>

#include <cohort/core/random.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "parameter_server/frames/frame_link.h"
#include "parameter_server/frames/frame_stream.h"
#include "parameter_server/frames/wire.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_frames.h"
#include "servers_test.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;

// Where a server takes frames.
std::string FramesAt(const std::string& address) {
  const auto stub = Servers::NewStub(NewChannel(address));
  grpc::ClientContext context;
  EndpointReply reply;
  EXPECT_TRUE(stub->Endpoint(&context, EndpointRequest(), &reply).ok());
  return WithPort(address, static_cast<int>(reply.port()));
}

struct Answer {
  FramePrefix prefix;
  FrameHeader header;
};
// To these bytes, behind which nothing comes; or the end of the connection, never silence.
std::optional<Answer> AnswerTo(const std::string& address, const std::string& bytes) {
  const Deadline deadline = DeadlineAfter(std::chrono::seconds(30));
  const Socket socket = OrThrow(Connect(address, deadline));
  OrThrow(WriteAll(socket, bytes.data(), bytes.size(), deadline));
  ::shutdown(socket.fd(), SHUT_WR);
  Answer answer;
  if (const Status read = ReadAll(socket, &answer.prefix, sizeof(answer.prefix), deadline);
      !read.ok()) {
    EXPECT_NE(read.code(), StatusCode::kDeadlineExceeded);
    return {};
  }
  OrThrow(answer.prefix.Check());
  std::string text(answer.prefix.header_bytes, '\0');
  OrThrow(ReadAll(socket, text.data(), text.size(), deadline));
  EXPECT_TRUE(answer.header.ParseFromString(text));
  return answer;
}

// One byte is another, and half of them are cut.
void Damage(const Philox::Block& draw, bool cut, std::string* bytes) {
  (*bytes)[draw[1] % bytes->size()] = static_cast<char>(draw[2]);
  bytes->resize(cut ? draw[0] % (bytes->size() + 1) : bytes->size());
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
  const Philox random(4);
  int refused = 0;
  for (std::uint64_t i = 0; i < 300; ++i) {
    const FrameMethod methods[] = {FrameMethod::kPush, FrameMethod::kAssign, FrameMethod::kPull};
    // Cut, flipped, or whole with a payload that is too short for its chunk.
    std::string bytes = EncodeFrame(methods[i % 3], header, 64) + std::string(64, 'x');
    if (i % 4 != 0) {
      Damage(random.At(i), /*cut=*/i % 2 != 0, &bytes);
    }
    const std::optional<Answer> answer = AnswerTo(address, bytes);
    if (answer.has_value() && methods[i % 3] != FrameMethod::kPull && answer->prefix.method != 1) {
      EXPECT_NE(answer->header.error().kind(), Error::NONE);
      EXPECT_NE(answer->header.error().message(), "");
      ++refused;
    }
  }
  EXPECT_GT(refused, 50);
  const auto client = NewClient(1);
  std::vector<float> values(elements_, 9);
  OrThrow(client->Pull(values, true));
  ExpectAll(values, 0);
}

// Of two tables, whose rows have 2 and 3 elements.
class RowFramesTest : public ServersTest {
 protected:
  static constexpr std::uint32_t kIds = 3;

  void StartWithTables() {
    Start(1);
    for (const std::int64_t dim : {2, 3}) {
      TableSpec table;
      table.name = "of " + std::to_string(dim);
      table.dim = dim;
      table.buckets = 8;
      table.optimizer = spec_.optimizer;
      spec_.tables.push_back(table);
    }
    Initialise();
    chief_ = RowClient::Make(spec_, addresses_, {.client = 1001});
  }
  // Rows 10, 11 and 12 of both tables, with gradients of 1; `more`: ids that it says it has besides
  // in the first table.
  std::string Frame(FrameMethod method, std::uint64_t client, bool training = true,
                    std::uint32_t more = 0) const {
    FrameHeader header;
    header.set_client(client);
    header.set_sequence(1);
    header.set_layout(spec_.Fingerprint());
    header.set_weight(1);
    std::string payload;
    const auto add = [&payload](const auto& values) {
      payload.append(reinterpret_cast<const char*>(values.data()),
                     values.size() * sizeof(values[0]));
    };
    for (std::uint32_t table = 0; table < 2; ++table) {
      const auto dim = static_cast<std::uint32_t>(spec_.tables[table].dim);
      RowBlock& block = AddBlock(header);
      block.set_table(table);
      block.set_count(kIds + (table == 0 ? more : 0));
      block.set_dim(dim);
      block.set_step(1);
      block.set_training(training);
      add(std::vector<std::uint64_t>{10, 11, 12});
      if (method == FrameMethod::kPushRows) {
        add(std::vector<std::uint32_t>(kIds, 1));
        add(std::vector<float>(std::size_t{kIds} * dim, 1));
      }
    }
    return EncodeFrame(method, header, payload.size()) + payload;
  }
  // All that the tables have.
  std::string Rows() const {
    std::string rows;
    for (const int table : {0, 1}) {
      OrThrow(chief_->Dump(table, [&](std::uint32_t, std::string_view bucket) {
        rows += bucket;
        return OkStatus();
      }));
    }
    return rows;
  }

  std::unique_ptr<RowClient> chief_;
};

TEST_F(RowFramesTest, FuzzedOnesHaveNoEffectOnAnyTableWhereTheyAreNotTaken) {
  StartWithTables();
  const std::string address = FramesAt(addresses_[0]);
  std::string rows = Rows();
  for (const FrameMethod method : {FrameMethod::kPushRows, FrameMethod::kPullRows}) {
    const std::optional<Answer> whole = AnswerTo(address, Frame(method, 5));
    ASSERT_TRUE(whole.has_value());
    EXPECT_EQ(whole->header.error().kind(), Error::NONE) << whole->header.error().message();
  }
  EXPECT_NE(std::exchange(rows, Rows()), rows) << "as they are they are taken";
  const Philox random(6);
  int refused = 0;
  int hung_up = 0;
  for (std::uint64_t i = 0; i < 400; ++i) {
    const FrameMethod method = i / 4 % 2 == 0 ? FrameMethod::kPushRows : FrameMethod::kPullRows;
    // Flipped, cut as well, or whole with a payload that is too short for its ids.
    std::string bytes = Frame(method, 100 + i, /*training=*/i / 8 % 2 == 0, i % 4 == 0 ? 1 : 0);
    if (i % 4 != 0) {
      Damage(random.At(i), /*cut=*/i % 2 != 0, &bytes);
    }
    const std::optional<Answer> answer = AnswerTo(address, bytes);
    const bool taken = answer.has_value() && answer->header.error().kind() == Error::NONE;
    if (answer.has_value() && !taken && answer->header.error().kind() != Error::NOT_YET) {
      EXPECT_NE(answer->header.error().message(), "") << i;
    }
    EXPECT_FALSE(taken && i % 4 == 0) << i;
    refused += answer.has_value() && !taken ? 1 : 0;
    hung_up += answer.has_value() ? 0 : 1;
    const std::string now = Rows();
    if (!taken) {
      ASSERT_EQ(now, rows) << i;
    }
    rows = now;
  }
  EXPECT_GE(refused, 100) << "a quarter is whole and wrong";
  EXPECT_GT(hung_up, 50) << "a half is cut";
  // And the server lives.
  const auto client = RowClient::Make(spec_, addresses_, {.client = std::uint64_t{1} << 40});
  const std::vector<std::uint64_t> ids = {1'000};
  const std::vector<float> ones(3, 1);
  const RowClient::Gradients push{.table = 1, .ids = ids, .values = ones};
  OrThrow(client->Push(std::span(&push, 1), /*step=*/2, /*weight=*/1));
  std::vector<float> row(3);
  OrThrow(client->Pull(1, ids, /*step=*/2, /*training=*/true, row));
  EXPECT_EQ(row, std::vector<float>(3, -1));
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

}  // namespace
}  // namespace cohort::ps
