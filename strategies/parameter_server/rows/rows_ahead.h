// RowsAhead: rows of batches that are trained on next, from the pull until their batch is over.
//
// A step takes of them what its lookups ask for. What this process itself has pushed for a row
// since it was pulled is in it: rows of which it pushes gradients are pulled again, each once,
// however many batches have them. What others have pushed since is not.
//
// Not synchronised, but an Exchange runs beside all of it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <cohort/optim/row_source.h>
#include <cohort/optim/table_spec.h>

#include "parameter_server/frames/frame_stream.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_lookahead.h"

namespace cohort::ps {

class RowsAhead {
  struct Rows {
    int table = 0;
    bool training = false;  // RowClient::Lookup
    std::vector<std::uint64_t> ids;
    // Of TakeOnce: of each id that is asked for, in `ids`, which are different. Else empty.
    std::vector<std::int32_t> places;
    std::vector<std::uint32_t> updates;  // of each, where the table has that (late_rows.h)
    FloatBuffer values;
    bool there = false;  // they have been pulled
  };
  // A row that is held goes where it is held.
  struct Copy {
    Rows* to = nullptr;
    std::size_t place = 0;  // there
    std::size_t from = 0;
  };
  struct Refresh {
    Rows rows;  // each id once
    std::vector<Copy> copies;
  };

 public:
  explicit RowsAhead(const std::vector<TableSpec>& tables);

  struct Batch {
    std::uint64_t number = 0;  // no two that are held at the same time have the same
    RowLookahead::Lookups lookups;
  };
  // By table, ids of rows of which this process has pushed gradients; empty: none of any.
  using Pushed = std::vector<std::vector<std::uint64_t>>;

  // One call for rows: pulled by Run, and held from Keep on.
  class Exchange {
   public:
    // Pulls them, all in one call, for the lookups of `step`. Of a table that evicts it marks them
    // as used at that step, and makes missing ones, as the lookup would: until their gradient comes
    // they are the last to go. Of others a batch that is never trained on leaves no trace. An error
    // is that of the lookup, if it comes to that.
    void Run(RowClient& client, std::int64_t step);

   private:
    friend class RowsAhead;
    std::uint64_t batch_ = 0;
    std::vector<Rows> rows_;
    std::vector<Refresh> again_;  // by table
  };

  // What is held of other batches than these, which come next in this order, is dropped. The calls
  // that are to be made for them, to be kept one after the other: the first has what was `pushed`
  // since the last Plan, and the lookups of the first batch; until it is kept nothing is to be
  // taken.
  std::vector<Exchange> Plan(std::span<const Batch> batches, const Pushed& pushed);
  void Keep(Exchange exchange);
  // All of these calls.
  void Fetch(RowClient& client, std::span<const Batch> batches, const Pushed& pushed,
             std::int64_t step);

  bool Holds(std::uint64_t number) const;
  // The rows of a lookup of a batch, where they are held; gradients will be computed from them, as
  // `client` is told.
  bool Take(RowClient& client, std::uint64_t number, int table, std::span<const std::uint64_t> ids,
            std::span<float> rows);
  // The same for RowSource::LookupOnce. Once it was called for a table, that one's rows are pulled
  // for it.
  bool TakeOnce(RowClient& client, std::uint64_t number, int table,
                std::span<const std::uint64_t> ids, RowsOnce& once);
  void Forget();
  // The same, and their memory with them; needs none.
  void Drop() { held_.clear(); }

  std::int64_t taken() const { return taken_; }          // lookups
  std::int64_t refreshed() const { return refreshed_; }  // rows that were pulled again

 private:
  struct Held {
    std::uint64_t number = 0;
    std::vector<Rows> rows;
  };
  struct Table {
    std::size_t dim = 0;
    bool evicts = false;
    bool late = false;
    bool once = false;        // lookups are for each row once
    std::vector<Rows> spare;  // memory that is kept
  };

  Held* Find(std::uint64_t number);
  const Rows* Find(std::uint64_t number, int table, std::span<const std::uint64_t> ids) const;
  Rows NewRows(int table, std::vector<std::uint64_t> ids);
  Rows NewLookup(int table, std::span<const std::uint64_t> ids);
  void Used(RowClient& client, const Rows& rows);
  void Spare(Rows rows);
  void AddRefresh(int table, std::span<const std::uint64_t> pushed, Exchange* exchange);
  void CopyTo(const Refresh& again);
  void Drop(int table);

  std::vector<Table> tables_;
  std::vector<Held> held_;
  std::int64_t taken_ = 0;
  std::int64_t refreshed_ = 0;
};

}  // namespace cohort::ps
