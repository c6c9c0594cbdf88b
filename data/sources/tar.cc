#include "sources/tar.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>

#include "sources/content.h"

namespace cohort::data {
namespace {

using Block = std::array<char, kTarBlock>;

// Fields of a header: where they begin, and their bytes.
constexpr std::size_t kName = 0;
constexpr std::size_t kNameBytes = 100;
constexpr std::size_t kSize = 124;
constexpr std::size_t kNumberBytes = 12;
constexpr std::size_t kChecksum = 148;
constexpr std::size_t kChecksumBytes = 8;
constexpr std::size_t kType = 156;
constexpr std::size_t kMagic = 257;
constexpr std::size_t kPrefix = 345;
constexpr std::size_t kPrefixBytes = 155;

std::string_view Field(const Block& block, std::size_t at, std::size_t bytes) {
  return {block.data() + at, bytes};
}

// Up to the first zero.
std::string_view Text(const Block& block, std::size_t at, std::size_t bytes) {
  const std::string_view field = Field(block, at, bytes);
  return field.substr(0, field.find('\0'));
}

// Octal digits between blanks and zeros; nullopt otherwise.
std::optional<std::uint64_t> Octal(std::string_view field) {
  field.remove_prefix(std::min(field.find_first_not_of(' '), field.size()));
  std::uint64_t value = 0;
  std::size_t digits = 0;
  for (; digits < field.size() && field[digits] >= '0' && field[digits] <= '7'; ++digits) {
    value = value * 8 + static_cast<std::uint64_t>(field[digits] - '0');
  }
  const std::string_view rest = field.substr(digits);
  return digits > 0 && rest.find_first_not_of(std::string_view(" \0", 2)) == std::string_view::npos
             ? std::optional(value)
             : std::nullopt;
}

// Octal, or GNU's base 256, marked by the first bit.
std::optional<std::uint64_t> Number(std::string_view field) {
  const auto first = static_cast<unsigned char>(field[0]);
  if ((first & 0x80) == 0) {
    return Octal(field);
  }
  std::uint64_t value = first & 0x7F;  // a negative number has bits left here, and overflows below
  for (const char byte : field.substr(1)) {
    if (value >> 55 != 0) {
      return std::nullopt;
    }
    value = (value << 8) | static_cast<unsigned char>(byte);
  }
  return value;
}

bool ChecksumHolds(const Block& block) {
  const auto stored = Octal(Field(block, kChecksum, kChecksumBytes));
  std::uint64_t sum = 0;
  std::int64_t signed_sum = 0;  // of some old writers
  for (std::size_t i = 0; i < block.size(); ++i) {
    const char byte = i >= kChecksum && i < kChecksum + kChecksumBytes ? ' ' : block[i];
    sum += static_cast<unsigned char>(byte);
    signed_sum += static_cast<signed char>(byte);
  }
  return stored.has_value() && (*stored == sum || static_cast<std::int64_t>(*stored) == signed_sum);
}

bool IsZero(std::string_view bytes) {
  return bytes.find_first_not_of('\0') == std::string_view::npos;
}

std::string NameOf(const Block& block) {
  std::string name(Text(block, kName, kNameBytes));
  if (Field(block, kMagic, 6) == std::string_view("ustar\0", 6)) {
    const std::string_view prefix = Text(block, kPrefix, kPrefixBytes);
    if (!prefix.empty()) {
      name = std::string(prefix) + "/" + name;
    }
  }
  return name;
}

// What headers before a member say of it.
struct Extended {
  std::optional<std::string> name;
  std::optional<std::uint64_t> size;
};

// "25 path=a/long/name.jpg\n", one after another; the number counts the whole record.
Status ParsePax(std::string_view text, Extended& out) {
  while (!text.empty()) {
    std::size_t length = 0;
    const auto [after, error] = std::from_chars(text.data(), text.data() + text.size(), length);
    const auto digits = static_cast<std::size_t>(after - text.data());
    if (error != std::errc() || length > text.size() || length < digits + 3 ||
        text[digits] != ' ' || text[length - 1] != '\n') {
      return DataLoss("a record of the pax header is damaged");
    }
    const std::string_view record = text.substr(digits + 1, length - digits - 2);
    const std::size_t equals = record.find('=');
    if (equals == std::string_view::npos) {
      return DataLoss("a record of the pax header has no '='");
    }
    const std::string_view key = record.substr(0, equals);
    const std::string_view value = record.substr(equals + 1);
    if (key == "path") {
      out.name = std::string(value);
    } else if (key == "size") {
      std::uint64_t size = 0;
      const auto [end, bad] = std::from_chars(value.data(), value.data() + value.size(), size);
      if (bad != std::errc() || end != value.data() + value.size()) {
        return DataLoss("the pax header's size is no number");
      }
      out.size = size;
    } else if (key.starts_with("GNU.sparse.")) {
      return InvalidArgument("sparse members are not read [tar without --sparse]");
    }
    text.remove_prefix(length);
  }
  return {};
}

class TarWalk {
 public:
  TarWalk(const RandomAccessFile& file, const std::string& path) : file_(file), path_(path) {}

  Result<std::vector<TarMember>> Run() {
    std::vector<TarMember> members;
    Extended extended;
    while (true) {
      COHORT_ASSIGN_OR_RETURN(const Block block, ReadBlock());
      if (IsZero({block.data(), block.size()})) {
        COHORT_RETURN_IF_ERROR(CheckEnd());
        return members;
      }
      if (!ChecksumHolds(block)) {
        return Bad("the header's checksum is wrong [damaged, or no tar archive]");
      }
      const auto stored_size = Number(Field(block, kSize, kNumberBytes));
      if (!stored_size.has_value()) {
        return Bad("the header's size is no number");
      }
      const char type = block[kType];
      const bool describes_next = type == 'x' || type == 'g' || type == 'L' || type == 'K';
      TarMember member = {
          .name = describes_next ? "" : extended.name.value_or(NameOf(block)),
          .header = at_,
          .begin = at_ + kTarBlock,
          .size = describes_next ? *stored_size : extended.size.value_or(*stored_size)};
      if (member.size > file_.size() - member.begin) {
        return Bad("member '" + member.name + "' has " + std::to_string(member.size) + " bytes, " +
                   std::to_string(file_.size() - member.begin) + " there [cut short]");
      }
      if (describes_next) {
        COHORT_RETURN_IF_ERROR(ReadExtended(type, member, extended));
      } else {
        extended = {};
        const bool folder = type == '5' || (type == '\0' && member.name.ends_with('/'));
        if (type != '0' && type != '\0' && type != '7' && !folder) {
          return InvalidArgument(Place() + "member '" + member.name + "' is of type '" + type +
                                 "', not a file [links, devices and sparse files are not read]");
        }
        if (!folder) {
          members.push_back(member);
        }
      }
      at_ = member.begin + (member.size + kTarBlock - 1) / kTarBlock * kTarBlock;
    }
  }

 private:
  std::string Place() const { return path_ + ": header at byte " + std::to_string(at_) + ": "; }
  Status Bad(const std::string& what) const { return DataLoss(Place() + what); }

  Result<Block> ReadBlock() const {
    if (at_ >= file_.size() || file_.size() - at_ < kTarBlock) {
      return DataLoss(path_ + ": ends at byte " + std::to_string(file_.size()) +
                      " without the zeros that end an archive [cut short]");
    }
    Block block;
    COHORT_RETURN_IF_ERROR(
        ReadExactly(file_, path_, at_, std::as_writable_bytes(std::span(block))));
    return block;
  }

  Status ReadExtended(char type, const TarMember& member, Extended& extended) const {
    constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 20;
    if (type == 'g' || type == 'K') {
      return {};  // of all members, or of a link: neither name nor size
    }
    if (member.size > kMaxBytes) {
      return Bad("an extended header of " + std::to_string(member.size) +
                 " bytes is larger than any in use");
    }
    std::string text(member.size, '\0');
    COHORT_RETURN_IF_ERROR(
        ReadExactly(file_, path_, member.begin, std::as_writable_bytes(std::span(text))));
    if (type == 'L') {
      extended.name = text.substr(0, text.find('\0'));
      return {};
    }
    const Status status = ParsePax(text, extended);
    return status.ok() ? status : Status(status.code(), Place() + status.message());
  }

  Status CheckEnd() const {
    std::string piece;
    for (std::uint64_t at = at_ + kTarBlock; at < file_.size(); at += piece.size()) {
      piece.resize(std::min<std::uint64_t>(file_.size() - at, 1U << 16));
      COHORT_RETURN_IF_ERROR(
          ReadExactly(file_, path_, at, std::as_writable_bytes(std::span(piece))));
      if (!IsZero(piece)) {
        return DataLoss(path_ + ": bytes follow the end of the archive, at byte " +
                        std::to_string(at + piece.find_first_not_of('\0')) +
                        " [archives put together with cat? tar --concatenate]");
      }
    }
    return {};
  }

  const RandomAccessFile& file_;
  const std::string& path_;
  std::uint64_t at_ = 0;  // the header that is read
};

}  // namespace

bool LooksLikeTar(const RandomAccessFile& file) {
  Block block;
  const Result<std::size_t> n = file.Read(0, std::as_writable_bytes(std::span(block)));
  return n.ok() && *n == block.size() && ChecksumHolds(block);
}

Result<std::vector<TarMember>> IndexTar(const RandomAccessFile& file, const std::string& path) {
  return TarWalk(file, path).Run();
}

}  // namespace cohort::data
