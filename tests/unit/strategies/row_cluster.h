// Servers of one table, as threads of a test, behind proxies that lose what passes where it asks
// for them; what is on them; and a worker that knows what it has sent.

#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "parameter_server/frames/exchange.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_set.h"
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"
#include "testing/lossy_proxy.h"

namespace cohort::ps {

inline constexpr std::size_t kDim = 2;
inline constexpr std::uint32_t kBuckets = 16;

// A table whose rows begin at 0 and lose what is pushed: sums of whole numbers are exact.
inline TableSpec SumsTable() {
  TableSpec items;
  items.name = "items";
  items.dim = kDim;
  items.buckets = kBuckets;
  items.initializer = {RowInitializer::Kind::kZeros, 0};
  items.optimizer = Sgd({.learning_rate = 1})->config();
  return items;
}

class Cluster {
 public:
  // `proxies`: also where nothing is lost.
  explicit Cluster(int servers, double loss = 0, const TableSpec& like = SumsTable(),
                   bool proxies = false, const std::vector<TableSpec>& more = {}) {
    spec_.parameters = {{"bias", {3}, true, 0}};
    spec_.optimizer = Sgd({.learning_rate = 1})->config();
    spec_.servers = servers;
    spec_.tables = {like};
    spec_.tables.insert(spec_.tables.end(), more.begin(), more.end());
    for (int s = 0; s < servers; ++s) {
      servers_.push_back(OrThrow(Server::Start("127.0.0.1:0", s, Log())));
      const int port = servers_.back()->port();
      addresses_.push_back("127.0.0.1:" + std::to_string(port));
      if (loss > 0 || proxies) {
        proxied_.push_back(testing::LossyProxy::AddressOf(port));
        proxies_.push_back(std::make_unique<testing::LossyProxy>(
            std::vector<int>{port, FramePort(addresses_.back())}, loss,
            static_cast<std::uint64_t>(s)));
      }
    }
    const auto chief = Client::Make(spec_, addresses_, {.client = 1000});
    OrThrow(chief->Declare());
    OrThrow(chief->Assign(std::vector<float>(3), {}, 0));
  }

  // Behind the proxies, where there are some.
  std::unique_ptr<RowClient> NewClient(
      std::uint64_t number,
      std::chrono::milliseconds peer_timeout = std::chrono::seconds(10)) const {
    return RowClient::Make(spec_, proxied_.empty() ? addresses_ : proxied_,
                           {.client = number,
                            .peer_timeout = peer_timeout,
                            .transport =  // memory that is shared goes past proxies
                            proxied_.empty() ? FrameTransport::kAuto : FrameTransport::kTcp});
  }
  std::unique_ptr<RowClient> NewChief() const {
    return RowClient::Make(spec_, addresses_, {.client = ++chiefs_});
  }
  // Behind the proxies as well.
  std::unique_ptr<RowClient> NewChief(std::chrono::milliseconds peer_timeout) const {
    return RowClient::Make(spec_, proxied_, {.client = ++chiefs_, .peer_timeout = peer_timeout});
  }
  testing::LossyProxy& proxy(std::size_t server) const { return *proxies_[server]; }
  std::int64_t lost() const {
    std::int64_t lost = 0;
    for (const auto& proxy : proxies_) {
      lost += proxy->lost();
    }
    return lost;
  }

  mutable std::uint64_t chiefs_ = 1000;  // numbers of clients
  ModelSpec spec_;
  std::vector<std::unique_ptr<Server>> servers_;
  std::vector<std::string> addresses_;

 private:
  static int FramePort(const std::string& address) {
    grpc::ClientContext context;
    EndpointReply reply;
    const auto stub =
        Servers::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
    Require(stub->Endpoint(&context, {}, &reply).ok(), "a server that says where frames go");
    return static_cast<int>(reply.port());
  }

  std::vector<std::string> proxied_;
  std::vector<std::unique_ptr<testing::LossyProxy>> proxies_;
};

// The steps by which bucket `of` moves, one by one.
class Mover {
 public:
  Mover(const Cluster& cluster, std::uint32_t of)
      : bucket_(of),
        layout_(cluster.spec_.Fingerprint()),
        exchange_(DataChannels(cluster.addresses_), ServerNames(cluster.addresses_),
                  std::chrono::seconds(10), "Rows") {}

  void Step(int server, BucketMove::Step step, int to = 0) {
    FrameHeader header;
    header.set_client(3000);
    header.set_layout(layout_);
    header.set_sequence(++sequence_);
    header.mutable_rows()->set_table(0);
    header.add_buckets()->set_bucket(bucket_);
    header.mutable_move()->set_step(step);
    header.mutable_move()->set_to(static_cast<std::uint32_t>(to));
    std::vector<FrameCall> calls;
    calls.push_back({server, Assemble(header, {})});
    OrThrow(
        exchange_.Run("Move", std::move(calls), [](int, ReceivedFrame&) { return OkStatus(); }));
  }

 private:
  const std::uint32_t bucket_;
  const std::uint64_t layout_;
  std::uint64_t sequence_ = 0;
  Exchange exchange_;
};

struct Row {
  std::uint32_t updates = 0;
  std::vector<float> weights;
};
// Every row of the table, once.
inline std::map<std::uint64_t, Row> RowsOf(RowClient& client) {
  std::map<std::uint64_t, Row> rows;
  std::uint32_t next = 0;
  OrThrow(client.Dump(0, [&](std::uint32_t bucket, std::string_view dump) {
    EXPECT_EQ(bucket, next++);
    std::uint32_t count = 0;
    std::memcpy(&count, dump.data() + 4, sizeof(count));
    const std::size_t size = kDumpedHeader + kDim * sizeof(float);
    for (std::uint32_t r = 0; r < count; ++r) {
      const RowHeader header = DumpedHeader(dump.data() + 12 + r * size);
      Row row{.updates = header.updates, .weights = std::vector<float>(kDim)};
      std::memcpy(row.weights.data(), dump.data() + 12 + r * size + kDumpedHeader,
                  kDim * sizeof(float));
      EXPECT_TRUE(rows.try_emplace(header.id(), row).second) << "id " << header.id() << " twice";
    }
    return OkStatus();
  }));
  EXPECT_EQ(next, kBuckets);
  return rows;
}

inline void ExpectEachBucketOnce(RowClient& client) {
  const std::vector<BucketLoad> loads = OrThrow(client.Loads(0));
  ASSERT_EQ(loads.size(), kBuckets);
  for (std::uint32_t b = 0; b < kBuckets; ++b) {
    EXPECT_EQ(loads[b].bucket, b);
  }
}

// Pushes of one worker: ids that others have as well, and its own, which it reads back.
struct Worker {
  std::map<std::uint64_t, Row> sent;

  void Train(RowClient& client, std::uint64_t number, int steps) {
    const Philox random(number, "steps");
    for (int step = 1; step <= steps; ++step) {
      std::vector<std::uint64_t> ids;
      std::vector<float> gradients;
      for (std::uint64_t i = 0; i < 40; ++i) {
        const std::uint64_t draw = static_cast<std::uint64_t>(step) * 40 + i;
        const bool own = i % 4 == 0;
        // More and more ids, so that first touches go on.
        ids.push_back(own ? 1'000'000 * number + random.Below(40, draw)
                          : random.Below(200 + 20 * static_cast<std::uint64_t>(step), draw));
        for (std::size_t k = 0; k < kDim; ++k) {
          gradients.push_back(static_cast<float>(random.Below(7, draw, k + 1)) - 3);
        }
      }
      const RowClient::Gradients push{.table = 0, .ids = ids, .values = gradients};
      OrThrow(client.Push(std::span(&push, 1), step, 1));
      std::map<std::uint64_t, bool> counted;
      for (std::size_t i = 0; i < ids.size(); ++i) {
        Row& row = sent.try_emplace(ids[i], Row{.weights = std::vector<float>(kDim)}).first->second;
        row.updates += counted.emplace(ids[i], true).second ? 1 : 0;
        for (std::size_t k = 0; k < kDim; ++k) {
          row.weights[k] -= gradients[i * kDim + k];
        }
      }
      std::vector<float> rows(ids.size() * kDim);
      OrThrow(client.Pull(0, ids, step, /*training=*/true, rows));
      for (std::size_t i = 0; i < ids.size(); i += 4) {
        for (std::size_t k = 0; k < kDim; ++k) {
          ASSERT_EQ(rows[i * kDim + k], sent[ids[i]].weights[k])
              << "id " << ids[i] << ", which nobody else has, in step " << step;
        }
      }
    }
  }
};

// Each worker trains on a thread, with a client of its own, while `beside` runs over and over.
template <typename AnyWorker, typename Beside>
void TrainBeside(const Cluster& cluster, std::vector<AnyWorker>& workers, int steps,
                 const Beside& beside) {
  std::atomic<std::size_t> running{workers.size()};
  std::vector<std::thread> threads;
  for (std::uint64_t w = 0; w < workers.size(); ++w) {
    threads.emplace_back([&, w] {
      const auto client = cluster.NewClient(w + 1);
      workers[w].Train(*client, w + 1, steps);
      --running;
    });
  }
  while (running > 0) {
    beside();
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

// Moves buckets to servers, both at random, of which there are three.
class RandomMoves {
 public:
  RandomMoves(const Cluster& cluster, std::uint64_t seed)
      : chief_(cluster.NewChief()), random_(seed, "moves") {}

  void Move() {
    const auto bucket = static_cast<std::uint32_t>(random_.Below(kBuckets, moves_));
    OrThrow(chief_->Move(0, bucket, static_cast<int>(random_.Below(3, moves_, 1))));
    ++moves_;
  }
  std::uint64_t moves() const { return moves_; }

 private:
  const std::unique_ptr<RowClient> chief_;
  const Philox random_;
  std::uint64_t moves_ = 0;
};

}  // namespace cohort::ps
