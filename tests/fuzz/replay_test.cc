// The corpus, and what little changes make of it, as an ordinary test.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/tensor.h>
#include <cohort/io/compression.h>

#include "targets.h"

namespace cohort::fuzz {
namespace {

class Replay : public ::testing::TestWithParam<Target> {};

TEST_P(Replay, NothingBreaksAReader) {
  std::vector<std::string> paths;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(COHORT_FUZZ_CORPUS "/") + GetParam().name)) {
    paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  ASSERT_FALSE(paths.empty());
  std::mt19937 random(3);
  for (const std::string& path : paths) {
    const std::string bytes = OrThrow(ReadFile(FileSystem::Local(), path));
    SCOPED_TRACE(path);
    ASSERT_NO_THROW(RunTarget(GetParam(), bytes));
    for (int i = 0; i < 200 && !bytes.empty(); ++i) {
      std::string changed = bytes;
      for (unsigned changes = 1 + random() % 4; changes > 0; --changes) {
        const std::size_t at = random() % changed.size();
        switch (random() % 5) {
          case 0:
            changed[at] = static_cast<char>(random());
            break;
          case 1:
            changed[at] = static_cast<char>(changed[at] ^ (1 << (random() % 8)));
            break;
          case 2:
            changed.insert(at, 1, static_cast<char>(random()));
            break;
          case 3:
            changed.replace(at, 8, std::string(8, '\xff'));
            break;
          default:
            changed.resize(at + 1);
        }
      }
      ASSERT_NO_THROW(RunTarget(GetParam(), changed)) << "change " << i;
    }
  }
}

// Files large enough that what they take shows beside the buffers: the shortest records, rows,
// fields, members and numbers there are.
TEST_P(Replay, MemoryStaysWithinAMultipleOfTheFile) {
  constexpr std::size_t kSize = std::size_t{1} << 20;
  const std::string name = GetParam().name;
  const auto times = [](std::string_view piece) {
    std::string bytes;
    while (bytes.size() < kSize) {
      bytes += piece;
    }
    return bytes;
  };
  const std::string empty_record("\0\0\0\0\0\0\0\0\x29\x03\x98\x07\xd8\xea\x82\xa2", 16);
  std::vector<std::string> files = {times(std::string(1, '\0')),
                                    times("\n"),
                                    times("a,"),
                                    times("\""),
                                    times("\xff"),
                                    times("0 16\n")};
  if (name == "tf_record") {
    files = {times(empty_record), io::Gzip(times(empty_record))};
  } else if (name == "csv") {
    files = {"u,v,w,x,y,z," + times("a,") + "\n" + times("1,"),
             "a,b,c,d,e,f\n" + times("1,1,1,1,1,1\n"), "a,b,c,d,e,f\n" + times("\n"),
             "a\n" + times("\"\"\"\"\n"), "a,b,c\n" + times("2\n")};
  } else if (name == "tf_example") {
    const auto field = [](int number, const std::string& content) {
      std::string bytes(1, static_cast<char>(number << 3 | 2));
      std::size_t size = content.size();
      for (; size >= 128; size >>= 7) {
        bytes += static_cast<char>(size | 128);
      }
      return bytes + static_cast<char>(size) + content;
    };
    const auto entry = [&field](const std::string& value) {
      return field(1, field(1, "k") + field(2, value));
    };
    const std::string empty = times(field(1, ""));
    files = {field(1, entry(field(3, field(1, times("\x01"))))),  // integers
             field(1, entry(field(1, empty))),                    // strings
             field(2, entry(empty)),                              // steps
             field(1, times(entry(""))), times(field(1, field(1, "")))};
  } else if (name == "criteo") {
    files = {times("\n"), times("0" + std::string(39, '\t') + "\n")};
  } else if (name == "tar") {
    const std::string header =
        OrThrow(ReadFile(FileSystem::Local(), COHORT_FUZZ_CORPUS "/tar/ustar")).substr(0, 512);
    files.push_back(times(header));
  }
  for (std::size_t i = 0; i < files.size(); ++i) {
    EXPECT_NO_THROW(RunTarget(GetParam(), files[i])) << i;
  }
}

// A reader that takes a length for true is found.
TEST(Allocations, AreCounted) {
  const Target target = {"greedy",
                         [](std::string_view bytes) {
                           void* const memory = ::operator new(20 * bytes.size());
                           const Tensor tensor(DType::kUInt8,
                                               {static_cast<std::int64_t>(20 * bytes.size())});
                           ::operator delete(memory);
                         },
                         36};
  const std::string bytes(std::size_t{1} << 20, 'y');
  EXPECT_THROW(RunTarget(target, bytes), std::logic_error) << "both are 40 for each byte";
  Target right = target;
  right.per_byte = 40;
  EXPECT_NO_THROW(RunTarget(right, bytes));
}

INSTANTIATE_TEST_SUITE_P(Fuzz, Replay, ::testing::ValuesIn(kTargets),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace cohort::fuzz
