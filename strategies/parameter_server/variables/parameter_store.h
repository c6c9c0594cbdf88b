// ParameterStore: one server's chunks, their optimizer slots, and what is done to them. No network:
// frames come in decoded, results go out as values.
//
// A chunk has a lock and a version, the number of updates applied to it. Every frame is checked as
// a whole before any of it has an effect, so a rejected frame changes nothing, but for the commit
// of an earlier round that it may bring, which stands by itself.
//
// Thread rules: all methods from any thread. Declare before everything else; until every chunk has
// been assigned, Read and Apply answer NOT_READY.

#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>
#include <cohort/optim/optimizer.h>
#include <cohort/optim/server_side.h>
#include <cohort/strategies/consistency.h>
#include <cohort/strategies/table_counts.h>

#include "parameter_server/frames/frame.h"
#include "parameter_server/frames/payload.h"
#include "parameter_server/model/layout.h"
#include "parameter_server/variables/block_round.h"
#include "parameter_server/variables/clock_table.h"
#include "parameter_server/variables/push_ledger.h"

namespace cohort::ps {

struct StoreStats {
  std::uint64_t pushes = 0;  // frames applied
  std::uint64_t duplicates = 0;
  std::uint64_t rejected = 0;
  std::uint64_t updates = 0;  // of chunks
  double mean_staleness = 0;  // updates by others between a gradient's pull and its push
  std::uint64_t max_staleness = 0;
  std::uint64_t late = 0;           // parts of rounds, by chunk, that came too late to count
  std::uint64_t parked = 0;         // reads that waited until they were fresh
  std::uint64_t max_lead = 0;       // steps that a worker was ahead of the slowest when it read
  std::vector<TableCounts> tables;  // a client's: of the servers' RowStores
};

// InvalidArgument: an option of the server side that needs single pushes, where there are rounds.
Status CheckServerSide(const Optimizer& optimizer, const Consistency& consistency);
// Do pushes carry the values that they were computed from? Behind each trainable chunk's gradient,
// as float32: where gradients are compensated and another server has a copy, which nobody pulls
// from. There no server keeps what it gave.
bool CarriesBase(const ModelSpec& spec);

class ParameterStore {
 public:
  explicit ParameterStore(int server) : server_(server) {}

  // The first call says what the model is; later ones are compared. `who` sends it.
  Status Declare(const ModelSpec& spec, const std::string& who);
  bool ready() const { return unassigned_.load(std::memory_order_acquire) == 0; }

  // As Declare has left it, but for the clients that were retired. Returns the least version that
  // the chunks had. Nothing else may run.
  std::uint64_t Reset();
  // All stays but snapshots. The same return, and rule.
  std::uint64_t Stay();
  PushLedger& pushes() { return ledger_; }
  // For another server that gets the part: what is known of workers' clocks, and that it is what
  // another store knew. So it is with rounds, all but what their parts hold; and with that.
  // Nothing else runs. BAD_FRAME: there is no such round, or no such part of it; or what a part
  // holds is of another length than its chunk.
  void TellClocks(ClockTable::Clocks* clocks) const;
  void LearnClocks(const ClockTable::Clocks& clocks);
  void TellRounds(Rounds* rounds) const;
  Error LearnRounds(const Rounds& rounds);
  Error TellPiece(const RoundPiece& asked, RoundPiece* piece) const;
  Error LearnPiece(const RoundPiece& piece);

  // What is wrong with a frame, or kind NONE.
  Error Assign(const FrameHeader& header, PayloadReader payload);
  struct Pushed {
    std::uint64_t staleness = 0;  // the greatest of the frame's chunks
    bool late = false;            // a round was over: the part has no effect
  };
  // At most once for each (client, sequence): a repetition has no effect.
  Error Push(const FrameHeader& header, PayloadReader payload, Pushed* pushed);

  // What a pull asks for beside values: a round's commit is applied, and a bounded read waits until
  // it is fresh; NOT_YET at the deadline.
  Error Admit(const FrameHeader& header, Deadline deadline);
  std::uint64_t Enter(const FrameHeader& header);
  void Pause(const FrameHeader& header);
  // Nothing more of the clients from `first` to `last` is taken: FENCED. False: a push of theirs is
  // still being applied at the deadline; to be asked again.
  bool Retire(std::uint64_t first, std::uint64_t last, Deadline deadline);
  bool Retire(std::uint64_t client, Deadline deadline = DeadlineAfter(PushLedger::kPatience)) {
    return Retire(client, client, deadline);
  }

  // Under synchronous application with clipping a round that is complete waits for its factor.
  // FailedPrecondition: not all parts are there, or the rounds are others.
  struct Norms {
    std::vector<int> chunks;  // the trainable ones
    std::vector<double> squares;
    double weight = 0;
  };
  Result<Norms> RoundNorms(std::uint64_t layout, std::uint64_t round, const Commit& commit);
  Status Settle(std::uint64_t layout, std::uint64_t round, double factor);

  // A snapshot: what is read with its number is as it is now. The first change of a chunk from now
  // on copies it aside, with its slots. 0: none any more; repeated, it does nothing. Returns the
  // least version of the chunks; the greatest number where there are none.
  Result<std::uint64_t> Freeze(std::uint64_t layout, std::uint64_t snapshot);
  std::uint64_t kept_bytes() const { return kept_bytes_; }  // of copies

  struct Reading {
    int chunk;
    std::uint64_t version;
    std::uint64_t snapshot;  // of which it is; 0: of none
    std::size_t floats;      // as it travels, in units of 4 bytes; with slots, where asked for
  };
  // The chunks of a pull (or of a push with `pull`) that are new enough, with their sizes; copied
  // by Copy, which sets the version that was copied. Two steps, so that the caller owns the memory.
  Error Plan(const FrameHeader& header, std::vector<Reading>* readings) const;
  // `wire`: as FrameHeader::pull_wire. False: a value is too large for it. `client`: whose
  // gradients will be computed from it, or 0.
  bool Copy(Reading& reading, bool slots, std::span<float> to, DType wire = DType::kFloat32,
            std::uint64_t client = 0);
  std::uint64_t version(int chunk) const;
  std::uint64_t LeastVersion() const;  // as Freeze's

  StoreStats stats() const;
  // The parameter that a chunk is part of; for messages.
  std::string NameOf(int chunk) const;

 private:
  // What a client was given last, where gradients are compensated for what has moved since.
  struct Pulled {
    std::uint64_t version = 0;
    std::vector<float> values;
  };
  struct Block {
    Chunk chunk;
    mutable std::mutex mutex;
    // Below: under `mutex`.
    std::vector<float> value;
    std::vector<std::vector<float>> slots;
    std::uint64_t version = 0;
    bool assigned = false;
    std::map<std::uint64_t, Pulled> pulled;  // by client
    BlockRound round;                        // synchronous
    // As it was at that snapshot; null: as it is.
    std::uint64_t snapshot = 0;
    struct Image {
      std::vector<float> value;
      std::vector<std::vector<float>> slots;
      std::uint64_t version = 0;
    };
    std::unique_ptr<const Image> image;
  };
  // Before value, slots or version change.
  void Keep(Block& block);
  void Thaw();
  Error Check(const FrameHeader& header) const;
  // The floats of a push that holds other ones, in memory of this thread's.
  Error Decode(const FrameHeader& header, PayloadReader* payload) const;
  Error CheckPush(const FrameHeader& header, const PayloadReader& payload) const;
  // The staleness of the gradient.
  std::uint64_t ApplyAsynchronous(Block& block, const FrameHeader& header, std::uint64_t base,
                                  PayloadReader& payload);
  // The commit that a frame brings, to its chunks.
  Error ApplyCommit(const FrameHeader& header);
  // The part that a piece is of; null: there is none.
  Block* Holder(const RoundPiece& piece) const;
  // Whether the part may still count.
  bool ApplyPart(Block& block, const FrameHeader& header, PayloadReader& payload);
  Status Apply(Block& block, const Commit& commit);
  void Complete(Block& block);
  void Finish(Block& block, double factor);
  Status CheckRound(const Block& block, std::uint64_t round) const;
  // Of a gradient that was computed from `pulled`, if that is known, `staleness` updates ago.
  void Update(Block& block, PayloadReader& gradient, float scale,
              std::span<const float> pulled = {}, std::uint64_t staleness = 0);
  bool compensates() const {
    return server_side_ != nullptr && server_side_->options().delay_compensation > 0;
  }
  // Of a chunk's values behind its gradient in a push.
  std::size_t BaseFloats(const Block& block) const {
    return carries_ && block.chunk.trainable ? block.value.size() : 0;
  }
  Block* Find(std::uint32_t chunk) const;
  std::string NameOf(const Block& block) const;

  const int server_;
  mutable std::mutex declare_mutex_;
  // Set once by Declare, published by `declared_`.
  ModelSpec spec_;
  std::uint64_t fingerprint_ = 0;
  std::unique_ptr<Optimizer> optimizer_;
  const ServerSideOptimizer* server_side_ = nullptr;  // optimizer_, if it has such options
  bool rounds_ = false;                               // synchronous
  bool carries_ = false;                              // CarriesBase
  bool elects_ = false;                         // a round is applied when a commit names its parts
  bool clips_ = false;                          // rounds wait for a factor
  std::unique_ptr<ClockTable> clocks_;          // under bounded staleness
  std::vector<std::unique_ptr<Block>> blocks_;  // by chunk; null: another server's
  std::atomic<bool> declared_{false};
  std::atomic<std::int64_t> unassigned_{1};

  std::atomic<std::uint64_t> snapshot_{0};
  std::atomic<std::uint64_t> kept_bytes_{0};
  PushLedger ledger_;

  mutable std::mutex stats_mutex_;
  StoreStats stats_;
  std::uint64_t staleness_sum_ = 0;
  std::uint64_t staleness_count_ = 0;
};

}  // namespace cohort::ps
