// TFRecord files of tf.train.Example and tf.train.SequenceExample.
//
// Raw files are indexed when they are opened (a pass over their headers) and read record by record.
// Files in gzip or zlib have no random access: they are unpacked into memory once, when opened.
// Checksums are verified, always. Errors name file, record and, where the Example is to blame, the
// feature.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/log.h>
#include <cohort/core/metrics.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

enum class TfRecordCompression { kAuto, kNone, kGzip, kZlib };  // kAuto: told by content

enum class TfType {
  kFloat32,  // a float list
  kInt64,    // an int64 list
  kHash,     // a bytes list, each as a 64-bit hash, equal on every machine (int64)
  kBytes,    // one string of as many bytes as the shape has elements (uint8)
};

// A feature of fixed shape, whose list holds as many values as the shape has elements, or a ragged
// one.
struct TfFeatureSpec {
  std::string name;
  TfType type = TfType::kFloat32;
  Shape shape = {};
  // A list of any number of values, of kBytes the bytes of one string: a Ragged in the batch. A
  // record that does not have the feature has none. The shape is {}.
  bool ragged = false;
  // The feature of each step of a SequenceExample: a ragged feature of the values of all steps, one
  // step behind another. Each has as many values as the shape has elements.
  bool steps = false;
  // Stands for every value where a record does not have the feature; without it that is an error.
  std::optional<double> missing = {};
  std::int64_t buckets = 0;  // kHash: the hash modulo this, if not 0; never negative
};

enum class OnCorrupt {
  kError,  // opening, or reading the record, fails
  // Every file is read whole when it is opened, on every worker: records whose checksums are wrong
  // are left out, and of a file that is cut off or whose lengths are damaged the rest. So the order
  // and the number of examples are the same everywhere.
  kSkip,
};

// What was left out.
struct CorruptRecords {
  std::int64_t records = 0;           // whose bytes are wrong
  std::int64_t cut_files = 0;         // behind whose damage nothing can be found: more are lost
  std::vector<std::string> messages;  // the first 20: file, record, byte, what is wrong
};

struct TfRecordOptions {
  std::vector<TfFeatureSpec> features;  // those that are read
  TfRecordCompression compression = TfRecordCompression::kAuto;
  // Where a raw file has PATH.idx beside it (WriteTfIndex, or tfrecord2idx), its records are found
  // by that, without a walk over the file. DataLoss where the two do not belong together: another
  // size, or some records that are not where the index says, or not those that it was made of.
  bool index = false;
  // And where it has none, or one of another content, that is written first, at the cost of a walk;
  // processes that come at once write the same. Not with kSkip, which reads every file anyway.
  // Size, number of records and a few of them are compared; where others lie elsewhere, reading
  // says so.
  bool build_index = false;
  OnCorrupt on_corrupt = OnCorrupt::kError;
  std::int64_t max_corrupt = 100;  // kSkip: DataLoss where more is left out, of all files
  // kSkip: and where that is more than this part of the records. Below 1 a file whose rest cannot
  // be read is DataLoss too: nobody knows how many records that has.
  double max_corrupt_fraction = 1;
  CorruptRecords* corrupt = nullptr;  // kSkip: where that is counted
  // kSkip: there, too, with the records that are sound, as cohort_data_records_total; the rest of a
  // file counts as one.
  Metrics* metrics = nullptr;
  // What is said once, when all files are open: what was left out, which files have no records,
  // which are given twice, and how much is packed, which every process unpacks into its memory.
  Log log = {};
  FileSystem* files = &FileSystem::Local();
};

// The records of all files, one file after another. Files without records are allowed.
// InvalidArgument: no files, or features that make no sense.
Result<Dataset> TfRecords(const std::vector<std::string>& paths, const TfRecordOptions& options);

// Writes PATH.idx, a line "offset length" for each record, and returns how many there are: the
// format of DALI's tfrecord2idx. The last line begins with # and says of which content it is.
// InvalidArgument: a compressed file.
Result<std::int64_t> WriteTfIndex(FileSystem& files, const std::string& path);

}  // namespace cohort::data
