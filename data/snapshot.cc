// Snapshot: what was made of the examples, in record files.
//
// A file is a function of the data alone: the examples of its range, and a label behind them that
// says of what it is. It is there when it is complete, so that whoever finds it uses it, and
// whoever does not may write it.

#include <algorithm>
#include <charconv>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/core/temporary_name.h>
#include <cohort/core/thread_pool.h>
#include <cohort/data/combine.h>
#include <cohort/io/compression.h>
#include <cohort/io/record_file.h>

#include "parts.h"
#include "sources/atomic_file.h"
#include "sources/file_table.h"
#include "sources/guarded.h"
#include "sources/record_store.h"

namespace cohort::data {
namespace {

std::string Describe(DType dtype, const Shape& shape) {
  return std::string(DTypeName(dtype)) + shape.ToString();
}

// Of two texts that differ: the first line that does, of each.
std::string Difference(std::string_view found, std::string_view expected) {
  const auto differs =
      static_cast<std::size_t>(std::ranges::mismatch(found, expected).in1 - found.begin());
  const std::size_t begin = found.substr(0, differs).rfind('\n') + 1;
  const auto line = [begin](std::string_view text) {
    return "'" + std::string(text.substr(begin, text.find('\n', begin) - begin)) + "'";
  };
  return line(found) + " where " + line(expected) + " is expected";
}

// Examples as bytes: rows one after another, then for each list the number of its bytes, and these.
class ExampleCodec {
 public:
  ExampleCodec(std::vector<FeatureSpec> features, std::vector<RaggedSpec> ragged)
      : features_(std::move(features)), ragged_(std::move(ragged)) {}

  const std::vector<FeatureSpec>& features() const { return features_; }
  const std::vector<RaggedSpec>& ragged() const { return ragged_; }

  // Names, types and shapes, as text.
  std::string Schema() const {
    std::string text;
    for (const FeatureSpec& feature : features_) {
      text += feature.name + " " + Describe(feature.dtype, feature.shape) + "\n";
    }
    for (const RaggedSpec& list : ragged_) {
      text += list.name + " " + std::string(DTypeName(list.dtype)) + " of any length\n";
    }
    return text;
  }

  // InvalidArgument: a feature of the batch is another than it says here.
  Status Check(const Batch& batch) const {
    const auto missing = [](const std::string& name) {
      return InvalidArgument("feature '" + name + "' of the first example is missing");
    };
    const auto other = [](const std::string& name, const std::string& is, const std::string& was) {
      return InvalidArgument(name + " is " + is + ", in the first example " + was);
    };
    for (const FeatureSpec& feature : features_) {
      const auto it = batch.features.find(feature.name);
      if (it == batch.features.end()) {
        return missing(feature.name);
      }
      const Tensor& rows = it->second;
      const Shape row(std::vector(rows.shape().dims().begin() + 1, rows.shape().dims().end()));
      if (rows.dtype() != feature.dtype || row != feature.shape) {
        return other("feature '" + feature.name + "'", Describe(rows.dtype(), row),
                     Describe(feature.dtype, feature.shape));
      }
    }
    for (const RaggedSpec& list : ragged_) {
      const auto it = batch.ragged.find(list.name);
      if (it == batch.ragged.end()) {
        return missing(list.name);
      }
      const DType dtype = it->second.values.dtype();
      if (dtype != list.dtype) {
        return other("ragged feature '" + list.name + "'", std::string(DTypeName(dtype)),
                     std::string(DTypeName(list.dtype)));
      }
    }
    for (const auto& [name, rows] : batch.features) {
      if (std::ranges::find(features_, name, &FeatureSpec::name) == features_.end()) {
        return InvalidArgument("feature '" + name + "' is not in the first example");
      }
    }
    return {};
  }

  // Example `row` of a batch that was checked.
  void Encode(const Batch& batch, std::int64_t row, std::string& bytes) const {
    const auto at = static_cast<std::size_t>(row);
    bytes.clear();
    for (const FeatureSpec& feature : features_) {
      const std::byte* const rows = batch.features.at(feature.name).raw();
      bytes.append(reinterpret_cast<const char*>(rows) + at * feature.bytes(), feature.bytes());
    }
    for (const RaggedSpec& spec : ragged_) {
      const Ragged& list = batch.ragged.at(spec.name);
      const auto splits = list.splits.data<std::int64_t>();
      const std::size_t size = SizeOf(spec.dtype);
      const std::uint64_t length = static_cast<std::uint64_t>(splits[at + 1] - splits[at]) * size;
      bytes.append(reinterpret_cast<const char*>(&length), sizeof(length));
      bytes.append(reinterpret_cast<const char*>(list.values.raw()) +
                       static_cast<std::size_t>(splits[at]) * size,
                   length);
    }
  }

  // How many examples are read at once: what lies behind a network is cheaper so.
  std::int64_t AtOnce() const {
    constexpr std::int64_t kExamples = 256;
    constexpr std::int64_t kBytes = std::int64_t{4} << 20;
    std::size_t bytes = 1;
    for (const FeatureSpec& feature : features_) {
      bytes += feature.bytes();
    }
    return std::clamp<std::int64_t>(kBytes / static_cast<std::int64_t>(bytes), 1,
                                    ragged_.empty() ? kExamples : kExamples / 8);
  }

  // False: these bytes are no such example.
  bool Decode(std::string_view bytes, std::span<std::byte* const> rows,
              std::span<std::vector<std::byte>> values) const {
    const auto take = [&bytes](std::size_t size, std::string_view& taken) {
      if (size > bytes.size()) {
        return false;
      }
      taken = bytes.substr(0, size);
      bytes.remove_prefix(size);
      return true;
    };
    std::string_view taken;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (!take(features_[i].bytes(), taken)) {
        return false;
      }
      if (!taken.empty()) {
        std::memcpy(rows[i], taken.data(), taken.size());
      }
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::uint64_t length = 0;
      if (!take(sizeof(length), taken)) {
        return false;
      }
      std::memcpy(&length, taken.data(), sizeof(length));
      if (length % SizeOf(ragged_[i].dtype) != 0 || !take(length, taken)) {
        return false;
      }
      const auto* const list = reinterpret_cast<const std::byte*>(taken.data());
      values[i].insert(values[i].end(), list, list + taken.size());
    }
    return bytes.empty();
  }

 private:
  std::vector<FeatureSpec> features_;
  std::vector<RaggedSpec> ragged_;
};

// What a snapshot is of, and where its files are.
struct Layout {
  std::string mark;    // of what: equal for equal snapshots
  std::string folder;  // of its files alone
  std::int64_t examples = 0;
  int files = 1;

  std::string Path(int file) const {
    const auto digits = [](int n) {
      const std::string text = std::to_string(n);
      return std::string(5 - std::min<std::size_t>(5, text.size()), '0') + text;
    };
    return folder + "/" + digits(file) + "-of-" + digits(files);
  }
  std::int64_t Begin(int file) const { return PartBegin(examples, files, file); }
  // The last record of a file, but for the digest of those before it.
  std::string Label(int file) const {
    return mark + "file " + std::to_string(file) + " of " + std::to_string(files) + ", examples " +
           std::to_string(Begin(file)) + " to " + std::to_string(Begin(file + 1)) + "\ndigest ";
  }
};

// An AtomicFile for who writes a WritableFile.
class WritableAtomicFile final : public WritableFile {
 public:
  explicit WritableAtomicFile(std::unique_ptr<AtomicFile> file) : file_(std::move(file)) {}
  Status Append(std::span<const std::byte> bytes) override { return file_->Append(bytes); }
  Status Flush() override { return {}; }
  Status Sync() override { return {}; }  // Close does
  Status Close() override { return file_->Close(); }

 private:
  std::unique_ptr<AtomicFile> file_;
};

Status WriteFileOf(const Dataset& data, const ExampleCodec& codec, FileSystem& files,
                   const Layout& layout, int file, bool compress) {
  COHORT_ASSIGN_OR_RETURN(auto atomic, AtomicFile::Create(files, layout.Path(file)));
  const auto writer = io::RecordWriter::To(std::make_unique<WritableAtomicFile>(std::move(atomic)));
  std::uint64_t digest = 0;
  std::int64_t done = layout.Begin(file);
  std::string bytes;
  COHORT_ASSIGN_OR_RETURN(const auto batches, data.Batch(codec.AtOnce())
                                                  .Prefetch(0)
                                                  .Iterate({.begin = layout.Begin(file),
                                                            .end = layout.Begin(file + 1)}));
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const auto batch, batches->Next());
    if (!batch.has_value()) {
      break;
    }
    if (const Status status = codec.Check(*batch); !status.ok()) {
      return status.Annotate("Snapshot: examples " + std::to_string(done) + " to " +
                             std::to_string(done + batch->size - 1));
    }
    done += batch->size;
    for (std::int64_t row = 0; row < batch->size; ++row) {
      codec.Encode(*batch, row, bytes);
      digest = Hash64(bytes, digest);
      COHORT_RETURN_IF_ERROR(writer->Write(compress ? io::Gzip(bytes) : bytes));
    }
  }
  COHORT_RETURN_IF_ERROR(writer->Write(layout.Label(file) + std::to_string(digest)));
  // Another process's, which somebody may be reading already, stays.
  return files.Exists(layout.Path(file)) ? Status() : writer->Close();
}

// The files that are not there yet, in an order of this process's own, so that several processes
// meet at the last ones only.
Status WriteMissing(const Dataset& data, const ExampleCodec& codec, FileSystem& files,
                    const Layout& layout, const SnapshotOptions& options) {
  std::vector<int> missing;
  for (int file = 0; file < layout.files; ++file) {
    if (!files.Exists(layout.Path(file))) {
      missing.push_back(file);
    }
  }
  if (missing.empty()) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(files.CreateDirectories(layout.folder));
  const Permutation order(missing.size(), Hash64(TemporaryName("")));
  const auto write = [&](int file) -> Status {
    return files.Exists(layout.Path(file))
               ? Status()
               : WriteFileOf(data, codec, files, layout, file, options.compress);
  };
  std::mutex mutex;
  Status error;
  ThreadPool pool(options.threads, "snapshot");
  pool.ParallelFor(static_cast<std::int64_t>(missing.size()), 1,
                   [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t i = begin; i < end; ++i) {
                       {
                         std::lock_guard lock(mutex);
                         if (!error.ok()) {
                           return;
                         }
                       }
                       const std::uint64_t at = order(static_cast<std::uint64_t>(i));
                       if (Status status = Guarded(write, missing[at]); !status.ok()) {
                         std::lock_guard lock(mutex);
                         error = std::move(status);
                       }
                     }
                   });
  return error;
}

class SnapshotSource final : public Source {
 public:
  SnapshotSource(ExampleCodec codec, bool compressed)
      : codec_(std::move(codec)), compressed_(compressed) {}

  Status Open(FileSystem& files, const Layout& layout) {
    for (int file = 0; file < layout.files; ++file) {
      const std::string path = layout.Path(file);
      const auto other = [&path](const std::string& what) {
        return DataLoss(path + ": " + what + " [remove it, and it is written again]");
      };
      CorruptRecords none;
      TfRecordOptions options;
      options.compression = TfRecordCompression::kNone;
      options.files = &files;
      COHORT_ASSIGN_OR_RETURN(auto store, OpenRecordStore(options, path, none));
      const std::int64_t examples = layout.Begin(file + 1) - layout.Begin(file);
      if (store->size() != examples + 1) {
        return other("holds " + std::to_string(store->size()) + " records, " +
                     std::to_string(examples) + " examples and a label are expected");
      }
      std::string buffer;
      COHORT_ASSIGN_OR_RETURN(const std::string_view label, store->Read(examples, buffer));
      if (!label.starts_with(layout.Label(file))) {
        return other("is of " + Difference(label, layout.Label(file)));
      }
      fingerprint_ = Hash64(label, fingerprint_);
      table_.Add(path, examples, store->bytes());
      stores_.push_back(std::move(store));
    }
    return {};
  }

  std::int64_t size() const override { return table_.size(); }
  const std::vector<FeatureSpec>& features() const override { return codec_.features(); }
  const std::vector<RaggedSpec>& ragged() const override { return codec_.ragged(); }
  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    std::vector<std::vector<std::byte>> values(ragged().size());
    return ReadRagged(index, rows, values);
  }
  Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                    std::span<std::vector<std::byte>> values) const override {
    const std::size_t file = table_.Find(index);
    std::string buffer;
    COHORT_ASSIGN_OR_RETURN(std::string_view bytes,
                            stores_[file]->Read(index - table_.ranges()[file].begin, buffer));
    std::string unpacked;
    if (compressed_) {
      COHORT_ASSIGN_OR_RETURN(unpacked, io::Gunzip(bytes, Where(index)));
      bytes = unpacked;
    }
    return codec_.Decode(bytes, rows, values)
               ? Status()
               : DataLoss(Where(index) + ": is no example of these features");
  }
  std::string Where(std::int64_t index) const override {
    const FileRange& range = table_.ranges()[table_.Find(index)];
    return range.name + ", record " + std::to_string(index - range.begin);
  }
  std::vector<FileRange> files() const override { return table_.ranges(); }
  // Of what was written: two processes that have not the same are told apart.
  std::uint64_t Fingerprint() const override { return fingerprint_; }

 private:
  const ExampleCodec codec_;
  const bool compressed_;
  FileTable table_;
  std::vector<std::unique_ptr<RecordStore>> stores_;
  std::uint64_t fingerprint_ = Hash64("snapshot");
};

}  // namespace

Result<Dataset> Snapshot(const Dataset& data, FileSystem& files, const std::string& folder,
                         const SnapshotOptions& options) {
  if (options.shards < 1 || options.threads < 1) {
    return InvalidArgument("Snapshot: " + std::to_string(options.shards) + " shards by " +
                           std::to_string(options.threads) + " threads [at least 1 of each]");
  }
  COHORT_ASSIGN_OR_RETURN(const auto source, Unshuffled(data, "Snapshot"));
  ExampleCodec codec(source->features(), source->ragged());
  Layout layout;
  layout.examples = source->size();
  layout.files =
      static_cast<int>(std::clamp<std::int64_t>(source->size(), 1, std::int64_t{options.shards}));
  layout.mark = "cohort snapshot of " + std::to_string(source->Fingerprint()) + " version '" +
                options.version + "'" + (options.compress ? ", gzip" : "") + ", " +
                std::to_string(layout.examples) + " examples in " + std::to_string(layout.files) +
                " files\n" + codec.Schema();
  layout.folder = folder + "/" + std::to_string(Hash64(layout.mark));
  COHORT_RETURN_IF_ERROR(WriteMissing(data, codec, files, layout, options));
  const auto snapshot = std::make_shared<SnapshotSource>(std::move(codec), options.compress);
  COHORT_RETURN_IF_ERROR(snapshot->Open(files, layout));
  return Dataset(std::shared_ptr<const Source>(snapshot));
}

}  // namespace cohort::data
