// Region: what one rank shows the others of its group: rings of frames to each of them, how far it
// has come in theirs, and a board for small contributions.
//
// A rank writes to its own region, which the others map for reading: whatever a process does or
// leaves behind when it dies, it cannot damage the rings of its peers. There is no lock; every
// field has one writer, but for the board of two ranks, which each of them writes to in turns.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace cohort {

inline constexpr std::size_t kLine = 64;

// The head of a frame in a ring. Frames begin at multiples of a cache line and are whole.
struct RingFrame {
  enum Form : std::uint8_t {
    kInside,  // the body follows
    kPiece,   // a part of the body follows; the rest is in the next frames
    kLoan,    // a Loan follows: the body lies in the sender's memory
    kSkip,    // nothing: the next frame is at the begin of the ring
  };
  std::uint32_t bytes = 0;  // that follow here
  std::uint8_t kind = 0;    // FrameKind
  Form form = kInside;
  std::uint16_t reserved = 0;
  std::uint64_t total = 0;  // of the body
};
static_assert(sizeof(RingFrame) == 16);

// Where a body lies: segment 0 is the address space that the ranks share (threads).
struct Loan {
  std::uint64_t segment = 0;
  std::uint64_t offset = 0;
};

// One rank's side towards another: what it has put into the ring to that one, and what it has taken
// out of the ring from there, in bytes since the begin.
struct Link {
  alignas(kLine) std::atomic<std::uint64_t> sent = 0;
  alignas(kLine) std::atomic<std::uint64_t> taken = 0;
  alignas(kLine) std::atomic<std::uint64_t> urgent_sent = 0;
  alignas(kLine) std::atomic<std::uint64_t> urgent_taken = 0;
  std::atomic<std::uint32_t> reading = 0;  // this rank is reading a loan of that one
  // Loans in frames that end at or before this place in the ring are not to be used any more.
  alignas(kLine) std::atomic<std::uint64_t> withdrawn = 0;
};

// What a rank shows of one operation.
struct BoardSlot {
  static constexpr std::size_t kBytes = 32 << 10;

  alignas(kLine) std::atomic<std::uint64_t> number = 0;
  std::uint64_t fingerprint = 0;
  std::array<std::byte, kLine - 16> few;  // what fits into the line of the number lies there
  std::array<std::byte, kBytes> many;

  std::byte* Place(std::size_t bytes) { return bytes <= few.size() ? few.data() : many.data(); }
  const std::byte* Place(std::size_t bytes) const {
    return bytes <= few.size() ? few.data() : many.data();
  }
  // From the begin of the slot to the end of data.
  static constexpr std::size_t End(std::size_t bytes) {
    return kLine + (bytes <= sizeof(few) ? 0 : bytes);
  }
};

// Two slots in turns: a rank that shows its contribution to operation k has seen those of k - 1,
// and so all have used what it showed for k - 2.
//
// Two ranks use the first slot of each other in turns: what one shows for operation k lies where
// the other showed its own for k - 1, which this one alone has read. So the lines that it reads are
// those that it writes next: asked for as such, each crosses from core to core once for each
// operation, and storing waits for none to come back. Nobody shows anything for k - 1 once the
// other has shown k (Exchange::AwaitRejects).
struct alignas(4096) RegionBoard {  // whole pages, which two ranks may both write to
  std::array<BoardSlot, 2> slots;
};

struct Region {
  std::uint64_t magic = 0;
  std::uint32_t rank = 0;
  std::uint32_t ranks = 0;
  // Low half: threads of this rank that sleep until the bell. High half: sleeps so far.
  alignas(kLine) std::atomic<std::uint64_t> sleeps = 0;
  // Of the operation under way: its number and how far this rank has come, see Board::Advance;
  // whether this rank reads others' memory for it, or writes there; and up to which number this
  // rank has withdrawn what it shows.
  alignas(kLine) std::atomic<std::uint64_t> progress = 0;
  alignas(kLine) std::atomic<std::uint32_t> reading = 0;
  std::atomic<std::uint32_t> writing = 0;
  alignas(kLine) std::atomic<std::uint64_t> withdrawn = 0;
  Loan staging;  // where its staging memory lies, once it has progressed in an operation that uses
                 // it
  RegionBoard board;
  // Then a Link for each rank, then the rings.
};

struct RegionLayout {
  static constexpr std::uint64_t kMagic = 0x3330474552434f43U;  // "COCREG03"
  static constexpr std::size_t kUrgentBytes = 16 << 10;

  std::size_t ranks = 1;
  std::size_t ring_bytes = 256 << 10;

  std::size_t bytes() const { return RingAt(ranks); }

  Link& LinkOf(std::byte* region, int peer) const {
    return *reinterpret_cast<Link*>(region + sizeof(Region) +
                                    static_cast<std::size_t>(peer) * sizeof(Link));
  }
  std::byte* Ring(std::byte* region, int peer) const {
    return region + RingAt(static_cast<std::size_t>(peer));
  }
  std::byte* Urgent(std::byte* region, int peer) const { return Ring(region, peer) + ring_bytes; }

 private:
  std::size_t RingAt(std::size_t peer) const {
    return sizeof(Region) + ranks * sizeof(Link) + peer * (ring_bytes + kUrgentBytes);
  }
};
static_assert(sizeof(Region) % kLine == 0 && sizeof(Link) % kLine == 0);

}  // namespace cohort
