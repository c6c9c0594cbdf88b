// `cohort data verify`: every byte that a checksum or a rule of its format covers, in every file.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include <cohort/data/arrays.h>
#include <cohort/data/idx.h>
#include <cohort/data/image.h>
#include <cohort/data/tf_example.h>
#include <cohort/io/record_file.h>
#include <cohort/io/safetensors.h>

#include "../sources/content.h"
#include "../sources/csv_reader.h"
#include "../sources/npy.h"
#include "../sources/sample_name.h"
#include "../sources/tar.h"
#include "command.h"
#include "file_kind.h"
#include "files.h"
#include "progress.h"
#include "watched_files.h"

namespace cohort {
namespace {

constexpr std::size_t kErrorsKept = 20;  // of a file

struct Report {
  std::string path;
  std::string format;
  std::string covered;       // what was checked
  std::int64_t records = 0;  // sound ones
  std::uint64_t bytes = 0;   // of them
  std::int64_t bad = 0;
  std::vector<std::string> errors;

  void Bad(const Status& status) {
    ++bad;
    if (errors.size() < kErrorsKept) {
      errors.push_back(status.message());
    }
  }
};

class Verifier {
 public:
  // Of files of `total` bytes.
  Verifier(bool examples, std::uint64_t total) : examples_(examples), progress_("verify", total) {}

  Report Verify(const std::string& path, std::uint64_t bytes) {
    Report report{.path = path};
    progress_.SetFile(path, bytes);
    if (const Status status = Check(path, report); !status.ok()) {
      report.Bad(status);
    }
    return report;
  }

 private:
  // `done` of the `of` bytes of the file are behind it.
  void Sound(Report& report, std::uint64_t bytes, std::uint64_t done, std::uint64_t of) {
    ++report.records;
    report.bytes += bytes;
    progress_.Advance(1, of == 0 ? 1 : static_cast<double>(done) / static_cast<double>(of));
  }

  Status Check(const std::string& path, Report& report) {
    FileSystem& files = data::CommandFiles();
    COHORT_ASSIGN_OR_RETURN(const data::FileKind kind, data::KindOf(files, path));
    report.format = data::FormatName(kind.format);
    if (kind.format == data::Format::kEmpty) {
      return {};
    }
    if (kind.format == data::Format::kTfRecord) {
      return CheckRecords(files, path, report);
    }
    if (kind.format == data::Format::kIdx) {
      report.covered = "header and size";
      COHORT_ASSIGN_OR_RETURN(const Tensor tensor, data::ReadIdx(files, path));
      report.records = tensor.shape().rank() == 0 ? 1 : tensor.shape()[0];
      report.bytes = tensor.bytes();
      return {};
    }
    COHORT_ASSIGN_OR_RETURN(const auto file, data::OpenMaybeGzip(files, path));
    switch (kind.format) {
      case data::Format::kNpy: {
        report.covered = "header and size";
        COHORT_ASSIGN_OR_RETURN(const auto header, data::ReadNpyHeader(*file, path));
        report.records = header.shape.rank() == 0 ? 1 : header.shape[0];
        report.bytes = file->size() - header.data_begin;
        return {};
      }
      case data::Format::kSafetensors: {
        report.covered = "header and size";
        COHORT_ASSIGN_OR_RETURN(const auto entries, io::ReadSafetensorsHeader(*file, path));
        for (const io::SafetensorsEntry& entry : entries) {
          Sound(report, entry.end - entry.begin, entry.end, file->size());
        }
        return {};
      }
      case data::Format::kTar:
        return CheckTar(*file, path, report);
      default:
        return CheckContent(*file, kind, report);
    }
  }

  Status CheckRecords(FileSystem& files, const std::string& path, Report& report) {
    std::uint64_t read = 0;
    std::uint64_t size = 0;
    data::WatchedFiles watched(files, [&](std::uint64_t, std::uint64_t end, std::uint64_t of) {
      read = end;
      size = of;
    });
    COHORT_ASSIGN_OR_RETURN(const auto reader, io::RecordReader::Open(watched, path));
    const bool raw = reader->compression() == io::Compression::kNone;
    report.covered = std::string("both checksums of each record") + (raw ? "" : ", the stream's") +
                     (examples_ ? ", each Example" : "");
    for (;;) {
      const std::int64_t ordinal = reader->ordinal();
      const std::uint64_t offset = reader->offset();
      const auto record = reader->Next();
      if (!record.ok()) {
        report.Bad(record.status());
        if (reader->ordinal() == ordinal) {
          return {};  // nothing behind it can be found
        }
        continue;
      }
      if (!record->has_value()) {
        return {};
      }
      const Status status = examples_ ? data::ParseTfSequenceExample(**record).status() : Status();
      if (status.ok()) {
        Sound(report, (*record)->size(), raw ? reader->offset() : read, size);
      } else {
        report.Bad(status.Annotate(path + ": record " + std::to_string(ordinal) + " at byte " +
                                   std::to_string(offset)));
      }
    }
  }

  // Headers, samples as WebDataset takes them, and members of known formats decoded.
  Status CheckTar(const RandomAccessFile& file, const std::string& path, Report& report) {
    report.covered = "every header, that samples lie together, each JPEG, PNG and .npy member";
    COHORT_ASSIGN_OR_RETURN(const auto members, data::IndexTar(file, path));
    Samples samples(path);
    for (const data::TarMember& member : members) {
      Status status = CheckMember(file, path, member);
      if (!status.ok()) {
        status = status.Annotate(path + ": member '" + member.name + "' at byte " +
                                 std::to_string(member.begin));
      }
      // What is damaged belongs to its sample all the same.
      const Status placed = samples.Add(member);
      status = status.ok() ? placed : status;
      if (status.ok()) {
        Sound(report, member.size, member.begin + member.size, file.size());
      } else {
        report.Bad(status);
      }
    }
    return {};
  }

  // Of an archive, in its order.
  class Samples {
   public:
    explicit Samples(const std::string& path) : path_(path) {}

    // DataLoss: the sample of this member began before others, or has a member of this extension.
    Status Add(const data::TarMember& member) {
      auto [key, extension] = data::SplitSampleName(member.name);
      if (key.empty()) {
        return {};
      }
      if (key != key_) {
        key_ = std::move(key);
        extensions_ = {extension};
        return order_.Begin(path_, key_, member.header);
      }
      return extensions_.insert(extension).second
                 ? Status()
                 : DataLoss(path_ + ": sample '" + key_ + "' has member '" + extension +
                            "' twice, the second time at byte " + std::to_string(member.header));
    }

   private:
    const std::string& path_;
    data::SampleOrder order_;
    std::string key_;  // of the last member that has one
    std::set<std::string> extensions_;
  };

  static Status CheckMember(const RandomAccessFile& file, const std::string& path,
                            const data::TarMember& member) {
    std::string content(member.size, '\0');
    COHORT_RETURN_IF_ERROR(
        data::ReadExactly(file, path, member.begin, std::as_writable_bytes(std::span(content))));
    const std::string extension = data::SplitSampleName(member.name).extension;
    const auto is = [&extension](std::string_view name) {
      return extension == name || extension.ends_with("." + std::string(name));
    };
    if (data::ImageFormatOf(content) != data::ImageFormat::kUnknown || is("jpg") || is("jpeg") ||
        is("png")) {
      return data::DecodeImage(content).status();
    }
    if (is("npy")) {
      const data::BytesFile bytes{std::move(content)};
      return data::ReadNpyHeader(bytes, "content").status();
    }
    return {};
  }

  Status CheckContent(const RandomAccessFile& file, const data::FileKind& kind, Report& report) {
    std::string content(file.size(), '\0');
    COHORT_RETURN_IF_ERROR(
        data::ReadExactly(file, report.path, 0, std::as_writable_bytes(std::span(content))));
    if (kind.format == data::Format::kImage) {
      report.covered = "the whole image";
      const Status status = data::DecodeImage(content).status();
      if (status.ok()) {
        Sound(report, content.size(), 1, 1);
      }
      return status.ok() ? status : status.Annotate(report.path);
    }
    if (kind.format == data::Format::kCsv) {
      return CheckCsv(content, kind.delimiter, report);
    }
    report.covered = "no zero bytes";
    report.records =
        std::count(content.begin(), content.end(), '\n') + (content.ends_with('\n') ? 0 : 1);
    report.bytes = content.size();
    const std::size_t zero = content.find('\0');
    return zero == std::string::npos ? Status()
                                     : DataLoss(report.path + ": a zero byte at byte " +
                                                std::to_string(zero) + ": no text");
  }

  Status CheckCsv(const std::string& content, char delimiter, Report& report) {
    report.covered = "quotes, fields of each row";
    data::CsvReader reader(content, delimiter, /*trim=*/true);
    std::vector<data::CsvField> fields;
    Result<bool> more = reader.Next(fields);
    const std::size_t columns = fields.size();
    while (more.ok() && *more) {
      more = reader.Next(fields);
      if (!more.ok() || !*more) {
        break;
      }
      std::uint64_t bytes = 0;
      for (const data::CsvField& field : fields) {
        bytes += field.text.size() + 1;
      }
      if (fields.size() == columns) {
        Sound(report, bytes, reader.offset(), content.size());
      } else {
        report.Bad(DataLoss(report.path + ", line " + std::to_string(reader.line()) + ": " +
                            std::to_string(fields.size()) + " fields, the header has " +
                            std::to_string(columns)));
      }
    }
    return more.ok() ? Status() : more.status().Annotate(report.path);
  }

  bool examples_;
  data::Progress progress_;
};

void Print(const Report& report) {
  std::printf("%s: %s, %s, %lld records, %llu bytes%s%s\n", report.path.c_str(),
              report.bad == 0 ? "sound" : "BAD", report.format.c_str(),
              static_cast<long long>(report.records), static_cast<unsigned long long>(report.bytes),
              report.covered.empty() ? "" : ", checked: ", report.covered.c_str());
  for (const std::string& error : report.errors) {
    std::printf("  %s\n", error.c_str());
  }
  if (report.bad > static_cast<std::int64_t>(report.errors.size())) {
    std::printf("  ... %lld errors in all\n", static_cast<long long>(report.bad));
  }
}

}  // namespace

int DataVerifyCommand(int argc, char** argv) {
  std::vector<std::string> paths;
  bool examples = false;
  bool json = false;
  CLI::App app(
      "Reads files whole and checks all that their format allows: checksums, sizes, members, rows. "
      "Goes on behind a bad record where the format allows. Exit code 2 where anything is bad.",
      argv[0]);
  app.add_option("path", paths, "files")->required();
  app.add_flag("--examples", examples,
               "records of TFRecord files must be tf.train.Example or SequenceExample");
  app.add_flag("--json", json, "print a JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (const int code = data::ExpandPaths(argv[0], paths); code != 0) {
    return code;
  }
  Report total;
  std::int64_t empty_files = 0;
  nlohmann::json list = nlohmann::json::array();
  {
    std::vector<std::uint64_t> sizes;
    for (const std::string& path : paths) {
      const auto size = data::SizesOf({path});
      sizes.push_back(size.ok() ? size->front() : 0);  // Verify says what is wrong with it
    }
    Verifier verifier(examples, std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0}));
    for (std::size_t i = 0; i < paths.size(); ++i) {
      const Report report = verifier.Verify(paths[i], sizes[i]);
      total.records += report.records;
      total.bytes += report.bytes;
      total.bad += report.bad;
      empty_files += report.format == data::FormatName(data::Format::kEmpty) ? 1 : 0;
      if (json) {
        list.push_back({{"path", report.path},
                        {"format", report.format},
                        {"checked", report.covered},
                        {"records", report.records},
                        {"bytes", report.bytes},
                        {"bad", report.bad},
                        {"errors", report.errors}});
      } else {
        Print(report);
      }
    }
  }
  if (json) {
    const nlohmann::json object = {{"files", list},
                                   {"empty_files", empty_files},
                                   {"records", total.records},
                                   {"bytes", total.bytes},
                                   {"bad", total.bad}};
    std::printf("%s\n",
                object.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else if (paths.size() > 1) {
    std::printf("%zu files (%lld of them empty): %lld records, %llu bytes, %lld bad\n",
                paths.size(), static_cast<long long>(empty_files),
                static_cast<long long>(total.records), static_cast<unsigned long long>(total.bytes),
                static_cast<long long>(total.bad));
  }
  return total.bad == 0 ? 0 : ExitCode(DataLoss("bad files"));
}

}  // namespace cohort
