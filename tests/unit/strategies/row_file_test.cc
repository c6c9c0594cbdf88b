// Files of rows of which a part is missing, or has other bytes than were written: no place of the
// damage leads to a table that has some of them.

#include "parameter_server/rows/row_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/io/record_file.h>
#include <cohort/optim/optimizers.h>

#include "parameter_server/rows/row_table.h"
#include "testing/temp_dir.h"

namespace cohort::ps {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::uint32_t kBuckets = 8;
constexpr std::size_t kRecordHeader = 12;  // its length, and the checksum of that

TableSpec Items() {
  TableSpec spec;
  spec.name = "items";
  spec.dim = 3;
  spec.buckets = kBuckets;
  spec.initializer = {RowInitializer::Kind::kNormal, 0.1};
  spec.optimizer = Adagrad({.learning_rate = 0.5})->config();
  return spec;
}

std::unique_ptr<RowTable> EmptyTable() { return OrThrow(RowTable::Create(Items(), {0, kBuckets})); }

// A file of rows, and one of what has changed since.
class RowFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (std::uint32_t snapshot = 1; snapshot <= 2; ++snapshot) {
      Train(snapshot);
      table_->Freeze();
      const bool all = snapshot == 1;
      const auto writer =
          OrThrow(RowFileWriter::Create(files_, chain_[snapshot - 1], Items(), {0, kBuckets},
                                        all ? RowFileKind::kRows : RowFileKind::kChanges));
      for (std::uint32_t b = 0; b < kBuckets; ++b) {
        OrThrow(writer->Write(
            OrThrow(all ? table_->DumpFrozen(b) : table_->DumpFrozenSince(b, snapshot - 1))));
      }
      OrThrow(writer->Close());
    }
  }

  // Every other row again.
  void Train(std::uint64_t step) {
    std::vector<std::uint64_t> ids;
    for (std::uint64_t i = 0; i < 200; i += step) {
      ids.push_back(i * 0x9E3779B97F4A7C15ULL);
    }
    std::vector<float> rows(ids.size() * 3);
    const auto at = static_cast<std::int64_t>(step);
    OrThrow(table_->Pull(ids, at, RowTable::Purpose::kTraining, rows));
    OrThrow(table_->Apply({.ids = ids, .values = rows, .step = at}));
  }

  // Where the records of a file begin, and its end.
  std::vector<std::uint64_t> RecordsOf(const std::string& path) {
    return OrThrow(io::RecordFile::Open(files_, path))->offsets();
  }

  // With these bytes in place of the file's.
  void ExpectRefused(const std::string& path, std::string_view bytes, const std::string& what) {
    const std::string good = OrThrow(ReadFile(files_, path));
    OrThrow(WriteFileAtomically(files_, path, bytes));
    const auto expect = [&](const Status& status, const RowTable& loaded) {
      EXPECT_EQ(status.code(), StatusCode::kDataLoss) << what << ": " << status.ToString();
      EXPECT_THAT(status.message(), AllOf(HasSubstr("table \"items\""), HasSubstr(path))) << what;
      EXPECT_EQ(loaded.stats().rows, 0U) << what;
      EXPECT_EQ(loaded.stats().row_bytes, 0U) << what;
    };
    const auto loaded = EmptyTable();
    expect(LoadChain(*loaded, files_, chain_), *loaded);
    if (path == chain_[0]) {
      expect(LoadRows(*loaded, files_, std::vector<std::string>{path}), *loaded);
    }
    OrThrow(WriteFileAtomically(files_, path, good));
    // It is as one that nothing was loaded into.
    OrThrow(LoadChain(*loaded, files_, chain_));
    for (std::uint32_t b = 0; b < kBuckets; ++b) {
      EXPECT_EQ(loaded->DumpBucket(b), OrThrow(table_->DumpFrozen(b))) << what;
    }
  }

  FileSystem& files_ = FileSystem::Local();
  const testing::TempDir dir_;
  const std::vector<std::string> chain_ = {dir_ / "rows", dir_ / "changes"};
  const std::unique_ptr<RowTable> table_ = EmptyTable();
};

// Within a record's header, behind it, in the middle of a bucket, before the last byte, and exactly
// where a bucket ends, the file's header among them.
TEST_F(RowFileTest, ACutAtAnyPlaceIsDataLoss) {
  for (const std::string& path : chain_) {
    const std::string good = OrThrow(ReadFile(files_, path));
    const std::vector<std::uint64_t> records = RecordsOf(path);
    ASSERT_EQ(records.size(), 1 + kBuckets + 1) << "the header, the buckets, the end";
    for (std::size_t r = 0; r + 1 < records.size(); ++r) {
      for (const std::uint64_t at : {records[r], records[r] + 5, records[r] + kRecordHeader,
                                     (records[r] + records[r + 1]) / 2, records[r + 1] - 1}) {
        ExpectRefused(
            path, std::string_view(good).substr(0, at),
            path + " ends in record " + std::to_string(r) + ", at byte " + std::to_string(at));
      }
    }
  }
}

// Of a record's length, of its bytes, and of the checksums of both.
TEST_F(RowFileTest, AWrongChecksumAnywhereIsDataLoss) {
  for (const std::string& path : chain_) {
    const std::string good = OrThrow(ReadFile(files_, path));
    const std::vector<std::uint64_t> records = RecordsOf(path);
    for (std::size_t r = 0; r + 1 < records.size(); ++r) {
      for (const std::uint64_t at : {records[r], records[r] + 8, records[r] + kRecordHeader,
                                     records[r + 1] - 5, records[r + 1] - 1}) {
        std::string bad = good;
        bad[at] = static_cast<char>(bad[at] ^ 0x10);
        ExpectRefused(path, bad,
                      path + " has another byte in record " + std::to_string(r) + ", at " +
                          std::to_string(at));
      }
    }
  }
}

// Whole buckets of the file behind its end: it has more records than its header says.
TEST_F(RowFileTest, OneThatHasMoreThanItsHeaderSaysIsDataLoss) {
  for (const std::string& path : chain_) {
    const std::string good = OrThrow(ReadFile(files_, path));
    const std::vector<std::uint64_t> records = RecordsOf(path);
    ExpectRefused(path, good + good.substr(records[kBuckets]), path + " has its last bucket twice");
    ExpectRefused(path, good + "x", path + " has a byte more");
  }
}

}  // namespace
}  // namespace cohort::ps
