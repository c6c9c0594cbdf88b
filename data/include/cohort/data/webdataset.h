// WebDataset: samples in tar archives (shards), raw or gzip.
//
// Format: https://github.com/webdataset/webdataset. Members with the same name up to the first dot
// of their last path component are one sample; what follows that dot is the member's extension, in
// any case: "train/0017.seg.png" is extension "seg.png" of sample "train/0017". The members of a
// sample lie next to one another. Members without a name before the dot, or without a dot, belong
// to no sample. Archives are POSIX ustar, pax, or GNU's, with long names.
//
// A shard's headers are walked once when it is opened, and about 100 bytes a sample are kept; an
// example costs one read for each feature. gzip, told by content, has no random access: such shards
// are unpacked into memory once. Tar's checksums cover headers, not contents. Errors name shard,
// sample and byte, for gzip of the unpacked archive.
//
// Thread rules: free functions, any thread; blocks for the disk. A decoder runs on the threads of
// Prefetch, several at once; an exception that it throws is reported like an error. A TarWriter
// from one thread at a time.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/dtype.h>
#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/data/dataset.h>
#include <cohort/data/image.h>

namespace cohort::data {

// What the bytes of a member become.
struct MemberDecoder {
  DType dtype = DType::kUInt8;
  Shape shape;
  // Writes every byte of `row`. Its error is given shard, sample and member.
  std::function<Status(std::string_view bytes, std::byte* row)> decode;
  std::string name;  // what it does: a part of the data set's fingerprint
};

// An integer as text, as in "cls" members; spaces and line ends around it are no part (int64).
MemberDecoder IntegerText();
// The 64-bit hash of the bytes, equal on every machine; modulo `buckets`, if not 0 (int64).
MemberDecoder HashedText(std::int64_t buckets = 0);
// Little-endian elements in row-major order, exactly as many bytes as they take.
MemberDecoder RawElements(DType dtype, Shape shape);
// A .npy array of exactly this type, as arrays.h reads it, and shape.
MemberDecoder NpyElements(DType dtype, Shape shape);

// A JPEG or PNG, told by content, as [height, width, channels].
MemberDecoder ImageElements(const ImageSpec& spec);

struct WebFeature {
  std::string name;
  // The first of these that a sample has. In lower case, without the dot before.
  std::vector<std::string> extensions;
  MemberDecoder decoder;
  // Stands for every value where a sample has none of them; without it that is an error.
  std::optional<double> missing = {};
};

struct WebDatasetOptions {
  std::vector<WebFeature> features;  // those that are read; other members are passed over
  FileSystem* files = &FileSystem::Local();
};

// The samples of all shards, one shard after another. Shards without samples are allowed.
// InvalidArgument: no shards, features that make no sense, members that are links or devices.
// DataLoss: a damaged or cut off archive, a member that stands twice in its sample, a sample whose
// members lie apart or that lacks a feature.
Result<Dataset> WebDataset(const std::vector<std::string>& shards,
                           const WebDatasetOptions& options);

// Writes an archive that is the same for the same calls: no times, no owners. Gzip where the path
// ends in ".gz". The file is there when Close has returned OK, and not before.
class TarWriter {
 public:
  static Result<std::unique_ptr<TarWriter>> Create(FileSystem& files, const std::string& path);
  virtual ~TarWriter() = default;  // without Close: nothing is left at the path

  // A regular file. InvalidArgument: a name that is empty, ends in '/' or holds a zero byte.
  virtual Status Add(const std::string& name, std::string_view content) = 0;
  // A sample for WebDataset: extension -> content. InvalidArgument: a key with a dot in its last
  // component or that was written before, an extension that is empty, in upper case, or has a '/'.
  virtual Status AddSample(const std::string& key,
                           const std::map<std::string, std::string>& members) = 0;
  virtual Status Close() = 0;  // no call may follow
};

}  // namespace cohort::data
