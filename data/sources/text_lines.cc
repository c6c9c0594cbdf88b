#include <cohort/data/text_lines.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>

#include <cohort/core/random.h>
#include <cohort/io/crc32c.h>

#include "sources/content.h"
#include "sources/file_table.h"
#include "sources/guarded.h"
#include "sources/sizes.h"
#include "sources/text_hash.h"

namespace cohort::data {
namespace {

// The lines of one file.
class Lines {
 public:
  static Result<Lines> Open(FileSystem& files, const std::string& path, const TextOptions& options);

  std::int64_t size() const { return static_cast<std::int64_t>(begins_.size()) - 1; }
  std::uint64_t bytes() const { return file_->size(); }
  std::uint64_t digest() const { return digest_; }
  // Line `i`, without its end.
  Status Read(std::int64_t i, std::string& line) const {
    const auto at = static_cast<std::size_t>(i);
    line.resize(begins_[at + 1] - begins_[at]);
    COHORT_RETURN_IF_ERROR(
        ReadExactly(*file_, path_, begins_[at], std::as_writable_bytes(std::span(line))));
    if (line.ends_with('\n')) {
      line.pop_back();
    }
    if (line.ends_with('\r')) {
      line.pop_back();
    }
    return {};
  }

 private:
  std::string path_;
  std::shared_ptr<const RandomAccessFile> file_;  // owner: this
  std::vector<std::uint64_t> begins_;  // line i, with its end, is [begins_[i], begins_[i + 1])
  std::uint64_t digest_ = 0;
};

Result<Lines> Lines::Open(FileSystem& files, const std::string& path, const TextOptions& options) {
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  Lines lines;
  lines.path_ = path;
  COHORT_ASSIGN_OR_RETURN(lines.file_, OpenMaybeGzip(files, path));
  const std::uint64_t size = lines.file_->size();
  std::string piece(std::min<std::uint64_t>(size, kPiece), '\0');
  std::uint64_t begin = 0;  // of the line that is walked
  std::int64_t line = 1;
  std::uint32_t crc = 0;
  const auto end_line = [&](std::uint64_t end) -> Status {
    if (end - begin > options.max_line_bytes) {
      return DataLoss(path + ", line " + std::to_string(line) + " at byte " +
                      std::to_string(begin) + ": longer than " +
                      std::to_string(options.max_line_bytes) +
                      " bytes [is it text? TextOptions.max_line_bytes]");
    }
    if (line > options.skip_lines) {
      lines.begins_.push_back(begin);
    }
    ++line;
    begin = end;
    return {};
  };
  for (std::uint64_t at = 0; at < size; at += piece.size()) {
    piece.resize(std::min<std::uint64_t>(size - at, kPiece));
    COHORT_RETURN_IF_ERROR(
        ReadExactly(*lines.file_, path, at, std::as_writable_bytes(std::span(piece))));
    crc = io::Crc32c(piece, crc);
    if (at == 0 && piece.starts_with(kByteOrderMark)) {
      begin = kByteOrderMark.size();
    }
    std::size_t from = static_cast<std::size_t>(begin > at ? begin - at : 0);
    for (std::size_t end = piece.find('\n', from); end != std::string::npos;
         end = piece.find('\n', from)) {
      from = end + 1;
      COHORT_RETURN_IF_ERROR(end_line(at + from));
    }
    if (at + piece.size() - begin > options.max_line_bytes) {
      COHORT_RETURN_IF_ERROR(end_line(at + piece.size()));  // too long already
    }
  }
  if (begin < size) {
    COHORT_RETURN_IF_ERROR(end_line(size));
  }
  lines.begins_.push_back(size);
  lines.digest_ = Hash64(std::to_string(crc) + "/" + std::to_string(size));
  return lines;
}

class TextSource final : public Source {
 public:
  explicit TextSource(const TextOptions& options) : options_(options) {}

  Status AddFile(const std::string& path) {
    COHORT_ASSIGN_OR_RETURN(Lines lines, Lines::Open(*options_.files, path, options_));
    table_.Add(path, lines.size(), lines.bytes());
    files_.push_back(std::move(lines));
    return {};
  }

  std::int64_t size() const override { return table_.size(); }
  const std::vector<FeatureSpec>& features() const override { return options_.decoder.features; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    const std::size_t file = table_.Find(index);
    std::string line;
    Status status = files_[file].Read(index - table_.ranges()[file].begin, line);
    if (status.ok()) {
      status = Guarded(options_.decoder.decode, line, rows);
    }
    return status.ok() ? status : status.Annotate(Where(index));
  }

  std::string Where(std::int64_t index) const override {
    const FileRange& range = table_.ranges()[table_.Find(index)];
    return range.name + ", line " + std::to_string(index - range.begin + options_.skip_lines + 1);
  }
  std::vector<FileRange> files() const override { return table_.ranges(); }

  std::uint64_t Fingerprint() const override {
    std::uint64_t digest =
        Hash64("text_lines" + options_.decoder.name + "/" + std::to_string(options_.skip_lines));
    for (const FeatureSpec& feature : options_.decoder.features) {
      digest = Hash64(
          feature.name + std::string(DTypeName(feature.dtype)) + feature.shape.ToString(), digest);
    }
    for (const Lines& lines : files_) {
      digest = Hash64(std::to_string(lines.digest()), digest);
    }
    return digest;
  }

 private:
  TextOptions options_;
  FileTable table_;
  std::vector<Lines> files_;
};

Status CheckOptions(const TextOptions& options) {
  const LineDecoder& decoder = options.decoder;
  if (decoder.features.empty() || !decoder.decode) {
    return InvalidArgument("text: the decoder has no features or no function");
  }
  std::set<std::string> names;
  for (const FeatureSpec& feature : decoder.features) {
    if (!names.insert(feature.name).second) {
      return InvalidArgument("text: feature '" + feature.name + "' stands twice in the decoder");
    }
    if (!CheckedBytes(feature.shape.dims(), SizeOf(feature.dtype)).has_value()) {
      return InvalidArgument("text: feature '" + feature.name + "' has a shape that no memory " +
                             "holds: " + feature.shape.ToString());
    }
  }
  if (options.skip_lines < 0 || options.max_line_bytes == 0) {
    return InvalidArgument("text: skip_lines is not negative, max_line_bytes is positive");
  }
  return {};
}

}  // namespace

LineDecoder HashedLine(std::int64_t buckets) {
  Require(buckets >= 0, "the buckets of hashed lines are not negative");
  return {.features = {{"line", DType::kInt64, Shape()}},
          .decode =
              [buckets](std::string_view line, std::span<std::byte* const> rows) {
                const std::int64_t hash = TextHash(line, buckets);
                std::memcpy(rows[0], &hash, sizeof(hash));
                return Status();
              },
          .name = "hash " + std::to_string(buckets)};
}

LineDecoder PaddedLine(std::int64_t max_bytes, bool cut) {
  Require(max_bytes > 0, "padded lines have at least one byte");
  const auto width = static_cast<std::size_t>(max_bytes);
  return {
      .features = {{"line", DType::kUInt8, Shape({max_bytes})}, {"length", DType::kInt64, Shape()}},
      .decode =
          [width, cut](std::string_view line, std::span<std::byte* const> rows) {
            if (line.size() > width && !cut) {
              return InvalidArgument("holds " + std::to_string(line.size()) + " bytes, " +
                                     std::to_string(width) +
                                     " are the longest asked for [PaddedLine(..., true) cuts]");
            }
            const auto length = static_cast<std::int64_t>(std::min(line.size(), width));
            std::memset(rows[0], 0, width);
            std::copy_n(line.begin(), length, reinterpret_cast<char*>(rows[0]));
            std::memcpy(rows[1], &length, sizeof(length));
            return Status();
          },
      .name = std::string("padded") + (cut ? " cut" : "")};
}

Result<Dataset> TextLines(const std::vector<std::string>& paths, const TextOptions& options) {
  if (paths.empty()) {
    return InvalidArgument("text: no files");
  }
  COHORT_RETURN_IF_ERROR(CheckOptions(options));
  auto source = std::make_shared<TextSource>(options);
  for (const std::string& path : paths) {
    COHORT_RETURN_IF_ERROR(source->AddFile(path));
  }
  return Dataset(std::move(source));
}

}  // namespace cohort::data
