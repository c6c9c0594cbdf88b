// `cohort data stats`: what the fields of files hold: moments, quantiles, frequent texts.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <future>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include <cohort/core/thread_pool.h>
#include <cohort/data/features.h>
#include <cohort/io/record_file.h>

#include "atomic_records.h"
#include "command.h"
#include "files.h"
#include "progress.h"
#include "rows.h"

namespace cohort {
namespace {

using Json = nlohmann::json;

constexpr std::array<double, 7> kQuantiles = {0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99};

// Numbers that depend on nothing else, spread evenly (splitmix64).
std::uint64_t Mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// A uniform sample: the numbers whose places in the data have the least Mix. So it is the same
// whatever parts it was put together from.
class Sample {
 public:
  struct Kept {
    std::uint64_t priority = 0;
    double value = 0;
    bool operator<(const Kept& other) const {
      return std::pair(priority, value) < std::pair(other.priority, other.value);
    }
  };

  void Add(std::uint64_t priority, double value) {
    ++seen_;
    Keep({priority, value});
  }
  void Merge(const Sample& other) {
    seen_ += other.seen_;
    for (const Kept& one : other.kept_) {
      Keep(one);
    }
  }
  bool whole() const { return seen_ <= kKept; }
  std::vector<double> Sorted() const {
    std::vector<Kept> kept = kept_;
    Trim(kept);
    std::vector<double> sorted;
    sorted.reserve(kept.size());
    for (const Kept& one : kept) {
      sorted.push_back(one.value);
    }
    std::sort(sorted.begin(), sorted.end());
    return sorted;
  }

  Json Save() const {
    std::vector<Kept> kept = kept_;
    Trim(kept);
    std::vector<std::uint8_t> bytes(kept.size() * sizeof(Kept));
    if (!bytes.empty()) {
      std::memcpy(bytes.data(), kept.data(), bytes.size());
    }
    return {{"seen", seen_}, {"kept", Json::binary(std::move(bytes))}};
  }
  static Sample Load(const Json& json) {
    Sample sample;
    const auto& bytes = json.at("kept").get_binary();
    sample.seen_ = json.at("seen").get<std::uint64_t>();
    sample.kept_.resize(bytes.size() / sizeof(Kept));
    if (!sample.kept_.empty()) {
      std::memcpy(sample.kept_.data(), bytes.data(), sample.kept_.size() * sizeof(Kept));
    }
    return sample;
  }

 private:
  static constexpr std::size_t kKept = 100'000;

  void Keep(const Kept& one) {
    if (one.priority > most_) {
      return;
    }
    kept_.push_back(one);
    if (kept_.size() == 2 * kKept) {
      most_ = Trim(kept_);
    }
  }
  // The largest priority that is left, if any went.
  static std::uint64_t Trim(std::vector<Kept>& kept) {
    if (kept.size() <= kKept) {
      return std::numeric_limits<std::uint64_t>::max();
    }
    const auto last = kept.begin() + (kKept - 1);
    std::nth_element(kept.begin(), last, kept.end());
    const std::uint64_t most = last->priority;
    kept.resize(kKept);
    return most;
  }

  std::uint64_t seen_ = 0;
  std::uint64_t most_ = std::numeric_limits<std::uint64_t>::max();
  std::vector<Kept> kept_;  // up to twice as many as there will be
};

// What is put together in the order of the data, so that it is the same to the last bit.
struct Counts {
  std::int64_t rows = 0;  // that have the field
  std::int64_t fewest = std::numeric_limits<std::int64_t>::max();
  std::int64_t most = 0;
  std::int64_t strings = 0;
  data::Moments moments;  // of its numbers

  void Merge(const Counts& next) {
    rows += next.rows;
    fewest = std::min(fewest, next.fewest);
    most = std::max(most, next.most);
    strings += next.strings;
    moments.Merge(next.moments);
  }
};

struct Part {
  std::int64_t records = 0;
  std::map<std::string, Counts> fields;

  void Merge(const Part& next) {
    records += next.records;
    for (const auto& [name, counts] : next.fields) {
      fields[name].Merge(counts);
    }
  }
};

// And what is the same in any order.
struct Contents {
  std::map<std::string, Sample> samples;
  std::map<std::string, data::VocabularyCounts> texts;

  void Merge(const Contents& other) {
    for (const auto& [name, sample] : other.samples) {
      samples[name].Merge(sample);
    }
    for (const auto& [name, counts] : other.texts) {
      texts[name].Merge(counts);
    }
  }
};

// Statistics of a block of rows.
class Block {
 public:
  // `place`: a number for each row of the data.
  void Add(const data::Row& row, std::uint64_t place) {
    ++part_.records;
    for (const auto& [name, value] : row) {
      Add(name, value, Mix(place));
    }
  }
  const Part& part() const { return part_; }
  const Contents& contents() const { return contents_; }

 private:
  void Add(const std::string& name, const data::Value& value, std::uint64_t place) {
    Counts& counts = part_.fields[name];
    if (value.kind == data::Value::Kind::kMissing) {
      return;
    }
    ++counts.rows;
    counts.fewest = std::min(counts.fewest, value.size());
    counts.most = std::max(counts.most, value.size());
    if (value.kind == data::Value::Kind::kNumbers) {
      AddNumbers(value.numbers, place, counts.moments, contents_.samples[name]);
      return;
    }
    data::VocabularyCounts& texts = contents_.texts[name];
    for (const std::string& text : value.strings) {
      ++counts.strings;
      texts.Add(text);
    }
  }

  template <typename T>
  static void AddAll(const Tensor& tensor, std::uint64_t place, data::Moments& moments,
                     Sample& sample) {
    for (const T value : tensor.data<T>()) {
      double number;
      if constexpr (std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>) {
        number = static_cast<double>(static_cast<float>(value));
      } else {
        number = static_cast<double>(value);
      }
      moments.Add(number);
      ++place;
      if (!std::isnan(number)) {
        sample.Add(Mix(place), number);
      }
    }
  }

  static void AddNumbers(const Tensor& tensor, std::uint64_t place, data::Moments& moments,
                         Sample& sample) {
    switch (tensor.dtype()) {
      case DType::kFloat32:
        return AddAll<float>(tensor, place, moments, sample);
      case DType::kFloat64:
        return AddAll<double>(tensor, place, moments, sample);
      case DType::kInt32:
        return AddAll<std::int32_t>(tensor, place, moments, sample);
      case DType::kInt64:
        return AddAll<std::int64_t>(tensor, place, moments, sample);
      case DType::kFloat16:
        return AddAll<Float16>(tensor, place, moments, sample);
      case DType::kBFloat16:
        return AddAll<BFloat16>(tensor, place, moments, sample);
      case DType::kUInt8:
        return AddAll<std::uint8_t>(tensor, place, moments, sample);
    }
  }

  Part part_;
  Contents contents_;
};

struct Options {
  std::vector<std::string> paths;
  std::string out;
  std::string vocabularies;
  std::string shard;  // "I/N"
  std::string partial;
  bool merge = false;
  int threads = AvailableCores();
  std::int64_t min_count = 1;
  std::int64_t max_size = 0;
  bool json = false;
};

// Which files: those of one of several processes that have about as many bytes each.
struct Share {
  int index = 0;
  int count = 1;

  static Result<Share> Parse(const std::string& text) {
    Share share;
    const char* const end = text.data() + text.size();
    const auto index = std::from_chars(text.data(), end, share.index);
    const bool cut = index.ec == std::errc() && index.ptr != end && *index.ptr == '/';
    const auto count = cut ? std::from_chars(index.ptr + 1, end, share.count) : index;
    if (!cut || count.ec != std::errc() || count.ptr != end || share.index < 0 ||
        share.index >= share.count) {
      return InvalidArgument("--shard " + text + ": not I/N with I from 0 to N - 1");
    }
    return share;
  }

  std::vector<std::size_t> Of(const std::vector<std::uint64_t>& sizes) const {
    std::vector<std::size_t> order(sizes.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&sizes](std::size_t a, std::size_t b) { return sizes[a] > sizes[b]; });
    std::vector<std::uint64_t> bytes(static_cast<std::size_t>(count));
    std::vector<std::size_t> mine;
    for (const std::size_t file : order) {  // the largest first, each to whoever has least
      const auto to = std::min_element(bytes.begin(), bytes.end()) - bytes.begin();
      bytes[static_cast<std::size_t>(to)] += sizes[file];
      if (to == index) {
        mine.push_back(file);
      }
    }
    std::sort(mine.begin(), mine.end());
    return mine;
  }
};

class Statistics {
 public:
  // One pass over `share` of the files. Blocks of rows are taken apart and counted by threads, and
  // put together in their order.
  Status Read(const std::vector<std::string>& paths, const Share& share, int threads) {
    COHORT_ASSIGN_OR_RETURN(const auto sizes, data::SizesOf(paths));
    paths_ = paths;
    share_ = share;
    const std::vector<std::size_t> mine = share.Of(sizes);
    std::uint64_t bytes = 0;
    for (const std::size_t file : mine) {
      bytes += sizes[file];
    }
    data::Progress progress("stats", bytes);
    std::unique_ptr<ThreadPool> pool;
    if (threads > 1) {
      pool = std::make_unique<ThreadPool>(threads, "stats");
    }
    for (const std::size_t file : mine) {
      progress.SetFile(paths[file], sizes[file]);
      COHORT_RETURN_IF_ERROR(ReadFile(file, pool.get(), progress));
    }
    return {};
  }

  // With what a process wrote for its share.
  Status Merge(const std::string& path) {
    COHORT_ASSIGN_OR_RETURN(const auto reader, io::RecordReader::Open(data::CommandFiles(), path));
    COHORT_ASSIGN_OR_RETURN(const auto record, reader->Next());
    const auto no_partial = [&path](const std::string& why) {
      return DataLoss(path + ": not what cohort data stats --partial writes: " + why);
    };
    if (!record.has_value()) {
      return no_partial("it is empty");
    }
    try {
      const Json json = Json::from_cbor(record->begin(), record->end());
      if (json.at("what") != kPartial) {
        return no_partial("another version");
      }
      const auto paths = json.at("paths").get<std::vector<std::string>>();
      const Share share{json.at("shard").at(0).get<int>(), json.at("shard").at(1).get<int>()};
      if (merged_.empty()) {
        paths_ = paths;
        share_ = {0, share.count};
        merged_.resize(static_cast<std::size_t>(share.count));
      }
      if (share.count != share_.count || paths != paths_) {
        return InvalidArgument(path + ": of other files, or of another number of shards, than " +
                               first_);
      }
      std::string& taken = merged_.at(static_cast<std::size_t>(share.index));
      if (!taken.empty()) {
        return InvalidArgument(path + " and " + taken + " are both shard " +
                               std::to_string(share.index));
      }
      taken = path;
      first_ = first_.empty() ? path : first_;
      for (const Json& file : json.at("files")) {
        const auto [at, is_new] = files_.try_emplace(file.at("file").get<std::size_t>());
        if (!is_new) {
          return InvalidArgument(path + ": counts " + paths_.at(at->first) +
                                 ", as another shard does [the shards began with different sizes "
                                 "of the files: count them again]");
        }
        Part& part = at->second;
        part.records = file.at("records").get<std::int64_t>();
        for (const auto& [name, counts] : file.at("fields").items()) {
          part.fields[name] = LoadCounts(counts);
        }
      }
      for (const auto& [name, sample] : json.at("samples").items()) {
        contents_.samples[name].Merge(Sample::Load(sample));
      }
      for (const auto& [name, texts] : json.at("texts").items()) {
        for (const auto& [text, times] : texts.items()) {
          contents_.texts[name].Add(text, times.get<std::int64_t>());
        }
      }
    } catch (const std::exception& error) {
      return no_partial(error.what());
    }
    return {};
  }
  // Every share has come.
  Status Complete() const {
    std::string missing;
    for (std::size_t i = 0; i < merged_.size(); ++i) {
      missing += merged_[i].empty() ? (missing.empty() ? "" : ", ") + std::to_string(i) : "";
    }
    if (!missing.empty()) {
      return InvalidArgument("of " + std::to_string(merged_.size()) +
                             " shards these are missing: " + missing);
    }
    for (std::size_t file = 0; file < paths_.size(); ++file) {
      if (!files_.contains(file)) {
        return InvalidArgument(paths_[file] +
                               ": no shard counts it [the shards began with different sizes of the "
                               "files: count them again]");
      }
    }
    return {};
  }

  // A record file of one record.
  Status Save(const std::string& path) const {
    Json json = {{"what", kPartial},
                 {"paths", paths_},
                 {"shard", {share_.index, share_.count}},
                 {"files", Json::array()},
                 {"samples", Json::object()},
                 {"texts", Json::object()}};
    for (const auto& [file, part] : files_) {
      Json fields = Json::object();
      for (const auto& [name, counts] : part.fields) {
        fields[name] = SaveCounts(counts);
      }
      json["files"].push_back({{"file", file}, {"records", part.records}, {"fields", fields}});
    }
    for (const auto& [name, sample] : contents_.samples) {
      json["samples"][name] = sample.Save();
    }
    for (const auto& [name, texts] : contents_.texts) {
      json["texts"][name] = texts.counts();
    }
    const std::vector<std::uint8_t> bytes = Json::to_cbor(json);
    COHORT_ASSIGN_OR_RETURN(const auto file, data::AtomicRecords::Create(data::CommandFiles(), path,
                                                                         io::Compression::kNone));
    COHORT_RETURN_IF_ERROR(
        file->Write({reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
    return file->Close();
  }

  // Of all files, one behind the other.
  Part Total() const {
    Part total;
    for (const auto& [file, part] : files_) {
      total.Merge(part);
    }
    return total;
  }
  std::size_t files() const { return files_.size(); }

  nlohmann::json AsJson() const {
    const Part total = Total();
    nlohmann::json fields = nlohmann::json::object();
    for (const auto& [name, field] : total.fields) {
      nlohmann::json entry = {{"missing_records", total.records - field.rows},
                              {"fewest_values", field.rows == 0 ? 0 : field.fewest},
                              {"most_values", field.most}};
      if (field.moments.count + field.moments.missing > 0) {
        entry["numbers"] = Numbers(name, field.moments);
      }
      if (field.strings > 0) {
        entry["distinct_texts"] = contents_.texts.at(name).distinct();
        entry["frequent_texts"] = contents_.texts.at(name).Texts(1, 10);
      }
      fields[name] = std::move(entry);
    }
    return {{"records", total.records}, {"fields", fields}};
  }

  void Print() const {
    const Part total = Total();
    std::printf("%lld records\n", static_cast<long long>(total.records));
    std::printf("%-24s %10s %12s %12s %12s %12s %12s\n", "field", "missing", "mean", "deviation",
                "least", "median", "most");
    for (const auto& [name, field] : total.fields) {
      std::printf("%-24s %10lld", name.c_str(), static_cast<long long>(total.records - field.rows));
      if (field.moments.count > 0) {
        std::printf(" %12.6g %12.6g %12.6g %12.6g %12.6g", field.moments.mean,
                    field.moments.deviation(), field.moments.least,
                    Quantile(contents_.samples.at(name).Sorted(), 0.5), field.moments.most);
      }
      if (field.strings > 0) {
        std::printf(" %lld distinct texts",
                    static_cast<long long>(contents_.texts.at(name).distinct()));
      }
      std::printf("\n");
    }
  }

  Status WriteVocabularies(const Options& options) const {
    COHORT_RETURN_IF_ERROR(data::CommandFiles().CreateDirectories(options.vocabularies));
    for (const auto& [name, texts] : contents_.texts) {
      if (texts.counts().empty()) {
        continue;
      }
      if (name.find('/') != std::string::npos) {
        return InvalidArgument("field '" + name + "' is no name of a file");
      }
      COHORT_ASSIGN_OR_RETURN(
          const data::Vocabulary vocabulary,
          data::Vocabulary::Make(texts.Texts(options.min_count, options.max_size)));
      COHORT_RETURN_IF_ERROR(
          vocabulary.Save(data::CommandFiles(), options.vocabularies + "/" + name + ".txt"));
    }
    return {};
  }

 private:
  static constexpr const char* kPartial = "cohort data stats, 1";

  Status ReadFile(std::size_t file, ThreadPool* pool, data::Progress& progress) {
    COHORT_ASSIGN_OR_RETURN(const auto rows,
                            data::RowReader::Open(data::CommandFiles(), paths_[file], pool));
    Part& part = files_[file];
    std::deque<std::future<Result<Block>>> ahead;
    const auto take = [&]() -> Status {
      std::future<Result<Block>> next = std::move(ahead.front());
      ahead.pop_front();
      COHORT_ASSIGN_OR_RETURN(const Block block, next.get());
      part.Merge(block.part());
      contents_.Merge(block.contents());
      return {};
    };
    const std::size_t most = pool == nullptr ? 0 : 2 * static_cast<std::size_t>(pool->size());
    std::uint64_t place = Mix(file) & ~std::uint64_t{1};  // of the file's first row
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(const auto some, rows->NextBlock());
      if (some == nullptr) {
        break;
      }
      // A function that can be copied, as the pool wants it.
      const auto count =
          std::make_shared<std::packaged_task<Result<Block>()>>([some, place]() -> Result<Block> {
            Block block;
            std::uint64_t row = place;
            COHORT_RETURN_IF_ERROR(some->ForEach([&](const data::Row& values) {
              block.Add(values, row++);
              return Status();
            }));
            return block;
          });
      ahead.push_back(count->get_future());
      if (pool == nullptr) {
        (*count)();
      } else {
        pool->Submit([count] { (*count)(); });
      }
      place += static_cast<std::uint64_t>(some->rows());
      progress.Advance(some->rows(), rows->part());
      while (ahead.size() > most) {
        COHORT_RETURN_IF_ERROR(take());
      }
    }
    while (!ahead.empty()) {
      COHORT_RETURN_IF_ERROR(take());
    }
    return {};
  }

  static Json SaveCounts(const Counts& counts) {
    const data::Moments& m = counts.moments;
    return {counts.rows, counts.fewest, counts.most, counts.strings, m.count,
            m.missing,   m.mean,        m.squares,   m.least,        m.most};
  }
  static Counts LoadCounts(const Json& json) {
    const auto whole = [&json](std::size_t i) { return json.at(i).get<std::int64_t>(); };
    const auto number = [&json](std::size_t i) { return json.at(i).get<double>(); };
    return {.rows = whole(0),
            .fewest = whole(1),
            .most = whole(2),
            .strings = whole(3),
            .moments = {.count = whole(4),
                        .missing = whole(5),
                        .mean = number(6),
                        .squares = number(7),
                        .least = number(8),
                        .most = number(9)}};
  }

  static double Quantile(const std::vector<double>& sorted, double part) {
    return sorted[std::min(sorted.size() - 1,
                           static_cast<std::size_t>(part * static_cast<double>(sorted.size())))];
  }

  Json Numbers(const std::string& name, const data::Moments& m) const {
    Json numbers = {{"count", m.count},          {"missing", m.missing}, {"mean", m.mean},
                    {"squares", m.squares},      {"least", m.least},     {"most", m.most},
                    {"deviation", m.deviation()}};
    if (m.count > 0) {
      const Sample& sample = contents_.samples.at(name);
      const std::vector<double> sorted = sample.Sorted();
      Json quantiles = Json::array();
      for (const double part : kQuantiles) {
        quantiles.push_back({part, Quantile(sorted, part)});
      }
      numbers["quantiles"] = quantiles;
      numbers["quantiles_of"] = sample.whole() ? "all numbers" : "100000 of them";
    }
    return numbers;
  }

  std::vector<std::string> paths_;
  Share share_;
  std::map<std::size_t, Part> files_;  // by place in paths_
  Contents contents_;
  std::vector<std::string> merged_;  // the file of each share
  std::string first_;                // of them, as they came
};

Status WritePartial(const Statistics& statistics, const Options& options, const Share& share) {
  COHORT_RETURN_IF_ERROR(statistics.Save(options.partial));
  const std::int64_t records = statistics.Total().records;
  if (options.json) {
    std::printf("%s\n", Json({{"partial", options.partial},
                              {"shard", share.index},
                              {"shards", share.count},
                              {"files", statistics.files()},
                              {"records", records}})
                            .dump(2)
                            .c_str());
  } else {
    std::printf("%s: shard %d of %d, %zu files, %lld records\n", options.partial.c_str(),
                share.index, share.count, statistics.files(), static_cast<long long>(records));
  }
  return {};
}

Status Run(const Options& options) {
  Statistics statistics;
  if (options.merge) {
    for (const std::string& path : options.paths) {
      COHORT_RETURN_IF_ERROR(statistics.Merge(path));
    }
    COHORT_RETURN_IF_ERROR(statistics.Complete());
  } else {
    Share share;
    if (!options.shard.empty()) {
      COHORT_ASSIGN_OR_RETURN(share, Share::Parse(options.shard));
    }
    COHORT_RETURN_IF_ERROR(statistics.Read(options.paths, share, options.threads));
    if (!options.partial.empty()) {
      return WritePartial(statistics, options, share);
    }
  }
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
      "Vocabulary::Load read what --out and --vocabularies write. Several processes share one "
      "pass: "
      "each with --shard I/N of the same files and --partial, then one with --merge of what they "
      "wrote; the result is that of one process, to the last bit.",
      argv[0]);
  app.add_option("path", options.paths, "files, one after another")->required();
  auto* const shard = app.add_option("--shard", options.shard,
                                     "I/N: only the I-th (from 0) of N shares of the files, of "
                                     "about as many bytes");
  auto* const partial =
      app.add_option("--partial", options.partial, "write what --merge takes, not the statistics");
  auto* const merge = app.add_flag("--merge", options.merge, "PATHs were written with --partial");
  app.add_option("--threads", options.threads, "that count; the result does not depend on it")
      ->check(CLI::Range(1, 1024));
  auto* const out = app.add_option("--out", options.out, "write the statistics as JSON");
  auto* const vocabularies =
      app.add_option("--vocabularies", options.vocabularies,
                     "folder: the texts of each text field, the most frequent first, in FIELD.txt");
  shard->needs(partial)->excludes(merge);
  partial->needs(shard)->excludes(out)->excludes(vocabularies);
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
