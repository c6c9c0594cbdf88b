#include "sources/inflate.h"

#include <zlib.h>

#include <algorithm>
#include <limits>
#include <new>

namespace cohort::data {
namespace {

constexpr int kGzipWindow = 15 + 16;  // zlib's way to say: gzip framing, largest window
constexpr std::size_t kMaxChunk = std::numeric_limits<uInt>::max();

}  // namespace

bool LooksLikeGzip(std::string_view bytes) {
  return bytes.size() >= 2 && bytes[0] == '\x1f' && bytes[1] == '\x8b';
}

struct Inflater::State {
  z_stream stream = {};
  std::string_view rest;  // not given to zlib yet
  std::size_t total = 0;  // compressed bytes
  bool ended = false;     // the last member is complete

  // Compressed bytes that zlib has taken.
  std::size_t offset() const { return total - rest.size() - stream.avail_in; }

  void Feed() {
    if (stream.avail_in == 0 && !rest.empty()) {
      const std::size_t chunk = std::min(rest.size(), kMaxChunk);
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(rest.data()));
      stream.avail_in = static_cast<uInt>(chunk);
      rest.remove_prefix(chunk);
    }
  }

  Status Damaged(const char* what) const {
    return DataLoss(std::string("gzip: ") + what + " at compressed byte " +
                    std::to_string(offset()) + " of " + std::to_string(total));
  }

  // After a member: the next one, padding, or the end.
  Status NextMember() {
    std::string left(reinterpret_cast<const char*>(stream.next_in), stream.avail_in);
    left += rest;
    if (left.find_first_not_of('\0') == std::string::npos) {
      ended = true;
      return {};
    }
    if (!LooksLikeGzip(left)) {
      return Damaged("something that is not gzip follows");
    }
    inflateReset(&stream);
    return {};
  }
};

Inflater::Inflater(std::string_view compressed) : state_(std::make_unique<State>()) {
  state_->rest = compressed;
  state_->total = compressed.size();
  if (inflateInit2(&state_->stream, kGzipWindow) != Z_OK) {
    throw std::bad_alloc();
  }
}

Inflater::~Inflater() { inflateEnd(&state_->stream); }

std::uint64_t Inflater::MaxContent(std::size_t compressed_bytes) {
  return std::uint64_t{compressed_bytes} * 1032 + 1032;  // deflate's best: 258 bytes in 2 bits
}

Result<std::size_t> Inflater::Read(std::span<std::byte> out) {
  State& s = *state_;
  std::size_t done = 0;
  while (done < out.size() && !s.ended) {
    s.Feed();
    const auto room = static_cast<uInt>(std::min(out.size() - done, kMaxChunk));
    s.stream.next_out = reinterpret_cast<Bytef*>(out.data() + done);
    s.stream.avail_out = room;
    const int code = inflate(&s.stream, Z_NO_FLUSH);
    done += room - s.stream.avail_out;
    if (code == Z_STREAM_END) {
      COHORT_RETURN_IF_ERROR(s.NextMember());
    } else if (code == Z_BUF_ERROR && s.stream.avail_in == 0 && s.rest.empty()) {
      return s.Damaged("the file is cut short");
    } else if (code != Z_OK) {
      return s.Damaged(s.stream.msg != nullptr ? s.stream.msg : zError(code));
    }
  }
  return done;
}

std::string Gzip(std::string_view content) {
  z_stream stream = {};
  if (deflateInit2(&stream, 6, Z_DEFLATED, kGzipWindow, 8, Z_DEFAULT_STRATEGY) != Z_OK) {
    throw std::bad_alloc();
  }
  std::string compressed;
  std::string chunk(std::size_t{1} << 18, '\0');
  int code = Z_OK;
  while (code != Z_STREAM_END) {
    if (stream.avail_in == 0) {
      const std::size_t take = std::min(content.size(), kMaxChunk);
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(content.data()));
      stream.avail_in = static_cast<uInt>(take);
      content.remove_prefix(take);
    }
    stream.next_out = reinterpret_cast<Bytef*>(chunk.data());
    stream.avail_out = static_cast<uInt>(chunk.size());
    code = deflate(&stream, content.empty() ? Z_FINISH : Z_NO_FLUSH);
    compressed.append(chunk, 0, chunk.size() - stream.avail_out);
  }
  deflateEnd(&stream);
  return compressed;
}

}  // namespace cohort::data
