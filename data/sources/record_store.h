// RecordStore: the records of one TFRecord file, found by their number.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/data/tf_record.h>

namespace cohort::data {

// Thread rules: Read from many threads at once.
class RecordStore {
 public:
  virtual ~RecordStore() = default;
  virtual std::int64_t size() const = 0;
  // Record `i`; `buffer`, or memory that the thread reuses in its next Read, is where it is
  // put.
  virtual Result<std::string_view> Read(std::int64_t i, std::string& buffer) const = 0;
  // The number of record `i` in the file: a larger one behind records that were left out.
  virtual std::int64_t Ordinal(std::int64_t i) const = 0;
  virtual std::uint64_t BytesOf(std::int64_t i) const = 0;  // of record `i`, without its frame
  virtual std::uint64_t Digest() const = 0;
  virtual std::uint64_t bytes() const = 0;          // of the file, unpacked
  virtual bool in_memory() const { return false; }  // unpacked, all of it
};

// What is left out is counted in `corrupt`.
Result<std::unique_ptr<RecordStore>> OpenRecordStore(const TfRecordOptions& options,
                                                     const std::string& path,
                                                     CorruptRecords& corrupt);

}  // namespace cohort::data
