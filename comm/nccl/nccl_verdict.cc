#include "nccl/nccl_verdict.h"

#include <algorithm>

#include "nccl/nccl_link.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;

std::string Seconds(milliseconds time) {
  const auto ms = time.count();
  return ms % 1000 == 0 ? std::to_string(ms / 1000) + " s" : std::to_string(ms) + " ms";
}

}  // namespace

Status MismatchOf(int a, const OperationRecord& ours, int b, const OperationRecord& theirs,
                  const std::function<std::string(int)>& name) {
  const bool brief = ours.Brief() != theirs.Brief();
  const std::string first = name(a) + " is in " + (brief ? ours.Brief() : ours.Full());
  const std::string second = name(b) + " is in " + (brief ? theirs.Brief() : theirs.Full());
  return InvalidArgument((a < b ? first + ", " + second : second + ", " + first) + ", operation #" +
                         std::to_string(std::max(ours.sequence, theirs.sequence)) +
                         " (generation " + std::to_string(ours.generation) +
                         ") [every rank must call the same operations in the same order]");
}

Status StallVerdict(const NcclOperation& operation, int rank,
                    const std::vector<std::optional<Whereabouts>>& ranks,
                    const std::function<std::string(int)>& name) {
  using State = Whereabouts::State;
  const OperationRecord& record = operation.record;
  const auto concerned = [&](int r) {
    return r != rank && (!record.point_to_point() || r == record.root);
  };
  const int size = static_cast<int>(ranks.size());
  for (int r = 0; r < size; ++r) {
    const auto& there = ranks[static_cast<std::size_t>(r)];
    if (!concerned(r) || !there || there->state != State::kIn) {
      continue;
    }
    const OperationRecord& theirs = there->record;
    const bool same_place =
        record.point_to_point()
            ? theirs.point_to_point() && theirs.root == rank && theirs.kind != record.kind
            : !theirs.point_to_point() && theirs.sequence == record.sequence;
    const bool matches =
        record.kind == OperationKind::kSend ? theirs.Matches(record) : record.Matches(theirs);
    if (same_place && !matches) {
      return MismatchOf(rank, record, r, theirs, name);
    }
  }
  std::string culprits;
  int silent = 0;
  bool left = false;
  for (int r = 0; r < size; ++r) {
    if (!concerned(r)) {
      continue;
    }
    const auto& there = ranks[static_cast<std::size_t>(r)];
    std::string fault;
    if (!there) {
      ++silent;
      fault = " gives no sign of life";
    } else if (there->state == State::kLeft) {
      left = true;
      fault = " left the communicator";
    } else if (there->state == State::kFresh) {
      fault = " has not entered it, nor any operation before";
    } else if (record.point_to_point()
                   ? !there->record.point_to_point()
                   : there->record.sequence < record.sequence || there->record.point_to_point()) {
      fault = (there->state == State::kIn ? " is in " : " has not entered it; its last is ") +
              there->record.Numbered();
    } else {
      continue;
    }
    culprits += (culprits.empty() ? "" : ", ") + name(r) + fault;
  }
  if (silent == size - 1 && silent > 1) {
    culprits = name(rank) +
               " hears of no other rank [its way to the store, or all others, may be "
               "down]";
  }
  const std::string text = record.Numbered() + " on " + name(rank) + " not done after " +
                           Seconds(operation.timeout) + ": " +
                           (culprits.empty() ? "every rank is in it [see what NCCL_DEBUG=INFO "
                                               "prints: the network or the links between GPUs, or "
                                               "what the stream waits for]"
                                             : culprits);
  return left ? Unavailable(text) : DeadlineExceeded(text);
}

}  // namespace cohort
