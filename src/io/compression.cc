#include <cohort/io/compression.h>
#include <isa-l/igzip_lib.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
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

// By ISA-L, about twice as fast as zlib.
class Inflater final : public ByteSource {
 public:
  Inflater(std::unique_ptr<ByteSource> compressed, Compression compression, std::string name)
      : compressed_(std::move(compressed)), compression_(compression), name_(std::move(name)) {
    isal_inflate_init(&stream_);
    stream_.crc_flag = compression == Compression::kGzip ? ISAL_GZIP : ISAL_ZLIB;
  }

  Result<std::size_t> Read(std::span<std::byte> out) override {
    COHORT_RETURN_IF_ERROR(broken_);
    while (!finished_ && !out.empty()) {
      COHORT_RETURN_IF_ERROR(FillInput());
      if (member_ended_) {
        COHORT_RETURN_IF_ERROR(BeginMember());
        continue;
      }
      const std::size_t wanted = std::min<std::size_t>(out.size(), std::size_t{1} << 30);
      const std::uint32_t had = stream_.avail_in;
      stream_.next_out = reinterpret_cast<std::uint8_t*>(out.data());
      stream_.avail_out = static_cast<std::uint32_t>(wanted);
      const int code = isal_inflate(&stream_);
      if (code < 0 || code == ISAL_NEED_DICT) {
        Status status = Break(code == ISAL_INCORRECT_CHECKSUM ? "has a wrong checksum"
                              : code == ISAL_NEED_DICT        ? "needs a dictionary"
                                                              : "is damaged");
        if (const std::size_t made = wanted - stream_.avail_out; made > 0) {
          return made;  // what is before the damage; the error is the next call's
        }
        return status;
      }
      if (stream_.block_state == ISAL_BLOCK_FINISH) {
        member_ended_ = true;
        // Whole bytes that were taken in behind the member.
        const auto back = static_cast<std::uint32_t>(stream_.read_in_length / 8);
        stream_.next_in -= back;
        stream_.avail_in += back;
      }
      if (const std::size_t made = wanted - stream_.avail_out; made > 0) {
        return made;
      }
      // No input was left, and no output was owed from what went in before.
      if (!member_ended_ && had == 0) {
        return Break("is cut off in the middle of a member");
      }
    }
    return std::size_t{0};
  }

 private:
  static constexpr std::size_t kSlack = 8;  // what a member's end may give back

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

  // Between members: another one, padding, or the end.
  Status BeginMember() {
    while (stream_.avail_in > 0 && *stream_.next_in == 0) {
      padding_ = true;
      ++stream_.next_in;
      --stream_.avail_in;
    }
    if (stream_.avail_in > 0) {
      if (padding_) {
        return Break("has bytes after its padding");
      }
      member_ended_ = false;
      isal_inflate_reset(&stream_);
      return {};
    }
    COHORT_RETURN_IF_ERROR(FillInput());
    finished_ = stream_.avail_in == 0;
    return {};
  }

  Status Break(std::string_view what) {
    broken_ = DataLoss(name_ + ": the " + std::string(CompressionName(compression_)) + " stream " +
                       std::string(what) + ", at byte " + std::to_string(read_ - stream_.avail_in) +
                       " of the file [copy or download it again]");
    return broken_;
  }

  std::unique_ptr<ByteSource> compressed_;
  Compression compression_;
  std::string name_;
  inflate_state stream_ = {};
  std::vector<std::byte> input_ = std::vector<std::byte>(kSlack + kBufferBytes);
  std::uint64_t read_ = 0;
  bool member_ended_ = false;
  bool padding_ = false;
  bool finished_ = false;
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
                                          Compression compression, std::string name) {
  return std::make_unique<Inflater>(std::move(compressed), compression, std::move(name));
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
