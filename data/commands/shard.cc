// `cohort data shard`: the records of files in their order as N files of about as many bytes.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include <cohort/data/webdataset.h>
#include <cohort/io/compression.h>
#include <cohort/io/record_file.h>

#include "../sources/atomic_file.h"
#include "../sources/content.h"
#include "../sources/csv_reader.h"
#include "../sources/sample_name.h"
#include "../sources/tar.h"
#include "atomic_records.h"
#include "command.h"
#include "file_kind.h"
#include "files.h"
#include "progress.h"

namespace cohort {
namespace {

struct Options {
  std::vector<std::string> inputs;
  std::string prefix;
  int files = 0;
  bool gzip = false;
  bool json = false;
};

// A record as it is copied: bytes, or the members of a sample.
struct Piece {
  std::string key;  // of a sample
  std::map<std::string, std::string> members;
  std::string bytes;

  std::uint64_t size() const {
    std::uint64_t total = bytes.size();
    for (const auto& [extension, content] : members) {
      total += content.size();
    }
    return total;
  }
};

using Each = std::function<Status(const Piece&)>;

Status ForEachRecord(const std::string& path, const Each& each) {
  COHORT_ASSIGN_OR_RETURN(const auto reader, io::RecordReader::Open(data::CommandFiles(), path));
  Piece piece;
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const auto record, reader->Next());
    if (!record.has_value()) {
      return {};
    }
    piece.bytes = *record;
    COHORT_RETURN_IF_ERROR(each(piece));
  }
}

Status ForEachSample(const std::string& path, const Each& each) {
  COHORT_ASSIGN_OR_RETURN(const auto file, data::OpenMaybeGzip(data::CommandFiles(), path));
  COHORT_ASSIGN_OR_RETURN(const auto members, data::IndexTar(*file, path));
  Piece piece;
  for (const data::TarMember& member : members) {
    const data::SampleName name = data::SplitSampleName(member.name);
    if (name.key.empty()) {
      return InvalidArgument(path + ": member '" + member.name + "' belongs to no sample");
    }
    if (name.key != piece.key) {
      if (!piece.key.empty()) {
        COHORT_RETURN_IF_ERROR(each(piece));
      }
      piece = {.key = name.key};
    }
    std::string content(member.size, '\0');
    COHORT_RETURN_IF_ERROR(
        data::ReadExactly(*file, path, member.begin, std::as_writable_bytes(std::span(content))));
    if (!piece.members.emplace(name.extension, std::move(content)).second) {
      return DataLoss(path + ": sample '" + name.key + "' has member '" + name.extension +
                      "' twice");
    }
  }
  return piece.key.empty() ? Status() : each(piece);
}

// The file unpacked, whole.
Result<std::string> Content(const std::string& path) {
  return io::ReadMaybeCompressed(data::CommandFiles(), path);
}

Status ForEachLine(const std::string& path, const Each& each) {
  COHORT_ASSIGN_OR_RETURN(const std::string content, Content(path));
  Piece piece;
  for (std::string_view rest = content; !rest.empty();) {
    const std::size_t end = std::min(rest.find('\n'), rest.size() - 1) + 1;
    piece.bytes = rest.substr(0, end);
    if (!piece.bytes.ends_with('\n')) {
      piece.bytes += '\n';
    }
    rest.remove_prefix(end);
    COHORT_RETURN_IF_ERROR(each(piece));
  }
  return {};
}

// Rows as they stand in the file; `header` is that of the first file, and must be everybody's.
Status ForEachCsvRow(const std::string& path, char delimiter, std::string& header,
                     const Each& each) {
  COHORT_ASSIGN_OR_RETURN(const std::string content, Content(path));
  data::CsvReader reader(content, delimiter, /*trim=*/true);
  std::vector<data::CsvField> fields;
  std::size_t columns = 0;
  std::size_t begin = 0;
  Piece piece;
  for (;;) {
    Result<bool> more = reader.Next(fields);
    if (!more.ok()) {
      return more.status().Annotate(path);
    }
    if (!*more) {
      return {};
    }
    const std::size_t end = reader.offset();
    piece.bytes = content.substr(begin, end - begin);
    piece.bytes.erase(0, piece.bytes.find_first_not_of("\r\n"));  // blank lines before it
    if (!piece.bytes.ends_with('\n')) {
      piece.bytes += '\n';
    }
    begin = end;
    if (columns == 0) {
      columns = fields.size();
      if (!header.empty() && header != piece.bytes) {
        return InvalidArgument(path + ": the header is not that of the first file");
      }
      header = piece.bytes;
      continue;
    }
    if (fields.size() != columns) {
      return DataLoss(path + ", line " + std::to_string(reader.line()) + ": " +
                      std::to_string(fields.size()) + " fields, the header has " +
                      std::to_string(columns));
    }
    COHORT_RETURN_IF_ERROR(each(piece));
  }
}

// A file that is written.
class Output {
 public:
  virtual ~Output() = default;
  virtual Status Write(const Piece& piece) = 0;
  virtual Status Close() = 0;
};

class RecordOutput final : public Output {
 public:
  explicit RecordOutput(std::unique_ptr<data::AtomicRecords> records)
      : records_(std::move(records)) {}
  Status Write(const Piece& piece) override { return records_->Write(piece.bytes); }
  Status Close() override { return records_->Close(); }

 private:
  std::unique_ptr<data::AtomicRecords> records_;
};

class SampleOutput final : public Output {
 public:
  explicit SampleOutput(std::unique_ptr<data::TarWriter> tar) : tar_(std::move(tar)) {}
  Status Write(const Piece& piece) override { return tar_->AddSample(piece.key, piece.members); }
  Status Close() override { return tar_->Close(); }

 private:
  std::unique_ptr<data::TarWriter> tar_;
};

class LineOutput final : public Output {
 public:
  LineOutput(std::unique_ptr<data::AtomicFile> file, bool gzip, std::string header)
      : file_(std::move(file)), gzip_(gzip), buffer_(std::move(header)) {}
  Status Write(const Piece& piece) override {
    buffer_ += piece.bytes;
    constexpr std::size_t kBufferBytes = std::size_t{1} << 20;
    return buffer_.size() < kBufferBytes ? Status() : Drain();
  }
  Status Close() override {
    COHORT_RETURN_IF_ERROR(Drain());
    return file_->Close();
  }

 private:
  Status Drain() {
    const std::string bytes = std::exchange(buffer_, {});
    return file_->Append(AsBytes(gzip_ ? io::Gzip(bytes) : bytes));
  }

  std::unique_ptr<data::AtomicFile> file_;
  bool gzip_;
  std::string buffer_;
};

class Sharder {
 public:
  explicit Sharder(const Options& options) : options_(options) {}

  Status Run() {
    for (const std::string& path : options_.inputs) {
      COHORT_ASSIGN_OR_RETURN(const data::FileKind kind, data::KindOf(data::CommandFiles(), path));
      if (kind.format == data::Format::kEmpty) {
        continue;
      }
      if (kind_.format == data::Format::kEmpty) {
        kind_ = kind;
      }
      if (kind.format != kind_.format || kind.delimiter != kind_.delimiter) {
        return InvalidArgument(path + " is " + std::string(data::FormatName(kind.format)) +
                               ", the files before it are " +
                               std::string(data::FormatName(kind_.format)));
      }
      paths_.push_back(path);
    }
    switch (kind_.format) {
      case data::Format::kTfRecord:
      case data::Format::kTar:
      case data::Format::kCsv:
      case data::Format::kText:
        break;
      case data::Format::kEmpty:
        return InvalidArgument(options_.inputs[0] + ": no records");
      default:
        return InvalidArgument(options_.inputs[0] + ": " +
                               std::string(data::FormatName(kind_.format)) +
                               " is not cut [TFRecord, WebDataset, CSV and text are]");
    }
    // Inputs are read a second time while outputs are written.
    for (std::int64_t number = 0; number < options_.files; ++number) {
      const std::string output = OutputPath(number);
      for (const std::string& input : paths_) {
        if (data::SameFile(output, input)) {
          return InvalidArgument(output + " is an input, and would be an output [another --out]");
        }
      }
    }
    COHORT_RETURN_IF_ERROR(ForEach("measure", [this](const Piece& piece) {
      total_ += piece.size();
      ++records_;
      return Status();
    }));
    if (records_ < options_.files) {
      return InvalidArgument(std::to_string(records_) + " records do not fill " +
                             std::to_string(options_.files) + " files");
    }
    COHORT_RETURN_IF_ERROR(ForEach("shard", [this](const Piece& piece) { return Write(piece); }));
    if (done_records_ != records_ || done_bytes_ != total_) {
      return DataLoss(options_.prefix + ": " + std::to_string(done_records_) + " records of " +
                      std::to_string(records_) + " [the inputs changed while they were read]");
    }
    return CloseOutput();
  }

  void Print() const {
    if (options_.json) {
      nlohmann::json files = nlohmann::json::array();
      for (const auto& [path, records, bytes] : written_) {
        files.push_back({{"path", path}, {"records", records}, {"bytes", bytes}});
      }
      std::printf("%s\n",
                  nlohmann::json({{"files", files}, {"records", records_}, {"bytes", total_}})
                      .dump(2)
                      .c_str());
      return;
    }
    for (const auto& [path, records, bytes] : written_) {
      std::printf("%s: %lld records, %llu bytes\n", path.c_str(), static_cast<long long>(records),
                  static_cast<unsigned long long>(bytes));
    }
    std::printf("%zu files: %lld records, %llu bytes\n", written_.size(),
                static_cast<long long>(records_), static_cast<unsigned long long>(total_));
  }

 private:
  struct Written {
    std::string path;
    std::int64_t records = 0;
    std::uint64_t bytes = 0;  // of the records
  };

  Status ForEach(const char* what, const Each& each) {
    data::Progress progress(what, total_);  // measuring, it is not known
    const Each counted = [&](const Piece& piece) {
      progress.Add(1, piece.size());
      return each(piece);
    };
    for (const std::string& path : paths_) {
      progress.Name(path);
      COHORT_RETURN_IF_ERROR(kind_.format == data::Format::kTfRecord ? ForEachRecord(path, counted)
                             : kind_.format == data::Format::kTar    ? ForEachSample(path, counted)
                             : kind_.format == data::Format::kCsv
                                 ? ForEachCsvRow(path, kind_.delimiter, header_, counted)
                                 : ForEachLine(path, counted));
    }
    return {};
  }

  // The record goes to the file in which its middle lies, if all bytes are cut into equal parts;
  // no file is left without one.
  Status Write(const Piece& piece) {
    const std::uint64_t middle = done_bytes_ + piece.size() / 2;
    const auto files = static_cast<std::int64_t>(options_.files);
    auto file = total_ == 0 ? done_records_ * files / records_
                            : static_cast<std::int64_t>(static_cast<double>(middle) /
                                                        static_cast<double>(total_) *
                                                        static_cast<double>(files));
    const std::int64_t open = static_cast<std::int64_t>(written_.size()) - 1;
    file = std::clamp(file, std::max<std::int64_t>(open, 0), std::min(open + 1, files - 1));
    if (records_ - done_records_ <= files - 1 - open) {
      file = open + 1;
    }
    if (file != open) {
      COHORT_RETURN_IF_ERROR(CloseOutput());
      COHORT_RETURN_IF_ERROR(OpenOutput(file));
    }
    done_bytes_ += piece.size();
    ++done_records_;
    ++written_.back().records;
    written_.back().bytes += piece.size();
    return output_->Write(piece);
  }

  std::string OutputPath(std::int64_t number) const {
    const auto digits = [](std::int64_t n) {
      std::string text = std::to_string(n);
      return text.insert(0, text.size() < 5 ? 5 - text.size() : 0, '0');
    };
    const char* const ending = kind_.format == data::Format::kTfRecord ? ".tfrecord"
                               : kind_.format == data::Format::kTar    ? ".tar"
                               : kind_.format == data::Format::kText   ? ".txt"
                               : kind_.delimiter == '\t'               ? ".tsv"
                                                                       : ".csv";
    return options_.prefix + "-" + digits(number) + "-of-" + digits(options_.files) + ending +
           (options_.gzip ? ".gz" : "");
  }

  Status OpenOutput(std::int64_t number) {
    const std::string path = OutputPath(number);
    written_.push_back({.path = path});
    FileSystem& files = data::CommandFiles();
    if (kind_.format == data::Format::kTfRecord) {
      COHORT_ASSIGN_OR_RETURN(
          auto records,
          data::AtomicRecords::Create(
              files, path, options_.gzip ? io::Compression::kGzip : io::Compression::kNone));
      output_ = std::make_unique<RecordOutput>(std::move(records));
    } else if (kind_.format == data::Format::kTar) {
      COHORT_ASSIGN_OR_RETURN(auto tar, data::TarWriter::Create(files, path));
      output_ = std::make_unique<SampleOutput>(std::move(tar));
    } else {
      COHORT_ASSIGN_OR_RETURN(auto file, data::AtomicFile::Create(files, path));
      output_ = std::make_unique<LineOutput>(std::move(file), options_.gzip, header_);
    }
    return {};
  }

  Status CloseOutput() {
    if (output_ == nullptr) {
      return {};
    }
    COHORT_RETURN_IF_ERROR(output_->Close());
    output_.reset();
    return {};
  }

  Options options_;
  data::FileKind kind_;
  std::vector<std::string> paths_;
  std::string header_;  // CSV
  std::int64_t records_ = 0;
  std::uint64_t total_ = 0;  // bytes of all records
  std::int64_t done_records_ = 0;
  std::uint64_t done_bytes_ = 0;
  std::unique_ptr<Output> output_;
  std::vector<Written> written_;
};

}  // namespace

int DataShardCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Writes the records of files, in their order, as N files of about as many bytes of records: "
      "PREFIX-00000-of-0000N. TFRecord, WebDataset tar, CSV and text lines; reads the input twice.",
      argv[0]);
  app.add_option("input", options.inputs, "files of one format, one after another")->required();
  app.add_option("--out", options.prefix, "PREFIX of the files to write")->required();
  app.add_option("--files", options.files, "how many")->required()->check(CLI::Range(1, 1'000'000));
  app.add_flag("--gzip", options.gzip, "pack each file");
  app.add_flag("--json", options.json, "print a JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (const int code = data::ExpandPaths(argv[0], options.inputs); code != 0) {
    return code;
  }
  Sharder sharder(options);
  const Status status = sharder.Run();
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
    return ExitCode(status);
  }
  sharder.Print();
  return 0;
}

}  // namespace cohort
