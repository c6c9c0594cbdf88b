// The memory of a server, of values and rows, whose clients send faster than it applies. F19.
//
// A binary of its own: it measures the process's memory, in which the clients are as well.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <cohort/optim/optimizers.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "parameter_server/frames/frame_address.h"
#include "parameter_server/frames/frame_link.h"
#include "parameter_server/frames/frame_ring.h"
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"
#include "testing/resident_bytes.h"
#include "testing/sanitized.h"

namespace cohort::ps {
namespace {

constexpr std::chrono::milliseconds kPatience{60'000};
constexpr std::chrono::seconds kLength{3};
constexpr int kClients = 4;
constexpr std::int64_t kElements = std::int64_t{2} << 20;  // 8 MiB, and twice as much of Adam's
constexpr std::int64_t kChunks = kElements / kMaxChunkElements;
constexpr int kDenseRuns = 8;   // of all chunks, in what a client has under way
constexpr int kRowFrames = 16;  // and so many of these
constexpr int kIds = 12'000;    // of a frame, of kRows
constexpr std::int64_t kRowDim = 16;
constexpr std::uint64_t kRows = 20'000;

ModelSpec Spec() {
  ModelSpec spec;
  spec.parameters = {{"w", {kElements}, true, 0}};
  spec.optimizer = Adam()->config();
  TableSpec items;
  items.name = "items";
  items.dim = kRowDim;
  items.buckets = 16;
  items.optimizer = Adam()->config();
  spec.tables = {items};
  return spec;
}

// Of a frame of rows: ids, counts and gradients, as they lie in memory.
std::vector<float> RowPayload(std::uint64_t client) {
  std::vector<std::uint64_t> ids(kIds);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = (client * 1009 + i) % kRows;
  }
  const std::vector<std::uint32_t> counts(kIds, 1);
  std::vector<float> payload(ids.size() * 2 + counts.size() + ids.size() * kRowDim, 0.5F);
  std::memcpy(payload.data(), ids.data(), ids.size() * sizeof(ids[0]));
  std::memcpy(payload.data() + ids.size() * 2, counts.data(), counts.size() * sizeof(counts[0]));
  return payload;
}

// A worker that does not wait for an answer before it sends the next frame.
class Sender {
 public:
  Sender(const std::string& server, const ModelSpec& spec, std::uint64_t client,
         FrameTransport transport)
      : layout_(spec.Fingerprint()),
        client_(client),
        gradient_(static_cast<std::size_t>(kMaxChunkElements), 0.5F),
        rows_(RowPayload(client)),
        stub_(Servers::NewStub(NewChannel(server))),
        link_(FrameLink::Make(
            {"ps:0"},
            [this, server, transport](int, bool may_share) {
              return LocateFrames(*stub_, server, transport, may_share, kPatience);
            },
            kPatience, kPatience)) {}

  // Until `stop`, and once at least.
  void Run(const std::atomic<bool>& stop) {
    do {
      std::vector<FrameRequest> requests;
      for (int run = 0; run < kDenseRuns; ++run) {
        for (std::uint32_t chunk = 0; chunk < kChunks; ++chunk) {
          AddDense(chunk, &requests);
        }
      }
      for (int frame = 0; frame < kRowFrames; ++frame) {
        AddRows(&requests);
      }
      OrThrow(link_->Run(requests, {.place = [](int, const FrameHeader&) { return Places(); },
                                    .done = [](int, const FrameHeader&) { return Status(); }}));
    } while (!stop);
  }
  std::uint64_t dense() const { return dense_; }
  std::uint64_t rows() const { return row_frames_; }

 private:
  FrameHeader Header(std::uint64_t sequence) const {
    FrameHeader header;
    header.set_client(client_);
    header.set_layout(layout_);
    header.set_sequence(sequence);
    header.set_weight(1);
    return header;
  }
  void AddDense(std::uint32_t chunk, std::vector<FrameRequest>* to) {
    FrameHeader header = Header(++dense_);
    header.add_chunks(chunk);
    header.add_versions(0);
    to->push_back({0, FrameMethod::kPush, std::move(header), {gradient_}});
  }
  void AddRows(std::vector<FrameRequest>* to) {
    FrameHeader header = Header(++row_frames_);
    RowBlock& block = *header.mutable_rows();
    block.set_count(kIds);
    block.set_dim(kRowDim);
    block.set_step(1);
    to->push_back({0, FrameMethod::kPushRows, std::move(header), {rows_}});
  }

  const std::uint64_t layout_;
  const std::uint64_t client_;
  const std::vector<float> gradient_;
  const std::vector<float> rows_;
  const std::unique_ptr<Servers::Stub> stub_;
  const std::unique_ptr<FrameLink> link_;
  std::uint64_t dense_ = 0;
  std::uint64_t row_frames_ = 0;
};

TEST(MemoryOfAServer, IsBoundedHoweverMuchFasterClientsSendThanItApplies) {
  const ModelSpec spec = Spec();
  const auto server = OrThrow(Server::Start("127.0.0.1:0", 0, Log()));
  const std::string address = "127.0.0.1:" + std::to_string(server->port());
  {
    const auto chief = Client::Make(spec, {address}, {.client = 1000});
    OrThrow(chief->Declare());
    OrThrow(chief->Assign(std::vector<float>(kElements), {}, 0));
  }
  std::uint64_t dense = 0;
  std::uint64_t rows = 0;
  {  // after which all rows, and slots, are there
    const std::atomic<bool> once = true;
    for (const std::uint64_t number : {1, 9}) {
      Sender first(address, spec, number, FrameTransport::kTcp);
      first.Run(once);
      dense += first.dense();
      rows += first.rows();
    }
  }
  std::vector<std::unique_ptr<Sender>> senders;
  for (std::uint64_t c = 0; c < kClients; ++c) {
    senders.push_back(std::make_unique<Sender>(
        address, spec, 2 + c, c % 2 == 0 ? FrameTransport::kTcp : FrameTransport::kShared));
  }
  const std::int64_t before = testing::ResidentBytes();
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (const auto& sender : senders) {
    threads.emplace_back([&] { sender->Run(stop); });
  }
  std::int64_t most = 0;
  const auto begun = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begun < kLength) {
    most = std::max(most, testing::ResidentBytes());
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // of the next look at it
  }
  stop = true;
  for (std::thread& thread : threads) {
    thread.join();
  }
  most = std::max(most, testing::ResidentBytes());

  for (const auto& sender : senders) {
    dense += sender->dense();
    rows += sender->rows();
  }
  EXPECT_EQ(server->store().stats().pushes, dense) << "each frame once";
  EXPECT_EQ(server->store().LeastVersion(), dense / kChunks);
  EXPECT_EQ(server->rows().stats().pushes, rows);
  EXPECT_EQ(server->rows().stats().rows, kRows);
  // Of a connection: a frame and its answer, what is made of the rows in it, and what a thread's
  // allocator keeps; or two rings, which count twice here, since both ends are in this process.
  constexpr std::int64_t kOfAConnection = std::int64_t{10} << 20;
  constexpr std::int64_t kRings = 4 * std::int64_t{kRingBytes};
  constexpr std::int64_t kBound = kClients * kOfAConnection + kClients / 2 * kRings;
  constexpr std::int64_t kUnderWay =
      kClients * (kDenseRuns * kElements * 4 + kRowFrames * kIds * (12 + 4 * kRowDim));
  static_assert(kBound < kUnderWay / 3, "what is sent would not be seen if it were kept");
  if (!testing::kSanitized) {
    EXPECT_LT(most - before, kBound)
        << "after " << dense << " frames of values, " << rows << " of rows";
  }
  RecordProperty("grown_bytes", std::to_string(most - before));
  RecordProperty("frames", std::to_string(dense + rows));
}

}  // namespace
}  // namespace cohort::ps
