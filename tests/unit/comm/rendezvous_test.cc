#include "tcp/rendezvous.h"

#include <cohort/comm/hierarchical.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <mutex>
#include <thread>

#include "testing/memory_store.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(Address, HostAndPort) {
  EXPECT_EQ(OrThrow(ParseAddress("10.0.0.3:0")),
            std::pair(std::string("10.0.0.3"), std::string("0")));
  EXPECT_EQ(OrThrow(ParseAddress(":80")), std::pair(std::string(), std::string("80")));
  EXPECT_EQ(OrThrow(ParseAddress("[::1]:80")), std::pair(std::string("::1"), std::string("80")));
  for (const std::string bad : {"", "host", "host:", "host:x", "::1:80", "[::1]", "[::1]80",
                                "h:65536", "h:-1", "h:123456"}) {
    EXPECT_EQ(ParseAddress(bad).status().code(), StatusCode::kInvalidArgument) << bad;
  }
}

TEST(Rendezvous, PortInUseIsAnErrorThatNamesIt) {
  const Listener first = OrThrow(Listen("127.0.0.1:0", ""));
  const Status status = Listen(first.address, "").status();
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr(first.address), HasSubstr("Address already in use")));
}

TEST(Rendezvous, AnEmptyHostIsGivenOutAsAnAddress) {
  EXPECT_THAT(OrThrow(Listen(":0", "")).address, ::testing::StartsWith("127.0.0.1:"));
  EXPECT_THAT(OrThrow(Listen("0.0.0.0:0", "")).address, ::testing::StartsWith("127.0.0.1:"));
  EXPECT_THAT(OrThrow(Listen(":0", "127.0.0.1")).address, ::testing::StartsWith("127.0.0.1:"));
}

// What controls the congestion of a connection's network.
std::string CongestionControl(const Socket& socket) {
  std::array<char, 64> name = {};
  socklen_t bytes = name.size() - 1;
  EXPECT_EQ(::getsockopt(socket.fd(), IPPROTO_TCP, TCP_CONGESTION, name.data(), &bytes), 0);
  return name.data();
}

TEST(Socket, WithinAHostNothingIsPaced) {
  for (const std::string at : {"127.0.0.1:0", "127.0.0.2:0", "[::1]:0"}) {
    SCOPED_TRACE(at);
    const Result<Listener> listener = Listen(at, "");
    if (!listener.ok() && at == "[::1]:0") {
      continue;  // a machine without IPv6
    }
    const Socket client = OrThrow(Connect(listener.value().address, DeadlineAfter(seconds(20))));
    pollfd event = {listener.value().socket.fd(), POLLIN, 0};  // the last word of its handshake
    ASSERT_EQ(::poll(&event, 1, 20'000), 1);
    const Socket server(::accept4(listener.value().socket.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    for (const Socket* const socket : {&client, &server}) {
      EXPECT_TRUE(IsWithinHost(*socket));
      ASSERT_TRUE(Prepare(*socket).ok());
      EXPECT_EQ(CongestionControl(*socket), "reno");
    }
  }
  std::array<int, 2> ends;
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  const Socket one(ends[0]);
  const Socket other(ends[1]);
  EXPECT_FALSE(IsWithinHost(one));  // nothing paces it
  EXPECT_TRUE(Prepare(one).ok());
  EXPECT_FALSE(IsWithinHost(Socket()));
}

bool HasV6Loopback() { return Listen("[::1]:0", "").ok(); }

// The address that a rank binds is the one that the others are told, and reach it at; so in groups.
TEST(Rendezvous, ABindAddressIsGivenOut) {
  std::vector<std::string> hosts{"127.0.0.2", HasV6Loopback() ? "[::1]" : "127.0.0.3"};
  for (int turn = 0; turn < 2; ++turn) {  // each is connected to once
    std::swap(hosts[0], hosts[1]);
    SCOPED_TRACE("rank 0 at " + hosts[0]);
    testing::MemoryStore store;
    testing::ExpectAllOk(testing::RunRanks(2, [&](int rank) -> Status {
      const TcpOptions tcp{.bind_address = hosts[static_cast<std::size_t>(rank)] + ":0",
                           .connect_timeout = seconds(20)};
      COHORT_ASSIGN_OR_RETURN(const auto all, MakeTcpCommunicator(rank, 2, store, "job", tcp));
      COHORT_ASSIGN_OR_RETURN(const auto group, all->Split(/*color=*/0, /*key=*/-rank));
      for (Communicator* const communicator : {all.get(), group.get()}) {
        float value = static_cast<float>(rank + 1);
        COHORT_ASSIGN_OR_RETURN(
            const auto work, communicator->AllReduce(std::span<float>(&value, 1), ReduceOp::kSum));
        COHORT_RETURN_IF_ERROR(work->Wait());
        EXPECT_EQ(value, 3);
      }
      return {};
    }));
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_THAT(OrThrow(store.Get("job/1/rank/" + std::to_string(rank))),
                  ::testing::StartsWith(hosts[static_cast<std::size_t>(rank)] + ":"));
    }
  }
}

TEST(Rendezvous, TheAbsentAreNamed) {
  testing::MemoryStore store;
  CommunicatorOptions options;
  options.peer_name = [](int rank) { return "worker:" + std::to_string(rank); };
  const std::vector<Status> statuses = testing::RunRanks(3, [&](int rank) -> Status {
    if (rank == 1) {
      return DeadlineExceeded("rank 1 (worker:1) (has not published an address)");
    }
    return MakeTcpCommunicator(rank, 3, store, "job", {.connect_timeout = milliseconds(200)},
                               options)
        .status();
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(status.message(), HasSubstr("rank 1 (worker:1) (has not published an address)"));
  }
}

// One that has published its address, and does not listen there.
TEST(Rendezvous, WhyARankIsNotReachedIsTold) {
  const Socket held(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));  // nobody else gets its port
  sockaddr_in local = {};
  local.sin_family = AF_INET;
  local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(local);
  ASSERT_EQ(::bind(held.fd(), reinterpret_cast<sockaddr*>(&local), length), 0);
  ASSERT_EQ(::getsockname(held.fd(), reinterpret_cast<sockaddr*>(&local), &length), 0);
  const std::string address = "127.0.0.1:" + std::to_string(ntohs(local.sin_port));
  testing::MemoryStore store;
  ASSERT_TRUE(store.Insert("job/1/rank/0", address).ok());
  CommunicatorOptions options;
  options.peer_name = [](int rank) { return "worker:" + std::to_string(rank); };
  const Status status =
      MakeTcpCommunicator(1, 2, store, "job", {.connect_timeout = milliseconds(300)}, options)
          .status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("rank 1 (worker:1) did not meet all 2 ranks within "),
                    HasSubstr("missing rank 0 (worker:0) (published " + address + ")"),
                    HasSubstr("onnection refused")));
}

// By the word of the first one: where it runs, and its pid.
TEST(Rendezvous, ASecondProcessForARankIsRefused) {
  testing::MemoryStore store;
  CommunicatorOptions options;
  options.peer_name = [](int rank) { return "worker:" + std::to_string(rank); };
  const auto shm = [&] {
    return MakeShmCommunicator(0, 2, store, "shm", {.connect_timeout = milliseconds(50)}, options)
        .status();
  };
  const auto tcp = [&] {
    return MakeTcpCommunicator(0, 2, store, "tcp", {.connect_timeout = milliseconds(50)}, options)
        .status();
  };
  const auto hierarchical = [&] {
    return MakeHierarchicalCommunicator(0, 2, store, "both",
                                        {.tcp = {.connect_timeout = milliseconds(50)}}, options)
        .status();
  };
  for (const auto& make : std::vector<std::function<Status()>>{shm, tcp, hierarchical}) {
    EXPECT_EQ(make().code(), StatusCode::kDeadlineExceeded);  // rank 1 does not come
    const Status second = make();
    EXPECT_EQ(second.code(), StatusCode::kAlreadyExists);
    std::array<char, 256> host = {};
    ASSERT_EQ(::gethostname(host.data(), host.size() - 1), 0);
    EXPECT_THAT(second.message(),
                AllOf(HasSubstr("rank 0 (worker:0) of generation 1 publishing "),
                      HasSubstr("process " + std::to_string(::getpid()) + " on " + host.data())));
  }
}

// Connections that do not belong to the group come first; the group stands all the same.
TEST(Rendezvous, StrangersAndOldGenerationsDoNotDisturb) {
  std::mutex mutex;
  std::string logged;
  const Log log([&](LogLevel, std::string_view line) {
    const std::lock_guard lock(mutex);
    logged += line;
  });
  const Listener zero = OrThrow(Listen("127.0.0.1:0", ""));
  const Listener one = OrThrow(Listen("127.0.0.1:0", ""));
  const auto directory = [&] {
    const auto address = [&](int rank) { return rank == 0 ? zero.address : one.address; };
    return Directory{[=](int rank, Deadline) -> Result<std::string> { return address(rank); },
                     address, [](int rank) { return "rank " + std::to_string(rank); }};
  };
  const Deadline soon = DeadlineAfter(seconds(20));
  const Socket silent = OrThrow(Connect(zero.address, soon));
  const Socket noisy = OrThrow(Connect(zero.address, soon));
  ASSERT_TRUE(WriteAll(noisy, "GET / HTTP/1.1\r\nHost: here\r\n\r\n", 30, soon).ok());
  Status old;
  testing::ExpectAllOk(testing::RunRanks(3, [&](int thread) -> Status {
    if (thread == 2) {  // the rank 1 of an earlier generation, first through the door
      old = ConnectGroup({"job", 1, 2, 6}, one, directory(), log, soon).status();
      return {};
    }
    while (thread == 1 && [&] {
      const std::lock_guard lock(mutex);
      return logged.empty();
    }()) {
      std::this_thread::yield();
    }
    COHORT_ASSIGN_OR_RETURN(
        const Connections connections,
        ConnectGroup({"job", thread, 2, 7}, thread == 0 ? zero : one, directory(), log, soon));
    for (int channel = 0; channel < kChannels; ++channel) {
      EXPECT_TRUE(
          connections.sockets[static_cast<std::size_t>((1 - thread) * kChannels + channel)].open());
    }
    cpu_set_t own;
    EXPECT_EQ(::sched_getaffinity(0, sizeof(own), &own), 0);
    for (const cpu_set_t& cores : connections.cores) {  // both are threads of this process
      EXPECT_TRUE(CPU_EQUAL(&cores, &own));
    }
    return {};
  }));
  EXPECT_EQ(old.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(old.message(), HasSubstr("is in generation 7, this rank in 6"));
  EXPECT_THAT(logged, HasSubstr("refused a connection from rank 1 of generation 6"));
}

TEST(Rendezvous, RanksAreCrowdedWhereTheyHaveLessThanACoreEach) {
  const auto cores = [](const std::vector<int>& some) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int core : some) {
      CPU_SET(core, &set);
    }
    return set;
  };
  EXPECT_FALSE(AreCrowded({cores({0}), cores({1})}));
  EXPECT_FALSE(AreCrowded({cores({0, 1}), cores({0, 1})}));
  EXPECT_FALSE(AreCrowded({cores({0, 1}), cores({2, 3}), cores({0, 1})}));
  EXPECT_TRUE(AreCrowded({cores({5}), cores({5})}));
  EXPECT_TRUE(AreCrowded({cores({0, 1}), cores({0, 1}), cores({1})}));
}

TEST(Rendezvous, RanksWithOtherRailsAreToldOfBoth) {
  testing::MemoryStore store;
  const std::vector<Status> statuses = testing::RunRanks(2, [&](int rank) -> Status {
    return MakeTcpCommunicator(
               rank, 2, store, "job",
               {.connect_timeout = milliseconds(rank == 0 ? 2'000 : 20'000), .rails = rank + 1})
        .status();
  });
  EXPECT_EQ(statuses[0].code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(statuses[1].code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(statuses[1].message(),
              HasSubstr("has 1 rail(s) of 262144 bytes, this rank 2 rail(s) of 262144 bytes"));
  EXPECT_EQ(MakeTcpCommunicator(0, 1, store, "alone", {.rails = 0}).status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace cohort
