// StripedSocket over real connections on loopback.

#include "tcp/striped_socket.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace cohort {
namespace {

using namespace std::chrono_literals;

struct Ends {
  StripedSocket here;
  StripedSocket there;
};

Ends Connected(int rails, std::size_t stripe_bytes, bool zero_copy = false) {
  std::vector<Socket> here;
  std::vector<Socket> there;
  auto listener = Listen("127.0.0.1:0", "");
  EXPECT_TRUE(listener.ok()) << listener.status().ToString();
  for (int rail = 0; rail < rails; ++rail) {
    auto connected = Connect(listener->address, DeadlineAfter(5s));
    EXPECT_TRUE(connected.ok()) << connected.status().ToString();
    pollfd event = {listener->socket.fd(), POLLIN, 0};
    EXPECT_EQ(::poll(&event, 1, 5000), 1);
    Socket accepted(::accept4(listener->socket.fd(), nullptr, nullptr, SOCK_NONBLOCK));
    EXPECT_TRUE(Prepare(connected.value()).ok() && Prepare(accepted).ok());
    here.push_back(std::move(connected).value());
    there.push_back(std::move(accepted));
  }
  return {StripedSocket(std::move(here), stripe_bytes, zero_copy),
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

}  // namespace
}  // namespace cohort
