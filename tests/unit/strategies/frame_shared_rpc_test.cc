// Frames through memory that a client and a server share.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <fstream>
#include <mutex>
#include <new>
#include <numeric>
#include <set>
#include <thread>

#include <cohort/core/random.h>

#include "parameter_server/frames/frame_link.h"
#include "parameter_server/frames/frame_listener.h"
#include "parameter_server/frames/frame_memory.h"
#include "parameter_server/frames/frame_ring.h"
#include "tcp/unix_socket.h"
#include "testing/process_cluster.h"
#include "testing/resident_bytes.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::chrono::seconds kPatience{30};
constexpr char kShared[] = "a process of this host";

// Answers each frame with its payload, or with as many floats as its `clip` says.
class EchoTest : public ::testing::Test {
 protected:
  EchoTest()
      : listener_(OrThrow(FrameListener::Start(
            "127.0.0.1:0",
            [this](FrameMethod, const FrameHeader& header, const PayloadReader& payload,
                   const std::string& peer,
                   FrameReply* reply) { Answer(header, payload, peer, reply); },
            Log()))) {}

  void Answer(const FrameHeader& header, PayloadReader payload, const std::string& peer,
              FrameReply* reply) {
    const std::size_t floats = payload.remaining() / sizeof(float);
    const bool made = header.clip() > 0;
    const std::span<float> to =
        reply->payload->Append(made ? static_cast<std::size_t>(header.clip()) : floats);
    if (made) {
      std::fill(to.begin(), to.end(), static_cast<float>(header.sequence()));
    } else {
      EXPECT_TRUE(payload.Read(to.data(), to.size_bytes()));
    }
    reply->header.set_staleness(header.sequence());
    const std::lock_guard lock(mutex_);
    ++frames_;
    peers_.insert(peer == kShared ? "shared" : "tcp");
  }

  // `share`: memory, as long as it may.
  std::unique_ptr<FrameLink> NewLink(bool share = true) {
    return FrameLink::Make(
        {"ps:0"},
        [this, share](int, bool may_share) -> Result<std::string> {
          ++located_;
          return share && may_share ? listener_->local_address()
                                    : "127.0.0.1:" + std::to_string(listener_->port());
        },
        milliseconds(20'000), milliseconds(20'000));
  }
  // Sends frames of these sizes, and expects each back. `made`: by the server, instead.
  void Exchange(FrameLink& link, const std::vector<std::size_t>& sizes, bool made = false) {
    std::vector<std::vector<float>> sent;
    std::vector<std::vector<float>> got(sizes.size());
    std::vector<FrameRequest> requests;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      sent.emplace_back(made ? 0 : sizes[i], static_cast<float>(i));
      FrameRequest& request = requests.emplace_back(FrameRequest{0, FrameMethod::kPush, {}, {}});
      request.header.set_sequence(i);
      request.header.set_clip(made ? static_cast<double>(sizes[i]) : 0);
      // In two pieces, of which one may be empty.
      const std::size_t half = sent[i].size() / 3;
      request.payload = {std::span(sent[i]).first(half), std::span(sent[i]).subspan(half)};
    }
    std::vector<std::size_t> order;
    OrThrow(link.Run(requests, {.place = [&](int, const FrameHeader& header) -> Result<Places> {
                                  auto& values = got[header.staleness()];
                                  values.resize(sizes[header.staleness()]);
                                  return Places{values};
                                },
                                .done =
                                    [&](int, const FrameHeader& header) {
                                      order.push_back(header.staleness());
                                      return Status();
                                    }}));
    ASSERT_EQ(order.size(), sizes.size());
    EXPECT_TRUE(std::ranges::is_sorted(order));
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      ASSERT_EQ(got[i].size(), sizes[i]);
      ASSERT_TRUE(std::ranges::all_of(got[i], [&](float v) { return v == static_cast<float>(i); }))
          << "frame " << i << " of " << sizes[i];
    }
  }
  std::set<std::string> TakePeers() {
    const std::lock_guard lock(mutex_);
    return std::exchange(peers_, {});
  }

  std::mutex mutex_;
  std::set<std::string> peers_;
  int frames_ = 0;
  std::atomic<int> located_ = 0;
  const std::unique_ptr<FrameListener> listener_;
};

TEST_F(EchoTest, FramesOfManySizesComeWholeAndInOrder) {
  const auto link = NewLink();
  const Philox random(7);
  for (std::uint64_t run = 0; run < 6; ++run) {
    std::vector<std::size_t> sizes = {0, 1, 15, 16, 17, 1};
    for (std::uint64_t i = 0; i < 40; ++i) {
      const Philox::Block draw = random.At(100 * run + i);
      sizes.push_back(draw[0] % (draw[1] % 4 == 0 ? 300'000 : 3'000));
    }
    Exchange(*link, sizes);
    Exchange(*link, sizes, /*made=*/true);
  }
  EXPECT_THAT(TakePeers(), ElementsAre("shared"));
  EXPECT_EQ(located_, 1);
}

// In shared memory and over TCP: no answer to what was given up may be another's, or be put where
// nobody waits for it.
TEST_F(EchoTest, AfterAnExceptionInAHandlerALinkIsAsNew) {
  constexpr std::size_t kFloats = 50'000;
  for (const bool share : {true, false}) {
    const auto link = NewLink(share);
    for (const bool in_place : {true, false}) {
      std::vector<FrameRequest> requests;
      const std::vector<float> sent(kFloats, -1);
      for (std::size_t i = 0; i < 8; ++i) {
        FrameRequest& request = requests.emplace_back(FrameRequest{0, FrameMethod::kPush, {}, {}});
        request.header.set_sequence(i);
        request.payload = {sent};
      }
      std::vector<float> got(kFloats);
      const auto run = [&] {
        return link->Run(requests, {.place = [&](int, const FrameHeader& header) -> Result<Places> {
                                      if (in_place && header.staleness() == 2) {
                                        throw std::bad_alloc();
                                      }
                                      return Places{got};
                                    },
                                    .done =
                                        [&](int, const FrameHeader& header) {
                                          if (!in_place && header.staleness() == 2) {
                                            throw std::bad_alloc();
                                          }
                                          return Status();
                                        }});
      };
      EXPECT_THROW(static_cast<void>(run()), std::bad_alloc);
      Exchange(*link, {1, 20'000, 3, 0, 17});
    }
  }
}

TEST_F(EchoTest, FramesThatFillTheRingFitAndLargerOnesGoOverTcp) {
  constexpr std::size_t kMost = kRingBytes / sizeof(float) - 64;
  for (const bool made : {false, true}) {
    const auto link = NewLink();
    Exchange(*link, {10, kMost, 10, kMost, kMost, 1}, made);
    EXPECT_THAT(TakePeers(), ElementsAre("shared"));
    Exchange(*link, {10, kMost + 64, 10}, made);
    // Those before it may have been answered by then, or go over TCP as well.
    EXPECT_THAT(TakePeers(), ::testing::Contains("tcp"));
    Exchange(*link, {10, 20}, made);
    EXPECT_THAT(TakePeers(), ElementsAre("tcp")) << "from then on";
  }
}

TEST_F(EchoTest, WhatIsNoFrameEndsItsConnectionAndNothingElse) {
  const auto link = NewLink();
  Exchange(*link, {100});
  const Deadline deadline = DeadlineAfter(kPatience);
  for (const bool cut : {false, true}) {
    const Socket socket = OrThrow(ConnectUnix(listener_->local_address(), deadline));
    FrameRings rings = OrThrow(FrameRings::Accept(socket, deadline));
    const std::span<std::byte> place = rings.out().Reserve(128);
    FramePrefix prefix = {.magic = cut ? FramePrefix::kMagic : 7,
                          .method = 1,
                          .header_bytes = 4,
                          .payload_bytes = cut ? 1U << 20 : 0};
    std::memcpy(place.data(), &prefix, sizeof(prefix));
    rings.out().Commit(128);
    rings.Wake();
    Status heard;
    while (heard.ok() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
      heard = rings.Hear();
    }
    EXPECT_EQ(heard.code(), StatusCode::kUnimplemented) << "it would be no better next time";
  }
  Exchange(*link, {100});
  EXPECT_EQ(located_, 1) << "the other connection stands";
}

// A client's memory, on the server's side.
int SharedMappings() {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) {
    count += line.find("memfd:cohort") != std::string::npos ? 1 : 0;
  }
  return count;
}

// Memory that is lent, as floats.
struct Lent {
  Lent(FrameMemory& from, std::size_t floats, float value)
      : memory(OrThrow(from.Allocate(floats * sizeof(float)))),
        values(reinterpret_cast<float*>(memory->bytes().data()), floats) {
    std::ranges::fill(values, value);
  }
  std::unique_ptr<Memory> memory;
  std::span<float> values;
};

const ReplyHandler kNoReply = {
    .place = [](int, const FrameHeader&) -> Result<Places> { return Places(); },
    .done = [](int, const FrameHeader&) { return Status(); }};

// Keeps what it was sent, as it was when `read` was opened; answers nothing.
class LentTest : public ::testing::Test {
 protected:
  LentTest()
      : listener_(OrThrow(FrameListener::Start(
            "127.0.0.1:0",
            [this](FrameMethod, const FrameHeader&, PayloadReader payload, const std::string& peer,
                   FrameReply*) {
              {
                std::unique_lock lock(mutex_);
                ++begun_;
                changed_.notify_all();
                EXPECT_TRUE(changed_.wait_for(lock, kPatience, [this] { return open_; }));
              }
              std::vector<float> values(payload.remaining() / sizeof(float));
              EXPECT_TRUE(payload.Read(values.data(), payload.remaining()));
              const std::lock_guard lock(mutex_);
              got_.push_back(std::move(values));
              peers_.insert(peer == kShared ? "shared" : "tcp");
              changed_.notify_all();
            },
            Log()))) {}
  ~LentTest() override { Open(true); }

  void Open(bool open) {
    const std::lock_guard lock(mutex_);
    open_ = open;
    changed_.notify_all();
  }
  void Await(int begun, std::size_t got) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(
        changed_.wait_for(lock, kPatience, [&] { return begun_ >= begun && got_.size() >= got; }));
  }
  std::unique_ptr<FrameLink> NewLink(std::shared_ptr<FrameMemory> memory) {
    return FrameLink::Make(
        {"ps:0"}, [this](int, bool) { return Result(listener_->local_address()); }, kPatience,
        kPatience, std::move(memory));
  }
  static FrameRequest Push(std::vector<std::span<const float>> payload) {
    return {0, FrameMethod::kPush, {}, std::move(payload)};
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
  int begun_ = 0;
  std::vector<std::vector<float>> got_;
  std::set<std::string> peers_;
  const std::unique_ptr<FrameListener> listener_;  // ends first
};

TEST_F(LentTest, FramesComeWholeWhateverOfThemIsLent) {
  const auto memory = FrameMemory::Make();
  const auto link = NewLink(memory);
  const Lent first(*memory, 3'000'000, 1);  // more than a ring
  const std::vector<float> own(20'000, 2);
  OrThrow(link->Run(std::vector{Push({first.values})}, kNoReply));
  const Lent second(*memory, 10'000, 3);
  OrThrow(
      link->Run(std::vector{Push({second.values.subspan(100, 7'000), first.values.first(9)}),
                            Push({own, second.values}), Push({}), Push({second.values.first(3)})},
                kNoReply));
  ASSERT_EQ(got_.size(), 5U);
  EXPECT_EQ(got_[0], std::vector<float>(3'000'000, 1));
  std::vector<float> both(7'000, 3);
  both.insert(both.end(), 9, 1.0F);
  EXPECT_EQ(got_[1], both);
  std::vector<float> mixed = own;
  mixed.insert(mixed.end(), 10'000, 3.0F);
  EXPECT_EQ(got_[2], mixed);
  EXPECT_EQ(got_[3], std::vector<float>());
  EXPECT_EQ(got_[4], std::vector<float>(3, 3));
  EXPECT_THAT(peers_, ElementsAre("shared"));
}

TEST_F(LentTest, WhatAServerStillReadsWhenItsConnectionIsGivenUpNeverChanges) {
  const auto memory = FrameMemory::Make();
  Lent lent(*memory, 100'000, 1);
  Open(false);
  {
    const auto link = NewLink(memory);
    Status ran;
    std::thread caller([&] { ran = link->Run(std::vector{Push({lent.values})}, kNoReply); });
    Await(1, 0);  // the server is about to read
    link->Abort(Cancelled("no more of it"));
    caller.join();
    EXPECT_EQ(ran, Cancelled("no more of it"));
  }
  EXPECT_EQ(lent.values[99'999], 1) << "the contents are kept";
  std::ranges::fill(lent.values, 2.0F);
  Open(true);
  Await(1, 1);
  const auto link = NewLink(memory);
  OrThrow(link->Run(std::vector{Push({lent.values})}, kNoReply));
  ASSERT_EQ(got_.size(), 2U);
  EXPECT_EQ(got_[0], std::vector<float>(100'000, 1));
  EXPECT_EQ(got_[1], std::vector<float>(100'000, 2)) << "what is lent now";
  EXPECT_TRUE(memory->status().ok());
}

TEST_F(LentTest, AServerForgetsWhatIsLentNoMore) {
  const auto memory = FrameMemory::Make();
  const auto link = NewLink(memory);
  const int rings = 2;  // both ends are in this process
  for (int i = 0; i < 3; ++i) {
    const Lent lent(*memory, 100'000, 1);
    OrThrow(link->Run(std::vector{Push({lent.values})}, kNoReply));
    EXPECT_EQ(SharedMappings(), rings + 2) << "after " << i;
  }
  OrThrow(link->Run(std::vector{Push({}), Push({})}, kNoReply));
}

TEST_F(LentTest, APieceThatIsNotLentEndsItsConnectionAndNothingElse) {
  const auto memory = FrameMemory::Make();
  const Lent lent(*memory, 10'000, 1);
  const auto link = NewLink(memory);
  OrThrow(link->Run(std::vector{Push({lent.values})}, kNoReply));
  const Deadline deadline = DeadlineAfter(kPatience);
  const Socket file(::memfd_create("short", MFD_CLOEXEC));
  for (const bool lends : {false, true}) {
    const Socket socket = OrThrow(ConnectUnix(listener_->local_address(), deadline));
    FrameRings rings = OrThrow(FrameRings::Accept(socket, deadline));
    if (lends) {  // a file that is shorter than is said
      OrThrow(rings.Lend({.segment = 7, .bytes = 4096}, &file, deadline));
    }
    const std::string head = EncodeFrame(FrameMethod::kPush, {}, 4096);
    rings.WriteLent(rings.out().Reserve(FrameRings::LentBytesOf(head, 1)), head,
                    std::vector<FrameLoan>{{.segment = 7, .offset = 0, .bytes = 4096}});
    Status heard;
    while (heard.ok() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
      heard = rings.Hear();
    }
    EXPECT_EQ(heard.code(), StatusCode::kUnimplemented) << "it would be no better next time";
  }
  OrThrow(link->Run(std::vector{Push({lent.values})}, kNoReply));
  EXPECT_EQ(got_.size(), 2U);
}

// Four clients send, at once, far more than is in memory anywhere; a frame is handled more slowly
// than it is sent.
TEST(MemoryOfFrames, IsThatOfAFrameOrOfTheRingsHoweverMuchIsUnderWay) {
  constexpr int kClients = 4;
  constexpr std::size_t kFrames = 64;  // of each
  const std::vector<float> payload(std::size_t{1} << 18, 1);
  std::mutex mutex;
  std::int64_t most = 0;
  int handled = 0;
  const auto listener = OrThrow(FrameListener::Start(
      "127.0.0.1:0",
      [&](FrameMethod, const FrameHeader&, PayloadReader from, const std::string&, FrameReply*) {
        double sum = 0;
        for (int pass = 0; pass < 4; ++pass) {
          PayloadReader reader = from;
          PayloadReader::Staging staging;
          for (std::span<const float> run = reader.NextFloats(payload.size(), staging);
               !run.empty(); run = reader.NextFloats(payload.size(), staging)) {
            sum += std::accumulate(run.begin(), run.end(), 0.0);
          }
        }
        const std::lock_guard lock(mutex);
        EXPECT_EQ(sum, 4.0 * static_cast<double>(payload.size()));
        most = std::max(most, testing::ResidentBytes());
        ++handled;
      },
      Log()));
  for (const bool shared : {false, true}) {
    const std::string address =
        shared ? listener->local_address() : "127.0.0.1:" + std::to_string(listener->port());
    const std::int64_t before = testing::ResidentBytes();
    most = 0;
    handled = 0;
    std::vector<std::thread> clients;
    for (int c = 0; c < kClients; ++c) {
      clients.emplace_back([&] {
        const auto link = FrameLink::Make(
            {"ps:0"}, [&](int, bool) { return Result(address); }, kPatience, kPatience);
        const std::vector<FrameRequest> requests(kFrames, {0, FrameMethod::kPush, {}, {payload}});
        OrThrow(link->Run(requests, {.place = [](int, const FrameHeader&) { return Places(); },
                                     .done = [](int, const FrameHeader&) { return Status(); }}));
      });
    }
    for (std::thread& client : clients) {
      client.join();
    }
    EXPECT_EQ(handled, kClients * static_cast<int>(kFrames));
    // The rings count twice here: both ends are in this process.
    const std::int64_t each = (shared ? 4 * kRingBytes : 0) + (std::int64_t{6} << 20);
    EXPECT_LT(most - before, kClients * each)
        << "of " << kClients * kFrames << " MiB that were sent";
  }
}

TEST_F(EchoTest, AKilledClientLeavesNothingBehind) {
  testing::ProcessCluster cluster;
  cluster.Start("client",
                {COHORT_BIN_DIR "/../tests/frame_peer", "call", listener_->local_address()});
  const Deadline deadline = DeadlineAfter(kPatience);
  const auto frames = [this] {
    const std::lock_guard lock(mutex_);
    return frames_;
  };
  while (frames() < 100 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_GE(frames(), 100);
  EXPECT_GT(SharedMappings(), 0);
  cluster.Signal("client", SIGKILL);
  EXPECT_EQ(cluster.Wait("client", kPatience), 128 + SIGKILL);
  const auto killed = std::chrono::steady_clock::now();
  while (SharedMappings() > 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_EQ(SharedMappings(), 0);
  EXPECT_LT(std::chrono::steady_clock::now() - killed, std::chrono::seconds(5));
}

TEST(SharedFrames, AKilledServerIsNoticedAtOnce) {
  testing::ProcessCluster cluster;
  cluster.Start("server", {COHORT_BIN_DIR "/../tests/frame_peer", "serve"});
  ASSERT_TRUE(cluster.WaitForOutput("server", "unix:", kPatience));
  std::string address = cluster.Stdout("server");
  address.pop_back();
  std::atomic<int> located = 0;
  const auto link = FrameLink::Make(
      {"ps:0"},
      [&](int, bool may_share) -> Result<std::string> {
        ++located;
        return may_share ? Result(address) : Result<std::string>(Unavailable("it is gone"));
      },
      milliseconds(20'000), milliseconds(20'000));
  std::atomic<int> answers = 0;
  std::thread caller([&] {
    const std::vector<float> payload(100'000, 1);
    Status status;
    while (status.ok()) {
      const std::vector<FrameRequest> requests(8, {0, FrameMethod::kPush, {}, {payload}});
      status = link->Run(requests, {.place = [](int, const FrameHeader&) { return Places(); },
                                    .done =
                                        [&](int, const FrameHeader&) {
                                          ++answers;
                                          return Status();
                                        }});
    }
    EXPECT_EQ(status, Cancelled("enough"));
  });
  const Deadline deadline = DeadlineAfter(kPatience);
  while (answers < 100 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_GE(answers, 100);
  EXPECT_EQ(located, 1);
  const auto killed = std::chrono::steady_clock::now();
  cluster.Signal("server", SIGKILL);
  while (located < 2 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(milliseconds(5));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - killed, std::chrono::seconds(5))
      << "peer_timeout is four times that";
  link->Abort(Cancelled("enough"));
  caller.join();
}

}  // namespace
}  // namespace cohort::ps
