// ParameterStore: what another server must know of clocks and rounds that gets the part. Values,
// slots and versions it gets by frames.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "parameter_server/frames/frame.h"
#include "parameter_server/frames/weight.h"
#include "parameter_server/variables/parameter_store.h"

namespace cohort::ps {
namespace {

bool IsSound(const ChunkRound& round, bool clips) {
  return round.parts_size() <= kMaxParts && (!round.waits() || clips) &&
         std::isfinite(round.squares()) && IsWeight(round.weight()) &&
         std::ranges::all_of(round.parts(),
                             [](const PartOfRound& part) { return IsWeight(part.weight()); });
}

}  // namespace

void ParameterStore::TellClocks(ClockTable::Clocks* clocks) const {
  if (declared_.load(std::memory_order_acquire) && clocks_ != nullptr) {
    clocks_->Tell(clocks);
  }
}

void ParameterStore::LearnClocks(const ClockTable::Clocks& clocks) {
  if (declared_.load(std::memory_order_acquire) && clocks_ != nullptr) {
    clocks_->Learn(clocks);
  }
}

void ParameterStore::TellRounds(Rounds* rounds) const {
  if (!declared_.load(std::memory_order_acquire) || !rounds_) {
    return;
  }
  for (std::size_t c = 0; c < blocks_.size(); ++c) {
    if (blocks_[c] != nullptr) {
      const std::lock_guard lock(blocks_[c]->mutex);
      ChunkRound* const told = rounds->add_chunks();
      told->set_chunk(static_cast<std::uint32_t>(c));
      blocks_[c]->round.Tell(told);
    }
  }
}

Error ParameterStore::LearnRounds(const Rounds& rounds) {
  if (!declared_.load(std::memory_order_acquire)) {
    return MakeError(Error::NOT_READY, "no model has been declared");
  }
  for (const ChunkRound& told : rounds.chunks()) {
    if (Find(told.chunk()) == nullptr || !rounds_ || !IsSound(told, clips_)) {
      return MakeError(Error::BAD_FRAME, "a round of " + std::to_string(told.parts_size()) +
                                             " parts of chunk " + std::to_string(told.chunk()));
    }
  }
  for (const ChunkRound& told : rounds.chunks()) {
    Block& block = *blocks_[told.chunk()];
    const std::lock_guard lock(block.mutex);
    block.round.Learn(told);
  }
  return {};
}

ParameterStore::Block* ParameterStore::Holder(const RoundPiece& piece) const {
  Block* const block = declared_.load(std::memory_order_acquire) ? Find(piece.chunk()) : nullptr;
  return piece.piece() == 0 ? block : nullptr;
}

Error ParameterStore::TellPiece(const RoundPiece& asked, RoundPiece* piece) const {
  const Block* const block = Holder(asked);
  const std::unique_lock lock =
      block == nullptr ? std::unique_lock<std::mutex>() : std::unique_lock(block->mutex);
  if (block == nullptr || asked.part() >= block->round.parts()) {
    return MakeError(Error::BAD_FRAME, "no part " + std::to_string(asked.part()) +
                                           " of the round of chunk " +
                                           std::to_string(asked.chunk()));
  }
  const std::span<const float> values = block->round.ValuesOf(asked.part());
  *piece = asked;
  piece->mutable_values()->Assign(values.begin(), values.end());
  return {};
}

Error ParameterStore::LearnPiece(const RoundPiece& piece) {
  Block* const block = Holder(piece);
  const std::unique_lock lock =
      block == nullptr ? std::unique_lock<std::mutex>() : std::unique_lock(block->mutex);
  if (block == nullptr || piece.part() >= block->round.parts() ||
      static_cast<std::size_t>(piece.values_size()) != block->value.size() ||
      !std::ranges::all_of(piece.values(), [](float x) { return std::isfinite(x); })) {
    return MakeError(Error::BAD_FRAME, std::to_string(piece.values_size()) + " values of part " +
                                           std::to_string(piece.part()) + " of chunk " +
                                           std::to_string(piece.chunk()));
  }
  block->round.SetValues(piece.part(), std::span(piece.values().data(), block->value.size()));
  return {};
}

}  // namespace cohort::ps
