// TempDir: a folder that disappears with the test.
#pragma once

#include <filesystem>
#include <string>

namespace cohort::testing {

class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::string path() const { return path_.string(); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

// The folder of real data sets ($COHORT_TEST_DATA, default ../shared/data beside the checkout);
// empty where it is absent.
std::string RealData(const std::string& name);

}  // namespace cohort::testing
