// `cohort data convert`: the records of files of one format as a file of another.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "command.h"
#include "files.h"
#include "progress.h"
#include "row_writer.h"
#include "rows.h"

namespace cohort {
namespace {

struct Options {
  std::vector<std::string> inputs;
  std::string output;
  std::vector<std::string> fields;
  data::WriteOptions write;
  std::int64_t max_corrupt = 0;
  bool json = false;
};

Result<data::Format> FormatOf(const std::string& path) {
  const auto ends = [&path](std::string_view end) {
    const std::string_view name(path);
    return name.ends_with(end) || name.ends_with(std::string(end) + ".gz") ||
           name.ends_with(std::string(end) + ".zlib");
  };
  if (ends(".tfrecord") || ends(".tfrecords")) {
    return data::Format::kTfRecord;
  }
  if (ends(".csv") || ends(".tsv")) {
    return data::Format::kCsv;
  }
  if (path.ends_with(".npy")) {
    return data::Format::kNpy;
  }
  if (path.ends_with(".safetensors")) {
    return data::Format::kSafetensors;
  }
  if (ends(".tar")) {
    return data::Format::kTar;
  }
  return InvalidArgument(path +
                         ": the format is told by the name [.tfrecord, .csv, .tsv, .tar, each also "
                         "with .gz; .tfrecord.zlib, .npy, .safetensors]");
}

// Rows of all files, with the fields that were asked for. `corrupt`: what may be left out.
template <typename Each>
Status ForEachRow(const Options& options, const char* what, data::CorruptBudget& corrupt,
                  const Each& each) {
  COHORT_ASSIGN_OR_RETURN(const auto sizes, data::SizesOf(options.inputs));
  data::Progress progress(what, std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0}));
  const std::set<std::string> wanted(options.fields.begin(), options.fields.end());
  data::Row row;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const std::string& path = options.inputs[i];
    progress.SetFile(path, sizes[i]);
    COHORT_ASSIGN_OR_RETURN(const auto rows,
                            data::RowReader::Open(data::CommandFiles(), path, nullptr, &corrupt));
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(const bool more, rows->Next(row));
      if (!more) {
        break;
      }
      if (!wanted.empty()) {
        std::erase_if(row, [&wanted](const auto& field) { return !wanted.contains(field.first); });
      }
      COHORT_RETURN_IF_ERROR(each(row));
      progress.Advance(1, rows->part());
    }
  }
  return {};
}

Status Convert(Options& options) {
  COHORT_ASSIGN_OR_RETURN(const data::Format format, FormatOf(options.output));
  const bool gzip = options.output.ends_with(".gz");
  options.write.compression = gzip                                ? io::Compression::kGzip
                              : options.output.ends_with(".zlib") ? io::Compression::kZlib
                                                                  : io::Compression::kNone;
  if (options.write.compression == io::Compression::kZlib && format != data::Format::kTfRecord) {
    return InvalidArgument(options.output + ": zlib is for TFRecord only [.gz]");
  }
  for (const std::string& input : options.inputs) {
    if (data::SameFile(input, options.output)) {
      return InvalidArgument(options.output + ": input and output are one file");
    }
  }
  data::Summary summary;
  data::CorruptBudget surveyed(options.max_corrupt);
  COHORT_RETURN_IF_ERROR(ForEachRow(options, "survey", surveyed, [&summary](const data::Row& row) {
    summary.Add(row);
    return Status();
  }));
  for (const std::string& name : options.fields) {
    if (std::none_of(summary.fields.begin(), summary.fields.end(),
                     [&name](const data::FieldSummary& field) { return field.name == name; })) {
      return NotFound("no field '" + name + "' in " + options.inputs[0] +
                      (options.inputs.size() > 1 ? " or the other files" : ""));
    }
  }
  COHORT_ASSIGN_OR_RETURN(const auto writer,
                          data::RowWriter::Create(data::CommandFiles(), options.output, format,
                                                  summary, options.write));
  data::CorruptBudget corrupt(options.max_corrupt);
  COHORT_RETURN_IF_ERROR(ForEachRow(
      options, "convert", corrupt, [&writer](const data::Row& row) { return writer->Write(row); }));
  COHORT_RETURN_IF_ERROR(writer->Close());
  COHORT_ASSIGN_OR_RETURN(const auto written, data::CommandFiles().OpenForRead(options.output));
  const std::uint64_t bytes = written->size();
  if (options.json) {
    std::vector<std::string> names;
    for (const data::FieldSummary& field : summary.fields) {
      names.push_back(field.name);
    }
    std::printf("%s\n", nlohmann::json({{"inputs", options.inputs},
                                        {"output", options.output},
                                        {"records", summary.rows},
                                        {"corrupt", corrupt.found().records},
                                        {"cut_files", corrupt.found().cut_files},
                                        {"bytes", bytes},
                                        {"fields", names}})
                            .dump(2)
                            .c_str());
    return {};
  }
  std::printf("%s: %lld records, %zu fields, %llu bytes\n", options.output.c_str(),
              static_cast<long long>(summary.rows), summary.fields.size(),
              static_cast<unsigned long long>(bytes));
  if (corrupt.left_out() > 0) {
    std::printf("%s\n", corrupt.Summary().c_str());
  }
  return {};
}

}  // namespace

int DataConvertCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Writes the records of files (told by content) to one file of the format that its name "
      "says: .tfrecord, .csv, .tsv or .tar, each also with .gz, .tfrecord.zlib, .npy, "
      ".safetensors. "
      "Reads the input twice. In TFRecord an array of uint8 is one string, its shape is not kept. "
      "What the format cannot hold is an error that names the field.",
      argv[0]);
  double fill = 0;
  app.add_option("input", options.inputs, "files, one after another")->required();
  app.add_option("--out", options.output, "the file to write")->required();
  app.add_option("--fields", options.fields, "only these, separated by commas")->delimiter(',');
  const auto* const fill_option =
      app.add_option("--fill", fill, "stands for missing numbers in .npy and .safetensors");
  app.add_option("--max-corrupt", options.max_corrupt, data::CorruptBudget::kHelp)
      ->check(CLI::Range(std::int64_t{0}, std::numeric_limits<std::int64_t>::max()));
  app.add_flag("--float32", options.write.float32, "round float64 to float32 for TFRecord");
  app.add_flag("--json", options.json, "print a JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (const int code = data::ExpandPaths(argv[0], options.inputs); code != 0) {
    return code;
  }
  if (fill_option->count() > 0) {
    options.write.fill = fill;
  }
  const Status status = Convert(options);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
