// What `cohort data shard` reads: the records of a file, as they stand there.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <cohort/core/status.h>

#include "file_kind.h"

namespace cohort::data {

// A record as it is copied: bytes, or the members of a sample.
struct ShardPiece {
  std::string key;  // of a sample
  std::map<std::string, std::string> members;
  std::string bytes;

  std::uint64_t size() const;
};

// Thread rules: Read from many threads, but where it is in_order.
class ShardInput {
 public:
  virtual ~ShardInput() = default;
  // ShardPiece::size of each record. Where records are read in order only, this reads the file to
  // its end, and another input reads the records.
  virtual Result<std::vector<std::uint64_t>> Sizes() = 0;
  // Record `i`; where they are read in order only, behind those that were read.
  virtual Status Read(std::int64_t i, ShardPiece& piece) = 0;
  virtual bool in_order() const { return false; }
  virtual std::string header() const { return ""; }  // CSV
};

// Of TFRecord, tar, CSV or text.
Result<std::shared_ptr<ShardInput>> OpenShardInput(const std::string& path, const FileKind& kind);

}  // namespace cohort::data
