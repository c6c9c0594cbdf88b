// `cohort data stats`: what the fields of files hold: moments, quantiles, frequent texts.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include <cohort/core/random.h>
#include <cohort/data/features.h>

#include "command.h"
#include "files.h"
#include "progress.h"
#include "rows.h"

namespace cohort {
namespace {

constexpr std::array<double, 7> kQuantiles = {0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99};

// A uniform sample of a stream, the same for the same stream.
class Sample {
 public:
  void Add(double value) {
    constexpr std::size_t kKept = 100'000;
    ++seen_;
    if (values_.size() < kKept) {
      values_.push_back(value);
    } else if (const std::uint64_t at = random_.Below(seen_, seen_); at < kKept) {
      values_[at] = value;
    }
  }
  bool whole() const { return seen_ == values_.size(); }
  std::vector<double> Sorted() const {
    std::vector<double> sorted = values_;
    std::sort(sorted.begin(), sorted.end());
    return sorted;
  }

 private:
  Philox random_{0, "data/stats"};
  std::uint64_t seen_ = 0;
  std::vector<double> values_;
};

struct Field {
  std::int64_t rows = 0;  // that have it
  std::int64_t values = 0;
  std::int64_t fewest = std::numeric_limits<std::int64_t>::max();
  std::int64_t most = 0;
  data::Moments moments;  // of its numbers
  Sample sample;
  data::VocabularyCounts texts;
  std::int64_t strings = 0;
};

template <typename T>
void AddAll(const Tensor& tensor, Field& field) {
  for (const T value : tensor.data<T>()) {
    double number;
    if constexpr (std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>) {
      number = static_cast<double>(static_cast<float>(value));
    } else {
      number = static_cast<double>(value);
    }
    field.moments.Add(number);
    if (!std::isnan(number)) {
      field.sample.Add(number);
    }
  }
}

void AddNumbers(const Tensor& tensor, Field& field) {
  switch (tensor.dtype()) {
    case DType::kFloat32:
      return AddAll<float>(tensor, field);
    case DType::kFloat64:
      return AddAll<double>(tensor, field);
    case DType::kInt32:
      return AddAll<std::int32_t>(tensor, field);
    case DType::kInt64:
      return AddAll<std::int64_t>(tensor, field);
    case DType::kFloat16:
      return AddAll<Float16>(tensor, field);
    case DType::kBFloat16:
      return AddAll<BFloat16>(tensor, field);
    case DType::kUInt8:
      return AddAll<std::uint8_t>(tensor, field);
  }
}

struct Options {
  std::vector<std::string> paths;
  std::string out;
  std::string vocabularies;
  std::int64_t min_count = 1;
  std::int64_t max_size = 0;
  bool json = false;
};

class Statistics {
 public:
  Status Read(const std::vector<std::string>& paths) {
    COHORT_ASSIGN_OR_RETURN(const auto sizes, data::SizesOf(paths));
    data::Progress progress("stats", std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0}));
    data::Row row;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const std::string& path = paths[i];
      progress.SetFile(path, sizes[i]);
      COHORT_ASSIGN_OR_RETURN(const auto rows, data::RowReader::Open(data::CommandFiles(), path));
      for (;;) {
        COHORT_ASSIGN_OR_RETURN(const bool more, rows->Next(row));
        if (!more) {
          break;
        }
        ++records_;
        for (const auto& [name, value] : row) {
          Add(value, fields_[name]);
        }
        progress.Advance(1, rows->part());
      }
    }
    return {};
  }

  nlohmann::json AsJson() const {
    nlohmann::json fields = nlohmann::json::object();
    for (const auto& [name, field] : fields_) {
      nlohmann::json entry = {{"missing_records", records_ - field.rows},
                              {"fewest_values", field.rows == 0 ? 0 : field.fewest},
                              {"most_values", field.most}};
      if (field.moments.count + field.moments.missing > 0) {
        entry["numbers"] = Numbers(field);
      }
      if (field.strings > 0) {
        entry["distinct_texts"] = field.texts.distinct();
        entry["frequent_texts"] = field.texts.Texts(1, 10);
      }
      fields[name] = std::move(entry);
    }
    return {{"records", records_}, {"fields", fields}};
  }

  void Print() const {
    std::printf("%lld records\n", static_cast<long long>(records_));
    std::printf("%-24s %10s %12s %12s %12s %12s %12s\n", "field", "missing", "mean", "deviation",
                "least", "median", "most");
    for (const auto& [name, field] : fields_) {
      std::printf("%-24s %10lld", name.c_str(), static_cast<long long>(records_ - field.rows));
      if (field.moments.count > 0) {
        std::printf(" %12.6g %12.6g %12.6g %12.6g %12.6g", field.moments.mean,
                    field.moments.deviation(), field.moments.least, Quantile(field, 0.5),
                    field.moments.most);
      }
      if (field.strings > 0) {
        std::printf(" %lld distinct texts", static_cast<long long>(field.texts.distinct()));
      }
      std::printf("\n");
    }
  }

  Status WriteVocabularies(const Options& options) const {
    COHORT_RETURN_IF_ERROR(data::CommandFiles().CreateDirectories(options.vocabularies));
    for (const auto& [name, field] : fields_) {
      if (field.strings == 0) {
        continue;
      }
      if (name.find('/') != std::string::npos) {
        return InvalidArgument("field '" + name + "' is no name of a file");
      }
      COHORT_ASSIGN_OR_RETURN(
          const data::Vocabulary vocabulary,
          data::Vocabulary::Make(field.texts.Texts(options.min_count, options.max_size)));
      COHORT_RETURN_IF_ERROR(
          vocabulary.Save(data::CommandFiles(), options.vocabularies + "/" + name + ".txt"));
    }
    return {};
  }

 private:
  static void Add(const data::Value& value, Field& field) {
    if (value.kind == data::Value::Kind::kMissing) {
      return;
    }
    ++field.rows;
    field.fewest = std::min(field.fewest, value.size());
    field.most = std::max(field.most, value.size());
    if (value.kind == data::Value::Kind::kNumbers) {
      AddNumbers(value.numbers, field);
      return;
    }
    for (const std::string& text : value.strings) {
      ++field.strings;
      field.texts.Add(text);
    }
  }

  static double Quantile(const Field& field, double part) {
    const std::vector<double> sorted = field.sample.Sorted();
    return sorted[std::min(sorted.size() - 1,
                           static_cast<std::size_t>(part * static_cast<double>(sorted.size())))];
  }

  static nlohmann::json Numbers(const Field& field) {
    const data::Moments& m = field.moments;
    nlohmann::json numbers = {{"count", m.count},          {"missing", m.missing}, {"mean", m.mean},
                              {"squares", m.squares},      {"least", m.least},     {"most", m.most},
                              {"deviation", m.deviation()}};
    if (m.count > 0) {
      const std::vector<double> sorted = field.sample.Sorted();
      nlohmann::json quantiles = nlohmann::json::array();
      for (const double part : kQuantiles) {
        quantiles.push_back(
            {part,
             sorted[std::min(sorted.size() - 1, static_cast<std::size_t>(
                                                    part * static_cast<double>(sorted.size())))]});
      }
      numbers["quantiles"] = quantiles;
      numbers["quantiles_of"] = field.sample.whole() ? "all numbers" : "100000 of them";
    }
    return numbers;
  }

  std::int64_t records_ = 0;
  std::map<std::string, Field> fields_;
};

Status Run(const Options& options) {
  Statistics statistics;
  COHORT_RETURN_IF_ERROR(statistics.Read(options.paths));
  const std::string text =
      statistics.AsJson().dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  if (!options.out.empty()) {
    COHORT_RETURN_IF_ERROR(WriteFileAtomically(data::CommandFiles(), options.out, text + "\n"));
  }
  if (!options.vocabularies.empty()) {
    COHORT_RETURN_IF_ERROR(statistics.WriteVocabularies(options));
  }
  if (options.json) {
    std::printf("%s\n", text.c_str());
  } else {
    statistics.Print();
  }
  return {};
}

}  // namespace

int DataStatsCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Reads the records of files (told by content) and prints, of each field, missing ones, mean, "
      "deviation and range of its numbers, and how many distinct texts. LoadStatistics and "
      "Vocabulary::Load read what --out and --vocabularies write.",
      argv[0]);
  app.add_option("path", options.paths, "files, one after another")->required();
  app.add_option("--out", options.out, "write the statistics as JSON");
  app.add_option("--vocabularies", options.vocabularies,
                 "folder: the texts of each text field, the most frequent first, in FIELD.txt");
  const auto count = CLI::Range(std::int64_t{0}, std::numeric_limits<std::int64_t>::max());
  app.add_option("--min-count", options.min_count, "texts seen less often are left out")
      ->check(count);
  app.add_option("--max-size", options.max_size, "texts of a vocabulary at most; 0: all")
      ->check(count);
  app.add_flag("--json", options.json, "print a JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (const int code = data::ExpandPaths(argv[0], options.paths); code != 0) {
    return code;
  }
  const Status status = Run(options);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
