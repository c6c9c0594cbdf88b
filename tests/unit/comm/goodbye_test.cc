// A rank that says goodbye and whose connection is reset before the other end has noticed: told at
// once where something still concerns it, and no error where nothing does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tcp/rendezvous.h"
#include "tcp/tcp_transport.h"
#include "transport_communicator.h"

namespace cohort {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

// Rank 0's communicator, and what rank 1 has of the connections between them: sockets, on which the
// test says what a communicator there would say, or a network does.
class Goodbye : public ::testing::Test {
 protected:
  void SetUp() override {
    TcpGroup group;
    group.name = "pair";
    group.sockets.resize(2 * kChannels);
    for (int channel = 0; channel < kChannels; ++channel) {
      auto listener = Listen("127.0.0.1:0", "");
      ASSERT_TRUE(listener.ok()) << listener.status().ToString();
      auto connected = Connect(listener->address, DeadlineAfter(5s));
      ASSERT_TRUE(connected.ok()) << connected.status().ToString();
      pollfd event = {listener->socket.fd(), POLLIN, 0};
      ASSERT_EQ(::poll(&event, 1, 5000), 1);
      Socket accepted(::accept4(listener->socket.fd(), nullptr, nullptr, SOCK_NONBLOCK));
      ASSERT_TRUE(Prepare(connected.value()).ok() && Prepare(accepted).ok());
      group.sockets[static_cast<std::size_t>(kChannels + channel)] = std::move(connected).value();
      (channel == kDataChannel ? data_ : control_) = std::move(accepted);
    }
    CommunicatorOptions options;
    options.timeout = 30s;  // what is found only then is found too late, and has other words
    options.peer_name = [](int rank) { return "worker:" + std::to_string(rank); };
    auto transport = MakeTcpTransport(std::move(group));
    ASSERT_TRUE(transport.ok()) << transport.status().ToString();
    TransportCommunicatorParts parts;
    parts.transport = std::move(transport).value();
    parts.rank = 0;
    parts.size = 2;
    rank_ = std::make_unique<TransportCommunicator>(std::move(parts), options);
  }

  // As TcpTransport sends it: a header without a body.
  static void SayGoodbye(const Socket& socket) {
    struct {
      std::uint32_t magic = 0x52464f43;
      FrameKind kind = FrameKind::kBye;
      std::uint8_t reserved[3] = {};
      std::uint64_t bytes = 0;
    } header;
    ASSERT_TRUE(WriteAll(socket, &header, sizeof(header), DeadlineAfter(5s)).ok());
  }
  static void Reset(Socket& socket) {
    const linger none = {1, 0};
    ASSERT_EQ(::setsockopt(socket.fd(), SOL_SOCKET, SO_LINGER, &none, sizeof(none)), 0);
    socket.Close();
  }
  void ExpectLeft(const Status& status, const std::string& operation) {
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status.ToString();
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("rank 1 (worker:1) left the communicator"), HasSubstr(operation)));
  }

  Socket data_;
  Socket control_;
  std::unique_ptr<Communicator> rank_;
  std::vector<float> values_ = std::vector<float>(1000);
};

TEST_F(Goodbye, AReceiveThatIsPendingEndsWhenTheDataAreCut) {
  auto work = rank_->Receive(std::span(values_), 1, {.name = "fc1"});
  ASSERT_TRUE(work.ok()) << work.status().ToString();
  SayGoodbye(control_);
  Reset(data_);
  ExpectLeft(work.value()->Wait(), "Receive 'fc1'");
}

TEST_F(Goodbye, AReceiveThatIsPendingEndsWhenTheDataWereCutBeforeTheGoodbyeCame) {
  auto work = rank_->Receive(std::span(values_), 1, {.name = "fc1"});
  ASSERT_TRUE(work.ok()) << work.status().ToString();
  Reset(data_);
  SayGoodbye(control_);
  ExpectLeft(work.value()->Wait(), "Receive 'fc1'");
}

// More than the network takes: some of it is still to be sent when the peer is gone.
TEST_F(Goodbye, ASendThatIsPendingEnds) {
  values_.resize(16 << 20);
  auto work = rank_->Send(std::span(values_), 1, {.name = "fc1"});
  ASSERT_TRUE(work.ok()) << work.status().ToString();
  SayGoodbye(control_);
  Reset(data_);
  ExpectLeft(work.value()->Wait(), "Send 'fc1'");
}

TEST_F(Goodbye, NothingThatConcernsItIsNoError) {
  SayGoodbye(control_);
  Reset(data_);
  Reset(control_);
  // Had it been taken for a loss, the word on that would be the word on everything after it.
  auto work = rank_->Receive(std::span(values_), 1, {.name = "fc1"});
  const Status status = work.ok() ? work.value()->Wait() : work.status();
  ExpectLeft(status, "Receive 'fc1'");
}

TEST_F(Goodbye, TheOneBehindTheDataCountsWhereTheOtherIsCut) {
  Reset(control_);
  SayGoodbye(data_);
  auto work = rank_->Receive(std::span(values_), 1, {.name = "fc1"});
  const Status status = work.ok() ? work.value()->Wait() : work.status();
  ExpectLeft(status, "Receive 'fc1'");
}

TEST_F(Goodbye, WithoutOneTheRankIsGone) {
  auto work = rank_->Receive(std::span(values_), 1, {.name = "fc1"});
  ASSERT_TRUE(work.ok()) << work.status().ToString();
  Reset(data_);
  Reset(control_);
  const Status status = work.value()->Wait();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status.ToString();
  // Seen in the operation, or just before it began.
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("rank 1 (worker:1) is gone"), HasSubstr("closed"),
                    AnyOf(HasSubstr("Receive 'fc1'"), HasSubstr("before the first operation"))));
}

}  // namespace
}  // namespace cohort
