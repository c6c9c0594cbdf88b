// What rounding takes of the gradients of rows is added to the worker's next ones (error feedback):
// TableSpec::wire_feedback.
//
// Thread rules: one thread at a time.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <cohort/core/status.h>

#include "parameter_server/frames/wire.h"
#include "parameter_server/model/layout.h"
#include "parameter_server/model/table_spec.h"
#include "parameter_server/rows/row_client.h"

namespace cohort::ps {

// The residuals of one table: by id a row of floats, as much as the server would have applied.
//
// For n rows of dim d, n at most wire_feedback: 4 d bytes each in blocks that never move, 16 of
// list and 8 to 16 of index (up to as much again of list where it has just grown), and 4 d + 12
// bytes for each id of the greatest push. Encode and Settle take O(d) an id, and allocate nothing
// once the table is full, or its ids are known.
class RowResiduals {
 public:
  // ContractError unless the table has feedback, and a format that rounds.
  explicit RowResiduals(const TableSpec& spec);

  // Of one push, each id once in all of it. Adds to the sums [n, dim] what is kept of their ids,
  // and encodes them into `to` (EncodedBytes of n rows); what that takes is staged. `weight` and
  // `counts`: what the server divides by; where that leaves nothing of a gradient, or it is not
  // finite, its residual stays as it is. The first row that the format cannot hold.
  std::optional<std::size_t> Encode(std::span<const std::uint64_t> ids,
                                    std::span<const std::uint32_t> counts, double weight,
                                    std::span<float> sums, std::span<std::byte> to);
  // The push counts: what is staged takes the place of what was kept of its ids. A row of zeros
  // takes no room; where there is none left, the ids that were pushed least recently are dropped,
  // of one push those first that were there before it.
  void Settle();
  // It does not: all is as it was before it.
  void Forget();

  RowClient::Residuals stats() const;

 private:
  static constexpr std::uint32_t kNone = 0xFFFFFFFF;
  struct Slot {
    std::uint64_t id;
    std::uint32_t newer;
    std::uint32_t older;  // of a free one: the next that is free
  };

  bool EncodeRow(std::uint64_t id, float scale, std::span<float> sum, std::span<std::byte> to);
  std::span<const float> StagedRow(std::size_t i) const {
    return std::span(staged_).subspan(i * dim_, dim_);
  }
  std::uint32_t Insert(std::uint64_t id);  // the most recent; its row is to be filled
  void Remove(std::size_t at);
  void Link(std::uint32_t slot);
  void Unlink(std::uint32_t slot);
  void Grow();
  std::size_t Home(std::uint64_t id) const { return HashId(id) & (index_.size() - 1); }
  std::size_t Next(std::size_t at) const { return (at + 1) & (index_.size() - 1); }
  // Where it is in the index, or would be.
  std::size_t Find(std::uint64_t id) const {
    std::size_t at = Home(id);
    while (index_[at] != kNone && slots_[index_[at]].id != id) {
      at = Next(at);
    }
    return at;
  }
  std::span<float> RowOf(std::uint32_t slot) const {
    const std::size_t in_block = slot & ((std::uint32_t{1} << block_bits_) - 1);
    return {blocks_[slot >> block_bits_].get() + in_block * dim_, dim_};
  }

  const TableSpec::Wire wire_;
  const std::size_t dim_;
  const bool mean_of_occurrences_;
  const std::uint64_t most_;          // rows
  const int block_bits_;              // log2 of the rows in a block
  std::vector<std::uint32_t> index_;  // slots by id; open addressing, at most half full
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<float[]>> blocks_;
  std::uint32_t newest_ = kNone;
  std::uint32_t oldest_ = kNone;
  std::uint32_t free_ = kNone;
  std::uint64_t size_ = 0;
  std::uint64_t dropped_ = 0;
  std::vector<std::uint64_t> staged_ids_;
  std::vector<float> staged_;         // [staged_ids_, dim]
  std::vector<std::uint32_t> fresh_;  // of them, while they are settled, those without a slot
  std::vector<float> row_;            // of Encode
};

// The residuals of a process's tables, and which of its pushes count: those that succeed; of a
// round, the last attempt; with backup workers, a part that is elected. One that is sent again,
// where that may be, is made of the same residuals as at first, so it is the same bytes.
class RowFeedback {
 public:
  // `comes_again`: as ClientOptions has it; so it is where there are copies.
  explicit RowFeedback(const ModelSpec& model, bool comes_again = false);

  // Null: the table has none.
  RowResiduals* Of(int table) const { return tables_[static_cast<std::size_t>(table)].get(); }

  // A push begins. `numbers`: of the pushes before it, by server; `part`: null where it is none.
  void Begin(std::span<const std::uint64_t> numbers, const RowClient::Part* part);
  // It has ended.
  void End(const Status& status);
  void Elected(const Commit& commit);

  RowClient::Residuals stats() const;

 private:
  void Conclude(bool counts);

  bool elects_;
  bool comes_again_;
  bool any_ = false;
  std::vector<std::unique_ptr<RowResiduals>> tables_;
  bool open_ = false;  // a push that has ended may still come again, or not count
  std::vector<std::uint64_t> numbers_;
  RowClient::Part part_;  // round 0: none
};

}  // namespace cohort::ps
