// Sizes at which an all-reduce goes another way.

#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "algorithms/one_shot.h"
#include "algorithms/shared.h"
#include "conformance/communicator_checks.h"
#include "conformance/communicator_conformance.h"
#include "kept_frames.h"
#include "shm/region.h"
#include "tcp/striped_socket.h"
#include "testing/run_ranks.h"
#include "transport.h"

namespace cohort::testing {
namespace {

constexpr std::size_t kBehind = 64;  // bytes behind a buffer, which nobody may touch
constexpr auto kUntouched = std::byte{0xA5};

constexpr int kFewRanks = 4;  // more take their time on two cores

// One element less, as many as fit, and one more: of one shot (in the line of the number, of any
// number of ranks, of all together), of what TCP copies, of what is kept for whoever asks later and
// what MPI sends before it is asked for, the same in each rank's chunk, and of segments. `few`: one
// more alone.
std::set<std::int64_t> CountsAroundThresholds(std::int64_t ranks, DType dtype, bool few) {
  std::set<std::int64_t> counts;
  for (const std::int64_t bytes :
       {static_cast<std::int64_t>(sizeof(BoardSlot::few)),
        static_cast<std::int64_t>(BoardSlot::kBytes),
        static_cast<std::int64_t>(kMostOneShotRead) / ranks,
        static_cast<std::int64_t>(StripedSocket::kZeroCopyBytes),
        static_cast<std::int64_t>(KeptFrames::kFrameBytes),
        static_cast<std::int64_t>(kSharedSegmentBytes),
        static_cast<std::int64_t>(kSharedSegmentBytes) * ranks,
        static_cast<std::int64_t>(kStagedSegmentBytes),
        static_cast<std::int64_t>(kStagedSegmentBytes) * ranks, kSegmentBytes}) {
    const std::int64_t count = bytes / static_cast<std::int64_t>(SizeOf(dtype));
    counts.insert(count + 1);
    if (!few) {
      counts.insert({count - 1, count});
    }
  }
  return counts;
}

// Whether ranks reach each other's memory, and so have one_shot for what is small.
bool Shares(const Communicator& comm) {
  const std::vector<std::string> algorithms = Algorithms(comm, OperationKind::kAllReduce);
  return std::count(algorithms.begin(), algorithms.end(), "shared") > 0;
}

// Whether peers reach what it allocates where it lies.
bool Lends(const Communicator& comm) { return Shares(comm) || comm.backend() == "hierarchical"; }

// What this rank gives and what comes of it, for the largest count; a smaller one is its begin.
struct Sums {
  Values given;
  Values result;

  Sums(const Communicator& comm, DType dtype, std::int64_t count)
      : given(dtype, count), result(dtype, count) {
    for (std::int64_t i = 0; i < count; ++i) {
      given.Set(i, Given(given, ReduceOp::kSum, comm.rank(), i));
      result.Set(i, Reduced(given, ReduceOp::kSum, comm.size(), i));
    }
  }
};

// One all-reduce on the begin of `sums`, in these places, which may be one.
Status CheckSum(Communicator& comm, Sums& sums, std::int64_t count, const std::string& algorithm,
                std::byte* input, std::byte* output) {
  const DType dtype = sums.given.buffer().dtype;
  const Buffer from(input, count, dtype);
  const Buffer to(output, count, dtype);
  std::fill_n(output, to.bytes() + kBehind, kUntouched);
  std::memcpy(input, sums.given.buffer().data, from.bytes());
  COHORT_RETURN_IF_ERROR(
      WaitFor(comm.AllReduce(from, to, ReduceOp::kSum, {.name = "x", .algorithm = algorithm})));
  const std::string what =
      Describe(dtype, ReduceOp::kSum, count, algorithm) + (input == output ? "" : " out of place");
  COHORT_RETURN_IF_ERROR(
      Check(std::memcmp(output, sums.result.buffer().data, to.bytes()) == 0, what));
  COHORT_RETURN_IF_ERROR(Check(std::all_of(output + to.bytes(), output + to.bytes() + kBehind,
                                           [](std::byte b) { return b == kUntouched; }),
                               what + ": written behind the buffer"));
  return Check(input == output || std::memcmp(input, sums.given.buffer().data, from.bytes()) == 0,
               what + ": the input has changed");
}

bool FitsOneShot(const Communicator& comm, std::size_t bytes) {
  return bytes * static_cast<std::size_t>(comm.size()) <= kMostOneShotRead;
}

// That "auto" goes in one shot up to its size.
Status CheckChoice(Communicator& comm, std::size_t bytes) {
  COHORT_ASSIGN_OR_RETURN(
      const CostEstimate estimate,
      comm.Explain(OperationKind::kAllReduce, static_cast<std::int64_t>(bytes)));
  const bool one_shot = FitsOneShot(comm, bytes);
  return Check(
      estimate.chosen == (one_shot ? "one_shot" : "shared"),
      "auto takes " + std::string(estimate.chosen) + " for " + std::to_string(bytes) + " bytes");
}

// Asked for by name it is taken as far as it goes, and refused beyond, to no harm.
Status CheckOneShot(Communicator& comm, Sums& sums, std::int64_t count, std::byte* input,
                    std::byte* output) {
  const Buffer buffer(output, count, sums.given.buffer().dtype);
  if (FitsOneShot(comm, buffer.bytes())) {
    return CheckSum(comm, sums, count, "one_shot", input, output);
  }
  const Communicator::Pending refused =
      comm.AllReduce(buffer, ReduceOp::kSum, {.algorithm = "one_shot"});
  return Check(
      refused.status().code() == StatusCode::kInvalidArgument,
      std::to_string(buffer.bytes()) + " bytes in one shot: " + refused.status().ToString());
}

// Of one type, by every algorithm, in place and out of place, in the memory at `input` and
// `output`.
Status CheckThresholds(Communicator& comm, Sums& sums, const std::set<std::int64_t>& counts,
                       std::byte* input, std::byte* output) {
  const std::vector<std::string> algorithms = Algorithms(comm, OperationKind::kAllReduce);
  const bool shares = Shares(comm);
  const DType dtype = sums.given.buffer().dtype;
  for (const std::int64_t count : counts) {
    if (shares) {
      COHORT_RETURN_IF_ERROR(CheckChoice(comm, Buffer(output, count, dtype).bytes()));
    }
    for (std::byte* const from : {output, input}) {
      for (const std::string& algorithm : algorithms) {
        COHORT_RETURN_IF_ERROR(CheckSum(comm, sums, count, algorithm, from, output));
      }
      if (shares) {
        COHORT_RETURN_IF_ERROR(CheckOneShot(comm, sums, count, from, output));
      }
    }
  }
  return {};
}

}  // namespace

TEST_P(CommunicatorConformance, AllReduceAroundEveryThreshold) {
  if (GetParam().segment_bytes > 0 && size() <= kFewRanks) {
    return;  // AllReduceOfEverySize has the edges of small segments
  }
  CommunicatorOptions options = this->options();
  options.segment_bytes = 0;
  ExpectAllOk(GetParam().run(size(), options, [](Communicator& comm) -> Status {
    for (const DType dtype : kDTypes) {
      const bool common = dtype == DType::kFloat32 || dtype == DType::kBFloat16;
      if (dtype != DType::kFloat32 && comm.size() > (common ? kFewRanks : 3)) {
        continue;  // types differ in nothing else
      }
      const std::set<std::int64_t> counts =
          CountsAroundThresholds(comm.size(), dtype, /*few=*/!common || comm.size() > kFewRanks);
      Sums sums(comm, dtype, *counts.rbegin());
      const std::size_t room = sums.given.buffer().bytes() + kBehind;
      std::vector<std::byte> input(room);
      std::vector<std::byte> output(room);
      COHORT_RETURN_IF_ERROR(CheckThresholds(comm, sums, counts, input.data(), output.data()));
      if (Lends(comm)) {  // what the others read and write where it lies
        COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Memory> lent, comm.Allocate(2 * room));
        std::byte* const begin = lent->bytes().data();
        COHORT_RETURN_IF_ERROR(CheckThresholds(comm, sums, counts, begin, begin + room));
      }
    }
    return {};
  }));
}

}  // namespace cohort::testing
