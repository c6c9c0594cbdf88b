#include "synchronous/agreement.h"

#include <cstdint>
#include <numeric>
#include <span>

#include <cohort/core/random.h>

namespace cohort {
namespace {

// The text of `root`, on every rank.
Result<std::string> Share(Communicator& communicator, std::string_view what,
                          const std::string& mine, int root, std::int64_t bytes) {
  std::string text = communicator.rank() == root ? mine : std::string();
  text.resize(static_cast<std::size_t>(bytes));
  CollectiveOptions options;
  options.name = std::string(what) + " of " + communicator.peer_name(root);
  COHORT_RETURN_IF_ERROR(
      Await(communicator.Broadcast(Buffer(text.data(), bytes, DType::kUInt8), root, options)));
  return text;
}

std::string Quoted(const std::vector<std::string_view>& lines, std::size_t i) {
  return i < lines.size() ? "'" + std::string(lines[i]) + "'" : std::string("nothing");
}

std::vector<std::string_view> Lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end + 1);
  }
  return lines;
}

}  // namespace

Status Await(Communicator::Pending pending) {
  return pending.ok() ? (*pending)->Wait() : pending.status();
}

Result<std::vector<std::string>> GatherTexts(Communicator& communicator, std::string_view what,
                                             const std::string& mine) {
  const auto size = static_cast<std::int64_t>(mine.size());
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(communicator.size()));
  CollectiveOptions options;
  options.name = std::string(what);
  COHORT_RETURN_IF_ERROR(Await(communicator.AllGather(std::span<const std::int64_t>(&size, 1),
                                                      std::span<std::int64_t>(sizes), options)));
  std::string all(
      static_cast<std::size_t>(std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0})), '\0');
  std::string text = mine;
  COHORT_RETURN_IF_ERROR(Await(communicator.AllGatherV(
      Buffer(text.data(), size, DType::kUInt8),
      Buffer(all.data(), static_cast<std::int64_t>(all.size()), DType::kUInt8), sizes, options)));
  std::vector<std::string> texts;
  std::size_t at = 0;
  for (const std::int64_t bytes : sizes) {
    texts.push_back(all.substr(at, static_cast<std::size_t>(bytes)));
    at += static_cast<std::size_t>(bytes);
  }
  return texts;
}

Status Agree(Communicator& communicator, std::string_view what,
             const std::vector<std::string>& lines, std::string_view hint) {
  std::string mine;
  for (const std::string& line : lines) {
    (mine += line) += '\n';
  }
  const std::vector<std::int64_t> digest{static_cast<std::int64_t>(Hash64(mine)),
                                         static_cast<std::int64_t>(mine.size())};
  std::vector<std::int64_t> all(2 * static_cast<std::size_t>(communicator.size()));
  CollectiveOptions options;
  options.name = "agreement on " + std::string(what);
  COHORT_RETURN_IF_ERROR(Await(communicator.AllGather(std::span<const std::int64_t>(digest),
                                                      std::span<std::int64_t>(all), options)));

  for (int other = 1; other < communicator.size(); ++other) {
    const auto at = 2 * static_cast<std::size_t>(other);
    if (all[at] == all[0] && all[at + 1] == all[1]) {
      continue;
    }
    COHORT_ASSIGN_OR_RETURN(const std::string first, Share(communicator, what, mine, 0, all[1]));
    COHORT_ASSIGN_OR_RETURN(const std::string second,
                            Share(communicator, what, mine, other, all[at + 1]));
    const auto a = Lines(first);
    const auto b = Lines(second);
    std::size_t i = 0;
    while (i < a.size() && i < b.size() && a[i] == b[i]) {
      ++i;
    }
    return FailedPrecondition(std::string(what) + " differ between " + communicator.peer_name(0) +
                              " and " + communicator.peer_name(other) + ": " + Quoted(a, i) +
                              " against " + Quoted(b, i) + " (number " + std::to_string(i) + ") [" +
                              std::string(hint) + "]");
  }
  return {};
}

}  // namespace cohort
