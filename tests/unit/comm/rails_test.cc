// One of the connections between two ranks breaks, or passes nothing, while the others live: who
// is told, when, and in which words.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "connected_pair.h"
#include "tcp/rendezvous.h"
#include "tcp/tcp_transport.h"
#include "testing/run_ranks.h"
#include "transport_communicator.h"

namespace cohort {
namespace {

using namespace std::chrono_literals;
using ::testing::AllOf;
using testing::ConnectedPair;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

// Stands in a connection and passes on what comes, until it is silent: then nothing, and neither
// end hears of it.
class Relay {
 public:
  Relay() {
    auto [one, mine] = ConnectedPair();
    auto [other, his] = ConnectedPair();
    ends = {std::move(one), std::move(other)};
    inner_ = {std::move(mine), std::move(his)};
    for (const std::size_t from : {0U, 1U}) {
      threads_.emplace_back([this, from] { Pass(inner_[from], inner_[1 - from]); });
    }
  }
  ~Relay() {
    stop_ = true;
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }

  std::array<Socket, 2> ends;  // to be taken
  std::atomic<bool> silent{false};

 private:
  void Pass(const Socket& from, const Socket& to) {
    std::vector<char> bytes(64 << 10);
    while (!stop_) {
      pollfd event = {from.fd(), POLLIN, 0};
      if (silent || ::poll(&event, 1, 5) <= 0) {
        std::this_thread::sleep_for(1ms);
        continue;
      }
      const ssize_t n = ::recv(from.fd(), bytes.data(), bytes.size(), MSG_DONTWAIT);
      for (ssize_t at = 0; at < n && !silent && !stop_;) {
        const ssize_t put = ::send(to.fd(), bytes.data() + at, static_cast<std::size_t>(n - at),
                                   MSG_DONTWAIT | MSG_NOSIGNAL);
        at += std::max<ssize_t>(put, 0);
      }
      if (n == 0) {
        return;
      }
    }
  }

  std::array<Socket, 2> inner_;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

// Two ranks of this process over TCP. `victim`: the rail, counted from 0, of which the ends are
// `victims`; `relay`: it passes through that.
struct Pair {
  std::vector<std::unique_ptr<Communicator>> ranks;
  std::array<int, 2> victims{};

  Pair(int rails, int victim, std::chrono::milliseconds timeout, Relay* relay = nullptr) {
    const int channels = rails + 1;
    std::array<TcpGroup, 2> groups = testing::PairOfGroups(channels, 64 << 10);
    for (int channel = 0; channel < channels; ++channel) {
      const bool is_victim = channel != kControlChannel && victim == std::max(channel - 1, 0);
      auto ends = is_victim && relay != nullptr ? std::move(relay->ends) : ConnectedPair();
      if (is_victim) {
        victims = {ends[0].fd(), ends[1].fd()};
      }
      testing::JoinBy(groups, channel, std::move(ends));
    }
    ranks = testing::RanksOf(std::move(groups), timeout);
  }

  // The word of each rank on `times` sums of `count` elements, or on the first that fails.
  std::vector<Status> Sum(std::size_t count, int times) {
    return testing::RunRanks(2, [&](int rank) -> Status {
      std::vector<float> values(count, 1.0F);
      for (int i = 0; i < times; ++i) {
        auto work = ranks[static_cast<std::size_t>(rank)]->AllReduce(
            std::span(values), ReduceOp::kMax, {.name = "fc1", .algorithm = "direct"});
        COHORT_RETURN_IF_ERROR(work.status());
        COHORT_RETURN_IF_ERROR(work.value()->Wait());
      }
      return {};
    });
  }
};

void ShutDown(int fd) { ::shutdown(fd, SHUT_RDWR); }
void Reset(int fd) {
  sockaddr none = {};
  none.sa_family = AF_UNSPEC;
  ::connect(fd, &none, sizeof(none));  // of TCP: forget the connection, with a reset
}

constexpr int kForever = 1'000'000'000;

TEST(Rails, OneThatBreaksEndsTheOperationAtOnceOnBothRanks) {
  struct Case {
    void (*breaks)(int fd);
    int rails;
    std::size_t count;
  };
  for (const auto& [breaks, rails, count] : {Case{ShutDown, 1, 1 << 20}, Case{ShutDown, 4, 1 << 20},
                                             Case{Reset, 4, 1 << 20}, Case{Reset, 4, 100}}) {
    SCOPED_TRACE(std::to_string(rails) + " rails, " + std::to_string(count) + " elements, " +
                 (breaks == ShutDown ? "shut down" : "reset"));
    Pair pair(rails, rails - 1, 30s);
    Deadline broken;
    std::thread fault([&] {
      std::this_thread::sleep_for(50ms);
      broken = std::chrono::steady_clock::now();
      breaks(pair.victims[0]);
    });
    const std::vector<Status> statuses = pair.Sum(count, kForever);
    const Deadline ended = std::chrono::steady_clock::now();
    fault.join();
    EXPECT_LT(ended - broken, 5s) << "the deadline is 30 s";
    for (const Status& status : statuses) {
      EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status.ToString();
      EXPECT_THAT(status.message(),
                  AllOf(HasSubstr("(worker:"), HasSubstr("is gone "), HasSubstr("AllReduce 'fc1'"),
                        HasSubstr(rails == 1 ? "data connection closed" : "rail 4 of 4 closed")));
    }
  }
}

// Nobody waits for anything, and the next byte would go over another rail.
TEST(Rails, OneThatBreaksBetweenOperationsIsNoticedToo) {
  Pair pair(3, 1, 30s);
  testing::ExpectAllOk(pair.Sum(10, 1));
  ShutDown(pair.victims[1]);
  const Deadline last = DeadlineAfter(10s);
  for (const auto& rank : pair.ranks) {
    while (rank->status().ok() && std::chrono::steady_clock::now() < last) {
      std::this_thread::sleep_for(5ms);
    }
    EXPECT_EQ(rank->status().code(), StatusCode::kUnavailable);
    EXPECT_THAT(rank->status().message(), HasSubstr("rail 2 of 3 closed"));
  }
}

// Half-open: what goes into it is taken, and nothing comes out.
TEST(Rails, OneThatIsSilentIsNamedAtTheDeadline) {
  constexpr auto kTimeout = 1000ms;
  for (const std::size_t count : {std::size_t{1} << 20, std::size_t{20'000}}) {
    SCOPED_TRACE(count);
    Relay relay;
    Pair pair(3, 1, kTimeout, &relay);
    testing::ExpectAllOk(pair.Sum(count, 2));
    relay.silent = true;
    const Deadline begun = std::chrono::steady_clock::now();
    // The small one's 40 KB stay within a stripe: the rail's turn comes sooner or later.
    const std::vector<Status> statuses = pair.Sum(count, kForever);
    EXPECT_LT(std::chrono::steady_clock::now() - begun, kTimeout * 3);
    for (const Status& status : statuses) {
      EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded) << status.ToString();
      EXPECT_THAT(status.message(),
                  AllOf(HasSubstr("(worker:"),
                        ContainsRegex("rail 2 of 3 from it has brought nothing for [0-9.]+ s")));
      if (count > 100'000) {
        EXPECT_THAT(status.message(), AllOf(HasSubstr("answers, but rail 2 of 3"),
                                            HasSubstr("has what comes after")));
      }
    }
  }
}

// The goodbye comes over all of them, and bytes may still lie in some.
TEST(Rails, LeavingInGoodOrderIsNoLoss) {
  for (int round = 0; round < 20; ++round) {
    Pair pair(4, 0, 30s);
    testing::ExpectAllOk(pair.Sum(100'000, 2));
    pair.ranks[0].reset();
    std::this_thread::sleep_for(round == 0 ? 1500ms : 10ms);
    EXPECT_TRUE(pair.ranks[1]->status().ok()) << pair.ranks[1]->status().ToString();
  }
}

}  // namespace
}  // namespace cohort
