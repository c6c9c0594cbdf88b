// What a FileSystem may be besides: one that lists by the beginning of names.

#pragma once

#include <string>
#include <vector>

#include <cohort/core/status.h>

namespace cohort::data {

class PrefixLister {
 public:
  virtual ~PrefixLister() = default;
  // At least those names in folder `path` that begin with `prefix`.
  virtual Result<std::vector<std::string>> ListPrefix(const std::string& path,
                                                      const std::string& prefix) = 0;
};

}  // namespace cohort::data
