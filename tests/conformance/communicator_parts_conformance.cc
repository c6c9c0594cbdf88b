// Operations whose ranks each have a part, at the sizes at which a part goes another way.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "algorithms/shared.h"
#include "conformance/communicator_checks.h"
#include "conformance/communicator_conformance.h"
#include "kept_frames.h"
#include "tcp/striped_socket.h"
#include "testing/run_ranks.h"
#include "transport.h"

namespace cohort::testing {
namespace {

constexpr std::size_t kBehind = 64;  // bytes behind a buffer, which nobody may touch
constexpr auto kUntouched = std::byte{0xA5};
constexpr int kFewRanks = 4;  // more take their time on two cores
constexpr std::size_t kMostBytes = static_cast<std::size_t>(kSegmentBytes) + sizeof(float);

// One element less, as many as fit, and one more: of a body that a ring holds, of its pieces, of
// what is kept for whoever asks later and of what TCP sends in place, of a shared segment, of what
// private memory passes at once, of a segment. One more alone for small types and for many ranks.
std::vector<std::int64_t> PartsAroundThresholds(int ranks, std::size_t element_bytes) {
  std::set<std::size_t> sizes = {std::size_t{4} << 10, StripedSocket::kZeroCopyBytes,
                                 static_cast<std::size_t>(kSegmentBytes)};
  if (ranks <= kFewRanks) {
    sizes.insert({std::size_t{32} << 10, KeptFrames::kFrameBytes, kStagedSegmentBytes});
  }
  std::vector<std::int64_t> counts;
  for (const std::size_t bytes : sizes) {
    const auto count = static_cast<std::int64_t>(bytes / element_bytes);
    counts.push_back(count + 1);
    if (ranks <= kFewRanks && element_bytes == sizeof(float)) {
      counts.push_back(count - 1);
      counts.push_back(count);
    }
  }
  return counts;
}

// Room for a part, for those of all ranks, and for as many more.
struct Rooms {
  std::byte* part;
  std::byte* all;
  std::byte* more;

  static std::size_t AllBytes(int ranks) {
    return kMostBytes * static_cast<std::size_t>(ranks) + kBehind;
  }
  static std::size_t Bytes(int ranks) { return kMostBytes + kBehind + 2 * AllBytes(ranks); }
  static Rooms At(std::byte* begin, int ranks) {
    std::byte* const all = begin + kMostBytes + kBehind;
    return {begin, all, all + AllBytes(ranks)};
  }
};

template <typename T>
std::span<T> In(std::byte* room, std::int64_t count) {
  return {reinterpret_cast<T*>(room), static_cast<std::size_t>(count)};
}

// Makes what is behind the elements known.
template <typename T>
void Fence(std::span<T> elements) {
  std::fill_n(reinterpret_cast<std::byte*>(elements.data() + elements.size()), kBehind, kUntouched);
}
// And what is in them.
template <typename T>
void Spoil(std::span<T> elements) {
  std::ranges::fill(std::as_writable_bytes(elements), kUntouched);
  Fence(elements);
}
template <typename T>
bool Fenced(std::span<T> elements) {
  const auto* const behind = reinterpret_cast<const std::byte*>(elements.data() + elements.size());
  return std::all_of(behind, behind + kBehind, [](std::byte b) { return b == kUntouched; });
}

// Something that differs from place to place and from one `seed` to another, in every type.
template <typename T>
std::vector<T> Part(int seed, std::int64_t count) {
  std::vector<T> part(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < part.size(); ++i) {
    const std::uint32_t mixed = static_cast<std::uint32_t>(i) * 2'654'435'761U +
                                static_cast<std::uint32_t>(seed) * 0x5BD1E995U;
    part[i] = static_cast<T>(static_cast<float>(mixed >> 25));
  }
  return part;
}

template <typename T>
bool Equal(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
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
  const std::span<float> part = In<float>(rooms.part, count);
  Fence(input);
  Fence(part);
  COHORT_RETURN_IF_ERROR(WaitFor(comm.ReduceScatter(input, output, ReduceOp::kSum, options)));
  for (std::int64_t i = 0; i < count; ++i) {
    const auto each = static_cast<float>((comm.rank() * count + i) % 7);
    const float sum = static_cast<float>(n) * each + static_cast<float>(n * (n - 1) / 2);
    if (output[static_cast<std::size_t>(i)] != sum) {
      return Check(false, "element " + std::to_string(i));
    }
  }
  return Check(Fenced(input) && Fenced(part), "behind the buffer");
}

template <typename T>
Status CheckGathered(Communicator& comm, std::int64_t count, const Rooms& rooms, Place place,
                     const CollectiveOptions& options) {
  const int n = comm.size();
  const std::span<T> all = In<T>(rooms.all, count * n);
  Spoil(all);
  const std::span<T> input = place == Place::kIn
                                 ? all.subspan(static_cast<std::size_t>(comm.rank() * count),
                                               static_cast<std::size_t>(count))
                                 : In<T>(rooms.part, count);
  std::ranges::copy(Part<T>(comm.rank(), count), input.begin());
  COHORT_RETURN_IF_ERROR(WaitFor(comm.AllGather(input, all, options)));
  for (int r = 0; r < n; ++r) {
    const auto part =
        all.subspan(static_cast<std::size_t>(r * count), static_cast<std::size_t>(count));
    COHORT_RETURN_IF_ERROR(
        Check(Equal<T>(part, Part<T>(r, count)), "the part of rank " + std::to_string(r)));
  }
  return Check(Fenced(all), "behind the buffer");
}

// Of parts that differ by an element.
template <typename T>
Status CheckGatheredUneven(Communicator& comm, std::int64_t count, const Rooms& rooms,
                           const CollectiveOptions& options) {
  std::vector<std::int64_t> counts;
  std::vector<T> expected;
  for (int r = 0; r < comm.size(); ++r) {
    counts.push_back(count - r % 2);
    const std::vector<T> part = Part<T>(r, counts.back());
    expected.insert(expected.end(), part.begin(), part.end());
  }
  const std::vector<T> mine = Part<T>(comm.rank(), counts[static_cast<std::size_t>(comm.rank())]);
  const std::span<T> all = In<T>(rooms.all, static_cast<std::int64_t>(expected.size()));
  Spoil(all);
  COHORT_RETURN_IF_ERROR(WaitFor(comm.AllGatherV(std::span(mine), all, counts, options)));
  return Check(Equal<T>(all, expected) && Fenced(all), "uneven parts");
}

template <typename T>
Status CheckBroadcast(Communicator& comm, std::int64_t count, const Rooms& rooms,
                      const CollectiveOptions& options) {
  const auto root = static_cast<int>(count % comm.size());
  const std::span<T> values = In<T>(rooms.part, count);
  std::ranges::copy(Part<T>(comm.rank(), count), values.begin());
  Fence(values);
  COHORT_RETURN_IF_ERROR(WaitFor(comm.Broadcast(values, root, options)));
  return Check(Equal<T>(values, Part<T>(root, count)) && Fenced(values),
               "from rank " + std::to_string(root));
}

// Of equal parts, and of parts that differ by an element.
template <typename T>
Status CheckExchanged(Communicator& comm, std::int64_t count, const Rooms& rooms, bool even,
                      const CollectiveOptions& options) {
  std::vector<std::int64_t> counts;  // the same both ways
  std::vector<T> given;
  std::vector<T> expected;
  for (int r = 0; r < comm.size(); ++r) {
    counts.push_back(even ? count : count - (comm.rank() + r) % 2);
    const std::vector<T> there = Part<T>(comm.rank() * 16 + r, counts.back());
    const std::vector<T> back = Part<T>(r * 16 + comm.rank(), counts.back());
    given.insert(given.end(), there.begin(), there.end());
    expected.insert(expected.end(), back.begin(), back.end());
  }
  const std::span<T> input = In<T>(rooms.all, static_cast<std::int64_t>(given.size()));
  const std::span<T> output = In<T>(rooms.more, static_cast<std::int64_t>(expected.size()));
  std::ranges::copy(given, input.begin());
  Spoil(output);
  COHORT_RETURN_IF_ERROR(WaitFor(even ? comm.AllToAll(input, output, options)
                                      : comm.AllToAllV(input, counts, output, counts, options)));
  return Check(Equal<T>(output, expected) && Equal<T>(input, given) && Fenced(output),
               even ? "AllToAll" : "AllToAllV");
}

// Each sends to the next rank, and receives from the one before.
template <typename T>
Status CheckPassedOn(Communicator& comm, std::int64_t count, const Rooms& rooms,
                     const CollectiveOptions& options) {
  const int n = comm.size();
  const int before = (comm.rank() + n - 1) % n;
  const std::span<T> mine = In<T>(rooms.part, count);
  const std::span<T> theirs = In<T>(rooms.more, count);
  std::ranges::copy(Part<T>(comm.rank(), count), mine.begin());
  Spoil(theirs);
  const auto send = [&] { return WaitFor(comm.Send(mine, (comm.rank() + 1) % n, options)); };
  if (comm.rank() % 2 == 0) {
    COHORT_RETURN_IF_ERROR(send());
  }
  COHORT_RETURN_IF_ERROR(WaitFor(comm.Receive(theirs, before, options)));
  if (comm.rank() % 2 != 0) {
    COHORT_RETURN_IF_ERROR(send());
  }
  return Check(Equal<T>(theirs, Part<T>(before, count)) && Fenced(theirs), "passed on");
}

// By every algorithm that `kind` has here.
template <typename F>
Status ByEach(Communicator& comm, OperationKind kind, std::int64_t count, const F& f) {
  for (const std::string& algorithm : Algorithms(comm, kind)) {
    COHORT_RETURN_IF_ERROR(f(CollectiveOptions{.name = "x", .algorithm = algorithm})
                               .Annotate(std::string(OperationKindName(kind)) + " of parts of " +
                                         std::to_string(count) + " by " + algorithm));
  }
  return {};
}

// What moves elements of T, in place and out of place, in these rooms.
template <typename T>
Status CheckMoves(Communicator& comm, const Rooms& rooms) {
  for (const std::int64_t count : PartsAroundThresholds(comm.size(), sizeof(T))) {
    const auto check = [&](OperationKind kind, const auto& f) {
      return ByEach(comm, kind, count, f).Annotate(std::string(DTypeName(DTypeOf<T>::value)));
    };
    for (const Place place : {Place::kIn, Place::kOut}) {
      COHORT_RETURN_IF_ERROR(check(OperationKind::kAllGather, [&](const auto& options) {
        return CheckGathered<T>(comm, count, rooms, place, options);
      }));
    }
    COHORT_RETURN_IF_ERROR(check(OperationKind::kAllGatherV, [&](const auto& options) {
      return CheckGatheredUneven<T>(comm, count, rooms, options);
    }));
    COHORT_RETURN_IF_ERROR(check(OperationKind::kBroadcast, [&](const auto& options) {
      return CheckBroadcast<T>(comm, count, rooms, options);
    }));
    for (const bool even : {true, false}) {
      COHORT_RETURN_IF_ERROR(check(OperationKind::kAllToAll, [&](const auto& options) {
        return CheckExchanged<T>(comm, count, rooms, even, options);
      }));
    }
    if (comm.size() > 1) {
      COHORT_RETURN_IF_ERROR(CheckPassedOn<T>(comm, count, rooms, {.name = "x"}));
    }
  }
  return {};
}

Status CheckParts(Communicator& comm, const Rooms& rooms) {
  for (const std::int64_t count : PartsAroundThresholds(comm.size(), sizeof(float))) {
    for (const Place place : {Place::kIn, Place::kOut}) {
      COHORT_RETURN_IF_ERROR(ByEach(
          comm, OperationKind::kReduceScatter, count,
          [&](const auto& options) { return CheckScattered(comm, count, rooms, place, options); }));
    }
    COHORT_RETURN_IF_ERROR(ByEach(comm, OperationKind::kReduce, count, [&](const auto& options) {
      return CheckReduce(comm, DType::kFloat32, ReduceOp::kSum, count,
                         static_cast<int>(count % comm.size()), options.algorithm);
    }));
  }
  if (comm.size() <= kFewRanks) {
    COHORT_RETURN_IF_ERROR(CheckMoves<Float16>(comm, rooms));
  }
  COHORT_RETURN_IF_ERROR(CheckMoves<std::uint8_t>(comm, rooms));
  return CheckMoves<std::int32_t>(comm, rooms);
}

}  // namespace

TEST_P(CommunicatorConformance, PartsAroundEveryThreshold) {
  if (GetParam().segment_bytes > 0 && size() <= kFewRanks) {
    return;  // the tests of each operation have the edges of small segments
  }
  CommunicatorOptions options = this->options();
  options.segment_bytes = 0;
  ExpectAllOk(GetParam().run(size(), options, [](Communicator& comm) -> Status {
    const int n = comm.size();
    const std::vector<std::string> algorithms = Algorithms(comm, OperationKind::kAllGather);
    std::vector<std::byte> own(Rooms::Bytes(n));
    COHORT_RETURN_IF_ERROR(CheckParts(comm, Rooms::At(own.data(), n)));
    if (std::ranges::find(algorithms, "shared") != algorithms.end()) {  // where it lies
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> lent, comm.Allocate(Rooms::Bytes(n)));
      std::byte* const begin = lent->bytes().data();
      COHORT_RETURN_IF_ERROR(CheckParts(comm, Rooms::At(begin, n)));
      if (n > kFewRanks) {
        return {};
      }
      // Where some lend and others do not, all go another way.
      COHORT_RETURN_IF_ERROR(CheckParts(comm, Rooms::At(comm.rank() == 0 ? begin : own.data(), n)));
    }
    return {};
  }));
}

}  // namespace cohort::testing
