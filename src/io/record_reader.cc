#include <cohort/io/record_file.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "byte_source.h"
#include "record_format.h"

namespace cohort::io {
namespace {

class StreamRecordReader final : public RecordReader {
 public:
  // `stream_bytes`: how long the stream is, or the largest number where only reading it tells.
  StreamRecordReader(std::unique_ptr<ByteSource> source, std::string path, Compression compression,
                     std::uint64_t stream_bytes)
      : source_(std::move(source)),
        path_(std::move(path)),
        compression_(compression),
        stream_bytes_(stream_bytes) {}

  Result<std::optional<std::string_view>> Next() override {
    if (!broken_.ok()) {
      return broken_;
    }
    begin_ += std::exchange(delivered_, 0);
    if (here() < kHeaderBytes) {
      COHORT_RETURN_IF_ERROR(Fill(kHeaderBytes));
      if (here() == 0) {
        return std::optional<std::string_view>();
      }
      if (here() < kHeaderBytes) {
        return Break(place().ShortHeader(here()));
      }
    }
    const RecordHeader header = ParseHeader(buffer_.data() + begin_);
    if (!header.sound) {
      return Break(place().BadLength());
    }
    const std::uint64_t left = stream_bytes_ - offset_ - kHeaderBytes;
    if (header.length > kMaxRecordBytes || header.length + kFooterBytes > left) {
      return Break(place().ShortRecord(header.length, left));
    }
    const std::uint64_t whole = kHeaderBytes + header.length + kFooterBytes;
    if (here() < whole) {
      COHORT_RETURN_IF_ERROR(Fill(whole));
      if (here() < whole) {
        return Break(place().ShortRecord(header.length, here() - kHeaderBytes));
      }
    }
    const std::string_view record(buffer_.data() + begin_ + kHeaderBytes, header.length);
    const RecordPlace at = place();
    delivered_ = whole;
    ++ordinal_;
    offset_ += whole;
    if (MaskCrc(Crc32c(record)) != LoadInteger<std::uint32_t>(record.data() + record.size())) {
      return at.BadBytes();
    }
    return std::optional(record);
  }

  Compression compression() const override { return compression_; }
  std::int64_t ordinal() const override { return ordinal_; }
  std::uint64_t offset() const override { return offset_; }

 private:
  RecordPlace place() const { return {path_, ordinal_, offset_}; }

  std::size_t here() const { return end_ - begin_; }

  // Reads on until `wanted` bytes are here or the stream ends, in pieces that stay in the cache.
  // Memory grows with what is there, not with what a length claims. After an error what was read is
  // kept: a call goes on.
  Status Fill(std::uint64_t wanted) {
    constexpr std::size_t kPiece = std::size_t{1} << 18;
    while (here() < wanted) {
      if (begin_ > 0) {
        std::memmove(buffer_.data(), buffer_.data() + begin_, here());
        end_ -= std::exchange(begin_, 0);
      }
      if (end_ == buffer_.size()) {
        buffer_.resize(std::max(2 * end_, kPiece));
      }
      const auto n = source_->Read(std::as_writable_bytes(std::span(buffer_).subspan(end_)));
      if (!n.ok()) {
        return n.status().code() == StatusCode::kDataLoss ? Break(n.status()) : n.status();
      }
      if (*n == 0) {
        break;
      }
      end_ += *n;
    }
    return {};
  }

  Status Break(Status status) {
    broken_ = std::move(status);
    return broken_;
  }

  std::unique_ptr<ByteSource> source_;
  std::string path_;
  Compression compression_;
  std::uint64_t stream_bytes_;
  std::vector<char> buffer_;
  std::size_t begin_ = 0;  // of what is in the buffer and not handed out
  std::size_t end_ = 0;
  std::size_t delivered_ = 0;  // bytes of the record that was handed out, its frame included
  std::int64_t ordinal_ = 0;
  std::uint64_t offset_ = 0;
  Status broken_;
};

// What the first bytes say; nullopt: nothing, as of an empty file.
Result<std::optional<Compression>> Detect(const RandomAccessFile& file) {
  std::array<char, kHeaderBytes> first{};
  COHORT_ASSIGN_OR_RETURN(const std::size_t n,
                          file.Read(0, std::as_writable_bytes(std::span(first))));
  // A raw record of 35,615 bytes begins as gzip does: the checksum decides first.
  if (n == kHeaderBytes && ParseHeader(first.data()).sound) {
    return std::optional(Compression::kNone);
  }
  const auto byte = [&first](std::size_t i) { return static_cast<unsigned char>(first[i]); };
  if (n >= 2 && byte(0) == 0x1f && byte(1) == 0x8b) {
    return std::optional(Compression::kGzip);
  }
  if (n >= 2 && byte(0) == 0x78 &&
      (byte(1) == 0x01 || byte(1) == 0x5e || byte(1) == 0x9c || byte(1) == 0xda)) {
    return std::optional(Compression::kZlib);
  }
  return std::optional<Compression>();
}

}  // namespace

Result<std::unique_ptr<RecordReader>> RecordReader::Open(FileSystem& files, const std::string& path,
                                                         std::optional<Compression> compression) {
  COHORT_ASSIGN_OR_RETURN(auto file, files.OpenForRead(path));
  COHORT_ASSIGN_OR_RETURN(const std::optional<Compression> detected, Detect(*file));
  if (compression && detected && *compression != *detected) {
    const auto name = [](Compression one) {
      return one == Compression::kNone ? std::string("raw records")
                                       : std::string(CompressionName(one));
    };
    return InvalidArgument(path + ": begins as " + name(*detected) + " does, not as " +
                           name(*compression) +
                           " [name what it is, or nothing: then its first bytes tell]");
  }
  if (!compression) {
    compression = detected.value_or(Compression::kNone);
  }
  const std::uint64_t size = file->size();
  auto source = RawSource(std::move(file));
  if (*compression == Compression::kNone) {
    return std::make_unique<StreamRecordReader>(std::move(source), path, *compression, size);
  }
  // Others may wait for a server, which the end of a reader does not.
  const Unpack unpack = &files == &FileSystem::Local() ? Unpack::kAhead : Unpack::kAsked;
  source = InflateSource(std::move(source), *compression, path, unpack);
  return std::make_unique<StreamRecordReader>(std::move(source), path, *compression,
                                              ~std::uint64_t{0});
}

RecordFile::RecordFile(std::unique_ptr<RandomAccessFile> file, std::string path,
                       std::vector<std::uint64_t> offsets)
    : file_(std::move(file)), path_(std::move(path)), offsets_(std::move(offsets)) {}

Result<std::unique_ptr<RecordFile>> RecordFile::Open(FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(auto file, files.OpenForRead(path));
  const std::uint64_t size = file->size();
  std::vector<std::uint64_t> offsets;
  // Small records lie many to a piece; between large ones only headers are read.
  std::string piece;
  std::uint64_t piece_begin = 0;
  std::uint64_t offset = 0;
  while (offset < size) {
    const RecordPlace place{path, static_cast<std::int64_t>(offsets.size()), offset};
    if (size - offset < kHeaderBytes) {
      return place.ShortHeader(size - offset);
    }
    if (offset + kHeaderBytes > piece_begin + piece.size()) {
      piece.resize(std::min<std::uint64_t>(size - offset, std::uint64_t{1} << 16));
      piece_begin = offset;
      COHORT_ASSIGN_OR_RETURN(const std::size_t n,
                              file->Read(offset, std::as_writable_bytes(std::span(piece))));
      if (n < piece.size()) {
        return DataLoss(path + " became shorter while it was read");
      }
    }
    const RecordHeader header = ParseHeader(piece.data() + (offset - piece_begin));
    if (!header.sound) {
      return place.BadLength();
    }
    const std::uint64_t left = size - offset - kHeaderBytes;
    if (header.length > kMaxRecordBytes || header.length + kFooterBytes > left) {
      return place.ShortRecord(header.length, left);
    }
    offsets.push_back(offset);
    offset += kHeaderBytes + header.length + kFooterBytes;
  }
  offsets.push_back(size);
  return std::unique_ptr<RecordFile>(new RecordFile(std::move(file), path, std::move(offsets)));
}

Status RecordFile::Read(std::int64_t i, std::string& record) const {
  Require(0 <= i && i < size(), "a record's number below the file's size");
  const auto at = static_cast<std::size_t>(i);
  const RecordPlace place{path_, i, offsets_[at]};
  const std::uint64_t whole = offsets_[at + 1] - offsets_[at] - kHeaderBytes;
  record.resize(whole);
  COHORT_ASSIGN_OR_RETURN(
      const std::size_t n,
      file_->Read(offsets_[at] + kHeaderBytes, std::as_writable_bytes(std::span(record))));
  if (n < whole) {
    return place.ShortRecord(whole - kFooterBytes, n);
  }
  const auto stored = LoadInteger<std::uint32_t>(record.data() + whole - kFooterBytes);
  record.resize(whole - kFooterBytes);
  return MaskCrc(Crc32c(record)) == stored ? Status() : place.BadBytes();
}

}  // namespace cohort::io
