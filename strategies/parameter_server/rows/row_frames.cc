#include "parameter_server/rows/row_frames.h"

#include <algorithm>
#include <utility>

namespace cohort::ps {

RowFrames::RowFrames(std::vector<RowPiece> pieces, std::size_t most_bytes)
    : pieces_(std::move(pieces)) {
  std::ranges::stable_sort(pieces_, {}, &RowPiece::server);
  std::size_t bytes = 0;  // of the last frame
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    const RowPiece& piece = pieces_[i];
    if (frames_.empty() || frames_.back().server != piece.server ||
        bytes + piece.bytes > most_bytes || i - frames_.back().begin == kMaxRowBlocks) {
      frames_.push_back({.server = piece.server, .begin = i, .end = i});
      bytes = 0;
    }
    frames_.back().end = i + 1;
    bytes += piece.bytes;
  }
}

const RowFrames::Frame* RowFrames::AnsweredBy(int server, const FrameHeader& reply) const {
  const std::size_t begin = reply.rows().tag();
  const auto found = std::ranges::lower_bound(frames_, begin, {}, &Frame::begin);
  if (found == frames_.end() || found->begin != begin || found->server != server ||
      NumBlocks(reply) != found->end - found->begin) {
    return nullptr;
  }
  for (std::size_t i = begin; i < found->end; ++i) {
    if (BlockAt(reply, i - begin).tag() != i) {
      return nullptr;
    }
  }
  return &*found;
}

}  // namespace cohort::ps
