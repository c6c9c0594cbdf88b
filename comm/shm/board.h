// Bells, which wake ranks that sleep, and the board on which each rank shows the others what it
// contributes to an operation, or where that lies, and how far it has come: a store here and a load
// there, no frame.

#pragma once

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "shm/region.h"
#include "shm/segments.h"
#include "transport.h"

namespace cohort {

// Who sleeps says so, looks once more, and waits for its eventfd. Who has stored something for it
// looks whether it sleeps. Both store before they look (sequentially consistent), so that one of
// them sees the other. A bell rings once for each sleep.
class Bells {
 public:
  void Add(const std::atomic<std::uint64_t>& sleeps, int fd) { bells_.push_back({&sleeps, fd}); }
  void Ring(int rank) {
    Bell& bell = bells_[static_cast<std::size_t>(rank)];
    const std::uint64_t sleeps = bell.sleeps->load();
    if (static_cast<std::uint32_t>(sleeps) != 0 && sleeps >> 32 != bell.rung) {
      bell.rung = sleeps >> 32;
      const std::uint64_t one = 1;
      [[maybe_unused]] const ssize_t n = ::write(bell.fd, &one, sizeof(one));
    }
  }

 private:
  struct Bell {
    const std::atomic<std::uint64_t>* sleeps;
    int fd;
    std::uint64_t rung = 0;
  };
  std::vector<Bell> bells_;
};

// Fetches lines that this core is about to write, or to read and then write: for both at once they
// cross from core to core half as often.
inline void ClaimLines(const std::byte* at, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += kLine) {
    asm volatile("prefetchw %0" : : "m"(at[i]));
  }
}

// Operations have numbers that rise, and are the same on all ranks. Between two uses of the board
// all ranks have entered every operation in between.
class Board {
 public:
  static constexpr std::uint64_t kLeft = (std::uint64_t{1} << 24) - 1;
  static constexpr std::size_t kPage = 4096;
  // A segment takes some microseconds; its writer may lose its core to others meanwhile.
  static constexpr auto kWriterPatience = std::chrono::milliseconds(100);

  // `segments` nullptr: threads, which reach all of each other's memory.
  // `crowded`: there are fewer cores than ranks.
  Board(int rank, std::vector<Region*> regions, Bells& bells, SharedSegments* segments,
        bool crowded)
      : rank_(rank),
        regions_(std::move(regions)),
        bells_(bells),
        segments_(segments),
        crowded_(crowded),
        takes_turns_(regions_.size() == 2) {}

  bool crowded() const { return crowded_; }
  int rank() const { return rank_; }
  int size() const { return static_cast<int>(regions_.size()); }

  // At most BoardSlot::kBytes, of this rank.
  void Show(std::uint64_t number, std::uint64_t fingerprint, Bytes data) {
    BoardSlot& slot = SlotOf(rank_, number);
    slot.number.store(0, std::memory_order_relaxed);  // see StillShown
    KeepOrder();
    slot.fingerprint = fingerprint;
    if (!data.empty()) {
      std::memcpy(slot.Place(data.size()), data.data(), data.size());
    }
    slot.number.store(number);
    shown_ = {number, fingerprint, {}};
    if (!data.empty() && data.size() <= shown_.few.size()) {
      std::memcpy(shown_.few.data(), data.data(), data.size());
    }
    open_ = {};
    RingAll();
  }
  // Once all have entered operation `number`, in which the others show `bytes`: asks for the first
  // lines of that, all at once, and calls back those in which this rank will show as much for the
  // next, so that storing there then waits for nobody. Of two ranks they are the same lines.
  void Fetch(std::uint64_t number, std::size_t bytes) {
    constexpr std::size_t kFetched = 64 * kLine;
    constexpr std::size_t kReclaimed = 16 * kLine;  // more of them delay what is read now
    const std::size_t end = BoardSlot::End(bytes);
    if (takes_turns_) {
      ClaimLines(LinesOf(1 - rank_, number), std::min(end, kFetched));
      return;
    }
    for (int p = 0; p < size(); ++p) {
      if (p != rank_) {
        const std::byte* const lines = LinesOf(p, number);
        for (std::size_t at = kLine; at < std::min(end, kFetched); at += kLine) {
          asm volatile("prefetcht0 %0" : : "m"(lines[at]));  // a builtin alone may be left out
        }
      }
    }
    ClaimLines(LinesOf(rank_, number + 1), std::min(end, kReclaimed));
  }
  // Whether what the others have shown for `number` was there until now. It is: who has given up an
  // operation shows nothing before all have (Exchange::AwaitRejects).
  bool StillShown(std::uint64_t number) const {
    KeepOrder();
    for (int p = 0; p < size(); ++p) {
      if (p != rank_ && SlotOf(p, number).number.load(std::memory_order_relaxed) != number) {
        return false;
      }
    }
    return true;
  }
  // What `rank` shows for `number`, nullptr while it does not. Two ranks see each other's alone:
  // see shown().
  const BoardSlot* Look(int rank, std::uint64_t number) const {
    const BoardSlot& slot = SlotOf(rank, number);
    return slot.number.load(std::memory_order_acquire) == number ? &slot : nullptr;
  }
  // What this rank has shown last; its data where they are few.
  struct Showing {
    std::uint64_t number = 0;
    std::uint64_t fingerprint = 0;
    decltype(BoardSlot::few) few{};
  };
  const Showing& shown() const { return shown_; }

  // How others reach `data` of this rank, and what another's `loan` is here; nothing and nullptr
  // where memory is private.
  std::optional<Loan> Lend(Bytes data) const {
    return segments_ != nullptr
               ? segments_->Find(data)
               : Loan{0, static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(data.data()))};
  }
  std::byte* Resolve(int rank, const Loan& loan, std::size_t bytes) const {
    return segments_ != nullptr ? segments_->Resolve(rank, loan, bytes)
                                : reinterpret_cast<std::byte*>(loan.offset);
  }
  // `data`, which this rank has just shown, may also be written to by the others: the part of it
  // that OpenPart names.
  void Open(MutableBytes data) { open_ = data; }
  // All have left the operation.
  void Close() { open_ = {}; }
  // Of `bytes` that are lent, where others may write: [first, second). Of processes these are whole
  // pages, which can be taken back from one that is stopped while it writes, see Withdraw.
  std::pair<std::size_t, std::size_t> OpenPart(const Loan& loan, std::size_t bytes) const {
    if (segments_ == nullptr) {
      return {0, bytes};
    }
    const std::size_t first = std::min(bytes, (kPage - loan.offset % kPage) % kPage);
    return {first, bytes - std::min(bytes - first, (loan.offset + bytes) % kPage)};
  }

  // Memory of this rank that others read and write, to pass private memory through: the same at
  // each call. A failure does not call it back: it is final, and nothing is passed through it any
  // more.
  Result<MutableBytes> Staging(std::size_t bytes) {
    if (staging_ == nullptr || staging_->bytes().size() < bytes) {
      Require(segments_ != nullptr, "threads need no staging");
      COHORT_ASSIGN_OR_RETURN(staging_, segments_->Allocate(bytes));
      region(rank_).staging = *segments_->Find(staging_->bytes());
    }
    return staging_->bytes().first(bytes);
  }
  // That of another, which has progressed in the operation under way. Others may write there too,
  // in turns that they agree on: what an operation that fails leaves there is used by none.
  std::byte* StagingOf(int rank, std::size_t bytes) const {
    return Resolve(rank, region(rank).staging, bytes);
  }

  // This rank has done `count` parts of operation `number`, below kLeft; kLeft: it needs nothing
  // more of others, and they may go.
  void Advance(std::uint64_t number, std::uint64_t count) {
    region(rank_).progress.store(number << 24U | count);
    RingAll();
  }
  std::uint64_t ProgressOf(int rank, std::uint64_t number) const {
    const std::uint64_t progress = region(rank).progress.load(std::memory_order_acquire);
    const std::uint64_t at = progress >> 24U;
    return at < number ? 0 : at > number ? kLeft : progress & kLeft;
  }

  // Runs `read`, which reads others' memory. False: one of them has given up, and what was read may
  // be anything.
  template <typename F>
  bool Read(std::uint64_t number, F read) {
    return While(region(rank_).reading, number, read);
  }
  // Runs `write`, which reads others' memory and writes there: a segment, for others may be waiting
  // for its end. False: as Read.
  template <typename F>
  bool Write(std::uint64_t number, F write) {
    return While(region(rank_).writing, number, write);
  }
  // What this rank has shown is not to be used any more: nobody writes there after this (but to its
  // staging memory). Threads are waited for that are reading it; a process may be stopped while it
  // reads, and what it has mapped stays. One that is stopped, or has ended, while it writes is
  // waited for a moment; then what is open gets memory of its own at its place, which holds zeros,
  // and is private from then on. Throws ContractError where there is no memory for that.
  void Withdraw() {
    region(rank_).withdrawn.store(shown_.number);
    const bool threads = segments_ == nullptr;
    const Deadline deadline = DeadlineAfter(kWriterPatience);
    for (int p = 0; p < size(); ++p) {
      const auto busy = [&, &r = region(p)] {
        return p != rank_ &&
               ((threads && r.reading.load() != 0) || (!open_.empty() && r.writing.load() != 0));
      };
      // What is seen last counts: one that begins after it finds the withdrawal, and does nothing.
      bool waits = busy();
      while (waits && (threads || std::chrono::steady_clock::now() < deadline)) {
        std::this_thread::yield();
        waits = busy();
      }
      if (waits) {
        segments_->TakeBack(open_);
        open_ = {};
      }
    }
  }

  // Changes whenever `rank` does any of this; it may change besides.
  std::uint64_t Signature(int rank) const {
    return SlotOf(rank, 0).number.load(std::memory_order_acquire) +
           SlotOf(rank, 1).number.load(std::memory_order_acquire) +
           region(rank).progress.load(std::memory_order_acquire);
  }

 private:
  // Of stores, and of loads: the processor does (x86), so the compiler has to.
  static void KeepOrder() { std::atomic_signal_fence(std::memory_order_seq_cst); }
  Region& region(int rank) const { return *regions_[static_cast<std::size_t>(rank)]; }
  // Where `rank` shows something for operation `number`.
  BoardSlot& SlotOf(int rank, std::uint64_t number) const {
    return takes_turns_ ? regions_[(static_cast<std::uint64_t>(rank) + number) % 2]->board.slots[0]
                        : region(rank).board.slots[number % 2];
  }
  const std::byte* LinesOf(int rank, std::uint64_t number) const {
    return reinterpret_cast<const std::byte*>(&SlotOf(rank, number));
  }
  template <typename F>
  bool While(std::atomic<std::uint32_t>& flag, std::uint64_t number, F f) {
    flag.store(1);
    const bool held = Held(number);
    if (held) {
      f();
    }
    flag.store(0, std::memory_order_release);
    return held && Held(number);
  }
  bool Held(std::uint64_t number) const {
    bool held = true;
    for (const Region* r : regions_) {
      held &= r->withdrawn.load() < number;
    }
    return held;
  }
  void RingAll() {
    for (int p = 0; p < size(); ++p) {
      if (p != rank_) {
        bells_.Ring(p);
      }
    }
  }

  const int rank_;
  const std::vector<Region*> regions_;
  Bells& bells_;
  SharedSegments* const segments_;
  const bool crowded_;
  const bool takes_turns_;
  Showing shown_;
  MutableBytes open_;  // of the operation that is shown
  std::unique_ptr<Memory> staging_;
};

}  // namespace cohort
