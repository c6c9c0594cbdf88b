#include "testing/temp_dir.h"

#include <cstdlib>
#include <stdexcept>

namespace cohort::testing {

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "cohort-test-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) {
    throw std::runtime_error("mkdtemp " + pattern);
  }
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string RealData(const std::string& name) {
  const char* root = std::getenv("COHORT_TEST_DATA");  // NOLINT(concurrency-mt-unsafe)
  const std::filesystem::path path =
      std::filesystem::path(root != nullptr ? root : COHORT_SOURCE_DIR "/../shared/data") / name;
  return std::filesystem::exists(path) ? path.string() : std::string();
}

}  // namespace cohort::testing
