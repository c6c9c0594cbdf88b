#include <algorithm>

#include "algorithms/algorithms.h"

namespace cohort {
namespace {

template <typename Span>
std::vector<Span> Cut(Span chunk, std::size_t segment_bytes) {
  std::vector<Span> segments;
  segments.reserve(chunk.size() / segment_bytes + 1);
  for (std::size_t at = 0; at < chunk.size(); at += segment_bytes) {
    segments.push_back(chunk.subspan(at, std::min(segment_bytes, chunk.size() - at)));
  }
  if (segments.empty()) {
    segments.push_back(chunk);
  }
  return segments;
}

template <typename Span>
Span CutChunk(Span data, int index, int count, std::size_t element_bytes) {
  const std::size_t elements = data.size() / element_bytes;
  const auto n = static_cast<std::size_t>(count);
  const auto i = static_cast<std::size_t>(index);
  const auto begin = [&](std::size_t k) { return elements / n * k + std::min(k, elements % n); };
  return data.subspan(begin(i) * element_bytes, (begin(i + 1) - begin(i)) * element_bytes);
}

}  // namespace

MutableBytes Chunk(MutableBytes data, int index, int count, std::size_t element_bytes) {
  return CutChunk(data, index, count, element_bytes);
}

Bytes Chunk(Bytes data, int index, int count, std::size_t element_bytes) {
  return CutChunk(data, index, count, element_bytes);
}

std::vector<MutableBytes> Segments(MutableBytes chunk, std::size_t segment_bytes) {
  return Cut(chunk, segment_bytes);
}

std::vector<Bytes> Segments(Bytes chunk, std::size_t segment_bytes) {
  return Cut(chunk, segment_bytes);
}

void PostSend(Exchange& exchange, int to, Bytes data, std::size_t element_bytes) {
  for (const Bytes segment : Segments(data, exchange.SegmentBytes(element_bytes))) {
    exchange.Send(to, segment);
  }
}

void PostReceive(Exchange& exchange, int from, MutableBytes data, std::size_t element_bytes) {
  for (const MutableBytes segment : Segments(data, exchange.SegmentBytes(element_bytes))) {
    exchange.Receive(from, segment);
  }
}

void PostCombine(Exchange& exchange, int from, MutableBytes to, Bytes local, bool local_first,
                 const Reduction& reduction) {
  std::size_t at = 0;
  for (const MutableBytes segment :
       Segments(to, exchange.SegmentBytes(reduction.element_bytes()))) {
    exchange.Receive(from, segment, {&reduction, local.data() + at, local_first});
    at += segment.size();
  }
}

}  // namespace cohort
