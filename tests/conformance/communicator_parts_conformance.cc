// Operations whose ranks each have a part, at the sizes at which a part goes another way.

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "conformance/communicator_checks.h"
#include "conformance/communicator_conformance.h"
#include "kept_frames.h"
#include "tcp/striped_socket.h"

namespace cohort::testing {
namespace {

constexpr std::size_t kBehind = 64;  // bytes behind a buffer, which nobody may touch
constexpr auto kUntouched = std::byte{0xA5};
constexpr int kFewRanks = 4;  // more take their time on two cores
constexpr std::int64_t kMostElements = (256 << 10) / sizeof(float) + 1;

// One element less, as many as fit, and one more: of a body that a ring holds, of its pieces, of
// what is kept for whoever asks later and of what TCP sends in place, of a shared segment, of what
// private memory passes at once, of a segment.
std::vector<std::int64_t> PartsAroundThresholds(int ranks) {
  std::vector<std::int64_t> counts;
  for (const std::size_t bytes :
       {std::size_t{4} << 10, std::size_t{32} << 10, KeptFrames::kFrameBytes,
        StripedSocket::kZeroCopyBytes, std::size_t{128} << 10, std::size_t{256} << 10}) {
    const auto count = static_cast<std::int64_t>(bytes / sizeof(float));
    counts.push_back(count + 1);
    if (ranks <= kFewRanks) {
      counts.push_back(count - 1);
      counts.push_back(count);
    }
  }
  return counts;
}

// Room for a part, and for those of all ranks.
struct Rooms {
  std::byte* part;
  std::byte* all;
};

template <typename T>
std::span<T> In(std::byte* room, std::int64_t count) {
  return {reinterpret_cast<T*>(room), static_cast<std::size_t>(count)};
}

// Makes what is behind `count` elements at `room` known.
void Fence(std::byte* room, std::int64_t count) {
  std::fill_n(room + static_cast<std::size_t>(count) * sizeof(float), kBehind, kUntouched);
}
bool Fenced(const std::byte* room, std::int64_t count) {
  const std::byte* const behind = room + static_cast<std::size_t>(count) * sizeof(float);
  return std::all_of(behind, behind + kBehind, [](std::byte b) { return b == kUntouched; });
}

float GivenTo(std::int64_t i, int rank) { return static_cast<float>(rank + i % 7); }

Status CheckScattered(Communicator& comm, std::int64_t count, const Rooms& rooms, Place place,
                      const CollectiveOptions& options) {
  const int n = comm.size();
  const std::span<float> input = In<float>(rooms.all, count * n);
  for (std::int64_t i = 0; i < count * n; ++i) {
    input[static_cast<std::size_t>(i)] = GivenTo(i, comm.rank());
  }
  const auto at = static_cast<std::size_t>(comm.rank() * count);
  const std::span<float> output = place == Place::kIn
                                      ? input.subspan(at, static_cast<std::size_t>(count))
                                      : In<float>(rooms.part, count);
  Fence(rooms.all, count * n);
  Fence(rooms.part, count);
  COHORT_RETURN_IF_ERROR(WaitFor(comm.ReduceScatter(input, output, ReduceOp::kSum, options)));
  for (std::int64_t i = 0; i < count; ++i) {
    const auto each = static_cast<float>((comm.rank() * count + i) % 7);
    const float sum = static_cast<float>(n) * each + static_cast<float>(n * (n - 1) / 2);
    if (output[static_cast<std::size_t>(i)] != sum) {
      return Check(false, "element " + std::to_string(i));
    }
  }
  return Check(Fenced(rooms.all, count * n) && Fenced(rooms.part, count), "behind the buffer");
}

Status CheckGathered(Communicator& comm, std::int64_t count, const Rooms& rooms, Place place,
                     const CollectiveOptions& options) {
  const int n = comm.size();
  const std::vector<std::int32_t> mine = Numbers(comm.rank(), count);
  const std::span<std::int32_t> all = In<std::int32_t>(rooms.all, count * n);
  std::ranges::fill(all, -1);
  const auto at = static_cast<std::size_t>(comm.rank() * count);
  const std::span<std::int32_t> input = place == Place::kIn
                                            ? all.subspan(at, static_cast<std::size_t>(count))
                                            : In<std::int32_t>(rooms.part, count);
  std::ranges::copy(mine, input.begin());
  Fence(rooms.all, count * n);
  COHORT_RETURN_IF_ERROR(WaitFor(comm.AllGather(input, all, options)));
  for (int r = 0; r < n; ++r) {
    const auto part = all.subspan(static_cast<std::size_t>(r * count), mine.size());
    COHORT_RETURN_IF_ERROR(Check(std::ranges::equal(part, Numbers(r, count)),
                                 "the part of rank " + std::to_string(r)));
  }
  return Check(Fenced(rooms.all, count * n), "behind the buffer");
}

// Of parts that differ by an element.
Status CheckGatheredUneven(Communicator& comm, std::int64_t count, const Rooms& rooms,
                           const CollectiveOptions& options) {
  std::vector<std::int64_t> counts;
  std::vector<std::int32_t> expected;
  for (int r = 0; r < comm.size(); ++r) {
    counts.push_back(count - r % 2);
    const std::vector<std::int32_t> part = Numbers(r, counts.back());
    expected.insert(expected.end(), part.begin(), part.end());
  }
  const std::vector<std::int32_t> mine =
      Numbers(comm.rank(), counts[static_cast<std::size_t>(comm.rank())]);
  const auto total = static_cast<std::int64_t>(expected.size());
  const std::span<std::int32_t> all = In<std::int32_t>(rooms.all, total);
  std::ranges::fill(all, -1);
  Fence(rooms.all, total);
  COHORT_RETURN_IF_ERROR(WaitFor(comm.AllGatherV(std::span(mine), all, counts, options)));
  return Check(std::ranges::equal(all, expected) && Fenced(rooms.all, total), "uneven parts");
}

Status CheckBroadcast(Communicator& comm, std::int64_t count, const Rooms& rooms,
                      const CollectiveOptions& options) {
  const auto root = static_cast<int>(count % comm.size());
  const std::span<std::int32_t> values = In<std::int32_t>(rooms.part, count);
  std::ranges::copy(Numbers(comm.rank(), count), values.begin());
  Fence(rooms.part, count);
  COHORT_RETURN_IF_ERROR(WaitFor(comm.Broadcast(values, root, options)));
  return Check(std::ranges::equal(values, Numbers(root, count)) && Fenced(rooms.part, count),
               "from rank " + std::to_string(root));
}

// By every algorithm, in place and out of place, in these rooms.
Status CheckParts(Communicator& comm, const Rooms& rooms) {
  const auto check = [&](OperationKind kind, std::int64_t count, const auto& f) -> Status {
    for (const std::string& algorithm : Algorithms(comm, kind)) {
      COHORT_RETURN_IF_ERROR(f(CollectiveOptions{.name = "x", .algorithm = algorithm})
                                 .Annotate(std::string(OperationKindName(kind)) + " of parts of " +
                                           std::to_string(count) + " by " + algorithm));
    }
    return {};
  };
  for (const std::int64_t count : PartsAroundThresholds(comm.size())) {
    for (const Place place : {Place::kIn, Place::kOut}) {
      COHORT_RETURN_IF_ERROR(check(OperationKind::kReduceScatter, count, [&](const auto& options) {
        return CheckScattered(comm, count, rooms, place, options);
      }));
      COHORT_RETURN_IF_ERROR(check(OperationKind::kAllGather, count, [&](const auto& options) {
        return CheckGathered(comm, count, rooms, place, options);
      }));
    }
    COHORT_RETURN_IF_ERROR(check(OperationKind::kAllGatherV, count, [&](const auto& options) {
      return CheckGatheredUneven(comm, count, rooms, options);
    }));
    COHORT_RETURN_IF_ERROR(check(OperationKind::kBroadcast, count, [&](const auto& options) {
      return CheckBroadcast(comm, count, rooms, options);
    }));
  }
  return {};
}

}  // namespace

TEST_P(CommunicatorConformance, PartsAroundEveryThreshold) {
  if (GetParam().segment_bytes > 0) {
    return;  // the tests of each operation have the edges of small segments
  }
  Run([](Communicator& comm) -> Status {
    const std::size_t part = kMostElements * sizeof(float) + kBehind;
    const std::size_t room = part * static_cast<std::size_t>(comm.size()) + kBehind;
    const std::vector<std::string> algorithms = Algorithms(comm, OperationKind::kAllGather);
    std::vector<std::byte> own(part + room);
    COHORT_RETURN_IF_ERROR(CheckParts(comm, {own.data(), own.data() + part}));
    if (std::ranges::find(algorithms, "shared") != algorithms.end()) {  // where it lies
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> lent, comm.Allocate(part + room));
      std::byte* const begin = lent->bytes().data();
      COHORT_RETURN_IF_ERROR(CheckParts(comm, {begin, begin + part}));
      if (comm.size() > kFewRanks) {
        return {};
      }
      // Where some lend and others do not, all go another way.
      std::byte* const mine = comm.rank() == 0 ? begin : own.data();
      COHORT_RETURN_IF_ERROR(CheckParts(comm, {mine, mine + part}));
    }
    return {};
  });
}

}  // namespace cohort::testing
