// StripedSocket over real connections on loopback.

#include "tcp/striped_socket.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "connected_pair.h"

namespace cohort {
namespace {

using namespace std::chrono_literals;

struct Ends {
  StripedSocket here;
  StripedSocket there;
};

Ends Connected(int rails, std::size_t stripe_bytes, bool zero_copy = false, int receive_bytes = 0,
               SendReleases releases = ReadSendRelease) {
  std::vector<Socket> here;
  std::vector<Socket> there;
  for (int rail = 0; rail < rails; ++rail) {
    auto [connected, accepted] = testing::ConnectedPair(receive_bytes);
    if (zero_copy) {  // room for all that is sent here
      const int bytes = 1 << 20;
      EXPECT_EQ(::setsockopt(connected.fd(), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)), 0);
    }
    here.push_back(std::move(connected));
    there.push_back(std::move(accepted));
  }
  return {StripedSocket(std::move(here), stripe_bytes, zero_copy, std::move(releases)),
          StripedSocket(std::move(there), stripe_bytes, false)};
}

std::vector<std::byte> Numbered(std::size_t bytes) {
  std::vector<std::byte> data(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    data[i] = static_cast<std::byte>(i * 2654435761U >> 13U);
  }
  return data;
}

// Reads until `bytes` have come, in pieces of random sizes.
std::vector<std::byte> ReadAll(StripedSocket& from, std::size_t bytes, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> got(bytes);
  const Deadline deadline = DeadlineAfter(20s);
  for (std::size_t at = 0; at < bytes && std::chrono::steady_clock::now() < deadline;) {
    const ssize_t n =
        from.Receive(got.data() + at, std::min<std::size_t>(bytes - at, 1 + random() % 9000));
    if (n > 0) {
      at += static_cast<std::size_t>(n);
    } else {
      EXPECT_TRUE(n < 0 && errno == EAGAIN);
      pollfd event = {from.fd(from.reading()), POLLIN, 0};
      ::poll(&event, 1, 1000);
    }
  }
  return got;
}

TEST(StripedSocket, BytesComeInOrderOverAnyRails) {
  for (const auto& [rails, stripe] :
       {std::pair(1, 10U), std::pair(2, 1U), std::pair(3, 1000U), std::pair(5, 65536U)}) {
    SCOPED_TRACE(std::to_string(rails) + " rails of " + std::to_string(stripe));
    Ends ends = Connected(rails, stripe);
    std::vector<std::byte> sent = Numbered(stripe == 1 ? 5000 : 3'000'000);
    std::vector<std::byte> got;
    std::thread reader([&] { got = ReadAll(ends.there, sent.size(), stripe); });
    std::mt19937 random(stripe);
    const Deadline deadline = DeadlineAfter(20s);
    for (std::size_t at = 0; at < sent.size() && std::chrono::steady_clock::now() < deadline;) {
      const std::size_t first = std::min<std::size_t>(sent.size() - at, random() % 5000);
      const std::size_t second = std::min<std::size_t>(sent.size() - at - first, 1 + random() % 70);
      iovec pieces[] = {{sent.data() + at, first}, {sent.data() + at + first, second}};
      const ssize_t n = ends.here.Send(pieces, false, false);
      if (n >= 0) {
        at += static_cast<std::size_t>(n);
      } else {
        EXPECT_EQ(errno, EAGAIN);
        pollfd event = {ends.here.fd(ends.here.writing()), POLLOUT, 0};
        ::poll(&event, 1, 1000);
      }
    }
    reader.join();
    EXPECT_TRUE(got == sent);
    ends.here.ShutDown();
    std::byte none;
    pollfd event = {ends.there.fd(ends.there.reading()), POLLIN, 0};
    EXPECT_EQ(::poll(&event, 1, 5000), 1);
    EXPECT_EQ(ends.there.Receive(&none, 1), 0) << "the stream ends on the rail whose turn it is";
  }
}

// On loopback the kernel copies what it was asked not to, and says so.
TEST(StripedSocket, WhereTheKernelCopiesAllTheSameItIsNotAskedAgain) {
  Ends ends = Connected(2, std::size_t{1} << 20, true);
  if (!ends.here.zero_copy()) {
    GTEST_SKIP() << "this kernel has no MSG_ZEROCOPY";
  }
  std::vector<std::byte> sent = Numbered(StripedSocket::kZeroCopyBytes);
  iovec small[] = {{sent.data(), 1000}};
  ASSERT_EQ(ends.here.Send(small, true, false), 1000);
  EXPECT_EQ(ends.here.mark(), 0U) << "too small to be worth it";
  iovec large[] = {{sent.data(), sent.size()}};
  const ssize_t n = ends.here.Send(large, true, false);
  ASSERT_GT(n, 0);
  const std::uint64_t mark = ends.here.mark();
  EXPECT_EQ(mark, 1U);
  EXPECT_TRUE(ends.here.awaits_release());
  const std::vector<std::byte> got = ReadAll(ends.there, 1000 + static_cast<std::size_t>(n), 1);
  EXPECT_TRUE(std::equal(got.begin() + 1000, got.end(), sent.begin()));
  const Deadline deadline = DeadlineAfter(10s);
  while (!ends.here.released(mark) && std::chrono::steady_clock::now() < deadline) {
    pollfd event = {ends.here.fd(0), 0, 0};
    ::poll(&event, 1, 1000);
    ends.here.HearReleases();
  }
  EXPECT_TRUE(ends.here.released(mark));
  EXPECT_FALSE(ends.here.awaits_release());
  EXPECT_FALSE(ends.here.zero_copy());
  iovec again[] = {{sent.data(), sent.size()}};
  EXPECT_GT(ends.here.Send(again, true, false), 0);
  EXPECT_EQ(ends.here.mark(), 0U);
}

// All of it, in one send.
void SendInPlace(StripedSocket& socket, std::vector<std::byte>& bytes) {
  iovec piece = {bytes.data(), bytes.size()};
  ASSERT_EQ(socket.Send({&piece, 1}, true, false), std::ssize(bytes));
}

// Until all is released, at most for 10 seconds.
bool AwaitReleases(StripedSocket& socket) {
  const Deadline deadline = DeadlineAfter(10s);
  while (socket.awaits_release() && std::chrono::steady_clock::now() < deadline) {
    pollfd event = {socket.fd(0), 0, 0};
    ::poll(&event, 1, 1000);
    socket.HearReleases();
  }
  return !socket.awaits_release();
}

// Sent behind more than a peer takes that does not read, in place. Loopback copies what arrives,
// and not before; so this is how it goes on a network that copies nothing.
struct Lingering {
  Ends ends = Connected(1, StripedSocket::kStripeBytes, true, 8 << 10);
  std::vector<std::byte> before = std::vector<std::byte>(64 << 10, std::byte{'b'});
  std::vector<std::byte> in_place = std::vector<std::byte>(StripedSocket::kZeroCopyBytes);

  void Send(int times) {
    iovec piece = {before.data(), before.size()};
    ASSERT_EQ(ends.here.Send({&piece, 1}, false, false), std::ssize(before));
    for (int i = 0; i < times; ++i) {
      SendInPlace(ends.here, in_place);
      EXPECT_EQ(ends.here.mark(), static_cast<std::uint64_t>(i + 1));
    }
  }
};

// Why they must stay as they are until then.
TEST(StripedSocket, BytesSentInPlaceAreReadWhenThePeerTakesThem) {
  Lingering lingering;
  StripedSocket& here = lingering.ends.here;
  if (!here.zero_copy()) {
    GTEST_SKIP() << "this kernel has no MSG_ZEROCOPY";
  }
  lingering.Send(1);
  EXPECT_FALSE(here.HearReleases());
  EXPECT_FALSE(here.released(1));
  EXPECT_TRUE(here.awaits_release());
  std::ranges::fill(lingering.in_place, std::byte{'x'});
  const std::size_t before = lingering.before.size();
  const std::vector<std::byte> got =
      ReadAll(lingering.ends.there, before + lingering.in_place.size(), 1);
  EXPECT_TRUE(std::equal(got.begin(), got.begin() + static_cast<std::ptrdiff_t>(before),
                         lingering.before.begin()));
  EXPECT_EQ(
      std::count(got.begin() + static_cast<std::ptrdiff_t>(before), got.end(), std::byte{'x'}),
      std::ssize(lingering.in_place));
  EXPECT_TRUE(AwaitReleases(here));
  EXPECT_TRUE(here.released(1));
}

TEST(StripedSocket, WhatWasNeverTakenIsReleasedByThePeersReset) {
  Lingering lingering;
  StripedSocket& here = lingering.ends.here;
  if (!here.zero_copy()) {
    GTEST_SKIP() << "this kernel has no MSG_ZEROCOPY";
  }
  lingering.Send(3);
  EXPECT_FALSE(here.HearReleases());
  lingering.ends.there.Reset(DeadlineAfter(0s));
  EXPECT_TRUE(AwaitReleases(here));
  EXPECT_TRUE(here.released(3));
  EXPECT_TRUE(here.zero_copy()) << "nothing was copied";
}

// Nothing of it arrives that had not.
TEST(StripedSocket, AResetTakesBackWhatLingers) {
  Lingering lingering;
  if (!lingering.ends.here.zero_copy()) {
    GTEST_SKIP() << "this kernel has no MSG_ZEROCOPY";
  }
  lingering.Send(2);
  const Deadline patience = DeadlineAfter(20s);
  lingering.ends.here.Reset(patience);
  EXPECT_LT(std::chrono::steady_clock::now(), patience) << "the kernel reads them no more";
  std::size_t got = 0;
  std::vector<std::byte> bytes(1 << 20);
  StripedSocket& there = lingering.ends.there;
  const Deadline deadline = DeadlineAfter(10s);
  int error = 0;
  while (error == 0 && std::chrono::steady_clock::now() < deadline) {
    const ssize_t n = there.Receive(bytes.data(), bytes.size());
    ASSERT_NE(n, 0) << "the end of a stream that is whole";
    if (n < 0 && errno != EAGAIN) {
      error = errno;
    } else if (n > 0) {
      got += static_cast<std::size_t>(n);
    } else {
      pollfd event = {there.fd(0), POLLIN, 0};
      ::poll(&event, 1, 1000);
    }
  }
  EXPECT_EQ(error, ECONNRESET);
  EXPECT_LT(got, lingering.before.size());
}

// What a network says that copies nothing: sends of one rail are released, while those before them
// on another one are still on their way.
TEST(StripedSocket, SendsAreReleasedInTheirOrderWhicheverRailIsFirst) {
  std::map<int, std::deque<SendRelease>> kernel;  // by connection
  constexpr std::size_t kStripe = StripedSocket::kZeroCopyBytes;
  Ends ends = Connected(2, kStripe, true, 0, [&kernel](int fd) -> std::optional<SendRelease> {
    std::deque<SendRelease>& has = kernel[fd];
    if (has.empty()) {
      return std::nullopt;
    }
    const SendRelease next = has.front();
    has.pop_front();
    return next;
  });
  StripedSocket& here = ends.here;
  if (!here.zero_copy()) {
    GTEST_SKIP() << "this kernel has no MSG_ZEROCOPY";
  }
  std::vector<std::byte> stripe = Numbered(kStripe);
  for (std::uint64_t mark = 1; mark <= 4; ++mark) {  // on rails 0, 1, 0, 1
    SendInPlace(here, stripe);
    EXPECT_EQ(here.mark(), mark);
  }
  EXPECT_FALSE(here.HearReleases());
  kernel[here.fd(1)].push_back({.first = 0, .last = 1});  // 2 and 4
  EXPECT_FALSE(here.HearReleases());
  EXPECT_FALSE(here.released(1) || here.released(2));
  kernel[here.fd(0)].push_back({.first = 0, .last = 0});  // 1
  EXPECT_TRUE(here.HearReleases());
  EXPECT_TRUE(here.released(2));
  EXPECT_FALSE(here.released(3) || here.released(4));
  EXPECT_TRUE(here.awaits_release());
  kernel[here.fd(0)].push_back({.first = 1, .last = 1});  // 3
  EXPECT_TRUE(here.HearReleases());
  EXPECT_TRUE(here.released(4));
  EXPECT_FALSE(here.awaits_release());

  // It goes on so, on a rail that copies nothing.
  EXPECT_TRUE(here.zero_copy());
  SendInPlace(here, stripe);
  EXPECT_EQ(here.mark(), 5U);
  kernel[here.fd(0)].push_back({.first = 2, .last = 2, .copied = true});
  EXPECT_TRUE(here.HearReleases());
  EXPECT_TRUE(here.zero_copy()) << "rail 1";
  SendInPlace(here, stripe);
  EXPECT_EQ(here.mark(), 6U);
  EXPECT_FALSE(here.zero_copy()) << "rail 0";
  const std::vector<std::byte> got = ReadAll(ends.there, 6 * kStripe, 1);
  for (std::size_t at = 0; at < got.size(); at += kStripe) {
    EXPECT_TRUE(
        std::equal(stripe.begin(), stripe.end(), got.begin() + static_cast<std::ptrdiff_t>(at)))
        << at;
  }
}

}  // namespace
}  // namespace cohort
