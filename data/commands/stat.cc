// `cohort data stat`: what a file holds, told by its content: format, records, features.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <limits>

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

namespace cohort {
namespace {

void Print(const std::string& what, const std::string& value) {
  std::printf("%-9s %s\n", what.c_str(), value.c_str());
}

struct FeatureStat {
  std::map<std::string, std::int64_t> kinds;  // records that have it as this kind
  std::size_t fewest = std::numeric_limits<std::size_t>::max();
  std::size_t most = 0;
};

void PrintFeatures(const std::map<std::string, FeatureStat>& features, std::int64_t records) {
  std::printf("features\n");
  for (const auto& [name, stat] : features) {
    for (const auto& [kind, count] : stat.kinds) {
      const std::string values = stat.fewest == stat.most ? std::to_string(stat.most)
                                                          : std::to_string(stat.fewest) + " to " +
                                                                std::to_string(stat.most);
      std::printf("  %-24s %-6s in %lld of %lld records, values: %s\n", name.c_str(), kind.c_str(),
                  static_cast<long long>(count), static_cast<long long>(records), values.c_str());
    }
  }
}

Status StatRecords(io::RecordReader& reader) {
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
  Print("format",
        "TFRecord, compression: " + std::string(io::CompressionName(reader.compression())));
  Print("records", std::to_string(records) + ", " + std::to_string(bytes) + " bytes");
  if (not_examples > 0) {
    Print("", std::to_string(not_examples) + " of them are not tf.train.Example");
  }
  PrintFeatures(features, records);
  return {};
}

Status StatIdx(const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const Tensor tensor, data::ReadIdx(data::CommandFiles(), path));
  Print("format", "IDX");
  Print("records", std::to_string(tensor.shape()[0]));
  std::vector<std::int64_t> dims = tensor.shape().dims();
  dims.erase(dims.begin());
  std::string range;
  if (tensor.dtype() == DType::kUInt8 && tensor.elements() > 0) {
    const auto values = tensor.data<std::uint8_t>();
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    range = ", from " + std::to_string(*least) + " to " + std::to_string(*most);
  }
  Print("features",
        std::string(DTypeName(tensor.dtype())) + Shape(std::move(dims)).ToString() + range);
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

Status StatCsv(const std::string& content, char delimiter) {
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
  }
  Print("format", delimiter == '\t' ? "CSV, separated by tabs" : "CSV");
  Print("records", std::to_string(rows));
  std::printf("features\n");
  for (const ColumnStat& column : columns) {
    const bool all_missing = column.missing == rows;
    std::printf("  %-24s %-8s missing: %lld\n", column.name.c_str(),
                all_missing       ? "nothing"
                : column.integers ? "integer"
                : column.numbers  ? "number"
                                  : "text",
                static_cast<long long>(column.missing));
  }
  return {};
}

// What is said of an array whose first axis is the example.
void PrintArray(const std::string& name, DType dtype, const Shape& shape) {
  std::printf("  %-24s %s%s\n", name.c_str(), std::string(DTypeName(dtype)).c_str(),
              shape.ToString().c_str());
}

Status StatNpy(const RandomAccessFile& file, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const data::NpyHeader header, data::ReadNpyHeader(file, path));
  Print("format", ".npy");
  std::vector<std::int64_t> dims = header.shape.dims();
  Print("records", std::to_string(dims.empty() ? 1 : dims[0]));
  if (!dims.empty()) {
    dims.erase(dims.begin());
  }
  Print("features", std::string(DTypeName(header.type->dtype)) + Shape(std::move(dims)).ToString());
  return {};
}

Status StatSafetensors(const RandomAccessFile& file, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const auto entries, io::ReadSafetensorsHeader(file, path));
  Print("format", "safetensors");
  Print("records", "rows of " + std::to_string(entries.size()) + " tensors");
  std::printf("features\n");
  for (const io::SafetensorsEntry& entry : entries) {
    PrintArray(entry.name, entry.dtype, entry.shape);
  }
  return {};
}

struct MemberStat {
  std::int64_t members = 0;
  std::uint64_t fewest = std::numeric_limits<std::uint64_t>::max();  // bytes
  std::uint64_t most = 0;
};

Status StatTar(const RandomAccessFile& file, const std::string& path) {
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
  Print("format", "WebDataset (tar)");
  Print("records", std::to_string(samples));
  if (others > 0) {
    Print("", std::to_string(others) + " members belong to no sample");
  }
  std::printf("features\n");
  for (const auto& [extension, stat] : extensions) {
    std::printf("  %-24s in %lld of %lld samples, bytes: %llu to %llu\n", extension.c_str(),
                static_cast<long long>(stat.members), static_cast<long long>(samples),
                static_cast<unsigned long long>(stat.fewest),
                static_cast<unsigned long long>(stat.most));
  }
  return {};
}

Status StatImage(const std::string& content) {
  COHORT_ASSIGN_OR_RETURN(const Tensor image, data::DecodeImage(content));
  Print("format", data::ImageFormatOf(content) == data::ImageFormat::kPng ? "PNG" : "JPEG");
  Print("records", "1");
  Print("features", "uint8" + image.shape().ToString() + " as RGB");
  return {};
}

Status StatText(std::string_view content) {
  std::int64_t lines = 0;
  std::size_t longest = 0;
  while (!content.empty()) {
    const std::size_t end = std::min(content.find('\n'), content.size());
    longest = std::max(longest, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    ++lines;
  }
  Print("format", "text");
  Print("records", std::to_string(lines) + " lines");
  Print("features", "at most " + std::to_string(longest) + " bytes a line");
  return {};
}

Status StatFolder(const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const data::ImageClassification data,
                          data::LoadImageClassification(path));
  const data::FeatureSpec& image = data.train.source().features()[0];
  Print("format", "image classification, IDX");
  Print("records", std::to_string(data.train.size()) + " train, " +
                       std::to_string(data.test.size()) + " test");
  Print("features", image.name + " " + std::string(DTypeName(image.dtype)) +
                        image.shape.ToString() + ", label int64 in " +
                        std::to_string(data.num_classes) + " classes");
  return {};
}

Status StatContent(const std::string& path, const RandomAccessFile& file,
                   const data::FileKind& kind) {
  std::string content(file.size(), '\0');
  COHORT_RETURN_IF_ERROR(
      data::ReadExactly(file, path, 0, std::as_writable_bytes(std::span(content))));
  if (kind.format == data::Format::kImage) {
    return StatImage(content);
  }
  if (kind.format == data::Format::kCsv) {
    return StatCsv(content, kind.delimiter);
  }
  return StatText(content);
}

Status Stat(const std::string& path) {
  if (std::filesystem::is_directory(path)) {
    return StatFolder(path);
  }
  FileSystem& files = data::CommandFiles();
  COHORT_ASSIGN_OR_RETURN(const data::FileKind kind, data::KindOf(files, path));
  if (kind.format == data::Format::kEmpty) {
    Print("format", "empty");
    Print("records", "0");
    return {};
  }
  if (kind.format == data::Format::kTfRecord) {
    COHORT_ASSIGN_OR_RETURN(const auto reader, io::RecordReader::Open(files, path));
    return StatRecords(*reader);
  }
  if (kind.format == data::Format::kIdx) {
    return StatIdx(path);
  }
  COHORT_ASSIGN_OR_RETURN(const auto file, data::OpenMaybeGzip(files, path));
  switch (kind.format) {
    case data::Format::kNpy:
      return StatNpy(*file, path);
    case data::Format::kSafetensors:
      return StatSafetensors(*file, path);
    case data::Format::kTar:
      return StatTar(*file, path);
    default: {
      const Status status = StatContent(path, *file, kind);
      return status.ok() ? status : status.Annotate(path);
    }
  }
}

}  // namespace

int DataStatCommand(int argc, char** argv) {
  std::string path;
  CLI::App app(
      "Prints the format, the number of records and the features of a file, or of a folder of "
      "images as MNIST is published.",
      argv[0]);
  app.add_option("path", path, "file or folder")->required();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const Status status = Stat(path);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
