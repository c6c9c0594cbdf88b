// Client: one process's connections to all servers, and its place in the arena of parameters.
//
// Values and gradients are arenas laid out as ParameterSet::all(); the client cuts them into frames
// and has several of them under way at a time. A call that fails for want of a connection is
// repeated, with the same sequence number, until the server has been silent for `peer_timeout`;
// then the error is Unavailable and names the server. So it is where a server has been replaced, or
// rolled back, since: a client is of one epoch.
//
// Thread rules: one thread calls; Abort from any.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/strategies/strategy.h>

#include "parameter_server/frames/frame_address.h"
#include "parameter_server/model/layout.h"
#include "parameter_server/variables/parameter_store.h"

namespace cohort::ps {

class FrameMemory;  // frames/frame_memory.h

struct ClientOptions {
  std::uint64_t client = 1;  // this process: never another, nor its successor
  std::string task;          // "worker:1", for messages
  std::uint64_t epoch = 0;   // of the servers' values; those of another are Unavailable
  std::chrono::milliseconds peer_timeout{10'000};
  // How long a read may wait, under bounded staleness, for workers that are behind.
  std::chrono::milliseconds read_timeout{120'000};
  // How gradients travel, and what Pull, PullForStep and Push bring. What rounding takes of a
  // gradient is added to this client's next one.
  ServerWire wire;
  FrameTransport transport = FrameTransport::kAuto;
  // Of Client: gradients that lie there are not copied on the way to servers of this host.
  std::shared_ptr<FrameMemory> memory;
  // A push may come again from the client after this one (TakeOver), also one that has succeeded.
  bool comes_again = false;
  // Where pushes go on being numbered, by server; empty: at 1. Of Client, and of RowClient.
  std::vector<std::uint64_t> pushes;
  std::vector<std::uint64_t> row_pushes;
};

// A gradient, laid out as the arena. Where a chunk is not trainable it holds, instead, the
// difference by which the value moves (asynchronous) or the new value (synchronous).
struct Gradient {
  std::span<const float> arena;
  double weight = 1;           // what the gradient is divided by; under rounds, of this part
  double clip = 1;             // and multiplied by; asynchronous only
  std::optional<Round> round;  // synchronous application only
  Commit commit;               // where servers elect: of the round before; 0: of none
};

class Client {
 public:
  virtual ~Client() = default;

  virtual const std::vector<Chunk>& chunks() const = 0;
  // Tells every server what the model is; FailedPrecondition where one knows another.
  virtual Status Declare() = 0;
  // The chief's: begins the client's epoch on every server, which is NOT_READY until all is
  // assigned; nothing of the clients `retired`, the first and the last of each range, is taken in
  // it. Returns the greatest version that a server had until then.
  virtual Result<std::uint64_t> Begin(std::span<const std::uint64_t> retired) = 0;
  // The same, but servers that have values keep them. `version`: the greatest of those that do.
  struct Kept {
    std::uint64_t version = 0;
    std::vector<int> without;         // servers that have none
    std::vector<int> without_a_copy;  // where the model has copies: of their parts
  };
  virtual Result<Kept> BeginKeeping(std::span<const std::uint64_t> retired) = 0;
  // Sets every chunk, with slots unless `slots` is empty, to `version`.
  virtual Status Assign(std::span<const float> values, std::span<const std::span<float>> slots,
                        std::uint64_t version) = 0;
  // The same of these servers' chunks.
  virtual Status AssignTo(std::span<const int> servers, std::span<const float> values,
                          std::span<const std::span<float>> slots, std::uint64_t version) = 0;
  // Where the model has copies: what server `server` has, or the copy of it, as the other has it.
  // First rows (RowClient::CopyPart), then which pushes that had, the workers' clocks and what has
  // come of rounds that are not applied; values last: with them the part counts as there. Nobody
  // pushes meanwhile. Cost: the bytes of all that, twice through this process.
  enum class Mend { kServer, kCopy };
  virtual Status CopyPart(int server, Mend which) = 0;
  virtual Status CopyPushes(int server, Mend which) = 0;
  // Brings the chunks that are newer than this client's last copy; or all of them.
  virtual Status Pull(std::span<float> values, bool everything) = 0;
  // The same for a worker's step: under bounded staleness when they are fresh (clock_table.h),
  // where servers elect (ModelSpec::elects) after `commit` has been applied.
  virtual Status PullForStep(std::span<float> values, const Commit& commit) = 0;
  virtual Status PullState(std::span<float> values, std::span<const std::span<float>> slots) = 0;
  // Between two updates: has all servers keep what they have now, under this number, which is not
  // used again in the epoch; that is what PullState brings until Thaw, whatever is pushed
  // meanwhile. The least version.
  virtual Result<std::uint64_t> Freeze(std::uint64_t snapshot) = 0;
  // The bytes that servers had to copy for that.
  virtual Result<std::uint64_t> Thaw() = 0;
  // Sends a gradient computed from this client's last copy. `values`, where given, gets what the
  // servers have afterwards; under bounded staleness, when that is fresh. (A model of tables alone
  // has none, and yet a version.) On an error some servers may have applied their part.
  virtual Status Push(const Gradient& gradient, std::optional<std::span<float>> values) = 0;
  // Where there are copies, asynchronously: the next push is of a gradient that was computed from
  // these, this client's last copy, which may be another by then. One that is sent again under the
  // same numbers is of the same, also by a client that takes over. Push says it of its `values`
  // itself, where nobody has.
  virtual void KeepBase(std::span<const float> values) = 0;
  // The numbers of the last pushes, by server; a client of the same process that goes on from
  // them sends what comes after.
  virtual std::vector<std::uint64_t> pushes() const = 0;
  // Goes on from where `before`, of the same process and model, was with servers that go on as they
  // were: from its clock, what it has rounded off gradients, and under synchronous application from
  // its copy of the values, which Pull brings no more. A push under a number that it had is sent in
  // the same bytes. `before` is not used again.
  virtual void TakeOver(Client& before) = 0;
  // The greatest staleness that the servers found in the last Push; and whether it came too late.
  virtual std::uint64_t staleness() const = 0;
  virtual bool late() const = 0;
  // Nobody waits for this client until its next step.
  virtual Status Pause() = 0;
  // From any thread: no server waits for `client`, or takes anything of it, any more.
  virtual Status Retire(std::uint64_t client) = 0;
  // For a round that is complete, or that `commit` completes, where the optimizer clips by the norm
  // of the whole gradient: has every server apply its sums. Every worker may call; the first
  // counts.
  virtual Status Settle(std::uint64_t round, const Commit& commit, double clip_norm) = 0;
  // The least version of this client's copy: updates that all of it has seen.
  virtual std::uint64_t version() const = 0;
  // Over all servers.
  virtual Result<StoreStats> Stats() = 0;
  // Tells the servers that the job is over; each once, however often it is called.
  virtual Status Drain() = 0;

  // Makes the running call and every later one fail with `why`.
  virtual void Abort(const Status& why) = 0;

  // `addresses`: of ps 0, 1, ... Does not connect.
  static std::unique_ptr<Client> Make(ModelSpec spec, std::vector<std::string> addresses,
                                      ClientOptions options);
};

}  // namespace cohort::ps
