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
      text += feature.name + " " + std::string(DTypeName(feature.dtype)) +
              feature.shape.ToString() + "\n";
    }
    for (const RaggedSpec& list : ragged_) {
      text += list.name + " " + std::string(DTypeName(list.dtype)) + " of any length\n";
    }
    return text;
  }

  Status Encode(const Source& source, std::int64_t index, std::string& bytes) const {
    std::size_t size = 0;
    for (const FeatureSpec& feature : features_) {
      size += Room(feature);
    }
    std::vector<std::uint64_t> memory(size);  // rows begin where their elements may be
    std::vector<std::byte*> rows;
    std::uint64_t* at = memory.data();
    for (const FeatureSpec& feature : features_) {
      rows.push_back(reinterpret_cast<std::byte*>(at));
      at += Room(feature);
    }
    std::vector<std::vector<std::byte>> values(ragged_.size());
    COHORT_RETURN_IF_ERROR(source.ReadRagged(index, rows, values));
    bytes.clear();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      bytes.append(reinterpret_cast<const char*>(rows[i]), features_[i].bytes());
    }
    for (const std::vector<std::byte>& list : values) {
      const std::uint64_t length = list.size();
      bytes.append(reinterpret_cast<const char*>(&length), sizeof(length));
      bytes.append(reinterpret_cast<const char*>(list.data()), list.size());
    }
    return {};
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
  static std::size_t Room(const FeatureSpec& feature) {
    return (feature.bytes() + sizeof(std::uint64_t) - 1) / sizeof(std::uint64_t);
  }

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

Status WriteFileOf(const Source& source, const ExampleCodec& codec, FileSystem& files,
                   const Layout& layout, int file, bool compress) {
  COHORT_ASSIGN_OR_RETURN(auto atomic, AtomicFile::Create(files, layout.Path(file)));
  const auto writer = io::RecordWriter::To(std::make_unique<WritableAtomicFile>(std::move(atomic)));
  std::uint64_t digest = 0;
  std::string bytes;
  for (std::int64_t i = layout.Begin(file); i < layout.Begin(file + 1); ++i) {
    COHORT_RETURN_IF_ERROR(codec.Encode(source, i, bytes));
    digest = Hash64(bytes, digest);
    COHORT_RETURN_IF_ERROR(writer->Write(compress ? io::Gzip(bytes) : bytes));
  }
  COHORT_RETURN_IF_ERROR(writer->Write(layout.Label(file) + std::to_string(digest)));
  // Another process's, which somebody may be reading already, stays.
  return files.Exists(layout.Path(file)) ? Status() : writer->Close();
}

// The files that are not there yet, in an order of this process's own, so that several processes
// meet at the last ones only.
Status WriteMissing(const Source& source, const ExampleCodec& codec, FileSystem& files,
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
               : WriteFileOf(source, codec, files, layout, file, options.compress);
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
        return other("its label is not that of this file of this snapshot");
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
  COHORT_RETURN_IF_ERROR(WriteMissing(*source, codec, files, layout, options));
  const auto snapshot = std::make_shared<SnapshotSource>(std::move(codec), options.compress);
  COHORT_RETURN_IF_ERROR(snapshot->Open(files, layout));
  return Dataset(std::shared_ptr<const Source>(snapshot));
}

}  // namespace cohort::data
