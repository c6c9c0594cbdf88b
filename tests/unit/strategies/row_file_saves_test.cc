// Tables in files of rows: where these do not fit, and what a save that fails leaves.

#include "parameter_server/rows/row_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/io/record_file.h>
#include <cohort/optim/optimizers.h>

#include <cohort/parameter_server.pb.h>
#include "row_table_test.h"
#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::ps::row_tables {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(RowFile, ItsHeaderIsTheMessage) {
  const testing::TempDir folder;
  const auto table = OrThrow(RowTable::Create(SmallSpec(), {4, 12}));
  OrThrow(SaveRows(*table, FileSystem::Local(), folder / "rows"));
  const auto file = OrThrow(io::RecordFile::Open(FileSystem::Local(), folder / "rows"));
  std::string record;
  OrThrow(file->Read(0, record));
  RowFileHeader header;
  header.set_version(1);
  ASSERT_TRUE(header.mutable_table()->ParseFromString(ToMessage(SmallSpec())));
  header.set_bucket_begin(4);
  header.set_bucket_end(12);
  EXPECT_EQ(record, header.SerializeAsString());
}

TEST(RowFile, IsRefusedWhereItDoesNotFit) {
  const TableSpec spec = SmallSpec(Adagrad()->config());
  Servers servers(spec, 2);
  servers.Train(ManyIds(300), 1);
  const testing::TempDir folder;
  const auto paths = servers.Save(folder.path());
  FileSystem& files = FileSystem::Local();
  const auto refused = [&](TableSpec other, const std::vector<std::string>& from, StatusCode code,
                           const std::string& what) {
    auto table = Make(other);
    const Status status = LoadRows(*table, files, from);
    EXPECT_EQ(status.code(), code) << status.ToString();
    EXPECT_THAT(status.message(), AllOf(HasSubstr(other.name), HasSubstr(what)));
    EXPECT_EQ(table->stats().rows, 0U);
    EXPECT_EQ(table->stats().row_bytes, 0U);
  };
  refused(spec, {paths[1]}, StatusCode::kNotFound, "bucket 0 is in none");
  refused(spec, {paths[0], paths[1], paths[0]}, StatusCode::kInvalidArgument, "bucket 0 is both");
  refused(spec, {paths[0], folder / "nothing"}, StatusCode::kNotFound, "nothing");
  TableSpec other = spec;
  other.name = "items";
  refused(other, paths, StatusCode::kFailedPrecondition, "name");
  other = spec;
  other.dim = 4;
  refused(other, paths, StatusCode::kFailedPrecondition, "dim is 3");
  other = spec;
  other.buckets = 32;
  refused(other, paths, StatusCode::kFailedPrecondition, "buckets");
  other = spec;
  other.seed = 8;
  refused(other, paths, StatusCode::kFailedPrecondition, "seed");
  other = spec;
  other.optimizer = RowWiseAdagradConfig();
  refused(other, paths, StatusCode::kFailedPrecondition, "slots");
  // Another rate is no other table.
  other = spec;
  other.optimizer = Adagrad({.learning_rate = 0.5})->config();
  auto table = Make(other);
  OrThrow(LoadRows(*table, files, paths));
  EXPECT_EQ(Dump(*table), servers.Dump());
  EXPECT_EQ(LoadRows(*table, files, paths).code(), StatusCode::kFailedPrecondition)
      << "the table has rows";

  // Every flipped byte and every cut is found.
  const std::string good = OrThrow(ReadFile(files, paths[0]));
  for (std::size_t at = 0; at < good.size(); at += 1 + good.size() / 97) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x40);
    OrThrow(WriteFileAtomically(files, folder / "bad", bad));
    refused(spec, {folder / "bad", paths[1]}, StatusCode::kDataLoss, "bad");
    OrThrow(WriteFileAtomically(files, folder / "bad", good.substr(0, at)));
    refused(spec, {folder / "bad", paths[1]}, StatusCode::kDataLoss, "bad");
  }
}

TEST(RowFile, AFailedSaveLeavesTheOldFile) {
  const TableSpec spec = SmallSpec();
  auto table = Make(spec);
  Pull(*table, ManyIds(200));
  const testing::TempDir folder;
  const std::string path = folder / "rows";
  OrThrow(SaveRows(*table, FileSystem::Local(), path));
  const std::string old = OrThrow(ReadFile(FileSystem::Local(), path));
  Pull(*table, ManyIds(300, 2));
  int operations = 0;
  testing::FaultyFileSystem counting([&](std::string_view, const std::string&) {
    ++operations;
    return OkStatus();
  });
  OrThrow(SaveRows(*table, counting, folder / "elsewhere"));
  ASSERT_GT(operations, 4);
  const std::string fresh = OrThrow(ReadFile(FileSystem::Local(), folder / "elsewhere"));
  ASSERT_NE(fresh, old);
  for (int fatal = 0; fatal < operations; ++fatal) {
    int operation = 0;
    bool renamed = false;
    testing::FaultyFileSystem faulty([&](std::string_view what, const std::string&) {
      if (operation++ == fatal) {
        return ResourceExhausted("disk full");
      }
      renamed = renamed || what == "rename";
      return OkStatus();
    });
    const Status status = SaveRows(*table, faulty, path);
    EXPECT_THAT(status.message(), HasSubstr("disk full")) << "operation " << fatal;
    EXPECT_EQ(OrThrow(ReadFile(FileSystem::Local(), path)), renamed ? fresh : old);
  }
  OrThrow(SaveRows(*table, FileSystem::Local(), path));
  EXPECT_EQ(OrThrow(ReadFile(FileSystem::Local(), path)), fresh);
}

}  // namespace
}  // namespace cohort::ps::row_tables
