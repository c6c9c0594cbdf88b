// The collective algorithms, each written once over Exchange. Costs are in comm/README.md.
//
// Words: the buffer is cut in one chunk per rank, a chunk in segments, the unit of pipelining. All
// cuts fall between elements and are the same on every rank. An operation has sent nothing and
// received nothing outside what stands here; every algorithm makes each rank's success depend on
// all ranks having entered the same operation.
//
// All but the rings combine in the canonical order (canonical_order.h), so that their results are
// the same bits.

#pragma once

#include <cohort/core/status.h>

#include <cstdint>
#include <span>
#include <vector>

#include "exchange.h"

namespace cohort {

// `input` and `output` are one place or apart, and hold the same number of bytes on all ranks.
// Apart, `input` stays as it is.
Status RingAllReduce(Exchange& exchange, Bytes input, MutableBytes output,
                     const Reduction& reduction);
Status DirectAllReduce(Exchange& exchange, Bytes input, MutableBytes output,
                       const Reduction& reduction);
Status RecursiveDoublingAllReduce(Exchange& exchange, Bytes input, MutableBytes output,
                                  const Reduction& reduction);
Status HalvingDoublingAllReduce(Exchange& exchange, Bytes input, MutableBytes output,
                                const Reduction& reduction);
Status TreeAllReduce(Exchange& exchange, Bytes input, MutableBytes output,
                     const Reduction& reduction);

// In place at `root`; scratch elsewhere.
Status TreeReduce(Exchange& exchange, MutableBytes data, int root, const Reduction& reduction);

// `input` is size() chunks of output.size() bytes, and scratch; `output` is this rank's of them, or
// apart.
Status RingReduceScatter(Exchange& exchange, MutableBytes input, MutableBytes output,
                         const Reduction& reduction);
Status DirectReduceScatter(Exchange& exchange, MutableBytes input, MutableBytes output,
                           const Reduction& reduction);
Status RecursiveHalvingReduceScatter(Exchange& exchange, MutableBytes input, MutableBytes output,
                                     const Reduction& reduction);

// blocks[r] is where rank r's block belongs; blocks[rank] is filled in already.
Status RingAllGather(Exchange& exchange, const std::vector<MutableBytes>& blocks,
                     std::size_t element_bytes);
Status DirectAllGather(Exchange& exchange, const std::vector<MutableBytes>& blocks,
                       std::size_t element_bytes);
Status BruckAllGather(Exchange& exchange, const std::vector<MutableBytes>& blocks,
                      std::size_t element_bytes);

Status TreeBroadcast(Exchange& exchange, MutableBytes data, int root, std::size_t element_bytes);
Status DisseminationBarrier(Exchange& exchange);

// sends[r] goes to rank r, receives[r] comes from it; InvalidArgument on all where the two sides'
// sizes differ. Its own block is copied.
Status DirectAllToAll(Exchange& exchange, const std::vector<Bytes>& sends,
                      const std::vector<MutableBytes>& receives, std::size_t element_bytes);

Status SendTo(Exchange& exchange, int to, Bytes data, std::size_t element_bytes);
Status ReceiveFrom(Exchange& exchange, int from, MutableBytes data, std::size_t element_bytes);

// Chunk `index` of `count`: sizes differ by one element at most.
MutableBytes Chunk(MutableBytes data, int index, int count, std::size_t element_bytes);
Bytes Chunk(Bytes data, int index, int count, std::size_t element_bytes);
// At least one; only an empty chunk has an empty segment.
std::vector<MutableBytes> Segments(MutableBytes chunk, std::size_t segment_bytes);
std::vector<Bytes> Segments(Bytes chunk, std::size_t segment_bytes);

// Segment by segment, without waiting.
void PostSend(Exchange& exchange, int to, Bytes data, std::size_t element_bytes);
void PostReceive(Exchange& exchange, int from, MutableBytes data, std::size_t element_bytes);
// to = local op arriving, or arriving op local. `local` is as long as `to`, and may be it.
void PostCombine(Exchange& exchange, int from, MutableBytes to, Bytes local, bool local_first,
                 const Reduction& reduction);

}  // namespace cohort
