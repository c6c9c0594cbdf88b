// `cohort data shard`: the records of files in their order as N files of about as many bytes.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <utility>

#include <cohort/core/thread_pool.h>
#include <cohort/data/webdataset.h>
#include <cohort/io/compression.h>

#include "../sources/atomic_file.h"
#include "../sources/guarded.h"
#include "atomic_records.h"
#include "command.h"
#include "file_kind.h"
#include "files.h"
#include "progress.h"
#include "shard_input.h"

namespace cohort {
namespace {

struct Options {
  std::vector<std::string> inputs;
  std::string prefix;
  int files = 0;
  int threads = AvailableCores();
  bool gzip = false;
  bool json = false;
};

// A file that is written.
class Output {
 public:
  virtual ~Output() = default;
  virtual Status Write(const data::ShardPiece& piece) = 0;
  virtual Status Close() = 0;
};

class RecordOutput final : public Output {
 public:
  explicit RecordOutput(std::unique_ptr<data::AtomicRecords> records)
      : records_(std::move(records)) {}
  Status Write(const data::ShardPiece& piece) override { return records_->Write(piece.bytes); }
  Status Close() override { return records_->Close(); }

 private:
  std::unique_ptr<data::AtomicRecords> records_;
};

class SampleOutput final : public Output {
 public:
  explicit SampleOutput(std::unique_ptr<data::TarWriter> tar) : tar_(std::move(tar)) {}
  Status Write(const data::ShardPiece& piece) override {
    return tar_->AddSample(piece.key, piece.members);
  }
  Status Close() override { return tar_->Close(); }

 private:
  std::unique_ptr<data::TarWriter> tar_;
};

class LineOutput final : public Output {
 public:
  LineOutput(std::unique_ptr<data::AtomicFile> file, bool gzip, std::string header)
      : file_(std::move(file)), gzip_(gzip), buffer_(std::move(header)) {}
  Status Write(const data::ShardPiece& piece) override {
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
  explicit Sharder(const Options& options) : options_(options) {
    if (options.threads > 1) {
      pool_ = std::make_unique<ThreadPool>(options.threads - 1, "shard");  // and the caller's
    }
  }

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
    COHORT_RETURN_IF_ERROR(Measure());
    if (records_ < options_.files) {
      return InvalidArgument(std::to_string(records_) + " records do not fill " +
                             std::to_string(options_.files) + " files");
    }
    Plan();
    return WriteAll();
  }

  void Print() const {
    if (options_.json) {
      nlohmann::json files = nlohmann::json::array();
      for (const Planned& output : outputs_) {
        files.push_back(
            {{"path", output.path}, {"records", output.records}, {"bytes", output.bytes}});
      }
      std::printf("%s\n",
                  nlohmann::json({{"files", files}, {"records", records_}, {"bytes", total_}})
                      .dump(2)
                      .c_str());
      return;
    }
    for (const Planned& output : outputs_) {
      std::printf("%s: %lld records, %llu bytes\n", output.path.c_str(),
                  static_cast<long long>(output.records),
                  static_cast<unsigned long long>(output.bytes));
    }
    std::printf("%zu files: %lld records, %llu bytes\n", outputs_.size(),
                static_cast<long long>(records_), static_cast<unsigned long long>(total_));
  }

 private:
  struct Planned {
    std::string path;
    std::size_t input = 0;   // of its first record
    std::int64_t begin = 0;  // which record of that
    std::int64_t records = 0;
    std::uint64_t bytes = 0;  // of the records
  };
  // A file that is read, perhaps by several threads at once; what is read in order only, each
  // thread reads for itself.
  struct Shared {
    std::mutex mutex;
    std::weak_ptr<data::ShardInput> input;
  };

  // `body` of each of so many, by as many threads as there are; the error of the first that failed.
  Status ForEach(std::size_t count, const std::function<Status(std::size_t)>& body) {
    std::vector<Status> status(count);
    const auto some = [&](std::int64_t first, std::int64_t last) {
      for (auto i = static_cast<std::size_t>(first); i < static_cast<std::size_t>(last); ++i) {
        status[i] = stop_ ? Status() : data::Guarded(body, i);
        if (!status[i].ok()) {
          stop_ = true;
        }
      }
    };
    if (pool_ == nullptr) {
      some(0, static_cast<std::int64_t>(count));
    } else {
      pool_->ParallelFor(static_cast<std::int64_t>(count), 1, some);
    }
    for (const Status& one : status) {
      COHORT_RETURN_IF_ERROR(one);
    }
    return {};
  }

  // How many bytes each record has.
  Status Measure() {
    COHORT_ASSIGN_OR_RETURN(const auto file_bytes, data::SizesOf(paths_));
    data::Progress progress(
        "measure", std::accumulate(file_bytes.begin(), file_bytes.end(), std::uint64_t{0}));
    sizes_.resize(paths_.size());
    std::vector<std::string> headers(paths_.size());
    COHORT_RETURN_IF_ERROR(ForEach(paths_.size(), [&](std::size_t i) -> Status {
      progress.Name(paths_[i]);
      COHORT_ASSIGN_OR_RETURN(const auto input, data::OpenShardInput(paths_[i], kind_));
      COHORT_ASSIGN_OR_RETURN(sizes_[i], input->Sizes());
      headers[i] = input->header();
      progress.Add(static_cast<std::int64_t>(sizes_[i].size()), file_bytes[i]);
      return {};
    }));
    for (std::size_t i = 0; i < paths_.size(); ++i) {
      records_ += static_cast<std::int64_t>(sizes_[i].size());
      total_ += std::accumulate(sizes_[i].begin(), sizes_[i].end(), std::uint64_t{0});
      if (headers[i] != headers[0]) {
        return InvalidArgument(paths_[i] + ": the header is not that of the first file");
      }
    }
    header_ = headers[0];
    return {};
  }

  // A record goes to the file in which its middle lies, if all bytes are cut into equal parts; no
  // file is left without one.
  void Plan() {
    const auto files = static_cast<std::int64_t>(options_.files);
    std::int64_t done_records = 0;
    std::uint64_t done_bytes = 0;
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      for (std::size_t k = 0; k < sizes_[i].size(); ++k) {
        const std::uint64_t size = sizes_[i][k];
        const std::uint64_t middle = done_bytes + size / 2;
        auto file = total_ == 0 ? done_records * files / records_
                                : static_cast<std::int64_t>(static_cast<double>(middle) /
                                                            static_cast<double>(total_) *
                                                            static_cast<double>(files));
        const std::int64_t open = static_cast<std::int64_t>(outputs_.size()) - 1;
        file = std::clamp(file, std::max<std::int64_t>(open, 0), std::min(open + 1, files - 1));
        if (records_ - done_records <= files - 1 - open) {
          file = open + 1;
        }
        if (file != open) {
          outputs_.push_back({OutputPath(file), i, static_cast<std::int64_t>(k)});
        }
        done_bytes += size;
        ++done_records;
        ++outputs_.back().records;
        outputs_.back().bytes += size;
      }
    }
  }

  // Each thread writes outputs that lie one behind the other, so that it goes through the inputs
  // once. Where one fails, nothing is left.
  Status WriteAll() {
    data::Progress progress("shard", total_);
    std::vector<Shared> inputs(paths_.size());
    std::vector<char> written(outputs_.size());
    const std::size_t runs = std::min(static_cast<std::size_t>(options_.threads), outputs_.size());
    Status status = ForEach(runs, [&](std::size_t run) -> Status {
      std::shared_ptr<data::ShardInput> input;
      std::size_t open = inputs.size();  // which one that is
      for (std::size_t o = outputs_.size() * run / runs; o < outputs_.size() * (run + 1) / runs;
           ++o) {
        progress.Name(outputs_[o].path);
        if (stop_) {
          return {};
        }
        COHORT_ASSIGN_OR_RETURN(written[o], WriteOne(outputs_[o], inputs, input, open, progress));
      }
      return {};
    });
    for (std::size_t o = 0; o < written.size() && !status.ok(); ++o) {
      if (written[o] != 0) {
        if (const Status left = data::CommandFiles().RemoveAll(outputs_[o].path); !left.ok()) {
          status = Status(status.code(), status.message() + "; and " + outputs_[o].path +
                                             " is left: " + left.message());
        }
      }
    }
    return status;
  }

  // False: another thread failed, and the file was given up.
  Result<bool> WriteOne(const Planned& planned, std::vector<Shared>& inputs,
                        std::shared_ptr<data::ShardInput>& input, std::size_t& open,
                        data::Progress& progress) const {
    COHORT_ASSIGN_OR_RETURN(const auto output, OpenOutput(planned.path));
    data::ShardPiece piece;
    std::size_t from = planned.input;
    std::int64_t record = planned.begin;
    for (std::int64_t n = 0; n < planned.records; ++n, ++record) {
      while (record == static_cast<std::int64_t>(sizes_[from].size())) {
        ++from;
        record = 0;
      }
      if (from != open) {
        input.reset();
        COHORT_ASSIGN_OR_RETURN(input, Take(from, inputs[from]));
        open = from;
      }
      if (stop_) {
        return false;  // what is not closed is none
      }
      COHORT_RETURN_IF_ERROR(input->Read(record, piece));
      if (piece.size() != sizes_[from][static_cast<std::size_t>(record)]) {
        return Changed(from);
      }
      COHORT_RETURN_IF_ERROR(output->Write(piece));
      progress.Add(1, piece.size());
    }
    COHORT_RETURN_IF_ERROR(output->Close());
    return true;
  }

  // The input again, shared with threads that read it now.
  Result<std::shared_ptr<data::ShardInput>> Take(std::size_t i, Shared& shared) const {
    const std::lock_guard lock(shared.mutex);
    std::shared_ptr<data::ShardInput> input = shared.input.lock();
    if (input == nullptr) {
      COHORT_ASSIGN_OR_RETURN(input, data::OpenShardInput(paths_[i], kind_));
      if (input->in_order()) {
        return input;
      }
      COHORT_ASSIGN_OR_RETURN(const auto sizes, input->Sizes());
      if (sizes != sizes_[i]) {
        return Changed(i);
      }
      shared.input = input;
    }
    return input;
  }

  Status Changed(std::size_t i) const {
    return DataLoss(paths_[i] + ": changed while it was read");
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

  Result<std::unique_ptr<Output>> OpenOutput(const std::string& path) const {
    FileSystem& files = data::CommandFiles();
    if (kind_.format == data::Format::kTfRecord) {
      COHORT_ASSIGN_OR_RETURN(
          auto records,
          data::AtomicRecords::Create(
              files, path, options_.gzip ? io::Compression::kGzip : io::Compression::kNone));
      return std::make_unique<RecordOutput>(std::move(records));
    }
    if (kind_.format == data::Format::kTar) {
      COHORT_ASSIGN_OR_RETURN(auto tar, data::TarWriter::Create(files, path));
      return std::make_unique<SampleOutput>(std::move(tar));
    }
    COHORT_ASSIGN_OR_RETURN(auto file, data::AtomicFile::Create(files, path));
    return std::make_unique<LineOutput>(std::move(file), options_.gzip, header_);
  }

  Options options_;
  data::FileKind kind_;
  std::vector<std::string> paths_;
  std::string header_;  // CSV
  std::int64_t records_ = 0;
  std::uint64_t total_ = 0;                        // bytes of all records
  std::vector<std::vector<std::uint64_t>> sizes_;  // of each input's records
  std::vector<Planned> outputs_;
  std::atomic<bool> stop_ = false;  // something failed
  std::unique_ptr<ThreadPool> pool_;
};

}  // namespace

int DataShardCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Writes the records of files, in their order, as N files of about as many bytes of records: "
      "PREFIX-00000-of-0000N. TFRecord, WebDataset tar, CSV and text lines; reads the input twice. "
      "Where anything is wrong with it, no file is left.",
      argv[0]);
  app.add_option("input", options.inputs, "files of one format, one after another")->required();
  app.add_option("--out", options.prefix, "PREFIX of the files to write")->required();
  app.add_option("--files", options.files, "how many")->required()->check(CLI::Range(1, 1'000'000));
  app.add_option(
         "--threads", options.threads,
         "that read and write; the files do not depend on it. CSV, text and packed tar are in "
         "memory, a file for each thread")
      ->check(CLI::Range(1, 1024));
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
