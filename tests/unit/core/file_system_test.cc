#include <cohort/core/file_system.h>
#include <gtest/gtest.h>

#include "testing/temp_dir.h"

namespace cohort {
namespace {

TEST(FileSystem, WritesAtomicallyAndReadsBack) {
  testing::TempDir dir;
  FileSystem& files = FileSystem::Local();
  const std::string path = dir / "a.txt";
  ASSERT_TRUE(WriteFileAtomically(files, path, "one").ok());
  ASSERT_TRUE(WriteFileAtomically(files, path, "two").ok());
  EXPECT_EQ(*ReadFile(files, path), "two");
  EXPECT_EQ(*files.List(dir.path()), std::vector<std::string>{"a.txt"})
      << "no temporary file is left";
}

TEST(FileSystem, ErrorsNameThePath) {
  testing::TempDir dir;
  const auto missing = ReadFile(FileSystem::Local(), dir / "missing");
  EXPECT_EQ(missing.status().code(), StatusCode::kNotFound);
  EXPECT_NE(missing.status().message().find(dir / "missing"), std::string::npos);
  const Status folder = WriteFileAtomically(FileSystem::Local(), dir / "no/such/folder", "x");
  EXPECT_EQ(folder.code(), StatusCode::kNotFound);
  EXPECT_FALSE(ReadFile(FileSystem::Local(), dir.path()).ok()) << "a folder is no file";
}

TEST(FileSystem, CreateNewNeverTruncates) {
  testing::TempDir dir;
  FileSystem& files = FileSystem::Local();
  auto first = OrThrow(files.CreateNew(dir / "f"));
  ASSERT_TRUE(first->Append(AsBytes("kept")).ok());
  EXPECT_EQ(files.CreateNew(dir / "f").status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(*ReadFile(files, dir / "f"), "kept");
}

TEST(FileSystem, ReadIsShortOnlyAtTheEnd) {
  testing::TempDir dir;
  ASSERT_TRUE(WriteFileAtomically(FileSystem::Local(), dir / "f", "abcdef").ok());
  auto file = OrThrow(FileSystem::Local().OpenForRead(dir / "f"));
  std::string out(4, '?');
  EXPECT_EQ(*file->Read(4, std::as_writable_bytes(std::span(out))), 2U);
  EXPECT_EQ(out.substr(0, 2), "ef");
  EXPECT_EQ(*file->Read(100, std::as_writable_bytes(std::span(out))), 0U);
}

}  // namespace
}  // namespace cohort
