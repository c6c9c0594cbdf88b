// Sends that leave the bytes where they are, over a network that copies none of them: loopback,
// whose kernel says that it has, and readers of its word that leave this out, and may be late.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "connected_pair.h"
#include "tcp/rendezvous.h"
#include "tcp/striped_socket.h"
#include "tcp/tcp_transport.h"
#include "testing/run_ranks.h"
#include "transport_communicator.h"

namespace cohort {
namespace {

using namespace std::chrono_literals;
using testing::ConnectedPair;
using ::testing::HasSubstr;

bool KernelHasZeroCopy() {
  const Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  return ::setsockopt(socket.fd(), SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) == 0;
}

// The kernel's word on sends, without a copy. Of any thread.
class Releases {
 public:
  // Nothing is released until Go.
  void Hold() { Set(true); }
  void Go() { Set(false); }
  // Each word is heard at the fourth look only.
  void BeLate() {
    const std::lock_guard lock(mutex_);
    late_ = true;
  }
  SendReleases Reader() {
    return [this](int fd) { return Read(fd); };
  }
  // Until one has been looked for, because there was a word, and held back. False: not in 20 s.
  bool AwaitHeldBack() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, 20s, [this] { return held_back_; });
  }
  bool held_back() const {
    const std::lock_guard lock(mutex_);
    return held_back_;
  }
  int heard() const {
    const std::lock_guard lock(mutex_);
    return heard_;
  }

 private:
  void Set(bool hold) {
    const std::lock_guard lock(mutex_);
    hold_ = hold;
  }
  std::optional<SendRelease> Read(int fd) {
    const std::lock_guard lock(mutex_);
    if (hold_) {
      held_back_ = true;
      changed_.notify_all();
      return std::nullopt;
    }
    if (late_ && ++looks_[fd] % 4 != 0) {
      return std::nullopt;
    }
    std::optional<SendRelease> release = ReadSendRelease(fd);
    if (release.has_value()) {
      release->copied = false;
      ++heard_;
    }
    return release;
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool hold_ = false;
  bool late_ = false;
  bool held_back_ = false;
  std::map<int, int> looks_;
  int heard_ = 0;
};

std::vector<std::byte> Numbered(std::size_t bytes, unsigned seed) {
  std::vector<std::byte> data(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    data[i] = static_cast<std::byte>((i + seed) * 2654435761U >> 13U);
  }
  return data;
}

// --- the transport

constexpr std::size_t kHeader = 16;  // of a frame
constexpr std::size_t kLarge = 1 << 20;
constexpr std::size_t kMoreThanSocketsTake = 32 << 20;

class Heard final : public TransportListener {
 public:
  bool OnControl(int /*peer*/, FrameKind kind, Bytes /*body*/) override {
    words += kind == FrameKind::kBye ? "bye " : "control ";
    return true;
  }
  void OnLost(int /*peer*/, const Status& why) override {
    words += "lost: " + why.ToString() + " ";
  }
  void OnWrongSize(int /*peer*/, std::size_t /*sent*/, std::size_t /*expected*/) override {
    words += "size ";
  }
  std::string words;
};

// Rank 0's transport, and the other ends of its connections to rank 1.
class ZeroCopyTransport : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!KernelHasZeroCopy()) {
      GTEST_SKIP() << "this kernel has no MSG_ZEROCOPY";
    }
    TcpGroup group;
    group.sockets.resize(2 * kChannels);
    for (int channel = 0; channel < kChannels; ++channel) {
      auto [mine, other] = ConnectedPair();
      group.sockets[static_cast<std::size_t>(kChannels + channel)] = std::move(mine);
      (channel == kDataChannel ? data_ : control_) = std::move(other);
    }
    group.stripe_bytes = StripedSocket::kStripeBytes;
    group.zero_copy = true;
    group.releases = releases_.Reader();
    auto transport = MakeTcpTransport(std::move(group));
    ASSERT_TRUE(transport.ok()) << transport.status().ToString();
    transport_ = std::move(transport).value();
    transport_->Attach(&heard_);
  }

  // Moves bytes until `done`, at most for 20 seconds.
  template <typename Done>
  bool Drive(const Done& done) {
    const Deadline deadline = DeadlineAfter(20s);
    while (!done() && std::chrono::steady_clock::now() < deadline) {
      transport_->Progress(DeadlineAfter(1ms));
    }
    return done();
  }
  // The next so many bytes of a stream, as the peer reads them.
  std::vector<std::byte> PeerTakes(std::size_t bytes, const Socket& from) {
    std::vector<std::byte> got(bytes);
    std::size_t at = 0;
    EXPECT_TRUE(Drive([&] {
      const ssize_t n =
          at < bytes ? ::recv(from.fd(), got.data() + at, bytes - at, MSG_DONTWAIT) : 0;
      at += n > 0 ? static_cast<std::size_t>(n) : 0;
      return at == bytes;
    }));
    return got;
  }
  // A frame's body.
  std::vector<std::byte> PeerTakesFrame(std::size_t bytes) {
    std::vector<std::byte> frame = PeerTakes(kHeader + bytes, data_);
    std::uint64_t told = 0;
    std::memcpy(&told, frame.data() + 8, sizeof(told));
    EXPECT_EQ(told, bytes) << "no frame begins here";
    frame.erase(frame.begin(), frame.begin() + kHeader);
    return frame;
  }
  // Until the kernel has had its word, which is held back.
  void AwaitHeldBack() {
    EXPECT_TRUE(Drive([&] { return releases_.held_back(); }));
  }
  void SayGoodbye(const Socket& socket) {
    struct {
      std::uint32_t magic = 0x52464f43;
      FrameKind kind = FrameKind::kBye;
      std::uint8_t reserved[3] = {};
      std::uint64_t bytes = 0;
    } header;
    ASSERT_EQ(::send(socket.fd(), &header, sizeof(header), MSG_NOSIGNAL),
              static_cast<ssize_t>(sizeof(header)));
  }

  Releases releases_;  // outlives the transport
  Socket data_;
  Socket control_;
  Heard heard_;
  std::unique_ptr<Transport> transport_;
};

TEST_F(ZeroCopyTransport, ASendIsDoneWhenItIsReleased) {
  releases_.Hold();
  const std::vector<std::byte> large = Numbered(kLarge, 1);
  const std::vector<std::byte> small = Numbered(100, 2);
  const Ticket first = transport_->Send(1, large);
  const Ticket second = transport_->Send(1, small);
  EXPECT_TRUE(PeerTakesFrame(kLarge) == large);
  EXPECT_TRUE(PeerTakesFrame(small.size()) == small);
  AwaitHeldBack();
  EXPECT_FALSE(transport_->Done(first));
  EXPECT_FALSE(transport_->Done(second)) << "copied, and done behind the first";
  EXPECT_TRUE(transport_->Unsent(1));

  releases_.Go();
  EXPECT_TRUE(Drive([&] { return transport_->Done(second); }));
  EXPECT_TRUE(transport_->Done(first));

  // Nothing was copied, so it goes on in place.
  const int before = releases_.heard();
  EXPECT_GT(before, 0);
  const Ticket third = transport_->Send(1, large);
  EXPECT_TRUE(PeerTakesFrame(kLarge) == large);
  EXPECT_TRUE(Drive([&] { return transport_->Done(third); }));
  EXPECT_GT(releases_.heard(), before);
}

// The buffers of an operation that is given up are free, what they hold arrives or not; frames stay
// whole, and what is sent after it is done when it is released itself.
TEST_F(ZeroCopyTransport, WhatLingersIsGivenUpWithItsOperation) {
  for (const std::size_t bytes : {kLarge, kMoreThanSocketsTake}) {
    SCOPED_TRACE(bytes);
    releases_.Hold();
    std::vector<std::byte> given_up = Numbered(bytes, 3);
    const Ticket first = transport_->Send(1, given_up);
    if (bytes == kLarge) {
      EXPECT_TRUE(PeerTakesFrame(bytes) == given_up);
    } else {
      transport_->Progress(DeadlineAfter(1ms));  // its begin
    }
    EXPECT_FALSE(transport_->Done(first));
    ASSERT_TRUE(transport_->Abandon());
    EXPECT_TRUE(transport_->Done(first));
    std::ranges::fill(given_up, std::byte{0xEE});

    const std::vector<std::byte> next = Numbered(kLarge, 4);
    const Ticket second = transport_->Send(1, next);
    if (bytes != kLarge) {
      PeerTakesFrame(bytes);
    }
    EXPECT_TRUE(PeerTakesFrame(kLarge) == next);
    EXPECT_FALSE(transport_->Done(second));
    releases_.Go();
    EXPECT_TRUE(Drive([&] { return transport_->Done(second); }));
  }
}

TEST_F(ZeroCopyTransport, ALostPeerIsLostWhateverLingers) {
  releases_.Hold();
  const std::vector<std::byte> large = Numbered(kLarge, 5);
  transport_->Send(1, large);
  PeerTakesFrame(kLarge);
  AwaitHeldBack();
  data_.Close();
  control_.Close();
  EXPECT_TRUE(Drive([&] { return !heard_.words.empty(); }));
  EXPECT_THAT(heard_.words, HasSubstr("lost: "));
  transport_->Forget();
  transport_->Close(DeadlineAfter(5s));
}

// It has taken what it ever will.
TEST_F(ZeroCopyTransport, AGoodbyeIsWorthARelease) {
  releases_.Hold();
  const std::vector<std::byte> large = Numbered(kLarge, 6);
  const Ticket ticket = transport_->Send(1, large);
  PeerTakesFrame(kLarge);
  EXPECT_FALSE(transport_->Done(ticket));
  SayGoodbye(data_);
  SayGoodbye(control_);
  data_.Close();
  control_.Close();
  EXPECT_TRUE(Drive([&] { return transport_->Done(ticket); }));
  EXPECT_THAT(heard_.words, HasSubstr("bye"));
  EXPECT_THAT(heard_.words, ::testing::Not(HasSubstr("lost")));
}

// After a failure buffers are their owners' again, who may write to them while a peer still reads:
// it gets what was there before, or a reset, and the word about the failure.
TEST_F(ZeroCopyTransport, AfterAFailureNothingArrivesOfWhatIsWrittenLater) {
  releases_.Hold();
  std::vector<std::byte> bytes = Numbered(kMoreThanSocketsTake, 7);
  const std::vector<std::byte> given = bytes;
  transport_->Send(1, bytes);
  transport_->Progress(DeadlineAfter(1ms));  // its begin
  transport_->Forget();
  std::ranges::fill(bytes, std::byte{0xEE});
  const std::string why = "why";
  transport_->Control(1, FrameKind::kAbort, std::as_bytes(std::span(why)));

  std::vector<std::byte> got;
  std::vector<std::byte> piece(1 << 20);
  int error = 0;
  bool over = false;
  EXPECT_TRUE(Drive([&] {
    const ssize_t n = over ? 0 : ::recv(data_.fd(), piece.data(), piece.size(), MSG_DONTWAIT);
    if (n > 0) {
      got.insert(got.end(), piece.begin(), piece.begin() + n);
    }
    if (n < 0 && errno != EAGAIN) {
      error = errno;
    }
    over = n == 0 || error != 0;
    return over;
  }));
  EXPECT_EQ(error, ECONNRESET);
  ASSERT_GE(got.size(), kHeader);
  ASSERT_LT(got.size(), kHeader + given.size());
  EXPECT_TRUE(std::equal(got.begin() + kHeader, got.end(), given.begin()));
  const std::vector<std::byte> word = PeerTakes(kHeader + why.size(), control_);
  EXPECT_EQ(static_cast<FrameKind>(word[4]), FrameKind::kAbort);
  transport_->Close(DeadlineAfter(5s));
}

TEST_F(ZeroCopyTransport, AFailureResetsNothingWhereNothingLingers) {
  const std::vector<std::byte> large = Numbered(kLarge, 8);
  const Ticket ticket = transport_->Send(1, large);
  PeerTakesFrame(kLarge);
  EXPECT_TRUE(Drive([&] { return transport_->Done(ticket); }));
  transport_->Forget();
  std::byte none;
  EXPECT_EQ(::recv(data_.fd(), &none, 1, MSG_DONTWAIT), -1);
  EXPECT_EQ(errno, EAGAIN);
}

// --- the communicator

// Two ranks of this process over TCP.
struct Pair {
  std::array<Releases, 2> releases;
  std::vector<std::unique_ptr<Communicator>> ranks;
  int data_fd = -1;  // of rank 1, its first rail

  Pair(int rails, std::chrono::milliseconds timeout) {
    const int channels = rails + 1;
    std::array<TcpGroup, 2> groups = testing::PairOfGroups(channels, StripedSocket::kStripeBytes);
    for (std::size_t rank = 0; rank < 2; ++rank) {
      groups[rank].releases = releases[rank].Reader();
    }
    for (int channel = 0; channel < channels; ++channel) {
      auto ends = ConnectedPair();
      if (channel == kDataChannel) {
        data_fd = ends[1].fd();
      }
      testing::JoinBy(groups, channel, std::move(ends));
    }
    ranks = testing::RanksOf(std::move(groups), timeout);
  }

  // One sum, in place, whose values are others each time.
  Status Sum(int rank, std::vector<float>& values, int time, const std::string& algorithm) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = Value(rank, time, i);
    }
    auto work = ranks[static_cast<std::size_t>(rank)]->AllReduce(
        std::span(values), ReduceOp::kSum, {.name = "fc1", .algorithm = algorithm});
    COHORT_RETURN_IF_ERROR(work.status());
    COHORT_RETURN_IF_ERROR(work.value()->Wait());
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i] != Value(0, time, i) + Value(1, time, i)) {
        return Internal(algorithm + ", sum " + std::to_string(time) + ": element " +
                        std::to_string(i) + " is " + std::to_string(values[i]));
      }
    }
    return {};
  }

  static float Value(int rank, int time, std::size_t i) {
    return static_cast<float>(
        (static_cast<std::size_t>(3 + 4 * rank) * i + static_cast<std::size_t>(101 * time)) % 1000);
  }
};

constexpr std::size_t kElements = 1 << 20;

class ZeroCopyCommunicator : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!KernelHasZeroCopy()) {
      GTEST_SKIP() << "this kernel has no MSG_ZEROCOPY";
    }
  }
};

// The next operation's values are written as soon as the last one is done.
TEST_F(ZeroCopyCommunicator, BuffersMayBeWrittenToWhenAnOperationIsDone) {
  for (const int rails : {1, 3}) {
    SCOPED_TRACE(rails);
    Pair pair(rails, 30s);
    pair.releases[0].BeLate();
    pair.releases[1].BeLate();
    testing::ExpectAllOk(testing::RunRanks(2, [&](int rank) -> Status {
      std::vector<float> values(kElements);
      const Communicator& mine = *pair.ranks[static_cast<std::size_t>(rank)];
      for (const std::string_view algorithm : mine.algorithms(OperationKind::kAllReduce)) {
        for (int time = 0; time < 5; ++time) {
          COHORT_RETURN_IF_ERROR(pair.Sum(rank, values, time, std::string(algorithm)));
        }
      }
      return {};
    }));
    EXPECT_GT(pair.releases[0].heard(), 0);
    EXPECT_GT(pair.releases[1].heard(), 0);
  }
}

TEST_F(ZeroCopyCommunicator, AnOperationThatIsGivenUpHarmsNoneThatFollows) {
  Pair pair(1, 30s);
  pair.releases[0].BeLate();
  pair.releases[1].BeLate();
  testing::ExpectAllOk(testing::RunRanks(2, [&](int rank) -> Status {
    std::vector<float> values(kElements + 1);
    for (int time = 0; time < 10; ++time) {
      values.resize(kElements + static_cast<std::size_t>(rank));
      const Status differs = pair.Sum(rank, values, time, "direct");
      if (differs.code() != StatusCode::kInvalidArgument) {
        return Internal("ranks that differ: " + differs.ToString());
      }
      values.resize(kElements);
      COHORT_RETURN_IF_ERROR(pair.Sum(rank, values, time, "direct"));
    }
    return {};
  }));
}

TEST_F(ZeroCopyCommunicator, AReleaseThatNeverComesIsTheDeadlines) {
  constexpr auto kTimeout = 2000ms;
  Pair pair(1, kTimeout);
  pair.releases[0].Hold();
  const Deadline begun = std::chrono::steady_clock::now();
  const std::vector<Status> statuses = testing::RunRanks(2, [&](int rank) -> Status {
    std::vector<float> values(kElements);
    return pair.Sum(rank, values, 0, "direct");
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begun, kTimeout * 2);
  EXPECT_EQ(statuses[0].code(), StatusCode::kDeadlineExceeded) << statuses[0].ToString();
  EXPECT_THAT(statuses[0].message(), HasSubstr("worker:1"));
  // It has all that it needs.
  EXPECT_TRUE(statuses[1].ok() || statuses[1].code() == StatusCode::kDeadlineExceeded)
      << statuses[1].ToString();
  EXPECT_EQ(pair.ranks[0]->status().code(), StatusCode::kDeadlineExceeded);
}

TEST_F(ZeroCopyCommunicator, AConnectionThatBreaksWhileBytesLingerEndsBoth) {
  Pair pair(1, 30s);
  pair.releases[0].Hold();
  Deadline broken;
  std::thread fault([&] {
    EXPECT_TRUE(pair.releases[0].AwaitHeldBack());
    broken = std::chrono::steady_clock::now();
    ::shutdown(pair.data_fd, SHUT_RDWR);
  });
  const std::vector<Status> statuses = testing::RunRanks(2, [&](int rank) -> Status {
    std::vector<float> values(kElements);
    for (int time = 0;; ++time) {
      COHORT_RETURN_IF_ERROR(pair.Sum(rank, values, time, "direct"));
    }
  });
  const Deadline ended = std::chrono::steady_clock::now();
  fault.join();
  EXPECT_LT(ended - broken, 5s) << "the deadline is 30 s";
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr("data connection closed"));
  }
}

}  // namespace
}  // namespace cohort
