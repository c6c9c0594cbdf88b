// Buckets that move between servers, and files of changes, over real connections: what is sent is
// applied once, whatever moves, is lost on the way or repeated.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <thread>

#include <cohort/core/random.h>

#include "parameter_server/client.h"
#include "parameter_server/row_client.h"
#include "parameter_server/row_file.h"
#include "row_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;

// Pushes from three workers, while `beside` runs over and over; then what is there is what was
// sent.
template <typename Beside>
void ExpectConservation(const Cluster& cluster, int steps, const Beside& beside) {
  std::vector<Worker> workers(3);
  std::atomic<int> running{3};
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
  std::map<std::uint64_t, Row> sent;
  for (const Worker& worker : workers) {
    for (const auto& [id, row] : worker.sent) {
      Row& sum = sent.try_emplace(id, Row{.weights = std::vector<float>(kDim)}).first->second;
      sum.updates += row.updates;
      for (std::size_t k = 0; k < kDim; ++k) {
        sum.weights[k] += row.weights[k];
      }
    }
  }
  // Who has never been told where buckets went, and finds them.
  const auto reader = cluster.NewChief();
  const std::map<std::uint64_t, Row> there = RowsOf(*reader);
  ASSERT_EQ(there.size(), sent.size());
  for (const auto& [id, row] : sent) {
    ASSERT_EQ(there.at(id).updates, row.updates) << "id " << id;
    ASSERT_EQ(there.at(id).weights, row.weights) << "id " << id;
  }
  ExpectEachBucketOnce(*reader);
}

// F24.
TEST(RowMovesTest, NothingIsLostOrDoubledWhileBucketsMove) {
  const Cluster cluster(3);
  const auto chief = cluster.NewChief();
  const Philox random(5, "moves");
  std::uint64_t moves = 0;
  ExpectConservation(cluster, 300, [&] {
    const std::uint32_t bucket = static_cast<std::uint32_t>(random.Below(kBuckets, moves));
    OrThrow(chief->Move(0, bucket, static_cast<int>(random.Below(3, moves, 1))));
    ++moves;
  });
  EXPECT_GT(moves, 100U);
}

TEST(RowMovesTest, NorWhereConnectionsBreakAsWell) {
  const Cluster cluster(3, 0.01);
  const auto chief = cluster.NewChief();
  const Philox random(6, "moves");
  std::uint64_t moves = 0;
  ExpectConservation(cluster, 200, [&] {
    const std::uint32_t bucket = static_cast<std::uint32_t>(random.Below(kBuckets, moves));
    OrThrow(chief->Move(0, bucket, static_cast<int>(random.Below(3, moves, 1))));
    ++moves;
  });
  EXPECT_GT(moves, 100U);
  EXPECT_GT(cluster.lost(), 10) << "of 1 % of what is read";
}

// A bucket that all ask for goes round and round, and nobody waits for long, or sees it empty.
TEST(RowMovesTest, AHotBucketMovesUnderLoad) {
  Cluster cluster(2);
  const auto chief = cluster.NewChief();
  const std::vector<std::uint64_t> ids = {7};
  const std::uint32_t bucket = BucketOf(7, kBuckets);
  std::atomic<bool> stop{false};
  std::atomic<std::int64_t> pushes{0};
  std::vector<std::thread> workers;
  for (std::uint64_t w = 0; w < 3; ++w) {
    workers.emplace_back([&, w] {
      const auto client = cluster.NewClient(w + 1);
      const std::vector<float> ones(kDim, 1);
      std::vector<float> row(kDim);
      float least = 0;
      for (std::int64_t step = 1; !stop; ++step) {
        const RowClient::Gradients push{.table = 0, .ids = ids, .values = ones};
        OrThrow(client->Push(std::span(&push, 1), step, 1));
        ++pushes;
        OrThrow(client->Pull(0, ids, step, /*training=*/true, row));
        ASSERT_LT(row[0], least) << "what was pushed is there";
        least = row[0];
      }
    });
  }
  for (int move = 0; move < 200; ++move) {
    OrThrow(chief->Move(0, bucket, move % 2));
  }
  stop = true;
  for (std::thread& worker : workers) {
    worker.join();
  }
  const std::map<std::uint64_t, Row> rows = RowsOf(*chief);
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows.at(7).updates, static_cast<std::uint32_t>(pushes));
  EXPECT_EQ(rows.at(7).weights[0], -static_cast<float>(pushes));
}

TEST(RowMovesTest, ASnapshotHoldsBucketsWhereTheyAre) {
  Cluster cluster(2);
  const auto chief = cluster.NewChief();
  const auto client = Client::Make(cluster.spec_, cluster.addresses_, {.client = 1000});
  OrThrow(chief->Move(0, 3, 1));
  OrThrow(client->Freeze(1).status());
  const Status refused = chief->Move(0, 3, 0);
  EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr("bucket 3 cannot move while a snapshot is saved"));
  chief->ReadSnapshot(1);
  EXPECT_TRUE(RowsOf(*chief).empty());
  OrThrow(client->Thaw().status());
  OrThrow(chief->Move(0, 3, 0));
  ExpectEachBucketOnce(*chief);
}

// Files of changes from two servers, between which buckets moved, are the table on any number of
// servers.
TEST(RowMovesTest, AChainOfFilesIsTheTableOnAnyNumberOfServers) {
  Cluster cluster(2);
  const auto chief = cluster.NewChief();
  const auto client = Client::Make(cluster.spec_, cluster.addresses_, {.client = 1000});
  const TableSpec& spec = cluster.spec_.tables[0];
  const TempDir dir;
  FileSystem& files = FileSystem::Local();
  std::vector<std::string> chain;
  std::map<std::uint64_t, Row> saved;
  std::vector<std::uintmax_t> sizes;
  for (std::uint64_t snapshot = 1; snapshot <= 4; ++snapshot) {
    Worker().Train(*chief, snapshot, snapshot == 1 ? 40 : 1);
    OrThrow(client->Freeze(snapshot).status());
    chief->ReadSnapshot(snapshot, snapshot - 1);
    chain.push_back(dir / std::to_string(snapshot));
    OrThrow(SaveTable(*chief, 0, spec, files, chain.back(),
                      snapshot == 1 ? RowFileKind::kRows : RowFileKind::kChanges));
    sizes.push_back(OrThrow(files.OpenForRead(chain.back()))->size());
    chief->ReadSnapshot(0);  // a snapshot is read once, and nobody trains
    saved = RowsOf(*chief);
    OrThrow(client->Thaw().status());
    OrThrow(chief->Move(0, static_cast<std::uint32_t>(snapshot), 1));
  }
  EXPECT_LT(sizes[1], sizes[0] / 2);
  for (const int servers : {1, 3}) {
    Cluster other(servers);
    const auto loader = other.NewChief();
    OrThrow(LoadTable(*loader, 0, spec, files, chain));
    const std::map<std::uint64_t, Row> loaded = RowsOf(*loader);
    ASSERT_EQ(loaded.size(), saved.size());
    for (const auto& [id, row] : saved) {
      ASSERT_EQ(loaded.at(id).updates, row.updates);
      ASSERT_EQ(loaded.at(id).weights, row.weights);
    }
  }
}

}  // namespace
}  // namespace cohort::ps
