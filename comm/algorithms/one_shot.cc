#include "algorithms/one_shot.h"

#include <immintrin.h>

#include <array>

#include "algorithms/canonical_order.h"
#include "shm/board.h"

namespace cohort {
namespace {

constexpr std::size_t kMostRanks = 64;
static_assert(2 * BoardSlot::kBytes >= kMostOneShotRead);  // so what is little enough fits a slot
constexpr int kSpins = 64;  // looks before the transport's own waiting

bool AllShown(Board& board, std::uint64_t number) {
  for (int p = 0; p < board.size(); ++p) {
    if (p != board.rank() && board.Look(p, number) == nullptr) {
      return false;
    }
  }
  return true;
}

// A rank that shows another operation than this one does; -1: none.
int OtherFingerprint(Board& board, std::uint64_t number) {
  for (int p = 0; p < board.size(); ++p) {
    const BoardSlot* const slot = p == board.rank() ? nullptr : board.Look(p, number);
    if (slot != nullptr && slot->fingerprint != board.shown().fingerprint) {
      return p;
    }
  }
  return -1;
}

}  // namespace

bool HasOneShot(Transport& transport, std::size_t bytes) {
  const Board* board = transport.board();
  return board != nullptr && static_cast<std::size_t>(board->size()) <= kMostRanks &&
         bytes * static_cast<std::size_t>(board->size()) <= kMostOneShotRead;
}

void ShowOneShot(Exchange& exchange, Bytes data) {
  exchange.transport().board()->Show(exchange.record().sequence, exchange.record().Fingerprint(),
                                     data);
}

bool AgreeAtOnce(Exchange& exchange) {
  Board& board = *exchange.transport().board();
  const std::uint64_t number = exchange.record().sequence;
  bool all = AllShown(board, number);
  for (int spin = 0; spin < (board.crowded() ? 1 : kSpins) && !all; ++spin) {
    _mm_pause();
    all = AllShown(board, number);
  }
  return all && OtherFingerprint(board, number) < 0;
}

Status AwaitAgreement(Exchange& exchange) {
  if (AgreeAtOnce(exchange)) {
    return {};
  }
  Board& board = *exchange.transport().board();
  const std::uint64_t number = exchange.record().sequence;
  COHORT_RETURN_IF_ERROR(
      exchange.AwaitPeers([&](int p) { return board.Look(p, number) != nullptr; }));
  const int other = OtherFingerprint(board, number);
  return other < 0 ? Status() : exchange.AwaitDisagreement(other);
}

Status FinishOneShot(Exchange& exchange, MutableBytes data, const Reduction* reduction) {
  COHORT_RETURN_IF_ERROR(AwaitAgreement(exchange));
  return CombineShown(exchange, data, reduction);
}

Status Overtaken(Exchange& exchange) {
  return Aborted(exchange.record().Numbered() +
                 ": another rank went on, after an operation that was given up, before what it "
                 "showed for this one was read");
}

Status CombineShown(Exchange& exchange, MutableBytes data, const Reduction* reduction) {
  Board& board = *exchange.transport().board();
  const std::uint64_t number = exchange.record().sequence;
  board.Fetch(number, data.size());
  if (reduction == nullptr) {
    return {};
  }
  exchange.transport().Count(data.size(), data.size() * static_cast<std::size_t>(board.size() - 1));
  std::array<const std::byte*, kMostRanks> sources;
  for (int p = 0; p < board.size(); ++p) {
    const std::byte*& source = sources[static_cast<std::size_t>(p)];
    source = data.data();
    if (p != board.rank()) {
      const BoardSlot* const slot = board.Look(p, number);
      if (slot == nullptr) {
        return Overtaken(exchange);
      }
      source = slot->Place(data.size());
    }
  }
  if (board.size() == 2) {
    reduction->Combine(data.data(), sources[0], sources[1], data.size());
  } else {
    CombineCanonically(*reduction, data.data(),
                       std::span(sources).first(static_cast<std::size_t>(board.size())),
                       data.size());
  }
  reduction->Finish(data.data(), data.size(), exchange.size());
  return board.StillShown(number) ? OkStatus() : Overtaken(exchange);
}

}  // namespace cohort
