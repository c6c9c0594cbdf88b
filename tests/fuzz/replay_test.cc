// The corpus, and what little changes make of it, as an ordinary test.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include <cohort/core/file_system.h>

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
    ASSERT_NO_THROW(GetParam().run(bytes));
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
      ASSERT_NO_THROW(GetParam().run(changed)) << "change " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fuzz, Replay, ::testing::ValuesIn(kTargets),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace cohort::fuzz
