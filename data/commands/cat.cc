// `cohort data cat`: records as JSON, one a line.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <limits>

#include "command.h"
#include "files.h"
#include "rows.h"

namespace cohort {
namespace {

struct Options {
  std::vector<std::string> paths;
  std::int64_t offset = 0;
  std::int64_t limit = std::numeric_limits<std::int64_t>::max();
  bool base64 = false;
  std::int64_t max_corrupt = 0;
};

Status Cat(const Options& options, data::CorruptBudget& corrupt) {
  std::int64_t skip = options.offset;
  std::int64_t left = options.limit;
  data::Row row;
  for (const std::string& path : options.paths) {
    if (left == 0) {
      break;
    }
    COHORT_ASSIGN_OR_RETURN(const auto rows,
                            data::RowReader::Open(data::CommandFiles(), path, nullptr, &corrupt));
    COHORT_ASSIGN_OR_RETURN(const std::int64_t skipped, rows->Skip(skip));
    skip -= skipped;
    for (; left > 0; --left) {
      COHORT_ASSIGN_OR_RETURN(const bool more, rows->Next(row));
      if (!more) {
        break;
      }
      if (std::printf("%s\n", data::RowAsJson(row, options.base64).c_str()) < 0) {
        return Unavailable("stdout was closed");
      }
    }
  }
  return {};
}

}  // namespace

int DataCatCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Prints records as JSON objects, one a line: TFRecord of Examples, CSV, .npy, safetensors, "
      "IDX, WebDataset, text, told by content. Bytes that are no text are {\"bytes\": length}.",
      argv[0]);
  app.add_option("path", options.paths, "files, one after another")->required();
  const auto count = CLI::Range(std::int64_t{0}, std::numeric_limits<std::int64_t>::max());
  app.add_option("--limit", options.limit, "at most so many records")->check(count);
  app.add_option("--offset", options.offset, "pass over so many records first")->check(count);
  app.add_option("--max-corrupt", options.max_corrupt, data::CorruptBudget::kHelp)->check(count);
  app.add_flag("--base64", options.base64, "print bytes that are no text as {\"base64\": ...}");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (const int code = data::ExpandPaths(argv[0], options.paths); code != 0) {
    return code;
  }
  data::CorruptBudget corrupt(options.max_corrupt);
  const Status status = Cat(options, corrupt);
  std::fflush(stdout);
  if (status.ok() && corrupt.left_out() > 0) {
    std::fprintf(stderr, "%s: %s\n", argv[0], corrupt.Summary().c_str());
  }
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
