// `cohort data index`: where the records of TFRecord files lie, in PATH.idx beside each.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

#include <cohort/data/tf_record.h>

#include "command.h"
#include "files.h"
#include "progress.h"
#include "watched_files.h"

int cohort::DataIndexCommand(int argc, char** argv) {
  std::vector<std::string> paths;
  bool json = false;
  CLI::App app(
      "Writes PATH.idx beside each uncompressed TFRecord file: a line \"offset length\" for each "
      "record, as tfrecord2idx does. TfRecordOptions.index reads it instead of walking the file.",
      argv[0]);
  app.add_option("path", paths, "files")->required();
  app.add_flag("--json", json, "print a JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (const int code = data::ExpandPaths(argv[0], paths); code != 0) {
    return code;
  }
  nlohmann::json list = nlohmann::json::array();
  std::int64_t total = 0;
  const auto sizes = data::SizesOf(paths);
  if (!sizes.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], sizes.status().ToString().c_str());
    return ExitCode(sizes.status());
  }
  data::Progress progress("index", std::accumulate(sizes->begin(), sizes->end(), std::uint64_t{0}));
  data::WatchedFiles files(
      data::CommandFiles(), [&progress](std::uint64_t, std::uint64_t end, std::uint64_t size) {
        progress.Advance(0, static_cast<double>(end) / static_cast<double>(std::max(size, end)));
      });
  for (std::size_t i = 0; i < paths.size(); ++i) {
    const std::string& path = paths[i];
    progress.SetFile(path, (*sizes)[i]);
    const Result<std::int64_t> records = data::WriteTfIndex(files, path);
    if (!records.ok()) {
      std::fprintf(stderr, "%s: %s\n", argv[0], records.status().ToString().c_str());
      return ExitCode(records.status());
    }
    progress.Advance(*records, 1);
    total += *records;
    if (json) {
      list.push_back({{"path", path}, {"index", path + ".idx"}, {"records", *records}});
    } else {
      std::printf("%s.idx: %lld records\n", path.c_str(), static_cast<long long>(*records));
    }
  }
  if (json) {
    std::printf("%s\n", nlohmann::json({{"files", list}, {"records", total}}).dump(2).c_str());
  } else if (paths.size() > 1) {
    std::printf("%zu files: %lld records\n", paths.size(), static_cast<long long>(total));
  }
  return 0;
}
