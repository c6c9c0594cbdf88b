// FileTable: which file an example stands in.

#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <cohort/data/source.h>

namespace cohort::data {

class FileTable {
 public:
  // `bytes` of the file; 0: not known.
  void Add(const std::string& path, std::int64_t examples, std::uint64_t bytes = 0) {
    ranges_.push_back({path, size(), size() + examples, static_cast<std::int64_t>(bytes)});
  }
  std::int64_t size() const { return ranges_.empty() ? 0 : ranges_.back().end; }  // examples
  const std::vector<FileRange>& ranges() const { return ranges_; }
  // The file of example `index`, 0 <= index < size().
  std::size_t Find(std::int64_t index) const {
    const auto after =
        std::upper_bound(ranges_.begin(), ranges_.end(), index,
                         [](std::int64_t i, const FileRange& file) { return i < file.end; });
    return static_cast<std::size_t>(after - ranges_.begin());
  }

 private:
  std::vector<FileRange> ranges_;
};

}  // namespace cohort::data
