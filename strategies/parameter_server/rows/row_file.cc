#include "parameter_server/rows/row_file.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include <cohort/core/temporary_name.h>
#include <cohort/io/record_file.h>
#include <cohort/io/wire.h>
#include <cohort/optim/row_optimizer.h>

#include "parameter_server/rows/row_changes.h"

namespace cohort::ps {
namespace {

constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kChangesVersion = 2;  // of files of changes

// RowFileHeader of proto/cohort/parameter_server.proto.
struct Header {
  enum Field { kVersion = 1, kTable = 2, kBucketBegin = 3, kBucketEnd = 4, kChanges = 5 };
  std::uint32_t version = 0;
  std::string table;  // SpecOf
  BucketRange range;
  bool changes = false;
};

std::string ToMessage(const Header& header) {
  std::string message;
  const auto put = [&message](Header::Field field, std::uint32_t number) {
    if (number != 0) {
      io::wire::AppendVarintField(message, field, number);
    }
  };
  put(Header::kVersion, header.version);
  io::wire::AppendField(message, Header::kTable, header.table);
  put(Header::kBucketBegin, header.range.begin);
  put(Header::kBucketEnd, header.range.end);
  put(Header::kChanges, header.changes ? 1 : 0);
  return message;
}

// False if the bytes are no message.
bool Parse(std::string_view message, Header& header) {
  namespace wire = io::wire;
  return wire::ForEachField(message, [&header](const wire::Field& field) {
    const auto number = static_cast<std::uint32_t>(field.varint);
    if (field.number == Header::kTable && field.type == wire::kBytes) {
      header.table = field.bytes;
    } else if (field.type != wire::kVarint) {
      return true;
    } else if (field.number == Header::kVersion) {
      header.version = number;
    } else if (field.number == Header::kBucketBegin) {
      header.range.begin = number;
    } else if (field.number == Header::kBucketEnd) {
      header.range.end = number;
    } else if (field.number == Header::kChanges) {
      header.changes = number != 0;
    }
    return true;
  });
}

// "accumulator", "m, v": what the records of a table hold besides weights.
Result<std::string> SlotNames(const std::string& optimizer) {
  COHORT_ASSIGN_OR_RETURN(const auto rule, RowOptimizer::Make(optimizer));
  std::string names;
  for (int slot = 0; slot < rule->num_slots(); ++slot) {
    names += (names.empty() ? "" : ", ") + std::string(rule->slot_name(slot));
  }
  // Of one name, but one float for each row.
  return rule->name() == kRowWiseAdagrad ? names + " of the row" : names;
}

Status Compare(const TableSpec& table, const TableSpec& file, const std::string& path) {
  const auto differs = [&](const std::string& what, const std::string& have,
                           const std::string& found) {
    return FailedPrecondition(path + " has rows of another table: " + what + " is " + found +
                              ", table \"" + table.name + "\" has " + have);
  };
  if (table.name != file.name) {
    return differs("the name", "\"" + table.name + "\"", "\"" + file.name + "\"");
  }
  if (table.dim != file.dim) {
    return differs("dim", std::to_string(table.dim), std::to_string(file.dim));
  }
  if (table.buckets != file.buckets) {
    return differs("the number of buckets", std::to_string(table.buckets),
                   std::to_string(file.buckets));
  }
  if (table.seed != file.seed) {
    return differs("the seed", std::to_string(table.seed), std::to_string(file.seed));
  }
  COHORT_ASSIGN_OR_RETURN(const std::string have, SlotNames(table.optimizer));
  COHORT_ASSIGN_OR_RETURN(const std::string found, SlotNames(file.optimizer));
  return have == found
             ? OkStatus()
             : differs("the list of optimizer slots", "(" + have + ")", "(" + found + ")");
}

class Writer final : public RowFileWriter {
 public:
  Writer(FileSystem& files, std::string path, BucketRange range)
      : files_(files),
        path_(std::move(path)),
        temporary_(TemporaryName(path_)),
        left_(range.end - range.begin) {}
  ~Writer() override {
    writer_.reset();
    if (!closed_ && files_.Exists(temporary_)) {
      static_cast<void>(files_.RemoveAll(temporary_));
    }
  }

  Status Begin(const TableSpec& spec, BucketRange range, RowFileKind kind) {
    COHORT_ASSIGN_OR_RETURN(writer_, io::RecordWriter::Create(files_, temporary_));
    const bool changes = kind == RowFileKind::kChanges;
    return writer_->Write(ToMessage(Header{.version = changes ? kChangesVersion : kVersion,
                                           .table = ps::ToMessage(spec),
                                           .range = range,
                                           .changes = changes}));
  }
  Status Write(std::string_view dump) override {
    Require(left_ > 0, "a dump for each bucket of the range");
    --left_;
    return writer_->Write(dump);
  }
  Status Close() override {
    Require(left_ == 0, "a dump for each bucket of the range");
    COHORT_RETURN_IF_ERROR(writer_->Sync());
    COHORT_RETURN_IF_ERROR(writer_->Close());
    COHORT_RETURN_IF_ERROR(files_.Rename(temporary_, path_));
    closed_ = true;
    const std::size_t slash = path_.rfind('/');
    return files_.SyncDirectory(slash == std::string::npos ? "." : path_.substr(0, slash + 1));
  }

 private:
  FileSystem& files_;
  const std::string path_;
  const std::string temporary_;
  std::uint32_t left_;
  bool closed_ = false;
  std::unique_ptr<io::RecordWriter> writer_;
};

class Reader final : public RowFileReader {
 public:
  Reader(std::unique_ptr<io::RecordFile> file, std::string path, BucketRange range)
      : file_(std::move(file)), path_(std::move(path)), range_(range) {}

  BucketRange range() const override { return range_; }
  Result<std::string> Read(std::uint32_t bucket) override {
    if (bucket < range_.begin || bucket >= range_.end) {
      return NotFound(path_ + " has buckets " + std::to_string(range_.begin) + " to " +
                      std::to_string(range_.end) + ", not " + std::to_string(bucket));
    }
    std::string dump;
    COHORT_RETURN_IF_ERROR(file_->Read(1 + std::int64_t{bucket} - range_.begin, dump));
    return dump;
  }

 private:
  const std::unique_ptr<io::RecordFile> file_;
  const std::string path_;
  const BucketRange range_;
};

class ChainReader final : public RowFileReader {
 public:
  ChainReader(std::vector<std::unique_ptr<RowFileReader>> files, std::vector<std::string> paths,
              const RowShape& shape)
      : files_(std::move(files)), paths_(std::move(paths)), shape_(shape) {}

  BucketRange range() const override { return files_.front()->range(); }
  Result<std::string> Read(std::uint32_t bucket) override {
    std::string dump;
    for (std::size_t f = 0; f < files_.size(); ++f) {
      COHORT_ASSIGN_OR_RETURN(std::string next, files_[f]->Read(bucket));
      if (IsChanges(next) && f == 0) {
        return DataLoss(paths_[f] + " has changes where rows are expected");
      }
      if (IsChanges(next)) {
        Result<std::string> merged = ApplyChanges(dump, next, shape_);
        COHORT_RETURN_IF_ERROR(merged.status().Annotate(paths_[f]));
        next = *std::move(merged);
      }
      dump = std::move(next);
    }
    return dump;
  }

 private:
  const std::vector<std::unique_ptr<RowFileReader>> files_;
  const std::vector<std::string> paths_;
  const RowShape shape_;
};

Status Load(RowTable& table, FileSystem& files, const std::string& path,
            std::vector<std::string>& source) {
  COHORT_ASSIGN_OR_RETURN(const auto file, RowFileReader::Open(files, path, table.spec()));
  const std::uint32_t end = std::min(file->range().end, table.range().end);
  for (std::uint32_t b = std::max(file->range().begin, table.range().begin); b < end; ++b) {
    std::string& from = source[b - table.range().begin];
    if (!from.empty()) {
      return InvalidArgument("bucket " + std::to_string(b) + " is both in " + from + " and in " +
                             path);
    }
    from = path;
    COHORT_ASSIGN_OR_RETURN(const std::string dump, file->Read(b));
    COHORT_RETURN_IF_ERROR(table.RestoreBucket(b, dump).Annotate(path));
  }
  return {};
}

// An empty table is filled by `load`, or empty.
Status Fill(RowTable& table, const std::function<Status()>& load) {
  if (const TableStats stats = table.stats(); stats.rows > 0 || stats.candidates > 0) {
    return FailedPrecondition("table \"" + table.spec().name + "\" has " +
                              std::to_string(stats.rows) + " rows already [load first]");
  }
  const Status status = load();
  if (!status.ok()) {
    table.Clear();
  }
  return status.Annotate("rows of table \"" + table.spec().name + "\"");
}

Result<std::unique_ptr<RowFileReader>> OpenOne(FileSystem& files, const std::string& path,
                                               const TableSpec& table, RowFileKind kind) {
  COHORT_ASSIGN_OR_RETURN(auto file, io::RecordFile::Open(files, path));
  if (file->size() < 1) {
    return DataLoss(path + " is empty");
  }
  std::string record;
  COHORT_RETURN_IF_ERROR(file->Read(0, record));
  Header header;
  if (!Parse(record, header)) {
    return DataLoss(path + " is no file of rows");
  }
  if (header.version != kVersion && header.version != kChangesVersion) {
    return Unimplemented(path + " has version " + std::to_string(header.version) +
                         ", this program reads " + std::to_string(kVersion) + " and " +
                         std::to_string(kChangesVersion));
  }
  if (header.changes != (kind == RowFileKind::kChanges)) {
    return DataLoss(path + (header.changes ? " has the changes since an earlier file, not all rows"
                                           : " has all rows, not changes since an earlier file"));
  }
  auto spec = SpecOf(header.table);
  COHORT_RETURN_IF_ERROR(spec.status().Annotate(path));
  COHORT_RETURN_IF_ERROR(Compare(table, *spec, path));
  const BucketRange range = header.range;
  if (range.begin > range.end || range.end > spec->buckets ||
      file->size() != 1 + std::int64_t{range.end} - range.begin) {
    return DataLoss(path + " has " + std::to_string(file->size()) + " records for buckets " +
                    std::to_string(range.begin) + " to " + std::to_string(range.end));
  }
  return std::make_unique<Reader>(std::move(file), path, range);
}

}  // namespace

Result<std::unique_ptr<RowFileWriter>> RowFileWriter::Create(FileSystem& files,
                                                             const std::string& path,
                                                             const TableSpec& spec,
                                                             BucketRange range, RowFileKind kind) {
  auto writer = std::make_unique<Writer>(files, path, range);
  COHORT_RETURN_IF_ERROR(writer->Begin(spec, range, kind));
  return writer;
}

Result<std::unique_ptr<RowFileReader>> RowFileReader::Open(FileSystem& files,
                                                           const std::string& path,
                                                           const TableSpec& table) {
  return OpenOne(files, path, table, RowFileKind::kRows);
}

Result<std::unique_ptr<RowFileReader>> RowFileReader::OpenChain(FileSystem& files,
                                                                std::span<const std::string> paths,
                                                                const TableSpec& spec) {
  Require(!paths.empty(), "the file of all rows");
  if (paths.size() == 1) {
    return Open(files, paths[0], spec);
  }
  std::vector<std::unique_ptr<RowFileReader>> chain;
  for (const std::string& path : paths) {
    COHORT_ASSIGN_OR_RETURN(
        auto file,
        OpenOne(files, path, spec, chain.empty() ? RowFileKind::kRows : RowFileKind::kChanges));
    if (!chain.empty() && file->range() != chain.front()->range()) {
      return DataLoss(path + " has other buckets than " + paths[0]);
    }
    chain.push_back(std::move(file));
  }
  COHORT_ASSIGN_OR_RETURN(const auto rule, RowOptimizer::Make(spec.optimizer));
  const auto dim = static_cast<std::size_t>(spec.dim);
  return std::make_unique<ChainReader>(std::move(chain),
                                       std::vector<std::string>(paths.begin(), paths.end()),
                                       RowShape(dim + rule->slot_floats(dim)));
}

Status SaveRows(const RowTable& table, FileSystem& files, const std::string& path) {
  const auto save = [&]() -> Status {
    COHORT_ASSIGN_OR_RETURN(const auto writer,
                            RowFileWriter::Create(files, path, table.spec(), table.range()));
    for (std::uint32_t b = table.range().begin; b < table.range().end; ++b) {
      COHORT_RETURN_IF_ERROR(writer->Write(table.DumpBucket(b)));
    }
    return writer->Close();
  };
  return save().Annotate("rows of table \"" + table.spec().name + "\"");
}

Status LoadRows(RowTable& table, FileSystem& files, std::span<const std::string> paths) {
  return Fill(table, [&]() -> Status {
    std::vector<std::string> source(table.range().end - table.range().begin);
    for (const std::string& path : paths) {
      COHORT_RETURN_IF_ERROR(Load(table, files, path, source));
    }
    const auto none = std::ranges::find(source, "");
    if (none != source.end()) {
      return NotFound(
          "bucket " +
          std::to_string(table.range().begin + static_cast<std::uint32_t>(none - source.begin())) +
          " is in none of the " + std::to_string(paths.size()) +
          " files [name the files of all servers that saved]");
    }
    return {};
  });
}

Status LoadChain(RowTable& table, FileSystem& files, std::span<const std::string> paths) {
  return Fill(table, [&]() -> Status {
    COHORT_ASSIGN_OR_RETURN(const auto reader,
                            RowFileReader::OpenChain(files, paths, table.spec()));
    for (std::uint32_t b = table.range().begin; b < table.range().end; ++b) {
      COHORT_ASSIGN_OR_RETURN(const std::string dump, reader->Read(b));
      COHORT_RETURN_IF_ERROR(table.RestoreBucket(b, dump).Annotate(paths.back()));
    }
    return {};
  });
}

}  // namespace cohort::ps
