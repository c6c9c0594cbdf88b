#include "algorithms/shared.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <tuple>

#include "algorithms/algorithms.h"
#include "algorithms/canonical_order.h"
#include "algorithms/one_shot.h"
#include "shm/board.h"

namespace cohort {
namespace {

constexpr std::size_t kLeastSegmentBytes = 4 << 10;  // so fewer than Board::kLeft up to 32 GiB
constexpr int kSpins = 400;                          // looks before the transport's own waiting

// Where a rank's buffer is here; what of it others may write to.
struct Reached {
  std::byte* base = nullptr;
  std::size_t open_from = 0;
  std::size_t open_to = 0;
};

struct Shown {
  enum What : std::uint64_t { kPrivate, kLent, kNothing };
  Loan loan;
  What what = kPrivate;
};

static_assert(sizeof(Shown) <= sizeof(BoardSlot::few));

// nullopt: not any more, see Board::StillShown.
std::optional<Shown> ShownBy(Board& board, int rank, std::uint64_t number) {
  Shown shown;
  if (rank == board.rank()) {
    std::memcpy(&shown, board.shown().few.data(), sizeof(shown));
    return shown;
  }
  const BoardSlot* const slot = board.Look(rank, number);
  if (slot == nullptr) {
    return std::nullopt;
  }
  std::memcpy(&shown, slot->few.data(), sizeof(shown));
  return board.StillShown(number) ? std::optional(shown) : std::nullopt;
}

// One rank's side of one operation.
class Shared {
 public:
  Shared(Exchange& exchange, std::size_t element_bytes)
      : exchange_(exchange),
        board_(*exchange.transport().board()),
        number_(exchange.record().sequence),
        most_bytes_(std::max(exchange.SegmentBytes(element_bytes), kLeastSegmentBytes)),
        segment_bytes_(std::min(most_bytes_, kSharedSegmentBytes)) {}

  int rank() const { return exchange_.rank(); }
  int size() const { return exchange_.size(); }
  std::size_t segment_bytes() const { return segment_bytes_; }
  void PassSegmentsOf(std::size_t bytes) { segment_bytes_ = std::min(most_bytes_, bytes); }
  std::size_t SegmentsOf(std::size_t bytes) const {
    return (bytes + segment_bytes_ - 1) / segment_bytes_;
  }

  // Until all ranks have shown theirs. `bytes`: up to where it is read. False: somebody's memory is
  // private. For the statistics: `sent`, what others take of this rank; `received`, what it takes.
  Result<bool> Meet(std::size_t bytes, std::size_t sent, std::size_t received) {
    COHORT_RETURN_IF_ERROR(AwaitAgreement(exchange_));
    bool all = true;
    for (int p = 0; p < size(); ++p) {
      const std::optional<Shown> shown = ShownBy(board_, p, number_);
      if (!shown.has_value()) {
        return Overtaken(exchange_);
      }
      all &= shown->what == Shown::kLent || shown->what == Shown::kNothing;
      const bool there = shown->what == Shown::kLent && p != rank();
      Reached reached;
      if (shown->what == Shown::kLent) {
        reached.base = there ? board_.Resolve(p, shown->loan, bytes) : nullptr;
        std::tie(reached.open_from, reached.open_to) = board_.OpenPart(shown->loan, bytes);
      }
      reached_.push_back(reached);
      if (there && reached.base == nullptr) {
        return Internal(exchange_.record().Numbered() + ": " + exchange_.Name(p) +
                        " shows memory that it did not announce");
      }
    }
    if (all) {
      exchange_.transport().Count(sent, received);
    }
    return all;
  }
  const Reached& reached(int p) const { return reached_[static_cast<std::size_t>(p)]; }
  const std::byte* base(int p) const { return reached(p).base; }
  void SetOwn(std::byte* base) { reached_[static_cast<std::size_t>(rank())].base = base; }

  // `f` reads others' memory.
  template <typename F>
  Status Read(F f) {
    if (board_.Read(number_, f)) {
      return {};
    }
    return exchange_.AwaitPeers([](int) { return false; });  // whoever gave up says why
  }
  // The same, and writes there.
  template <typename F>
  Status Write(F f) {
    if (board_.Write(number_, f)) {
      return {};
    }
    return exchange_.AwaitPeers([](int) { return false; });
  }
  void Finished(std::size_t segments) { board_.Advance(number_, segments); }
  std::size_t FinishedBy(int p) const { return board_.ProgressOf(p, number_); }
  Status AwaitAll(std::size_t segments) {
    return AwaitThat([&](int q) { return FinishedBy(q) >= segments; });
  }
  Status Await(int p, std::size_t segments) {
    return AwaitThat([&](int q) { return q != p || FinishedBy(q) >= segments; });
  }
  // The end: nobody needs this rank's memory any more.
  Status Leave() {
    board_.Advance(number_, Board::kLeft);
    COHORT_RETURN_IF_ERROR(AwaitThat([&](int q) { return FinishedBy(q) == Board::kLeft; }));
    board_.Close();
    return {};
  }

 private:
  template <typename F>
  Status AwaitThat(F arrived) {
    const auto all = [&] {
      for (int p = 0; p < size(); ++p) {
        if (p != rank() && !arrived(p)) {
          return false;
        }
      }
      return true;
    };
    for (int spin = 0; spin < (board_.crowded() ? 1 : kSpins); ++spin) {
      if (all()) {
        return {};
      }
      _mm_pause();
    }
    return exchange_.AwaitPeers(arrived);
  }

  Exchange& exchange_;
  Board& board_;
  const std::uint64_t number_;
  const std::size_t most_bytes_;
  std::size_t segment_bytes_;
  std::vector<Reached> reached_;
};

int Peer(const Shared& shared, int step) { return (shared.rank() + step) % shared.size(); }

MutableBytes SegmentOf(const Shared& shared, MutableBytes chunk, std::size_t index) {
  const std::size_t at = std::min(index * shared.segment_bytes(), chunk.size());
  return chunk.subspan(at, std::min(shared.segment_bytes(), chunk.size() - at));
}

// Copies segment after segment of what the owners have finished, as they come.
class Collector {
 public:
  // chunk(p) is where rank p's finished chunk belongs; source(p) where it lies.
  Collector(Shared& shared, std::function<MutableBytes(int)> chunk,
            std::function<const std::byte*(int)> source)
      : shared_(shared),
        chunk_(std::move(chunk)),
        source_(std::move(source)),
        copied_(static_cast<std::size_t>(shared.size())) {}

  // What is there now.
  Status Collect() {
    for (int step = 1; step < shared_.size(); ++step) {
      COHORT_RETURN_IF_ERROR(CollectOf(Peer(shared_, step)));
    }
    return {};
  }
  Status CollectRest() {
    COHORT_RETURN_IF_ERROR(Collect());
    for (int step = 1; step < shared_.size(); ++step) {
      const int p = Peer(shared_, step);
      const std::size_t total = shared_.SegmentsOf(chunk_(p).size());
      while (copied_[static_cast<std::size_t>(p)] < total) {
        COHORT_RETURN_IF_ERROR(shared_.Await(p, copied_[static_cast<std::size_t>(p)] + 1));
        COHORT_RETURN_IF_ERROR(Collect());
      }
    }
    return {};
  }

 private:
  Status CollectOf(int p) {
    const MutableBytes chunk = chunk_(p);
    std::size_t& copied = copied_[static_cast<std::size_t>(p)];
    const std::size_t ready = std::min(shared_.FinishedBy(p), shared_.SegmentsOf(chunk.size()));
    for (; copied < ready; ++copied) {
      const MutableBytes segment = SegmentOf(shared_, chunk, copied);
      const std::byte* const from = source_(p) + (segment.data() - chunk.data());
      COHORT_RETURN_IF_ERROR(
          shared_.Read([&] { std::memcpy(segment.data(), from, segment.size()); }));
    }
    return {};
  }

  Shared& shared_;
  const std::function<MutableBytes(int)> chunk_;
  const std::function<const std::byte*(int)> source_;
  std::vector<std::size_t> copied_;
};

// Calls block(at, bytes) for all of `total` bytes, one after the other, and claim(at, bytes) for
// each block while the one before it is worked on.
template <typename Claims, typename Block>
void InBlocks(std::size_t total, Claims claim, Block block) {
  constexpr std::size_t kBlock = Reduction::kBlockBytes;
  claim(0, std::min(kBlock, total));
  for (std::size_t at = 0; at < total; at += kBlock) {
    const std::size_t next = std::min(at + kBlock, total);
    claim(next, std::min(kBlock, total - next));
    block(at, next - at);
  }
}

// Private memory. Round s passes segment s of all chunks through one of three slots in turns: each
// rank gives its shares of the others' segments (one round ahead), reduces its own segment from
// what is given, puts the result in the place of each share, and takes those of its own shares (one
// round later), so that what it waits for is there as a rule. A slot is written again by whoever
// has just taken from it.
Status StagedAllReduce(Exchange& exchange, Shared& shared, MutableBytes data,
                       const Reduction& reduction) {
  constexpr std::size_t kSlots = 3;
  shared.PassSegmentsOf(kStagedSegmentBytes);
  Board& board = *exchange.transport().board();
  board.Close();  // nobody writes to the buffer itself, where this rank has lent it
  const std::size_t moved =
      2 * (data.size() -
           Chunk(data, exchange.rank(), exchange.size(), reduction.element_bytes()).size());
  exchange.transport().Count(moved, moved);
  const int n = exchange.size();
  const int rank = exchange.rank();
  const auto at = [](int i) { return static_cast<std::size_t>(i); };
  const std::size_t stage_bytes = kSlots * at(n) * kStagedSegmentBytes;
  COHORT_ASSIGN_OR_RETURN(const MutableBytes stage, board.Staging(stage_bytes));
  // Of the share for rank p.
  const auto place = [&](std::size_t round, int p) {
    return (round % kSlots * at(n) + at(p)) * kStagedSegmentBytes;
  };
  const auto segment = [&](int p, std::size_t round) {
    return SegmentOf(shared, Chunk(data, p, n, reduction.element_bytes()), round);
  };
  // Parts done, in order: given 0, given 1, put 0, given 2, put 1, ...
  const auto given = [](std::size_t round) { return round == 0 ? 1 : 2 * round; };
  const auto put = [](std::size_t round) { return 2 * round + 3; };
  const auto give = [&](std::size_t round) {
    for (int step = 1; step < n; ++step) {
      const int p = Peer(shared, step);
      const MutableBytes share = segment(p, round);
      std::memcpy(stage.data() + place(round, p), share.data(), share.size());
    }
    shared.Finished(given(round));
  };

  const std::size_t rounds = shared.SegmentsOf(Chunk(data, 0, n, reduction.element_bytes()).size());
  give(0);
  COHORT_RETURN_IF_ERROR(shared.AwaitAll(given(0)));
  std::vector<std::byte*> stages;
  for (int p = 0; p < n; ++p) {
    stages.push_back(p == rank ? stage.data() : board.StagingOf(p, stage_bytes));
    if (stages.back() == nullptr) {
      return Internal(exchange.record().Numbered() + ": " + exchange.Name(p) +
                      " has no staging memory");
    }
  }
  const auto take = [&](std::size_t round) -> Status {
    COHORT_RETURN_IF_ERROR(shared.AwaitAll(put(round)));
    for (int step = 1; step < n; ++step) {
      const int p = Peer(shared, step);
      const MutableBytes theirs = segment(p, round);
      std::memcpy(theirs.data(), stage.data() + place(round, p), theirs.size());
    }
    return {};
  };
  std::vector<std::byte*> shares(at(n));  // nullptr: this rank's own
  std::vector<const std::byte*> sources(at(n));
  for (std::size_t round = 0; round < rounds; ++round) {
    if (round + 1 < rounds) {
      give(round + 1);
    }
    const MutableBytes mine = segment(rank, round);
    for (int p = 0; p < n; ++p) {
      shares[at(p)] = p == rank ? nullptr : stages[at(p)] + place(round, rank);
    }
    const auto others = [&](const auto& f) {
      for (std::byte* const share : shares) {
        if (share != nullptr) {
          f(share);
        }
      }
    };
    COHORT_RETURN_IF_ERROR(shared.AwaitAll(given(round)));
    COHORT_RETURN_IF_ERROR(shared.Write([&] {
      InBlocks(
          mine.size(),
          [&](std::size_t from, std::size_t bytes) {
            others([&](const std::byte* share) { ClaimLines(share + from, bytes); });
          },
          [&](std::size_t from, std::size_t bytes) {
            std::byte* const result = mine.data() + from;
            for (int p = 0; p < n; ++p) {
              sources[at(p)] = p == rank ? result : shares[at(p)] + from;
            }
            CombineCanonically(reduction, result, sources, bytes);
            reduction.Finish(result, bytes, n);
            others([&](std::byte* share) { std::memcpy(share + from, result, bytes); });
          });
    }));
    shared.Finished(put(round));
    if (round > 0) {
      COHORT_RETURN_IF_ERROR(take(round - 1));
    }
  }
  COHORT_RETURN_IF_ERROR(take(rounds - 1));
  return shared.Leave();
}

}  // namespace

bool HasShared(Transport& transport) { return transport.board() != nullptr; }

void ShowShared(Exchange& exchange, MutableBytes data) {
  Board& board = *exchange.transport().board();
  Shown shown;
  if (data.empty()) {
    shown.what = Shown::kNothing;
  } else if (const std::optional<Loan> loan = board.Lend(data)) {
    shown = {*loan, Shown::kLent};
  }
  board.Show(exchange.record().sequence, exchange.record().Fingerprint(),
             std::as_bytes(std::span(&shown, 1)));
  if (shown.what == Shown::kLent && exchange.record().kind == OperationKind::kAllReduce) {
    board.Open(data);
  }
}

namespace {

// Of the results of others: what they may not write here, less than a page at each end of the
// buffer.
Status CopyWhatIsNotOpen(Shared& shared, MutableBytes data, std::size_t element_bytes) {
  const Reached& own = shared.reached(shared.rank());
  for (int step = 1; step < shared.size(); ++step) {
    const int p = Peer(shared, step);
    const MutableBytes chunk = Chunk(data, p, shared.size(), element_bytes);
    const auto first = static_cast<std::size_t>(chunk.data() - data.data());
    const auto copy = [&](std::size_t from, std::size_t to) -> Status {
      from = std::max(from, first);
      to = std::min(to, first + chunk.size());
      if (from >= to) {
        return {};
      }
      COHORT_RETURN_IF_ERROR(shared.Await(p, 1));
      return shared.Read(
          [&] { std::memcpy(data.data() + from, shared.base(p) + from, to - from); });
    };
    COHORT_RETURN_IF_ERROR(copy(0, own.open_from));
    COHORT_RETURN_IF_ERROR(copy(own.open_to, data.size()));
  }
  return {};
}

}  // namespace

Status FinishSharedAllReduce(Exchange& exchange, MutableBytes data, const Reduction& reduction) {
  const int n = exchange.size();
  const std::size_t element = reduction.element_bytes();
  Shared shared(exchange, element);
  const std::size_t moved = 2 * (data.size() - Chunk(data, exchange.rank(), n, element).size());
  COHORT_ASSIGN_OR_RETURN(const bool lent, shared.Meet(data.size(), moved, moved));
  if (!lent) {
    return StagedAllReduce(exchange, shared, data, reduction);
  }
  shared.SetOwn(data.data());
  const MutableBytes mine = Chunk(data, exchange.rank(), n, element);
  const std::size_t segments = shared.SegmentsOf(mine.size());
  std::vector<const std::byte*> sources(static_cast<std::size_t>(n));
  for (std::size_t s = 0; s < segments; ++s) {
    const MutableBytes segment = SegmentOf(shared, mine, s);
    const auto at = static_cast<std::size_t>(segment.data() - data.data());
    for (int p = 0; p < n; ++p) {
      sources[static_cast<std::size_t>(p)] = shared.base(p) + at;
    }
    // What lies there has just been read, and so is in this core's cache.
    COHORT_RETURN_IF_ERROR(shared.Write([&] {
      CombineCanonically(reduction, segment.data(), sources, segment.size());
      reduction.Finish(segment.data(), segment.size(), n);
      for (int step = 1; step < n; ++step) {
        const Reached& theirs = shared.reached(Peer(shared, step));
        const std::size_t from = std::max(at, theirs.open_from);
        const std::size_t to = std::min(at + segment.size(), theirs.open_to);
        if (from < to) {
          std::memcpy(theirs.base + from, data.data() + from, to - from);
        }
      }
    }));
  }
  shared.Finished(1);
  COHORT_RETURN_IF_ERROR(CopyWhatIsNotOpen(shared, data, element));
  return shared.Leave();
}

Status FinishSharedReduceScatter(Exchange& exchange, MutableBytes input, MutableBytes output,
                                 const Reduction& reduction) {
  const int n = exchange.size();
  Shared shared(exchange, reduction.element_bytes());
  const std::size_t moved = input.size() - output.size();
  COHORT_ASSIGN_OR_RETURN(const bool lent, shared.Meet(input.size(), moved, moved));
  if (!lent) {
    return DirectReduceScatter(exchange, input, output, reduction);
  }
  shared.SetOwn(input.data());
  const std::size_t offset = static_cast<std::size_t>(exchange.rank()) * output.size();
  std::vector<const std::byte*> sources(static_cast<std::size_t>(n));
  for (std::size_t s = 0; s < shared.SegmentsOf(output.size()); ++s) {
    const MutableBytes segment = SegmentOf(shared, output, s);
    for (int p = 0; p < n; ++p) {
      sources[static_cast<std::size_t>(p)] =
          shared.base(p) + offset + (segment.data() - output.data());
    }
    COHORT_RETURN_IF_ERROR(shared.Read(
        [&] { CombineCanonically(reduction, segment.data(), sources, segment.size()); }));
    reduction.Finish(segment.data(), segment.size(), n);
  }
  return shared.Leave();
}

Status FinishSharedAllGather(Exchange& exchange, const std::vector<MutableBytes>& blocks,
                             std::size_t element_bytes) {
  Shared shared(exchange, element_bytes);
  const auto block = [&](int p) { return blocks[static_cast<std::size_t>(p)]; };
  const std::size_t own = block(exchange.rank()).size();
  std::size_t received = 0;
  for (const MutableBytes& piece : blocks) {
    received += piece.size();
  }
  received -= own;
  COHORT_ASSIGN_OR_RETURN(const bool lent, shared.Meet(0, own * (blocks.size() - 1), received));
  if (!lent) {
    return DirectAllGather(exchange, blocks, element_bytes);
  }
  shared.Finished(shared.SegmentsOf(block(exchange.rank()).size()));
  Collector collector(shared, block, [&](int p) { return shared.base(p); });
  COHORT_RETURN_IF_ERROR(collector.CollectRest());
  return shared.Leave();
}

Status FinishSharedBroadcast(Exchange& exchange, MutableBytes data, int root,
                             std::size_t element_bytes) {
  Shared shared(exchange, element_bytes);
  const bool source = exchange.rank() == root;
  const std::size_t others = static_cast<std::size_t>(exchange.size()) - 1;
  COHORT_ASSIGN_OR_RETURN(
      const bool lent, shared.Meet(0, source ? others * data.size() : 0, source ? 0 : data.size()));
  if (!lent) {
    return TreeBroadcast(exchange, data, root, element_bytes);
  }
  shared.Finished(source ? shared.SegmentsOf(data.size()) : 0);
  Collector collector(
      shared, [&](int p) { return p == root && !source ? data : data.first(0); },
      [&](int p) { return shared.base(p); });
  COHORT_RETURN_IF_ERROR(collector.CollectRest());
  return shared.Leave();
}

}  // namespace cohort
