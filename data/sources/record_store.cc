#include "sources/record_store.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <cstring>
#include <optional>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/io/crc32c.h>
#include <cohort/io/record_file.h>

#include "sources/content.h"

namespace cohort::data {
namespace {

constexpr std::uint64_t kHeaderBytes = 12;  // length, checksum of the length
constexpr std::uint64_t kFooterBytes = 4;   // checksum of the bytes

template <typename T>
T Load(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

// Where a record lies, its frame included.
struct Extent {
  std::uint64_t begin = 0;
  std::uint64_t bytes = 0;
  std::int64_t ordinal = 0;
};

// A raw file: records stay on disk.
class RawStore final : public RecordStore {
 public:
  RawStore(std::shared_ptr<const RandomAccessFile> file, std::string path,
           std::vector<Extent> extents, bool indexed)
      : file_(std::move(file)),
        path_(std::move(path)),
        extents_(std::move(extents)),
        indexed_(indexed) {}

  std::int64_t size() const override { return static_cast<std::int64_t>(extents_.size()); }
  std::int64_t Ordinal(std::int64_t i) const override {
    return extents_[static_cast<std::size_t>(i)].ordinal;
  }
  std::uint64_t BytesOf(std::int64_t i) const override {
    return extents_[static_cast<std::size_t>(i)].bytes - kHeaderBytes - kFooterBytes;
  }

  Result<std::string_view> Read(std::int64_t i, std::string& buffer) const override {
    const Extent& extent = extents_[static_cast<std::size_t>(i)];
    const auto bad = [&](const Status& status) {
      return status.Annotate(path_ + ": record " + std::to_string(extent.ordinal) + " at byte " +
                             std::to_string(extent.begin));
    };
    const Result<std::string_view> bytes = Bytes(extent, buffer);
    if (!bytes.ok()) {
      return bad(bytes.status());
    }
    const std::string_view whole = *bytes;
    const std::uint64_t length = extent.bytes - kHeaderBytes - kFooterBytes;
    if (Load<std::uint64_t>(whole.data()) != length ||
        Load<std::uint32_t>(whole.data() + 8) != io::MaskCrc(io::Crc32c(whole.substr(0, 8)))) {
      return bad(DataLoss(indexed_ ? "not where the index says [the file was changed since: run "
                                     "cohort data index again]"
                                   : "its length changed after the file was opened"));
    }
    const std::string_view record = whole.substr(kHeaderBytes, length);
    if (Load<std::uint32_t>(record.data() + length) != io::MaskCrc(io::Crc32c(record))) {
      return bad(DataLoss(
          "corrupted, the checksum of its bytes is wrong [the records behind it can be read]"));
    }
    return record;
  }

  // The checksums behind the records stand for their content: a digest without a pass over it.
  // Where they cannot be read it is none of any content, and nothing behind that is asked for.
  std::uint64_t Digest() const override {
    if (const std::string version = VersionOf(*file_); !version.empty()) {
      return Hash64(version + " " + std::to_string(extents_.size()));
    }
    std::vector<std::uint64_t> words;
    std::uint64_t at = 0;
    for (const Extent& extent : extents_) {
      std::uint32_t crc = 0;
      const auto n = file_->Read(extent.begin + extent.bytes - kFooterBytes,
                                 std::as_writable_bytes(std::span(&crc, 1)));
      words.push_back(at);
      if (!n.ok() || *n != sizeof(crc)) {
        words.push_back(~std::uint64_t{0});
        break;
      }
      words.push_back(crc);
      at += extent.bytes;
    }
    return Hash64({reinterpret_cast<const char*>(words.data()), words.size() * sizeof(words[0])});
  }
  std::uint64_t bytes() const override { return file_->size(); }

 private:
  // What a thread has of the file that it read last.
  struct Window {
    std::uint64_t store = 0;  // id_ of the RawStore
    std::uint64_t begin = 0;
    std::string bytes;
    std::uint64_t next = 0;  // behind the record that was read last
  };

  // Records that a thread reads one behind the other come many at once.
  Result<std::string_view> Bytes(const Extent& extent, std::string& buffer) const {
    constexpr std::uint64_t kWindow = std::uint64_t{1} << 17;
    thread_local Window window;
    if (window.store != id_) {
      window.store = id_;
      window.bytes.clear();
      window.next = ~std::uint64_t{0};
    }
    const bool in_sequence = extent.begin == window.next;
    window.next = extent.begin + extent.bytes;
    const bool here =
        extent.begin >= window.begin && window.next <= window.begin + window.bytes.size();
    if (!here && in_sequence && extent.bytes <= kWindow / 4) {
      window.begin = extent.begin;
      window.bytes.resize(kWindow);
      const Result<std::size_t> n =
          file_->Read(window.begin, std::as_writable_bytes(std::span(window.bytes)));
      window.bytes.resize(n.ok() ? *n : 0);
      COHORT_RETURN_IF_ERROR(n.status());
    }
    if (extent.begin >= window.begin && window.next <= window.begin + window.bytes.size()) {
      return std::string_view(window.bytes).substr(extent.begin - window.begin, extent.bytes);
    }
    buffer.resize(extent.bytes);
    COHORT_ASSIGN_OR_RETURN(const std::size_t n,
                            file_->Read(extent.begin, std::as_writable_bytes(std::span(buffer))));
    if (n < buffer.size()) {
      return DataLoss(std::to_string(n) + " of its " + std::to_string(buffer.size()) +
                      " bytes are there [the file became shorter after it was opened]");
    }
    return std::string_view(buffer);
  }

  static std::uint64_t NextId() {
    static std::atomic<std::uint64_t> last = 0;
    return ++last;
  }

  const std::uint64_t id_ = NextId();             // no other's, also of one that is gone
  std::shared_ptr<const RandomAccessFile> file_;  // owner: this
  std::string path_;
  std::vector<Extent> extents_;
  bool indexed_;
};

// A compressed file, unpacked.
class UnpackedStore final : public RecordStore {
 public:
  void Add(std::string_view record, std::int64_t ordinal) {
    bytes_ += record;
    ends_.push_back(bytes_.size());
    ordinals_.push_back(ordinal);
  }

  std::int64_t size() const override { return static_cast<std::int64_t>(ends_.size()) - 1; }
  std::int64_t Ordinal(std::int64_t i) const override {
    return ordinals_[static_cast<std::size_t>(i)];
  }
  std::uint64_t BytesOf(std::int64_t i) const override {
    const auto at = static_cast<std::size_t>(i);
    return ends_[at + 1] - ends_[at];
  }
  Result<std::string_view> Read(std::int64_t i, std::string& /*buffer*/) const override {
    const auto at = static_cast<std::size_t>(i);
    return std::string_view(bytes_).substr(ends_[at], ends_[at + 1] - ends_[at]);
  }
  std::uint64_t Digest() const override {
    return Hash64({reinterpret_cast<const char*>(ends_.data()), ends_.size() * sizeof(ends_[0])},
                  io::Crc32c(bytes_));
  }
  std::uint64_t bytes() const override { return bytes_.size(); }
  bool in_memory() const override { return true; }

 private:
  std::string bytes_;
  std::vector<std::uint64_t> ends_ = {0};  // record i is [ends_[i], ends_[i + 1])
  std::vector<std::int64_t> ordinals_;
};

std::optional<io::Compression> CompressionOf(TfRecordCompression compression) {
  switch (compression) {
    case TfRecordCompression::kAuto:
      break;
    case TfRecordCompression::kNone:
      return io::Compression::kNone;
    case TfRecordCompression::kGzip:
      return io::Compression::kGzip;
    case TfRecordCompression::kZlib:
      return io::Compression::kZlib;
  }
  return std::nullopt;
}

constexpr const char* kAgain = " [run cohort data index again, or set build_index]";

Status IndexError(const std::string& path, std::size_t line, const std::string& what) {
  return DataLoss(path + ".idx, line " + std::to_string(line) + ": " + what + kAgain);
}

// Of the size and the frames of a few records, the first and the last among them, whose data has a
// checksum there. DataLoss where one is not where `extents` has it.
Result<std::uint64_t> FramesDigest(const RandomAccessFile& file, const std::string& path,
                                   const std::vector<Extent>& extents) {
  constexpr std::size_t kLooked = 8;
  std::uint64_t digest = Hash64(std::to_string(file.size()) + " " + std::to_string(extents.size()));
  const std::size_t taken = std::min(kLooked, extents.size());
  for (std::size_t i = 0; i < taken; ++i) {
    const Extent& extent = extents[taken == 1 ? 0 : i * (extents.size() - 1) / (taken - 1)];
    std::array<char, kHeaderBytes + kFooterBytes> frame{};
    const auto bytes = std::as_writable_bytes(std::span(frame));
    COHORT_RETURN_IF_ERROR(ReadExactly(file, path, extent.begin, bytes.first(kHeaderBytes)));
    COHORT_RETURN_IF_ERROR(ReadExactly(file, path, extent.begin + extent.bytes - kFooterBytes,
                                       bytes.subspan(kHeaderBytes)));
    if (Load<std::uint64_t>(frame.data()) != extent.bytes - kHeaderBytes - kFooterBytes ||
        Load<std::uint32_t>(frame.data() + 8) !=
            io::MaskCrc(io::Crc32c(std::string_view(frame.data(), 8)))) {
      return DataLoss(path + ": record " + std::to_string(extent.ordinal) + " at byte " +
                      std::to_string(extent.begin) +
                      ": not where the index says, the file was changed since" + kAgain);
    }
    digest = Hash64({frame.data(), frame.size()}, digest);
  }
  return digest;
}

std::string IndexMark(std::uint64_t digest) { return "# cohort " + std::to_string(digest) + "\n"; }

// The file that WriteTfIndex writes; records must follow one another without gaps and fill the
// file, and be those of its last line, if it has that.
Result<std::vector<Extent>> ReadIndex(FileSystem& files, const std::string& path,
                                      const RandomAccessFile& file) {
  COHORT_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, path + ".idx"));
  std::vector<Extent> extents;
  std::string_view rest = text;
  std::uint64_t at = 0;
  while (!rest.empty() && rest.front() != '#') {
    const std::size_t line = extents.size() + 1;
    std::uint64_t begin = 0;
    std::uint64_t bytes = 0;
    const char* const end = rest.data() + rest.size();
    auto parsed = std::from_chars(rest.data(), end, begin);
    const bool spaced = parsed.ec == std::errc() && parsed.ptr != end && *parsed.ptr == ' ';
    if (spaced) {
      parsed = std::from_chars(parsed.ptr + 1, end, bytes);
    }
    if (!spaced || parsed.ec != std::errc() || (parsed.ptr != end && *parsed.ptr != '\n')) {
      return IndexError(path, line, "not \"offset length\"");
    }
    if (begin != at || bytes < kHeaderBytes + kFooterBytes || bytes > file.size() - at) {
      return IndexError(path, line,
                        "the records do not lie one behind another in " + path + ", which has " +
                            std::to_string(file.size()) + " bytes");
    }
    extents.push_back({begin, bytes, static_cast<std::int64_t>(extents.size())});
    at += bytes;
    rest.remove_prefix(static_cast<std::size_t>(parsed.ptr - rest.data()));
    rest.remove_prefix(rest.empty() ? 0 : 1);
  }
  if (at != file.size()) {
    return IndexError(path, extents.size(),
                      "the index ends at byte " + std::to_string(at) + ", the file at " +
                          std::to_string(file.size()));
  }
  COHORT_ASSIGN_OR_RETURN(const std::uint64_t digest, FramesDigest(file, path, extents));
  if (!rest.empty() && rest != IndexMark(digest)) {
    return IndexError(path, extents.size() + 1,
                      path + " has another content now than when it was indexed");
  }
  return extents;
}

// Walks the file, and writes what ReadIndex reads.
Result<std::vector<Extent>> BuildIndex(FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const auto records, io::RecordFile::Open(files, path));
  const std::vector<std::uint64_t>& offsets = records->offsets();
  std::vector<Extent> extents;
  std::string text;
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    extents.push_back({offsets[i], offsets[i + 1] - offsets[i], static_cast<std::int64_t>(i)});
    text += std::to_string(offsets[i]) + " " + std::to_string(extents.back().bytes) + "\n";
  }
  COHORT_ASSIGN_OR_RETURN(const auto file, OpenRaw(files, path));
  COHORT_ASSIGN_OR_RETURN(const std::uint64_t digest, FramesDigest(*file, path, extents));
  if (file->size() != offsets.back()) {
    return DataLoss(path + ": changed while it was indexed");
  }
  COHORT_RETURN_IF_ERROR(WriteFileAtomically(files, path + ".idx", text + IndexMark(digest)));
  return extents;
}

// What is there, if it is of this content; otherwise, if wanted, a new one. nullopt: there is none.
Result<std::optional<std::vector<Extent>>> Index(const TfRecordOptions& options,
                                                 const std::string& path,
                                                 const RandomAccessFile& file) {
  FileSystem& files = *options.files;
  std::optional<std::vector<Extent>> extents;
  if ((options.index || options.build_index) && files.Exists(path + ".idx")) {
    Result<std::vector<Extent>> read = ReadIndex(files, path, file);
    if (read.ok() || !options.build_index || read.status().code() != StatusCode::kDataLoss) {
      COHORT_ASSIGN_OR_RETURN(extents, std::move(read));
      return extents;
    }
  }
  if (options.build_index) {
    COHORT_ASSIGN_OR_RETURN(extents, BuildIndex(files, path));
  }
  return extents;
}

// Every record read once. Sound ones are handed to `each`, others counted.
template <typename Each>
Status ReadAll(io::RecordReader& reader, CorruptRecords& corrupt, const Each& each) {
  for (;;) {
    const std::int64_t ordinal = reader.ordinal();
    const std::uint64_t begin = reader.offset();
    const auto record = reader.Next();
    if (record.ok()) {
      if (!record->has_value()) {
        return {};
      }
      each(**record, Extent{begin, reader.offset() - begin, ordinal});
      continue;
    }
    if (record.status().code() != StatusCode::kDataLoss) {
      return record.status();  // the file system: nothing is wrong with the bytes
    }
    constexpr std::size_t kMessagesKept = 20;
    if (corrupt.messages.size() < kMessagesKept) {
      corrupt.messages.push_back(record.status().message());
    }
    if (reader.ordinal() == ordinal) {
      ++corrupt.cut_files;  // nothing behind it can be found
      return {};
    }
    ++corrupt.records;
  }
}

}  // namespace

Result<std::unique_ptr<RecordStore>> OpenRecordStore(const TfRecordOptions& options,
                                                     const std::string& path,
                                                     CorruptRecords& corrupt) {
  FileSystem& files = *options.files;
  COHORT_ASSIGN_OR_RETURN(const auto reader,
                          io::RecordReader::Open(files, path, CompressionOf(options.compression)));
  const bool skip = options.on_corrupt == OnCorrupt::kSkip;
  if (reader->compression() != io::Compression::kNone) {
    auto store = std::make_unique<UnpackedStore>();
    const auto add = [&store](std::string_view record, const Extent& extent) {
      store->Add(record, extent.ordinal);
    };
    if (skip) {
      COHORT_RETURN_IF_ERROR(ReadAll(*reader, corrupt, add));
      return store;
    }
    for (std::int64_t ordinal = 0;; ++ordinal) {
      COHORT_ASSIGN_OR_RETURN(const auto record, reader->Next());
      if (!record.has_value()) {
        return store;
      }
      store->Add(*record, ordinal);
    }
  }
  COHORT_ASSIGN_OR_RETURN(auto file, OpenRaw(files, path));
  std::vector<Extent> extents;
  if (skip) {
    COHORT_RETURN_IF_ERROR(
        ReadAll(*reader, corrupt, [&extents](std::string_view /*record*/, const Extent& extent) {
          extents.push_back(extent);
        }));
  } else {
    COHORT_ASSIGN_OR_RETURN(auto indexed, Index(options, path, *file));
    if (indexed.has_value()) {
      return std::make_unique<RawStore>(std::move(file), path, *std::move(indexed), true);
    }
    COHORT_ASSIGN_OR_RETURN(const auto records, io::RecordFile::Open(files, path));
    for (std::size_t i = 0; i + 1 < records->offsets().size(); ++i) {
      const std::uint64_t begin = records->offsets()[i];
      extents.push_back({begin, records->offsets()[i + 1] - begin, static_cast<std::int64_t>(i)});
    }
  }
  return std::make_unique<RawStore>(std::move(file), path, std::move(extents), false);
}

Result<std::int64_t> WriteTfIndex(FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const auto reader, io::RecordReader::Open(files, path));
  if (reader->compression() != io::Compression::kNone) {
    return InvalidArgument(path + ": " + std::string(io::CompressionName(reader->compression())) +
                           " has no random access, an index of it is of no use");
  }
  COHORT_ASSIGN_OR_RETURN(const auto extents, BuildIndex(files, path));
  return static_cast<std::int64_t>(extents.size());
}

}  // namespace cohort::data
