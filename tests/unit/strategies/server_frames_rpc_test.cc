// Frames that are wrong, come twice or out of order, lose their answers, or come too fast.

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <thread>

#include <cohort/core/random.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "parameter_server/frames/frame_link.h"
#include "parameter_server/frames/frame_stream.h"
#include "parameter_server/frames/wire.h"
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

}  // namespace
}  // namespace cohort::ps
