// Binary files of records of one length, one after another: the format of CIFAR's binary version
// (www.cs.toronto.edu/~kriz/cifar.html) and of most dumps of C structures.
//
//   header_bytes | record_bytes | record_bytes | ... | footer_bytes
//
// Only the size of a file is checked when it is opened; an example costs one read of a record.
// gzip files have no random access: they are unpacked into memory once. The format has no
// checksums. Errors name file, record and byte.
//
// Thread rules: free functions, any thread; blocks for the disk.

#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <cohort/core/dtype.h>
#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

// shape.elements() numbers, one after another in row-major order, from byte `offset` of a record.
struct FixedField {
  std::string name;
  std::size_t offset = 0;
  DType dtype = DType::kUInt8;
  Shape shape = {};
  bool big_endian = false;
};

struct FixedRecordOptions {
  std::size_t record_bytes = 0;    // at least 1
  std::vector<FixedField> fields;  // those that are read; they may overlap and leave gaps
  std::size_t header_bytes = 0;    // of each file, not looked at
  std::size_t footer_bytes = 0;
  bool gzip = false;  // the files are gzip as a whole; never guessed, records may begin like it
  FileSystem* files = &FileSystem::Local();
};

// The records of all files, one file after another. Files without records are allowed.
// InvalidArgument: no files, fields that make no sense or reach beyond the record; DataLoss: a file
// that is no whole number of records.
Result<Dataset> FixedRecords(const std::vector<std::string>& paths,
                             const FixedRecordOptions& options);

}  // namespace cohort::data
