// TcpTransport as a peer sees it: bytes on a socket, cut where the network likes.

#include "tcp/tcp_transport.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "tcp/rendezvous.h"

namespace cohort {
namespace {

using namespace std::chrono_literals;

class Heard final : public TransportListener {
 public:
  bool OnControl(int /*peer*/, FrameKind /*kind*/, Bytes /*body*/) override { return true; }
  void OnLost(int /*peer*/, const Status& why) override { words += "lost: " + why.ToString(); }
  void OnWrongSize(int /*peer*/, std::size_t sent, std::size_t expected) override {
    words += std::to_string(sent) + " for " + std::to_string(expected);
  }
  std::string words;
};

// Rank 0's transport, and the other ends of its connections to rank 1.
class TcpTransportTest : public testing::Test {
 protected:
  void SetUp() override {
    TcpGroup group;
    group.sockets.resize(2 * kChannels);
    for (int channel = 0; channel < kChannels; ++channel) {
      std::array<int, 2> ends;
      ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()),
                0);
      group.sockets[static_cast<std::size_t>(kChannels + channel)] = Socket(ends[0]);
      (channel == kDataChannel ? data_ : control_) = Socket(ends[1]);
    }
    auto transport = MakeTcpTransport(std::move(group));
    ASSERT_TRUE(transport.ok()) << transport.status().ToString();
    transport_ = std::move(transport).value();
    transport_->Attach(&heard_);
  }

  // The header of tcp_transport.cc, then the body.
  static std::vector<std::byte> Frame(std::span<const float> values) {
    struct {
      std::uint32_t magic = 0x52464f43;
      FrameKind kind = FrameKind::kData;
      std::uint8_t reserved[3] = {};
      std::uint64_t bytes = 0;
    } header;
    header.bytes = values.size_bytes();
    std::vector<std::byte> frame(sizeof(header) + values.size_bytes());
    std::memcpy(frame.data(), &header, sizeof(header));
    std::memcpy(frame.data() + sizeof(header), values.data(), values.size_bytes());
    return frame;
  }
  void Arrive(Bytes bytes) {
    ASSERT_EQ(::write(data_.fd(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    transport_->Progress(DeadlineAfter(0s));  // what is there
  }

  Socket data_;
  Socket control_;
  Heard heard_;
  std::unique_ptr<Transport> transport_;
};

// Wherever a frame is cut, and whenever its receive is posted: before it, in it, or after it.
TEST_F(TcpTransportTest, AReceiveMayBePostedWhileItsFrameArrives) {
  std::vector<float> sent(7);
  std::iota(sent.begin(), sent.end(), 1.0F);
  const std::vector<std::byte> frame = Frame(sent);
  const Reduction sum(DType::kFloat32, ReduceOp::kSum);
  const std::vector<float> local(sent.size(), 100.0F);
  for (std::size_t cut = 1; cut < frame.size(); ++cut) {
    for (const bool combines : {false, true}) {
      // A frame before it that was kept, so that the next is kept as well.
      Arrive(frame);
      Arrive(Bytes(frame).first(cut));
      std::vector<float> first(sent.size());
      std::vector<float> second(sent.size());
      const Ticket one = transport_->Receive(1, std::as_writable_bytes(std::span(first)), {});
      EXPECT_TRUE(transport_->Done(one)) << "it had come as a whole";
      const CombineWith combine =
          combines ? CombineWith{&sum, std::as_bytes(std::span(local)).data()} : CombineWith{};
      const Ticket two = transport_->Receive(1, std::as_writable_bytes(std::span(second)), combine);
      EXPECT_FALSE(transport_->Done(two));
      Arrive(Bytes(frame).subspan(cut));
      ASSERT_TRUE(transport_->Done(two)) << "cut after " << cut << " bytes";
      EXPECT_FALSE(transport_->Owes(1));
      EXPECT_EQ(first, sent);
      for (std::size_t i = 0; i < sent.size(); ++i) {
        EXPECT_EQ(second[i], sent[i] + (combines ? 100.0F : 0.0F)) << cut;
      }
    }
  }
  EXPECT_EQ(heard_.words, "");
}

TEST_F(TcpTransportTest, AFrameOfAnotherLengthIsToldWheneverItsReceiveWasPosted) {
  const std::vector<float> sent(7, 1.0F);
  const std::vector<std::byte> frame = Frame(sent);
  Arrive(Bytes(frame).first(20));
  std::vector<float> shorter(6);
  const Ticket ticket = transport_->Receive(1, std::as_writable_bytes(std::span(shorter)), {});
  Arrive(Bytes(frame).subspan(20));
  EXPECT_FALSE(transport_->Done(ticket));
  EXPECT_EQ(heard_.words, "28 for 24");
}

}  // namespace
}  // namespace cohort
