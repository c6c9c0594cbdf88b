#include "parameter_server/row_file.h"

#include <unistd.h>

#include <algorithm>
#include <vector>

#include <cohort/io/record_file.h>
#include <cohort/optim/row_optimizer.h>

#include <cohort/parameter_server.pb.h>

namespace cohort::ps {
namespace {

constexpr std::uint32_t kVersion = 1;

Status Write(const RowTable& table, FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const auto writer, io::RecordWriter::Create(files, path));
  RowFileHeader header;
  header.set_version(kVersion);
  *header.mutable_table() = table.spec().ToMessage();
  header.set_bucket_begin(table.range().begin);
  header.set_bucket_end(table.range().end);
  COHORT_RETURN_IF_ERROR(writer->Write(header.SerializeAsString()));
  for (std::uint32_t b = table.range().begin; b < table.range().end; ++b) {
    COHORT_RETURN_IF_ERROR(writer->Write(table.DumpBucket(b)));
  }
  COHORT_RETURN_IF_ERROR(writer->Sync());
  return writer->Close();
}

// "accumulator", "m, v": what the records of a table hold besides weights.
Result<std::string> SlotNames(const std::string& optimizer) {
  COHORT_ASSIGN_OR_RETURN(const auto rule, RowOptimizer::Make(optimizer));
  std::string names;
  for (int slot = 0; slot < rule->num_slots(); ++slot) {
    names += (names.empty() ? "" : ", ") + std::string(rule->slot_name(slot));
  }
  // Of one name, but one float for each row.
  return rule->name() == kRowWiseAdagrad ? names + " of the row" : names;
}

Status Compare(const TableSpec& table, const TableSpec& file, const std::string& path) {
  const auto differs = [&](const std::string& what, const std::string& have,
                           const std::string& found) {
    return FailedPrecondition(path + " has rows of another table: " + what + " is " + found +
                              ", table \"" + table.name + "\" has " + have);
  };
  if (table.name != file.name) {
    return differs("the name", "\"" + table.name + "\"", "\"" + file.name + "\"");
  }
  if (table.dim != file.dim) {
    return differs("dim", std::to_string(table.dim), std::to_string(file.dim));
  }
  if (table.buckets != file.buckets) {
    return differs("the number of buckets", std::to_string(table.buckets),
                   std::to_string(file.buckets));
  }
  if (table.seed != file.seed) {
    return differs("the seed", std::to_string(table.seed), std::to_string(file.seed));
  }
  COHORT_ASSIGN_OR_RETURN(const std::string have, SlotNames(table.optimizer));
  COHORT_ASSIGN_OR_RETURN(const std::string found, SlotNames(file.optimizer));
  return have == found
             ? OkStatus()
             : differs("the list of optimizer slots", "(" + have + ")", "(" + found + ")");
}

Status Load(RowTable& table, FileSystem& files, const std::string& path,
            std::vector<std::string>& source) {
  COHORT_ASSIGN_OR_RETURN(const auto file, io::RecordFile::Open(files, path));
  if (file->size() < 1) {
    return DataLoss(path + " is empty");
  }
  std::string record;
  COHORT_RETURN_IF_ERROR(file->Read(0, record));
  RowFileHeader header;
  if (!header.ParseFromString(record)) {
    return DataLoss(path + " is no file of rows");
  }
  if (header.version() != kVersion) {
    return Unimplemented(path + " has version " + std::to_string(header.version()) +
                         ", this program reads " + std::to_string(kVersion));
  }
  COHORT_ASSIGN_OR_RETURN(const TableSpec spec, TableSpec::FromMessage(header.table()));
  COHORT_RETURN_IF_ERROR(Compare(table.spec(), spec, path));
  if (header.bucket_begin() > header.bucket_end() || header.bucket_end() > spec.buckets ||
      file->size() != 1 + std::int64_t{header.bucket_end()} - header.bucket_begin()) {
    return DataLoss(path + " has " + std::to_string(file->size()) + " records for buckets " +
                    std::to_string(header.bucket_begin()) + " to " +
                    std::to_string(header.bucket_end()));
  }
  const std::uint32_t end = std::min(header.bucket_end(), table.range().end);
  for (std::uint32_t b = std::max(header.bucket_begin(), table.range().begin); b < end; ++b) {
    std::string& from = source[b - table.range().begin];
    if (!from.empty()) {
      return InvalidArgument("bucket " + std::to_string(b) + " is both in " + from + " and in " +
                             path);
    }
    from = path;
    COHORT_RETURN_IF_ERROR(file->Read(1 + std::int64_t{b} - header.bucket_begin(), record));
    COHORT_RETURN_IF_ERROR(table.RestoreBucket(b, record).Annotate(path));
  }
  return {};
}

}  // namespace

Status SaveRows(const RowTable& table, FileSystem& files, const std::string& path) {
  const std::string temporary = path + ".tmp-" + std::to_string(::getpid());
  const auto save = [&]() -> Status {
    COHORT_RETURN_IF_ERROR(Write(table, files, temporary));
    COHORT_RETURN_IF_ERROR(files.Rename(temporary, path));
    const std::size_t slash = path.rfind('/');
    return files.SyncDirectory(slash == std::string::npos ? "." : path.substr(0, slash + 1));
  };
  const Status status = save();
  if (!status.ok() && files.Exists(temporary)) {
    static_cast<void>(files.RemoveAll(temporary));
  }
  return status.Annotate("rows of table \"" + table.spec().name + "\"");
}

Status LoadRows(RowTable& table, FileSystem& files, std::span<const std::string> paths) {
  if (const TableStats stats = table.stats(); stats.rows > 0 || stats.candidates > 0) {
    return FailedPrecondition("table \"" + table.spec().name + "\" has " +
                              std::to_string(stats.rows) + " rows already [load first]");
  }
  const auto load = [&]() -> Status {
    std::vector<std::string> source(table.range().end - table.range().begin);
    for (const std::string& path : paths) {
      COHORT_RETURN_IF_ERROR(Load(table, files, path, source));
    }
    const auto none = std::ranges::find(source, "");
    if (none != source.end()) {
      return NotFound(
          "bucket " +
          std::to_string(table.range().begin + static_cast<std::uint32_t>(none - source.begin())) +
          " is in none of the " + std::to_string(paths.size()) +
          " files [name the files of all servers that saved]");
    }
    return {};
  };
  const Status status = load();
  if (!status.ok()) {
    table.Clear();
  }
  return status.Annotate("rows of table \"" + table.spec().name + "\"");
}

}  // namespace cohort::ps
