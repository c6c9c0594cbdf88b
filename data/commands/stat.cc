// `cohort data stat`: what a file holds, told by its content: format, records, features.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include <cohort/data/idx.h>
#include <cohort/data/image.h>
#include <cohort/data/tf_example.h>
#include <cohort/io/compression.h>
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

using Json = nlohmann::json;

// What is said, to people and to programs.
class Report {
 public:
  explicit Report(const std::string& path) : json_{{"path", path}} {}

  // A line; a second one of the same kind has no title.
  void Say(const std::string& title, const std::string& text) {
    lines_.push_back(title + std::string(title.size() < 10 ? 10 - title.size() : 1, ' ') + text);
  }
  void Set(const char* key, Json value) { json_[key] = std::move(value); }
  void Format(const std::string& name, const std::string& details = "") {
    Say("format", name + details);
    Set("format", name);
  }
  void Records(std::int64_t records, const std::string& details = "") {
    Say("records", std::to_string(records) + details);
    Set("records", records);
  }
  // A feature, one to a line: `text` behind its name, `json` with it.
  void Feature(const std::string& name, const std::string& text, Json json) {
    if (!std::exchange(listed_, true)) {
      lines_.emplace_back("features");
    }
    lines_.push_back("  " + name + std::string(name.size() < 24 ? 24 - name.size() : 0, ' ') + " " +
                     text);
    Add(name, std::move(json));
  }
  // The only one, which may have no name.
  void OneFeature(const std::string& name, const std::string& text, Json json) {
    Say("features", text);
    Add(name, std::move(json));
  }

  void Print(bool json) const {
    if (json) {
      std::printf("%s\n", json_.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
      return;
    }
    for (const std::string& line : lines_) {
      std::printf("%s\n", line.c_str());
    }
  }

 private:
  void Add(const std::string& name, Json json) {
    json["name"] = name;
    json_["features"].push_back(std::move(json));
  }

  std::vector<std::string> lines_;
  Json json_;
  bool listed_ = false;
};

Json ArrayJson(DType dtype, const Shape& shape) {
  return {{"dtype", DTypeName(dtype)}, {"shape", shape.dims()}};
}

std::string ArrayText(DType dtype, const Shape& shape) {
  return std::string(DTypeName(dtype)) + shape.ToString();
}

struct FeatureStat {
  std::map<std::string, std::int64_t> kinds;  // records that have it as this kind
  std::size_t fewest = std::numeric_limits<std::size_t>::max();
  std::size_t most = 0;
};

void ReportFeatures(const std::map<std::string, FeatureStat>& features, std::int64_t records,
                    Report& report) {
  for (const auto& [name, stat] : features) {
    for (const auto& [kind, count] : stat.kinds) {
      const std::string values = stat.fewest == stat.most ? std::to_string(stat.most)
                                                          : std::to_string(stat.fewest) + " to " +
                                                                std::to_string(stat.most);
      report.Feature(name,
                     kind + std::string(kind.size() < 6 ? 6 - kind.size() : 0, ' ') + " in " +
                         std::to_string(count) + " of " + std::to_string(records) +
                         " records, values: " + values,
                     {{"kind", kind},
                      {"records", count},
                      {"fewest_values", stat.fewest},
                      {"most_values", stat.most}});
    }
  }
}

Status StatRecords(FileSystem& files, const std::string& path, Report& report) {
  std::uint64_t read = 0;
  std::uint64_t size = 0;
  data::WatchedFiles watched(files, [&](std::uint64_t, std::uint64_t end, std::uint64_t of) {
    read = end;
    size = of;
  });
  COHORT_ASSIGN_OR_RETURN(const auto opened, io::RecordReader::Open(watched, path));
  io::RecordReader& reader = *opened;
  const bool raw = reader.compression() == io::Compression::kNone;
  data::Progress progress("stat", size);
  progress.SetFile(path, size);
  std::map<std::string, FeatureStat> features;
  std::int64_t records = 0;
  std::int64_t not_examples = 0;
  std::uint64_t bytes = 0;
  for (;; ++records) {
    COHORT_ASSIGN_OR_RETURN(const auto record, reader.Next());
    if (!record.has_value()) {
      break;
    }
    bytes += record->size();
    progress.Advance(1, static_cast<double>(raw ? reader.offset() : read) /
                            static_cast<double>(std::max<std::uint64_t>(size, 1)));
    const auto example = data::ParseTfExample(*record);
    if (!example.ok()) {
      ++not_examples;
      continue;
    }
    for (const auto& [name, feature] : *example) {
      FeatureStat& stat = features[name];
      ++stat.kinds[std::string(data::TfKindName(feature.kind))];
      stat.fewest = std::min(stat.fewest, feature.size());
      stat.most = std::max(stat.most, feature.size());
    }
  }
  const std::string compression(io::CompressionName(reader.compression()));
  report.Format("TFRecord", ", compression: " + compression);
  report.Set("compression", compression);
  report.Records(records, ", " + std::to_string(bytes) + " bytes");
  report.Set("bytes", bytes);
  report.Set("not_examples", not_examples);
  if (not_examples > 0) {
    report.Say("", std::to_string(not_examples) + " of them are not tf.train.Example");
  }
  ReportFeatures(features, records, report);
  return {};
}

Status StatIdx(const std::string& path, Report& report) {
  COHORT_ASSIGN_OR_RETURN(const Tensor tensor, data::ReadIdx(data::CommandFiles(), path));
  report.Format("IDX");
  report.Records(tensor.shape()[0]);
  std::vector<std::int64_t> dims = tensor.shape().dims();
  dims.erase(dims.begin());
  const Shape shape(std::move(dims));
  std::string range;
  Json json = ArrayJson(tensor.dtype(), shape);
  if (tensor.dtype() == DType::kUInt8 && tensor.elements() > 0) {
    const auto values = tensor.data<std::uint8_t>();
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    range = ", from " + std::to_string(*least) + " to " + std::to_string(*most);
    json["least"] = *least;
    json["most"] = *most;
  }
  report.OneFeature("values", ArrayText(tensor.dtype(), shape) + range, std::move(json));
  return {};
}

struct ColumnStat {
  std::string name;
  std::int64_t missing = 0;
  bool integers = true;
  bool numbers = true;

  void Add(const data::CsvField& field) {
    if (!field.quoted && (field.text.empty() || field.text == "?")) {
      ++missing;
      return;
    }
    const char* const end = field.text.data() + field.text.size();
    std::int64_t integer = 0;
    double number = 0;
    integers = integers && std::from_chars(field.text.data(), end, integer).ptr == end;
    numbers = numbers && std::from_chars(field.text.data(), end, number).ptr == end;
  }
};

Status StatCsv(const std::string& content, char delimiter, data::Progress& progress,
               Report& report) {
  data::CsvReader reader(content, delimiter, /*trim=*/true);
  std::vector<data::CsvField> fields;
  COHORT_ASSIGN_OR_RETURN(bool more, reader.Next(fields));
  std::vector<ColumnStat> columns;
  columns.reserve(fields.size());
  for (const data::CsvField& field : fields) {
    columns.push_back({.name = std::string(field.text)});
  }
  std::int64_t rows = 0;
  while (more) {
    COHORT_ASSIGN_OR_RETURN(more, reader.Next(fields));
    if (!more) {
      break;
    }
    if (fields.size() != columns.size()) {
      return DataLoss("line " + std::to_string(reader.line()) + ": " +
                      std::to_string(fields.size()) + " fields, the header has " +
                      std::to_string(columns.size()));
    }
    for (std::size_t i = 0; i < columns.size(); ++i) {
      columns[i].Add(fields[i]);
    }
    ++rows;
    progress.Advance(1, static_cast<double>(reader.offset()) / static_cast<double>(content.size()));
  }
  report.Format("CSV", delimiter == '\t' ? ", separated by tabs" : "");
  report.Set("delimiter", std::string(1, delimiter));
  report.Records(rows);
  for (const ColumnStat& column : columns) {
    const bool all_missing = column.missing == rows;
    const std::string kind = all_missing       ? "nothing"
                             : column.integers ? "integer"
                             : column.numbers  ? "number"
                                               : "text";
    report.Feature(
        column.name,
        kind + std::string(9 - kind.size(), ' ') + "missing: " + std::to_string(column.missing),
        {{"kind", kind}, {"missing", column.missing}});
  }
  return {};
}

Status StatNpy(const RandomAccessFile& file, const std::string& path, Report& report) {
  COHORT_ASSIGN_OR_RETURN(const data::NpyHeader header, data::ReadNpyHeader(file, path));
  report.Format(".npy");
  std::vector<std::int64_t> dims = header.shape.dims();
  report.Records(dims.empty() ? 1 : dims[0]);
  if (!dims.empty()) {
    dims.erase(dims.begin());
  }
  const Shape shape(std::move(dims));
  report.OneFeature("values", ArrayText(header.type->dtype, shape),
                    ArrayJson(header.type->dtype, shape));
  return {};
}

Status StatSafetensors(const RandomAccessFile& file, const std::string& path, Report& report) {
  COHORT_ASSIGN_OR_RETURN(const auto entries, io::ReadSafetensorsHeader(file, path));
  report.Format("safetensors");
  report.Say("records", "rows of " + std::to_string(entries.size()) + " tensors");
  for (const io::SafetensorsEntry& entry : entries) {
    report.Feature(entry.name, ArrayText(entry.dtype, entry.shape),
                   ArrayJson(entry.dtype, entry.shape));
  }
  return {};
}

struct MemberStat {
  std::int64_t members = 0;
  std::uint64_t fewest = std::numeric_limits<std::uint64_t>::max();  // bytes
  std::uint64_t most = 0;
};

Status StatTar(const RandomAccessFile& file, const std::string& path, Report& report) {
  COHORT_ASSIGN_OR_RETURN(const auto members, data::IndexTar(file, path));
  std::map<std::string, MemberStat> extensions;
  std::string key;
  std::int64_t samples = 0;
  std::int64_t others = 0;
  for (const data::TarMember& member : members) {
    const data::SampleName name = data::SplitSampleName(member.name);
    if (name.key.empty()) {
      ++others;
      continue;
    }
    samples += samples == 0 || name.key != key ? 1 : 0;
    key = name.key;
    MemberStat& stat = extensions[name.extension];
    ++stat.members;
    stat.fewest = std::min(stat.fewest, member.size);
    stat.most = std::max(stat.most, member.size);
  }
  report.Format("WebDataset (tar)");
  report.Records(samples);
  report.Set("other_members", others);
  if (others > 0) {
    report.Say("", std::to_string(others) + " members belong to no sample");
  }
  for (const auto& [extension, stat] : extensions) {
    report.Feature(
        extension,
        "in " + std::to_string(stat.members) + " of " + std::to_string(samples) +
            " samples, bytes: " + std::to_string(stat.fewest) + " to " + std::to_string(stat.most),
        {{"records", stat.members}, {"fewest_bytes", stat.fewest}, {"most_bytes", stat.most}});
  }
  return {};
}

Status StatImage(const std::string& content, Report& report) {
  COHORT_ASSIGN_OR_RETURN(const Tensor image, data::DecodeImage(content));
  report.Format(data::ImageFormatOf(content) == data::ImageFormat::kPng ? "PNG" : "JPEG");
  report.Records(1);
  report.OneFeature("image", ArrayText(image.dtype(), image.shape()) + " as RGB",
                    ArrayJson(image.dtype(), image.shape()));
  return {};
}

Status StatText(std::string_view content, Report& report) {
  std::int64_t lines = 0;
  std::size_t longest = 0;
  while (!content.empty()) {
    const std::size_t end = std::min(content.find('\n'), content.size());
    longest = std::max(longest, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    ++lines;
  }
  report.Format("text");
  report.Records(lines, " lines");
  report.OneFeature("line", "at most " + std::to_string(longest) + " bytes a line",
                    {{"most_bytes", longest}});
  return {};
}

Status StatFolder(const std::string& path, Report& report) {
  COHORT_ASSIGN_OR_RETURN(const data::ImageClassification data,
                          data::LoadImageClassification(path));
  const data::FeatureSpec& image = data.train.source().features()[0];
  report.Format("image classification, IDX");
  report.Records(data.train.size(), " train, " + std::to_string(data.test.size()) + " test");
  report.Set("test_records", data.test.size());
  report.Set("classes", data.num_classes);
  report.OneFeature(image.name,
                    image.name + " " + ArrayText(image.dtype, image.shape) + ", label int64 in " +
                        std::to_string(data.num_classes) + " classes",
                    ArrayJson(image.dtype, image.shape));
  return {};
}

Status StatContent(const std::string& path, const RandomAccessFile& file,
                   const data::FileKind& kind, Report& report) {
  data::Progress progress("stat", file.size());
  progress.SetFile(path, file.size());
  std::string content(file.size(), '\0');
  COHORT_RETURN_IF_ERROR(
      data::ReadExactly(file, path, 0, std::as_writable_bytes(std::span(content))));
  if (kind.format == data::Format::kImage) {
    return StatImage(content, report);
  }
  if (kind.format == data::Format::kCsv) {
    return StatCsv(content, kind.delimiter, progress, report);
  }
  return StatText(content, report);
}

Status Stat(const std::string& path, Report& report) {
  if (std::filesystem::is_directory(path)) {
    return StatFolder(path, report);
  }
  FileSystem& files = data::CommandFiles();
  COHORT_ASSIGN_OR_RETURN(const data::FileKind kind, data::KindOf(files, path));
  if (kind.format == data::Format::kEmpty) {
    report.Format("empty");
    report.Records(0);
    return {};
  }
  if (kind.format == data::Format::kTfRecord) {
    return StatRecords(files, path, report);
  }
  if (kind.format == data::Format::kIdx) {
    return StatIdx(path, report);
  }
  COHORT_ASSIGN_OR_RETURN(const auto file, data::OpenMaybeGzip(files, path));
  switch (kind.format) {
    case data::Format::kNpy:
      return StatNpy(*file, path, report);
    case data::Format::kSafetensors:
      return StatSafetensors(*file, path, report);
    case data::Format::kTar:
      return StatTar(*file, path, report);
    default: {
      const Status status = StatContent(path, *file, kind, report);
      return status.ok() ? status : status.Annotate(path);
    }
  }
}

}  // namespace

int DataStatCommand(int argc, char** argv) {
  std::string path;
  bool json = false;
  CLI::App app(
      "Prints the format, the number of records and the features of a file, or of a folder of "
      "images as MNIST is published.",
      argv[0]);
  app.add_option("path", path, "file or folder")->required();
  app.add_flag("--json", json, "print a JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  Report report(path);
  const Status status = Stat(path, report);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
    return ExitCode(status);
  }
  report.Print(json);
  return 0;
}

}  // namespace cohort
