// TcpTransport as a peer sees it: bytes on a socket, cut where the network likes.

#include "tcp/tcp_transport.h"

#include <cohort/comm/tcp.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <numeric>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "tcp/rendezvous.h"
#include "testing/memory_store.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using namespace std::chrono_literals;

class Heard final : public TransportListener {
 public:
  bool OnControl(int /*peer*/, FrameKind kind, Bytes /*body*/) override {
    words += kind == FrameKind::kBye ? "bye" : "control";
    return true;
  }
  void OnLost(int /*peer*/, const Status& why) override { words += "lost: " + why.ToString(); }
  void OnWrongSize(int /*peer*/, std::size_t sent, std::size_t expected) override {
    words += std::to_string(sent) + " for " + std::to_string(expected);
  }
  std::string words;
};

// Rank 0's transport, and the other ends of its connections to rank 1.
class TcpTransportTest : public ::testing::Test {
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

  // The header of stream.h, then the body.
  static std::vector<std::byte> Frame(std::span<const float> values,
                                      FrameKind kind = FrameKind::kData) {
    struct {
      std::uint32_t magic = 0x52464f43;
      FrameKind kind;
      std::uint8_t reserved[3] = {};
      std::uint64_t bytes = 0;
    } header;
    header.kind = kind;
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

  void SayGoodbye(const Socket& socket) {
    const std::vector<std::byte> frame = Frame({}, FrameKind::kBye);
    ASSERT_EQ(::write(socket.fd(), frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
  }
  // Until the listener has heard something, at most for 10 seconds.
  void AwaitWords() {
    const Deadline deadline = DeadlineAfter(10s);
    while (heard_.words.empty() && std::chrono::steady_clock::now() < deadline) {
      transport_->Progress(deadline);
    }
  }
  // What the peer closes with bytes that it has not read, the other end finds reset.
  void SendSomething() {
    transport_->Send(1, std::as_bytes(std::span(some_)));
    transport_->Progress(DeadlineAfter(0s));
  }

  const std::vector<float> some_ = std::vector<float>(10, 1.0F);
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

// Frames that nobody asks for, one after the other: the peer is stopped, and goes on as they are
// asked for.
TEST_F(TcpTransportTest, WhatNobodyAsksForIsKeptUpToABound) {
  for (const std::size_t elements : {std::size_t{4'000}, std::size_t{0}}) {
    SCOPED_TRACE(elements);
    const std::size_t frames = elements == 0 ? 200'000 : 400;
    std::vector<std::byte> stream;
    for (std::size_t i = 0; i < frames; ++i) {
      const std::vector<std::byte> frame =
          Frame(std::vector<float>(elements, static_cast<float>(i)));
      stream.insert(stream.end(), frame.begin(), frame.end());
    }
    std::size_t written = 0;
    const auto write_some = [&] {
      const ssize_t n = ::write(data_.fd(), stream.data() + written, stream.size() - written);
      written += static_cast<std::size_t>(std::max<ssize_t>(n, 0));
      transport_->Progress(DeadlineAfter(0s));
      return n > 0;
    };
    while (written < stream.size() && (write_some() || write_some() || write_some())) {
    }
    EXPECT_LT(written, stream.size()) << "all of it was taken";
    if (elements > 0) {
      EXPECT_GE(written, std::size_t{1} << 20);
    }
    const Deadline deadline = DeadlineAfter(60s);
    for (std::size_t i = 0; i < frames; ++i) {
      std::vector<float> values(elements, -1.0F);
      const Ticket ticket = transport_->Receive(1, std::as_writable_bytes(std::span(values)), {});
      while (!transport_->Done(ticket)) {
        ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "stuck at frame " << i;
        write_some();
      }
      ASSERT_EQ(values, std::vector<float>(elements, static_cast<float>(i)));
    }
    EXPECT_EQ(heard_.words, "");
  }
}

// A frame that waits in the socket hides the goodbye behind it, and no end of the stream is read.
TEST_F(TcpTransportTest, AGoodbyeIsHeardWhereAFrameThatNobodyAsksForStandsBeforeIt) {
  const std::vector<float> large(32 << 10, 1.0F);  // 128 KiB
  Arrive(Bytes(Frame(large)).first(1'000));
  const std::vector<float> more(4 << 20, 1.0F);
  const Ticket ticket = transport_->Send(1, std::as_bytes(std::span(more)));
  transport_->Progress(DeadlineAfter(0s));
  EXPECT_FALSE(transport_->Done(ticket)) << "more than a socket takes";
  SayGoodbye(control_);
  data_.Close();
  AwaitWords();
  EXPECT_EQ(heard_.words, "bye");
}

TEST_F(TcpTransportTest, AGoodbyeIsToldOnceWhicheverConnectionIsCut) {
  struct Case {
    const char* name;
    bool control_first, behind_data;
  };
  for (const Case& c :
       {Case{"control's, then the cut", true, false}, Case{"the cut, then control's", false, false},
        Case{"behind the data, then the cut", true, true}}) {
    SCOPED_TRACE(c.name);
    heard_.words.clear();
    SetUp();
    SendSomething();
    if (c.behind_data) {
      SayGoodbye(data_);
    }
    if (c.control_first) {
      SayGoodbye(control_);
      transport_->Progress(DeadlineAfter(0s));
    }
    data_.Close();
    transport_->Progress(DeadlineAfter(0s));
    if (!c.control_first) {
      EXPECT_EQ(heard_.words, "");
      SayGoodbye(control_);
    }
    AwaitWords();
    control_.Close();
    for (int i = 0; i < 5; ++i) {
      transport_->Progress(DeadlineAfter(0s));
    }
    EXPECT_EQ(heard_.words, "bye");
  }
}

// How many threads this process has. One that has been joined may be listed for a moment more: it
// is ending, and says so.
std::size_t Threads() {
  constexpr unsigned kExiting = 4;  // of the kernel's flags of a task
  std::size_t threads = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "stat");
    std::string text;
    if (!std::getline(file, text)) {
      continue;  // it has ended
    }
    std::istringstream fields(text.substr(text.rfind(')') + 1));  // behind its name
    std::string state, parent, group, session, terminal, foreground;
    unsigned flags = 0;
    fields >> state >> parent >> group >> session >> terminal >> foreground >> flags;
    threads += (flags & kExiting) == 0 ? 1 : 0;
  }
  return threads;
}

// To each peer that an operation sends data to goes its record, with the first of them, and nothing
// else. A rank that waits for 2 ms tells the next one too, so of many rounds the quietest counts.
TEST(TcpCommunicator, SendsNothingBesidesWhatItsAlgorithmSends) {
  constexpr int kRanks = 4;
  testing::MemoryStore store;
  const auto told_in_quietest = [](Communicator& comm, const std::string& algorithm) {
    std::uint64_t least = UINT64_MAX;
    for (int round = 0; round < 100; ++round) {
      const std::uint64_t before = comm.stats().control_messages;
      std::vector<float> values(1'000, 1.0F);
      auto work = comm.AllReduce(std::span(values), ReduceOp::kSum, {.algorithm = algorithm});
      EXPECT_TRUE(work.ok() && work.value()->Wait().ok());
      least = std::min(least, comm.stats().control_messages - before);
    }
    return least;
  };
  testing::ExpectAllOk(testing::RunRanks(kRanks, [&](int rank) -> Status {
    COHORT_ASSIGN_OR_RETURN(
        const auto comm, MakeTcpCommunicator(rank, kRanks, store, "job", {.connect_timeout = 20s}));
    EXPECT_EQ(told_in_quietest(*comm, "ring"), 1U) << rank;                // the next rank
    EXPECT_EQ(told_in_quietest(*comm, "recursive_doubling"), 2U) << rank;  // not the next, of 1, 3
    EXPECT_EQ(told_in_quietest(*comm, "direct"), 3U) << rank;
    return {};
  }));
}

// Nine ranks, and two groups of theirs, which have sent something: one thread for each
// communicator, however many peers it has.
TEST(TcpCommunicator, HasOneThread) {
  constexpr std::size_t kRanks = 9;
  using Communicators = std::vector<std::unique_ptr<Communicator>>;
  const auto on_all_ranks = [](const std::function<Status(std::size_t)>& fn) {
    testing::ExpectAllOk(testing::RunRanks(
        static_cast<int>(kRanks), [&](int rank) { return fn(static_cast<std::size_t>(rank)); }));
  };
  const auto reduce = [](Communicator& comm) -> Status {
    std::vector<float> values(5'000, 1.0F);  // costs are measured
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                            comm.AllReduce(std::span(values), ReduceOp::kSum));
    return work->Wait();
  };
  on_all_ranks(
      [](std::size_t /*rank*/) { return OkStatus(); });  // what comes with the first thread
  const std::size_t before = Threads();

  testing::MemoryStore store;
  Communicators all(kRanks);
  on_all_ranks([&](std::size_t rank) -> Status {
    COHORT_ASSIGN_OR_RETURN(
        all[rank], MakeTcpCommunicator(static_cast<int>(rank), static_cast<int>(kRanks), store,
                                       "job", {.connect_timeout = 20s}));
    return reduce(*all[rank]);
  });
  EXPECT_EQ(Threads(), before + kRanks);
  std::vector<Communicators> groups(2);
  for (std::size_t split = 0; split < groups.size(); ++split) {
    groups[split].resize(kRanks);
    on_all_ranks([&](std::size_t rank) -> Status {
      const int color = split == 0 ? 0 : static_cast<int>(rank % 2);
      COHORT_ASSIGN_OR_RETURN(groups[split][rank], all[rank]->Split(color, static_cast<int>(rank)));
      return reduce(*groups[split][rank]);
    });
    EXPECT_EQ(Threads(), before + (split + 2) * kRanks) << "after " << split + 1 << " splits";
  }
  on_all_ranks([&](std::size_t rank) {
    for (Communicators& group : groups) {
      group[rank].reset();
    }
    all[rank].reset();
    return OkStatus();
  });
  EXPECT_EQ(Threads(), before);
}

}  // namespace
}  // namespace cohort
