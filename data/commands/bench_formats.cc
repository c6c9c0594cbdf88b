#include "bench_formats.h"

#include <zlib.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include <cohort/data/csv.h>
#include <cohort/data/tf_example.h>
#include <cohort/data/tf_record.h>
#include <cohort/data/webdataset.h>
#include <cohort/io/record_file.h>

#include "files.h"
#include "infer.h"

namespace cohort::data {
namespace {

using Options = BenchFormatOptions;

// What one pass went over.
struct Pass {
  std::int64_t records = 0;
  std::uint64_t bytes = 0;
};
using Measured = std::function<Result<Pass>(const Options&)>;

struct Format {
  const char* name;
  const char* limit;  // what it is
  Measured run_limit;
  Measured run;
};

// read() of the files as they are, from the page cache where they are there.
Result<Pass> ReadOnly(const Options& options) {
  Pass pass;
  std::vector<std::byte> buffer(std::size_t{1} << 18);
  for (const std::string& path : options.paths) {
    COHORT_ASSIGN_OR_RETURN(const auto file, FileSystem::Local().OpenForRead(path));
    for (std::uint64_t at = 0; at < file->size();) {
      COHORT_ASSIGN_OR_RETURN(const std::size_t n, file->Read(at, buffer));
      if (n == 0) {
        break;
      }
      at += n;
      pass.bytes += n;
    }
  }
  return pass;
}

// zlib's inflate, one member after another, with a CRC of the bytes as gzip has it.
Result<Pass> Zlib(const Options& options) {
  Pass pass;
  std::vector<std::byte> in(std::size_t{1} << 16);
  std::vector<std::byte> out(std::size_t{1} << 18);
  for (const std::string& path : options.paths) {
    COHORT_ASSIGN_OR_RETURN(const auto file, FileSystem::Local().OpenForRead(path));
    z_stream stream = {};
    Require(inflateInit2(&stream, 47) == Z_OK, "memory for inflate");  // gzip or zlib
    int code = Z_OK;
    for (std::uint64_t at = 0; at < file->size() && (code == Z_OK || code == Z_STREAM_END);) {
      COHORT_ASSIGN_OR_RETURN(const std::size_t n, file->Read(at, in));
      at += n;
      stream.next_in = reinterpret_cast<Bytef*>(in.data());
      stream.avail_in = static_cast<uInt>(n);
      do {
        if (code == Z_STREAM_END) {
          inflateReset(&stream);
        }
        stream.next_out = reinterpret_cast<Bytef*>(out.data());
        stream.avail_out = static_cast<uInt>(out.size());
        code = inflate(&stream, Z_NO_FLUSH);
        pass.bytes += out.size() - stream.avail_out;
      } while ((code == Z_OK || code == Z_STREAM_END) &&
               (stream.avail_in > 0 || stream.avail_out == 0));
      code = code == Z_BUF_ERROR ? Z_OK : code;
    }
    inflateEnd(&stream);
    if (code != Z_STREAM_END) {
      return DataLoss(path + ": zlib cannot unpack it");
    }
  }
  return pass;
}

// Every record, its checksums verified; bytes are those of the frames.
Result<Pass> Records(const Options& options) {
  Pass pass;
  std::vector<std::string> paths;
  for (std::int64_t i = 0; i < options.repeat; ++i) {
    paths.insert(paths.end(), options.paths.begin(), options.paths.end());
  }
  for (const std::string& path : paths) {
    COHORT_ASSIGN_OR_RETURN(const auto reader, io::RecordReader::Open(FileSystem::Local(), path));
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(const auto record, reader->Next());
      if (!record.has_value()) {
        break;
      }
      ++pass.records;
    }
    pass.bytes += reader->offset();
  }
  return pass;
}

Result<std::uint64_t> SizesInAll(const Options& options) {
  COHORT_ASSIGN_OR_RETURN(const std::vector<std::uint64_t> sizes, SizesOf(options.paths));
  return std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0});
}
// What an epoch goes over.
Result<std::uint64_t> BytesOfFiles(const Options& options) {
  COHORT_ASSIGN_OR_RETURN(const std::uint64_t once, SizesInAll(options));
  return once * static_cast<std::uint64_t>(options.repeat);
}

// One epoch in batches on the threads asked for.
Result<Pass> Epoch(const Dataset& dataset, const Options& options) {
  Pass pass;
  COHORT_ASSIGN_OR_RETURN(const auto batches, dataset.Repeat(options.repeat)
                                                  .Batch(options.batch)
                                                  .Prefetch(2 * options.threads, options.threads)
                                                  .Iterate());
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const auto batch, batches->Next());
    if (!batch.has_value()) {
      return pass;
    }
    pass.records += batch->size;
    for (const auto& [name, tensor] : batch->features) {
      pass.bytes += tensor.bytes();
    }
  }
}

// Opened, and an epoch of it.
Result<Pass> Examples(const Options& options) {
  COHORT_ASSIGN_OR_RETURN(const std::vector<TfFeatureSpec> features,
                          InferTfFeatures(FileSystem::Local(), options.paths[0]));
  COHORT_ASSIGN_OR_RETURN(const Dataset data, TfRecords(options.paths, {.features = features}));
  COHORT_ASSIGN_OR_RETURN(Pass pass, Epoch(data, options));
  COHORT_ASSIGN_OR_RETURN(pass.bytes, BytesOfFiles(options));
  return pass;
}

// Parsed whole, as a table.
Result<Pass> CsvTable(const Options& options) {
  COHORT_ASSIGN_OR_RETURN(CsvOptions csv, InferCsvColumns(FileSystem::Local(), options.paths[0]));
  csv.threads = options.threads;
  COHORT_ASSIGN_OR_RETURN(const CsvData data, Csv(options.paths, csv));
  Pass pass{.records = data.dataset.size()};
  COHORT_ASSIGN_OR_RETURN(pass.bytes, SizesInAll(options));
  return pass;
}

// Parsed, and an epoch of it.
Result<Pass> CsvEpoch(const Options& options) {
  COHORT_ASSIGN_OR_RETURN(CsvOptions csv, InferCsvColumns(FileSystem::Local(), options.paths[0]));
  csv.threads = options.threads;
  COHORT_ASSIGN_OR_RETURN(const CsvData data, Csv(options.paths, csv));
  COHORT_ASSIGN_OR_RETURN(Pass pass, Epoch(data.dataset, options));
  COHORT_ASSIGN_OR_RETURN(pass.bytes, BytesOfFiles(options));
  return pass;
}

// JPEG and PNG of tar archives, stretched to 224 x 224.
Result<Pass> Images(const Options& options) {
  COHORT_ASSIGN_OR_RETURN(
      const Dataset data,
      WebDataset(options.paths,
                 {.features = {{.name = "image",
                                .extensions = {"jpg", "jpeg", "png"},
                                .decoder = ImageElements(
                                    {.height = 224, .width = 224, .fit = ImageFit::kStretch})}}}));
  COHORT_ASSIGN_OR_RETURN(Pass pass, Epoch(data, options));
  COHORT_ASSIGN_OR_RETURN(pass.bytes, BytesOfFiles(options));
  return pass;
}

const Format kFormats[] = {
    {"tfrecord", "read()", ReadOnly, Records},   {"gzip", "zlib", Zlib, Records},
    {"example", "read()", ReadOnly, Examples},   {"csv", "read()", ReadOnly, CsvTable},
    {"csv-epoch", "read()", ReadOnly, CsvEpoch}, {"images", "read()", ReadOnly, Images},
};

// The most memory that this program has had; getrusage would count that of the one that started it.
Result<std::int64_t> PeakKilobytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) {
      return std::stoll(line.substr(6));
    }
  }
  return Unavailable("/proc/self/status has no VmHWM");
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

const std::vector<std::string>& BenchFormats() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const Format& format : kFormats) {
      all.emplace_back(format.name);
    }
    return all;
  }();
  return names;
}

Status BenchFormat(const BenchFormatOptions& options) {
  const Format& format = *std::find_if(
      std::begin(kFormats), std::end(kFormats),
      [&options](const Format& candidate) { return candidate.name == options.format; });
  Pass pass;
  std::vector<double> seconds;
  std::vector<double> limits;
  const auto measure = [&](const Measured& run, std::vector<double>& to, Pass& what) -> Status {
    const auto start = std::chrono::steady_clock::now();
    COHORT_ASSIGN_OR_RETURN(what, run(options));
    to.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    return {};
  };
  for (int round = 0; round < options.rounds; ++round) {
    Pass ignored;
    COHORT_RETURN_IF_ERROR(measure(format.run_limit, limits, ignored));
    COHORT_RETURN_IF_ERROR(measure(format.run, seconds, pass));
  }
  COHORT_ASSIGN_OR_RETURN(const std::int64_t memory, PeakKilobytes());
  const double median = Median(seconds);
  const double limit = Median(limits);
  if (options.json) {
    std::printf("%s\n", nlohmann::json({{"command", "bench input"},
                                        {"format", format.name},
                                        {"records", pass.records},
                                        {"bytes", pass.bytes},
                                        {"threads", options.threads},
                                        {"seconds", median},
                                        {"rounds", seconds},
                                        {"limit", format.limit},
                                        {"limit_seconds", limit},
                                        {"limit_rounds", limits},
                                        {"max_rss_kilobytes", memory}})
                            .dump()
                            .c_str());
    return {};
  }
  std::printf("%s: %lld records, %.1f MB in %.3f s: %.0f records/s, %.2f GB/s\n", format.name,
              static_cast<long long>(pass.records), static_cast<double>(pass.bytes) / 1e6, median,
              static_cast<double>(pass.records) / median,
              static_cast<double>(pass.bytes) / median / 1e9);
  std::printf("%s takes %.3f s: %.2f times as long; memory %.0f MB at most\n", format.limit, limit,
              limit / median, static_cast<double>(memory) / 1e3);
  return {};
}

}  // namespace cohort::data
