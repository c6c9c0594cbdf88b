// RowStore: one server's part of the sparse tables of a model, and what frames do to it. No
// network: frames come in decoded, results go out as values.
//
// A frame is of one table, or has blocks of several (row_frames.h), and is checked as a whole
// before it has an effect: what is wrong with it comes back as an Error that names the table.
// Pushes have their effect once for each (client, sequence). A frame with an id whose bucket is not
// here (bucket_places.h) has none, of no block, and says where the bucket is.
//
// Thread rules: all methods from any thread. Until Declare every frame is NOT_READY.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/strategies/table_counts.h>

#include "parameter_server/frames/frame.h"
#include "parameter_server/frames/payload.h"
#include "parameter_server/rows/bucket_places.h"
#include "parameter_server/rows/row_rounds.h"
#include "parameter_server/rows/row_table.h"
#include "parameter_server/variables/push_ledger.h"

namespace cohort::ps {

// Of one id, its count and its row must fit in a frame.
inline constexpr std::int64_t kMaxRowFloats =
    kMaxPayloadBytes / static_cast<std::int64_t>(sizeof(float)) - 3;

struct RowStoreStats {
  std::uint64_t pulls = 0;   // frames, as the next ones
  std::uint64_t pushes = 0;  // applied
  std::uint64_t duplicates = 0;
  std::uint64_t rejected = 0;
  std::uint64_t rows = 0;
  std::uint64_t row_bytes = 0;  // of snapshots, too
};

class RowStore {
 public:
  // `log`: is told of the first gradient of a table that is skipped (TableCounts::skipped).
  explicit RowStore(int server, Log log = Log()) : server_(server), log_(std::move(log)) {}

  // The first call makes the tables; later ones do nothing: that they say the same is the caller's
  // business (ModelSpec::Compare), as `fingerprint` is. `elects`: rounds are with backup workers.
  // InvalidArgument: a table that is none.
  Status Declare(const std::vector<TableSpec>& tables, int servers, std::uint64_t fingerprint,
                 bool elects = false);

  // As Declare has left it, but for the clients that were retired. Nothing else may run.
  Status Reset();
  // All stays but snapshots, and what is known of dumps that are on their way.
  void Stay();
  PushLedger& pushes() { return ledger_; }
  // Rounds that are not applied, for another server that gets the part (row_rounds.h).
  RowRounds& rounds() { return rounds_; }

  // A pull in two steps, so that the caller owns the memory: what it asks for, and the rows.
  struct Reading {
    struct Block {
      RowTable* table = nullptr;
      const BucketPlaces* places = nullptr;
      std::vector<std::uint64_t> ids;
      std::int64_t step = 1;
      bool training = false;
      std::size_t floats() const;
    };
    std::vector<Block> blocks;
    std::size_t floats() const;  // of memory that the rows take as they travel
  };
  Error Plan(const FrameHeader& header, PayloadReader payload, Reading* reading);
  // A bucket of the frame's block `block` that is not here, and where it is.
  struct Elsewhere {
    std::size_t block = 0;
    std::uint32_t bucket = 0;
    std::uint32_t server = 0;
    bool operator==(const Elsewhere&) const = default;
  };
  // In the order of the blocks. Where this is not empty afterwards the call had no effect.
  using Moved = std::vector<Elsewhere>;
  // `to`: of floats(), one block's rows after the other's. Where rows must be there, all of them
  // are looked for before one is made, or marked as used.
  Error Pull(const Reading& reading, std::span<float> to, Moved* moved);

  // Is what a pull asks for there? NOT_YET at the deadline where rounds are missing.
  Error Admit(const FrameHeader& header, Deadline deadline);

  // All blocks, or none; but where memory ends halfway some rows have their update, and a
  // repetition gets the same answer.
  Error Push(const FrameHeader& header, PayloadReader payload, Moved* moved);
  // Clients, from `first` to `last`, that were given up: they make and change no row from now on.
  // False: a push of theirs is still being applied at the deadline; to be asked again.
  bool Retire(std::uint64_t first, std::uint64_t last, Deadline deadline) {
    return ledger_.Retire(first, last, deadline);
  }

  // As RowTable's, of all tables, between two rounds; 0: none any more. Repeated, it does nothing.
  // `step`: the last one, at whose end rows went (RowTable::EvictWhenDue), also where no frame told
  // this server of it; 0: not known.
  Error Freeze(std::uint64_t layout, std::uint64_t snapshot, std::uint64_t step = 0);
  std::uint64_t kept_bytes() const;

  // Pieces of dumps from header.buckets[0] on, before header.until, and of neighbours that are
  // here; at most a frame of them, described and in bytes. `moved`: the first is not here.
  Error Dump(const FrameHeader& header, std::vector<BucketPiece>* pieces, std::string* bytes,
             Moved* moved);
  // Restore and Move: a client sends the next request when the one before is answered, and numbers
  // them (header.sequence). One that is not later than the last has been carried out, or given up:
  // it has no effect, whenever it arrives.
  //
  // Replaces buckets. The pieces of one bucket come one after the other. With header.adopt the
  // bucket is here from then on; nothing happens to one that is already.
  Error Restore(const FrameHeader& header, PayloadReader payload);
  // A step of a bucket's way to another server; not while there is a snapshot, nor where there are
  // rounds. From GIVE to DROP or KEEP its dump is here in memory besides.
  Error Move(const FrameHeader& header);
  // The table's buckets that are here, and the gradients that each took, into the reply's header.
  Error Loads(const FrameHeader& header, FrameHeader* reply) const;

  RowStoreStats stats() const;
  // Of each table, in the order of the model; none before Declare. Takes no locks.
  std::vector<TableCounts> counts() const;

 private:
  // Who restores and moves buckets.
  struct Carrier {
    std::uint64_t sequence = 0;  // of the last request
    Error answer;                // to it
    // What has come so far of a bucket.
    std::uint32_t table = 0;
    std::uint32_t bucket = 0;
    std::string bytes;
  };
  // A bucket between GIVE and DROP, or KEEP.
  struct Leaving {
    std::shared_ptr<const std::string> dump;  // and those who send it
    std::uint32_t crc32c = 0;
  };

  void Thaw();
  // A block of a push, read.
  struct Update {
    RowTable* table = nullptr;
    const BucketPlaces* places = nullptr;
    std::vector<std::uint64_t> ids;
    std::vector<std::uint32_t> counts;
    std::vector<float> copy;             // of the values, unless they are used where they lie
    std::vector<std::uint32_t> updates;  // as they travel beside these (late_rows.h)
    std::vector<float> pulled;           // as `copy`
    RowTable::Gradients gradients;
  };

  // What happened to a table's rows, whatever becomes of the table (Reset).
  struct Tally {
    explicit Tally(std::string of) : name(std::move(of)) {}
    const std::string name;
    const std::shared_ptr<RowLosses> losses = std::make_shared<RowLosses>();
    std::atomic<std::uint64_t> refused{0};
  };

  Error Find(const FrameHeader& header, RowTable** table) const;
  Error FindTable(const RowBlock& block, RowTable** table) const;
  Error CheckBlocks(bool push, const FrameHeader& header, const PayloadReader& payload,
                    std::vector<RowTable*>* tables) const;
  Error CheckBlock(const RowBlock& block, std::uint64_t left, bool last, std::uint64_t bytes,
                   const RowTable& table) const;
  Error CheckPiece(const RowTable& table, const BucketPiece& piece) const;
  Error Once(const FrameHeader& header, const std::function<Error(Carrier&)>& request);
  Error RestorePieces(const FrameHeader& header, PayloadReader payload, RowTable& table,
                      Carrier& carrier);
  Error Step(const FrameHeader& header, RowTable& table);
  Leaving LeavingAs(std::uint32_t table, std::uint32_t bucket);
  Error PushTo(std::span<RowTable* const> tables, const FrameHeader& header, PayloadReader& payload,
               Moved* moved);
  Status AddToRound(const FrameHeader& header, std::span<Update> updates);
  void MakePlaces();
  Result<std::unique_ptr<RowTable>> MakeTable(const TableSpec& spec, const Tally& tally) const;
  BucketPlaces& PlacesOf(const RowBlock& block) const { return *places_[block.table()]; }
  BucketPlaces& PlacesOf(const FrameHeader& header) const { return PlacesOf(header.rows()); }

  const int server_;
  const Log log_;
  std::mutex declare_mutex_;
  // Set once by Declare, published by `declared_`.
  std::vector<std::unique_ptr<RowTable>> tables_;
  std::vector<std::unique_ptr<BucketPlaces>> places_;  // of each table
  std::vector<std::unique_ptr<Tally>> tallies_;        // likewise
  int servers_ = 1;
  std::uint64_t fingerprint_ = 0;
  std::atomic<bool> declared_{false};

  std::atomic<std::uint64_t> snapshot_{0};
  std::mutex snapshots_mutex_;
  // The chief's number of a snapshot, and the tables'; the last ones. Under the mutex.
  std::map<std::uint64_t, std::uint32_t> snapshots_;
  std::mutex moves_mutex_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Leaving> leaving_;  // by table and bucket
  std::atomic<bool> had_rounds_{false};
  bool elects_ = false;  // with backup workers; as tables_
  RowRounds rounds_;
  PushLedger ledger_;
  std::mutex carriers_mutex_;                  // before moves_mutex_
  std::map<std::uint64_t, Carrier> carriers_;  // by client
  std::atomic<std::uint64_t> pulls_{0};
  std::atomic<std::uint64_t> pushes_{0};
  std::atomic<std::uint64_t> duplicates_{0};
  std::atomic<std::uint64_t> rejected_{0};
};

}  // namespace cohort::ps
