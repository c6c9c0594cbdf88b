// Blocks of rows (RowBlock) in frames: how a frame's are reached, and which of a call's pieces are
// one frame.

#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include <cohort/parameter_server.pb.h>

namespace cohort::ps {

// Blocks of one frame: its header stays small beside its payload.
inline constexpr std::size_t kMaxRowBlocks = 64;

inline std::size_t NumBlocks(const FrameHeader& header) {
  return header.has_rows() ? 1 + static_cast<std::size_t>(header.more_rows_size()) : 0;
}
inline const RowBlock& BlockAt(const FrameHeader& header, std::size_t i) {
  return i == 0 ? header.rows() : header.more_rows(static_cast<int>(i) - 1);
}
inline RowBlock& MutableBlockAt(FrameHeader& header, std::size_t i) {
  return i == 0 ? *header.mutable_rows() : *header.mutable_more_rows(static_cast<int>(i) - 1);
}
inline RowBlock& AddBlock(FrameHeader& header) {
  return header.has_rows() ? *header.add_more_rows() : *header.mutable_rows();
}

// What becomes one block: a run of ids of one of a call's tables, all of one server.
struct RowPiece {
  int server = 0;
  std::size_t bytes = 0;  // of payload, about
  std::size_t table = 0;  // of the call
  std::size_t run = 0;    // of the table
};

// The frames of a call: for each server its pieces in their order, as many in a frame as fit in
// `most_bytes` and kMaxRowBlocks; one that is larger has a frame of its own. Blocks have the
// numbers of their pieces as tags.
class RowFrames {
 public:
  struct Frame {
    int server = 0;
    std::size_t begin = 0;  // in pieces()
    std::size_t end = 0;
  };

  RowFrames(std::vector<RowPiece> pieces, std::size_t most_bytes);

  std::span<const RowPiece> pieces() const { return pieces_; }
  std::span<const Frame> frames() const { return frames_; }
  // The frame to which this is the server's reply; null: to none of them.
  const Frame* AnsweredBy(int server, const FrameHeader& reply) const;

 private:
  std::vector<RowPiece> pieces_;
  std::vector<Frame> frames_;
};

}  // namespace cohort::ps
