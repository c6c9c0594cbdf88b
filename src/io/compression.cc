#include <cohort/io/compression.h>
#include <isa-l/crc.h>
#include <isa-l/igzip_lib.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <vector>

#include "byte_source.h"

namespace cohort::io {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 16;

int WindowBits(Compression compression) { return compression == Compression::kGzip ? 31 : 15; }

Bytef* ZlibBytes(const std::byte* bytes) {
  // zlib reads its input only; its structure predates const.
  return const_cast<Bytef*>(reinterpret_cast<const Bytef*>(bytes));
}

class RawFileSource final : public ByteSource {
 public:
  explicit RawFileSource(std::unique_ptr<RandomAccessFile> file) : file_(std::move(file)) {}

  Result<std::size_t> Read(std::span<std::byte> out) override {
    if (begin_ == end_) {
      if (out.size() >= buffer_.size()) {
        COHORT_ASSIGN_OR_RETURN(const std::size_t n, file_->Read(position_, out));
        position_ += n;
        return n;
      }
      COHORT_ASSIGN_OR_RETURN(const std::size_t n, file_->Read(position_, buffer_));
      position_ += n;
      begin_ = 0;
      end_ = n;
    }
    const std::size_t n = std::min(out.size(), end_ - begin_);
    std::copy_n(buffer_.begin() + static_cast<std::ptrdiff_t>(begin_), n, out.begin());
    begin_ += n;
    return n;
  }

 private:
  std::unique_ptr<RandomAccessFile> file_;
  std::uint64_t position_ = 0;  // of the file, behind the buffer
  std::vector<std::byte> buffer_ = std::vector<std::byte>(kBufferBytes);
  std::size_t begin_ = 0;  // of what is left in the buffer
  std::size_t end_ = 0;
};

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::string_view bytes) : bytes_(AsBytes(bytes)) {}
  Result<std::size_t> Read(std::span<std::byte> out) override {
    const std::size_t n = std::min(out.size(), bytes_.size());
    std::copy_n(bytes_.begin(), n, out.begin());
    bytes_ = bytes_.subspan(n);
    return n;
  }

 private:
  std::span<const std::byte> bytes_;
};

// Where a member of the unpacked stream ends, and what its trailer says of it.
struct MemberEnd {
  std::uint64_t unpacked = 0;  // bytes of the stream up to here
  std::uint64_t packed = 0;    // of the file, for messages
  std::uint32_t checksum = 0;
  std::optional<std::uint32_t> size;  // gzip: of the member, modulo 2^32
};

// The ends that were passed and not yet looked at; of two threads.
class MemberEnds {
 public:
  void Push(const MemberEnd& end) {
    const std::lock_guard lock(mutex_);
    ends_.push_back(end);
  }
  // The first one, if it is no further than `unpacked`.
  std::optional<MemberEnd> PopUpTo(std::uint64_t unpacked) {
    const std::lock_guard lock(mutex_);
    if (ends_.empty() || ends_.front().unpacked > unpacked) {
      return std::nullopt;
    }
    const MemberEnd end = ends_.front();
    ends_.pop_front();
    return end;
  }

 private:
  std::mutex mutex_;
  std::deque<MemberEnd> ends_;
};

Status Damaged(const std::string& name, Compression compression, std::string_view what,
               std::uint64_t at) {
  return DataLoss(name + ": the " + std::string(CompressionName(compression)) + " stream " +
                  std::string(what) + ", at byte " + std::to_string(at) +
                  " of the file [copy or download it again]");
}

// By ISA-L, about three times as fast as zlib. The checksums are left to CheckedMembers, which may
// be another thread's.
class Inflater final : public ByteSource {
 public:
  Inflater(std::unique_ptr<ByteSource> compressed, Compression compression, std::string name,
           std::shared_ptr<MemberEnds> ends)
      : compressed_(std::move(compressed)),
        compression_(compression),
        name_(std::move(name)),
        ends_(std::move(ends)) {
    isal_inflate_init(&stream_);
    isal_gzip_header_init(&gzip_header_);
  }

  Result<std::size_t> Read(std::span<std::byte> out) override {
    COHORT_RETURN_IF_ERROR(broken_);
    while (part_ != Part::kEnd && !out.empty()) {
      COHORT_RETURN_IF_ERROR(FillInput());
      switch (part_) {
        case Part::kHeader:
          COHORT_RETURN_IF_ERROR(ReadHeader());
          break;
        case Part::kBody: {
          COHORT_ASSIGN_OR_RETURN(const std::size_t made, ReadBody(out));
          if (made > 0) {
            return made;
          }
          break;
        }
        case Part::kTrailer:
          COHORT_RETURN_IF_ERROR(ReadTrailer());
          break;
        case Part::kBetween:
          COHORT_RETURN_IF_ERROR(ReadBetween());
          break;
        case Part::kEnd:
          break;
      }
    }
    return std::size_t{0};
  }

 private:
  static constexpr std::size_t kSlack = 8;  // what a member's end may give back
  enum class Part { kHeader, kBody, kTrailer, kBetween, kEnd };

  // Only at the end of the file is there nothing to read behind it.
  Status FillInput() {
    if (stream_.avail_in > 0) {
      return {};
    }
    // The last bytes stay in front of the next ones.
    std::array<std::byte, kSlack> last{};
    if (stream_.next_in != nullptr) {
      std::memcpy(last.data(), stream_.next_in - kSlack, kSlack);
    }
    COHORT_ASSIGN_OR_RETURN(const std::size_t n,
                            compressed_->Read(std::span(input_).subspan(kSlack)));
    std::copy(last.begin(), last.end(), input_.begin());
    read_ += n;
    stream_.next_in = reinterpret_cast<std::uint8_t*>(input_.data()) + kSlack;
    stream_.avail_in = static_cast<std::uint32_t>(n);
    return {};
  }

  Status ReadHeader() {
    if (stream_.avail_in == 0) {
      return Break(kCut);
    }
    int code = ISAL_DECOMP_OK;
    if (compression_ == Compression::kGzip) {
      code = isal_read_gzip_header(&stream_, &gzip_header_);
    } else {
      code = isal_read_zlib_header(&stream_, &zlib_header_);
      if (code == ISAL_DECOMP_OK && zlib_header_.dict_flag != 0) {
        code = ISAL_NEED_DICT;
      }
    }
    if (code < 0 || code == ISAL_NEED_DICT) {
      return Break(code == ISAL_NEED_DICT ? "needs a dictionary" : "is damaged");
    }
    if (code == ISAL_DECOMP_OK) {
      stream_.crc_flag = ISAL_DEFLATE;
      part_ = Part::kBody;
    }
    return {};
  }

  Result<std::size_t> ReadBody(std::span<std::byte> out) {
    const auto wanted =
        static_cast<std::uint32_t>(std::min<std::size_t>(out.size(), std::size_t{1} << 30));
    const std::uint32_t had = stream_.avail_in;
    stream_.next_out = reinterpret_cast<std::uint8_t*>(out.data());
    stream_.avail_out = wanted;
    const int code = isal_inflate(&stream_);
    const std::size_t made = wanted - stream_.avail_out;
    unpacked_ += made;
    if (code < 0 || code == ISAL_NEED_DICT) {
      Status status = Break("is damaged");
      if (made == 0) {
        return status;
      }
      return made;  // what is before the damage; the error is the next call's
    }
    if (stream_.block_state == ISAL_BLOCK_FINISH) {
      // Whole bytes that were taken in behind the member.
      const auto back = static_cast<std::uint32_t>(stream_.read_in_length / 8);
      stream_.next_in -= back;
      stream_.avail_in += back;
      trailer_bytes_ = 0;
      part_ = Part::kTrailer;
    } else if (made == 0 && had == 0) {
      // No input was left, and no output was owed from what went in before.
      return Break(kCut);
    }
    return made;
  }

  Status ReadTrailer() {
    if (stream_.avail_in == 0) {
      return Break(kCut);
    }
    const std::size_t whole = compression_ == Compression::kGzip ? 8 : 4;
    while (trailer_bytes_ < whole && stream_.avail_in > 0) {
      trailer_[trailer_bytes_++] = *stream_.next_in++;
      --stream_.avail_in;
    }
    if (trailer_bytes_ < whole) {
      return {};
    }
    MemberEnd end{.unpacked = unpacked_, .packed = position()};
    for (std::size_t i = 0; i < 4; ++i) {
      const std::size_t shift = compression_ == Compression::kGzip ? 8 * i : 8 * (3 - i);
      end.checksum |= std::uint32_t{trailer_[i]} << shift;
    }
    if (compression_ == Compression::kGzip) {
      end.size = 0;
      for (std::size_t i = 0; i < 4; ++i) {
        *end.size |= std::uint32_t{trailer_[4 + i]} << (8 * i);
      }
    }
    part_ = Part::kBetween;
    if (unpacked_ > member_begin_) {
      ends_->Push(end);
      return {};
    }
    // Of empty members there may be any number before anybody reads a byte.
    const std::uint32_t nothing = compression_ == Compression::kGzip ? 0 : 1;
    return end.checksum == nothing && end.size.value_or(0) == 0 ? OkStatus() : Break(kChecksum);
  }

  // Between members: another one, padding, or the end.
  Status ReadBetween() {
    if (stream_.avail_in == 0) {
      part_ = Part::kEnd;
      return {};
    }
    while (stream_.avail_in > 0 && *stream_.next_in == 0) {
      padding_ = true;
      ++stream_.next_in;
      --stream_.avail_in;
    }
    if (stream_.avail_in > 0) {
      if (padding_) {
        return Break("has bytes after its padding");
      }
      isal_inflate_reset(&stream_);
      isal_gzip_header_init(&gzip_header_);
      member_begin_ = unpacked_;
      part_ = Part::kHeader;
    }
    return {};
  }

  std::uint64_t position() const { return read_ - stream_.avail_in; }

  Status Break(std::string_view what) {
    broken_ = Damaged(name_, compression_, what, position());
    return broken_;
  }

  static constexpr std::string_view kChecksum = "has a wrong checksum";
  static constexpr std::string_view kCut = "is cut off in the middle of a member";

  std::unique_ptr<ByteSource> compressed_;
  Compression compression_;
  std::string name_;
  std::shared_ptr<MemberEnds> ends_;
  inflate_state stream_ = {};
  // Of the member, also where it comes in pieces: what was read of it says what follows.
  isal_gzip_header gzip_header_ = {};
  isal_zlib_header zlib_header_ = {};
  std::vector<std::byte> input_ = std::vector<std::byte>(kSlack + kBufferBytes);
  std::uint64_t read_ = 0;      // of the file
  std::uint64_t unpacked_ = 0;  // of the stream
  std::uint64_t member_begin_ = 0;
  Part part_ = Part::kHeader;
  std::array<std::uint8_t, 8> trailer_{};
  std::size_t trailer_bytes_ = 0;
  bool padding_ = false;
  Status broken_;
};

// Compares what was unpacked with the trailers of its members.
class CheckedMembers final : public ByteSource {
 public:
  CheckedMembers(std::unique_ptr<ByteSource> unpacked, Compression compression, std::string name,
                 std::shared_ptr<MemberEnds> ends)
      : unpacked_(std::move(unpacked)),
        compression_(compression),
        name_(std::move(name)),
        ends_(std::move(ends)) {}

  Result<std::size_t> Read(std::span<std::byte> out) override {
    COHORT_RETURN_IF_ERROR(broken_);
    const Result<std::size_t> n = unpacked_->Read(out);
    std::span<const std::byte> left = out.first(n.ok() ? *n : 0);
    const std::uint64_t end = position_ + left.size();
    while (const std::optional<MemberEnd> member = ends_->PopUpTo(end)) {
      const auto last = static_cast<std::size_t>(member->unpacked - position_);
      Add(left.first(last));
      left = left.subspan(last);
      if (checksum_ != member->checksum ||
          (member->size && *member->size != static_cast<std::uint32_t>(member_bytes_))) {
        broken_ = Damaged(name_, compression_, "has a wrong checksum", member->packed);
        // What is before its end was handed out up to here, too; the error is the next call's.
        const std::size_t made = n.ok() ? *n - left.size() : 0;
        return made > 0 ? Result<std::size_t>(made) : Result<std::size_t>(broken_);
      }
      checksum_ = Empty();
      member_bytes_ = 0;
    }
    Add(left);
    return n;
  }

 private:
  std::uint32_t Empty() const { return compression_ == Compression::kGzip ? 0 : 1; }

  void Add(std::span<const std::byte> bytes) {
    const auto* const data = reinterpret_cast<const unsigned char*>(bytes.data());
    checksum_ = compression_ == Compression::kGzip ? crc32_gzip_refl(checksum_, data, bytes.size())
                                                   : isal_adler32(checksum_, data, bytes.size());
    member_bytes_ += bytes.size();
    position_ += bytes.size();
  }

  std::unique_ptr<ByteSource> unpacked_;
  Compression compression_;
  std::string name_;
  std::shared_ptr<MemberEnds> ends_;
  std::uint64_t position_ = 0;  // of the stream
  std::uint64_t member_bytes_ = 0;
  std::uint32_t checksum_ = Empty();
  Status broken_;
};

class ZlibDeflater final : public Deflater {
 public:
  ZlibDeflater(Compression compression, std::function<Status(std::span<const std::byte>)> write)
      : write_(std::move(write)) {
    Require(deflateInit2(&stream_, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WindowBits(compression), 8,
                         Z_DEFAULT_STRATEGY) == Z_OK,
            "memory for deflate");
  }
  ~ZlibDeflater() override { deflateEnd(&stream_); }
  ZlibDeflater(const ZlibDeflater&) = delete;
  ZlibDeflater& operator=(const ZlibDeflater&) = delete;

  Status Write(std::span<const std::byte> bytes, Mode mode) override {
    do {
      const std::size_t n = std::min<std::size_t>(bytes.size(), std::size_t{1} << 30);
      stream_.next_in = ZlibBytes(bytes.data());
      stream_.avail_in = static_cast<uInt>(n);
      bytes = bytes.subspan(n);
      const int flush = !bytes.empty()         ? Z_NO_FLUSH
                        : mode == Mode::kMore  ? Z_NO_FLUSH
                        : mode == Mode::kFlush ? Z_SYNC_FLUSH
                                               : Z_FINISH;
      do {
        stream_.next_out = reinterpret_cast<Bytef*>(output_.data());
        stream_.avail_out = static_cast<uInt>(output_.size());
        deflate(&stream_, flush);
        COHORT_RETURN_IF_ERROR(
            write_(std::span(output_).first(output_.size() - stream_.avail_out)));
      } while (stream_.avail_out == 0);
    } while (!bytes.empty());
    return {};
  }

 private:
  std::function<Status(std::span<const std::byte>)> write_;
  z_stream stream_ = {};
  std::vector<std::byte> output_ = std::vector<std::byte>(kBufferBytes);
};

Result<std::string> ReadAll(ByteSource& source, std::string_view name, std::size_t max_bytes) {
  std::string content;
  std::vector<std::byte> piece(4 * kBufferBytes);
  while (true) {
    COHORT_ASSIGN_OR_RETURN(const std::size_t n, source.Read(piece));
    if (n == 0) {
      return content;
    }
    if (n > max_bytes - content.size()) {
      return ResourceExhausted(std::string(name) + " unpacks to more than " +
                               std::to_string(max_bytes) + " bytes");
    }
    content.append(reinterpret_cast<const char*>(piece.data()), n);
  }
}

}  // namespace

std::string_view CompressionName(Compression compression) {
  switch (compression) {
    case Compression::kNone:
      return "none";
    case Compression::kGzip:
      return "gzip";
    case Compression::kZlib:
      return "zlib";
  }
  return "";
}

std::unique_ptr<ByteSource> RawSource(std::unique_ptr<RandomAccessFile> file) {
  return std::make_unique<RawFileSource>(std::move(file));
}

std::unique_ptr<ByteSource> InflateSource(std::unique_ptr<ByteSource> compressed,
                                          Compression compression, std::string name,
                                          Unpack unpack) {
  auto ends = std::make_shared<MemberEnds>();
  std::unique_ptr<ByteSource> unpacked =
      std::make_unique<Inflater>(std::move(compressed), compression, name, ends);
  if (unpack == Unpack::kAhead) {
    unpacked = ReadAheadSource(std::move(unpacked));
  }
  return std::make_unique<CheckedMembers>(std::move(unpacked), compression, std::move(name),
                                          std::move(ends));
}

std::unique_ptr<Deflater> MakeDeflater(Compression compression,
                                       std::function<Status(std::span<const std::byte>)> write) {
  return std::make_unique<ZlibDeflater>(compression, std::move(write));
}

Result<std::string> Gunzip(std::string_view compressed, std::string_view name,
                           std::size_t max_bytes) {
  const auto source = InflateSource(std::make_unique<MemorySource>(compressed), Compression::kGzip,
                                    std::string(name));
  return ReadAll(*source, name, max_bytes);
}

std::string Gzip(std::string_view content) {
  std::string packed;
  const auto deflater =
      MakeDeflater(Compression::kGzip, [&packed](std::span<const std::byte> bytes) {
        packed.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        return Status();
      });
  Require(deflater->Write(AsBytes(content), Deflater::Mode::kEnd).ok(), "memory takes all");
  return packed;
}

Result<std::string> ReadMaybeCompressed(FileSystem& files, const std::string& path,
                                        std::size_t max_bytes) {
  COHORT_ASSIGN_OR_RETURN(auto file, files.OpenForRead(path));
  std::array<std::byte, 2> magic{};
  COHORT_ASSIGN_OR_RETURN(const std::size_t n, file->Read(0, magic));
  auto source = RawSource(std::move(file));
  if (n == 2 && magic == std::array{std::byte{0x1f}, std::byte{0x8b}}) {
    source = InflateSource(std::move(source), Compression::kGzip, path);
  }
  return ReadAll(*source, path, max_bytes);
}

}  // namespace cohort::io
