// To which sample of a WebDataset a member of an archive belongs, and that these lie together.

#pragma once

#include <algorithm>
#include <cstdint>
#include <set>
#include <string>

#include <cohort/core/status.h>

namespace cohort::data {

struct SampleName {
  std::string key;        // the name up to the first dot of its last component
  std::string extension;  // what follows the dot, in lower case
};

// Both empty where the member belongs to no sample: no dot, or nothing before it.
inline SampleName SplitSampleName(const std::string& member) {
  const std::size_t slash = member.rfind('/');
  const std::size_t base = slash == std::string::npos ? 0 : slash + 1;
  const std::size_t dot = member.find('.', base);
  if (dot == std::string::npos || dot == base) {
    return {};
  }
  SampleName name = {.key = member.substr(0, dot), .extension = member.substr(dot + 1)};
  std::transform(name.extension.begin(), name.extension.end(), name.extension.begin(), [](char c) {
    return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  });
  return name;
}

class SampleOrder {
 public:
  // A sample begins with the member whose header is at byte `header`. DataLoss: it began before,
  // and others came behind it.
  Status Begin(const std::string& path, const std::string& key, std::uint64_t header) {
    if (keys_.insert(key).second) {
      return {};
    }
    return DataLoss(path + ": sample '" + key + "' goes on at byte " + std::to_string(header) +
                    ", behind other samples [its members must lie together: tar --sort=name]");
  }

 private:
  std::set<std::string> keys_;
};

}  // namespace cohort::data
