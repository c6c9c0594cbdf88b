// FlightRecorder: the last operations of a communicator, for the question "where is every rank?".
//
// A ring of kOperations entries, written as operations are queued, started and ended, and read at
// any time, also while they are under way. It allocates nothing after it was made, takes no lock
// and never waits: an entry that is being rewritten is left out by a reader, and a writer that
// meets another at an entry (more than kOperations queued at once) drops its news.
//
// Thread rules: all methods from any thread, at the same time.

#pragma once

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "operation.h"

namespace cohort {

enum class FlightState : std::uint8_t { kQueued = 1, kStarted = 2, kDone = 3, kFailed = 4 };
std::string_view FlightStateName(FlightState state);

struct FlightEntry {
  std::uint64_t index = 0;  // of all operations of the communicator, from 1
  OperationRecord record;   // the name is cut to kNameBytes
  FlightState state = FlightState::kQueued;
  Deadline queued;
  Deadline started;  // the epoch: not yet
  Deadline ended;
};

class FlightRecorder {
 public:
  static constexpr std::size_t kOperations = 1000;
  static constexpr std::size_t kNameBytes = 64;

  FlightRecorder() : slots_(kOperations) {}

  // Returns the operation's index, for the calls below.
  std::uint64_t Queued(const OperationRecord& record, Deadline at);
  // `record` has its numbers now.
  void Started(std::uint64_t index, const OperationRecord& record, Deadline at);
  void Ended(std::uint64_t index, bool ok, Deadline at);
  // Queued and Started at once; `record` has its numbers.
  std::uint64_t Begun(const OperationRecord& record, Deadline at);

  std::uint64_t operations() const { return queued_.load(std::memory_order_relaxed); }
  // The one started last, under way or not.
  std::optional<FlightEntry> Last() const;
  // What is kept, oldest first.
  std::vector<FlightEntry> Entries() const;

 private:
  static constexpr std::size_t kWords = 9 + kNameBytes / 8;
  struct alignas(64) Slot {
    std::atomic<std::uint64_t> version = 0;  // odd: being written
    std::array<std::atomic<std::uint64_t>, kWords> words = {};
  };

  Slot& slot(std::uint64_t index) { return slots_[index % kOperations]; }
  std::optional<FlightEntry> Read(std::uint64_t index) const;

  std::vector<Slot> slots_;
  std::atomic<std::uint64_t> queued_ = 0;
  std::atomic<std::uint64_t> last_started_ = 0;
};

// What a dump says of the communicator.
struct FlightHeader {
  std::string group;  // CommunicatorOptions::name
  std::string task;   // this rank's name
  std::string backend;
  int rank = 0;
  int size = 1;
  std::uint64_t generation = 1;
  std::string reason;
  Status status;
};

// JSON, one object a line: the header, an operation each, and a last line that says how many: a
// file without it was cut. Times are microseconds since 1970, by the wall clock at the time of the
// dump.
std::string FlightDump(const FlightHeader& header, const FlightRecorder& recorder);
// "collectives.g1.rank3.jsonl"
std::string FlightFileName(const FlightHeader& header);
// The dump as that file of `folder`; its path. FailedPrecondition where `folder` is empty.
Result<std::string> WriteFlightRecord(const std::string& folder, const FlightHeader& header,
                                      const FlightRecorder& recorder);

}  // namespace cohort
