#include "parameter_server/rows/row_changes.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace cohort::ps {
namespace {

constexpr std::size_t kHead = 3 * sizeof(std::uint32_t);

std::uint64_t IdOf(const char* record) { return DumpedHeader(record).id(); }

// Records of one size, one after the other, ascending by id.
struct Records {
  const char* begin = nullptr;
  std::uint32_t count = 0;
  std::size_t size = 0;
  const char* at(std::uint32_t i) const { return begin + i * size; }
  const char* end() const { return at(count); }
};

struct Parsed {
  std::uint32_t number = 0;
  std::array<Records, 2> records;  // rows, candidates
  std::array<std::vector<std::uint64_t>, 2> removed;
};

Status Parse(std::string_view bytes, const RowShape& shape, Parsed* parsed) {
  const auto bad = [&] {
    return DataLoss("a bucket's " + std::string(IsChanges(bytes) ? "changes" : "dump") + " of " +
                    std::to_string(bytes.size()) + " bytes are cut short, or of another table");
  };
  if (bytes.size() < kHead) {
    return bad();
  }
  std::array<std::uint32_t, 3> head{};
  std::memcpy(head.data(), bytes.data(), kHead);
  parsed->number = head[0] & ~kChangesBit;
  const std::array<std::size_t, 2> sizes = {shape.dumped, RowShape(0).dumped};
  std::uint64_t at = kHead;
  for (std::size_t part = 0; part < 2; ++part) {
    const std::uint64_t all = std::uint64_t{head[part + 1]} * sizes[part];
    if (bytes.size() - at < all) {
      return bad();
    }
    parsed->records[part] = {bytes.data() + at, head[part + 1], sizes[part]};
    at += all;
  }
  if (IsChanges(bytes)) {
    std::array<std::uint32_t, 2> counts{};
    if (bytes.size() - at < sizeof(counts)) {
      return bad();
    }
    std::memcpy(counts.data(), bytes.data() + at, sizeof(counts));
    at += sizeof(counts);
    for (std::size_t part = 0; part < 2; ++part) {
      const std::uint64_t all = std::uint64_t{counts[part]} * sizeof(std::uint64_t);
      if (bytes.size() - at < all) {
        return bad();
      }
      parsed->removed[part].resize(counts[part]);
      if (all > 0) {
        std::memcpy(parsed->removed[part].data(), bytes.data() + at, all);
      }
      at += all;
    }
  }
  return at == bytes.size() ? OkStatus() : bad();
}

// Those of `before` that are neither removed nor changed, and those that are new or changed.
std::uint32_t Merge(const Records& before, const Records& changed,
                    const std::vector<std::uint64_t>& removed, std::string& to) {
  std::uint32_t count = 0;
  const auto put = [&](const char* record) {
    to.append(record, before.size);
    ++count;
  };
  auto gone = removed.begin();
  std::uint32_t c = 0;
  for (std::uint32_t b = 0; b < before.count; ++b) {
    const std::uint64_t id = IdOf(before.at(b));
    for (; c < changed.count && IdOf(changed.at(c)) < id; ++c) {
      put(changed.at(c));
    }
    gone = std::find_if(gone, removed.end(), [id](std::uint64_t r) { return r >= id; });
    const bool is_changed = c < changed.count && IdOf(changed.at(c)) == id;
    if (!is_changed && (gone == removed.end() || *gone != id)) {
      put(before.at(b));
    }
  }
  for (; c < changed.count; ++c) {
    put(changed.at(c));
  }
  return count;
}

}  // namespace

bool IsChanges(std::string_view dump) {
  std::uint32_t first = 0;
  if (dump.size() >= sizeof(first)) {
    std::memcpy(&first, dump.data(), sizeof(first));
  }
  return (first & kChangesBit) != 0;
}

void AppendRemoved(std::span<const std::uint64_t> rows, std::span<const std::uint64_t> candidates,
                   std::string& changes) {
  const std::array<std::uint32_t, 2> counts = {static_cast<std::uint32_t>(rows.size()),
                                               static_cast<std::uint32_t>(candidates.size())};
  changes.append(reinterpret_cast<const char*>(counts.data()), sizeof(counts));
  changes.append(reinterpret_cast<const char*>(rows.data()), rows.size_bytes());
  changes.append(reinterpret_cast<const char*>(candidates.data()), candidates.size_bytes());
}

Result<std::string> ApplyChanges(std::string_view dump, std::string_view changes,
                                 const RowShape& shape) {
  Parsed before;
  Parsed after;
  COHORT_RETURN_IF_ERROR(Parse(dump, shape, &before));
  COHORT_RETURN_IF_ERROR(Parse(changes, shape, &after));
  if (IsChanges(dump) || !IsChanges(changes) || before.number != after.number) {
    return DataLoss("changes of bucket " + std::to_string(after.number) +
                    " stand where those of bucket " + std::to_string(before.number) +
                    " are expected");
  }
  std::string merged(kHead, '\0');
  merged.reserve(dump.size() + changes.size());
  std::array<std::uint32_t, 3> head = {before.number, 0, 0};
  for (std::size_t part = 0; part < 2; ++part) {
    head[part + 1] = Merge(before.records[part], after.records[part], after.removed[part], merged);
  }
  std::memcpy(merged.data(), head.data(), kHead);
  return merged;
}

}  // namespace cohort::ps
