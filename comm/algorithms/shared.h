// Collectives through shared memory, without messages: every rank shows on the board where its
// buffer lies. In an all-reduce the owner of a chunk reduces it straight from all of them, and
// writes the result to all of them: each element is read and written once for each buffer, the
// least there is. Elsewhere ranks copy what they need of others' buffers, finished segments while
// they are in cache. A rank leaves when nobody reads or writes its memory any more.
//
// Where the memory of one rank is private to its process, an all-reduce passes it through staging
// memory, segment by segment; the others send messages, by the direct algorithms. Results are the
// same bits either way.

#pragma once

#include <cohort/core/status.h>

#include <cstddef>
#include <vector>

#include "exchange.h"
#include "reduction.h"

namespace cohort {

// Segments, where the transport's are no smaller: in place, of all ranks together they stay in
// cache; through staging memory each waits for others twice.
inline constexpr std::size_t kSharedSegmentBytes = 64 << 10;
inline constexpr std::size_t kStagedSegmentBytes = 128 << 10;

// Whether ranks reach each other's memory, where they lend it.
bool HasShared(Transport& transport);

// The first half of each: returns at once. `data` is what the others read of this rank, and in an
// all-reduce write to.
void ShowShared(Exchange& exchange, MutableBytes data);

// In place.
Status FinishSharedAllReduce(Exchange& exchange, MutableBytes data, const Reduction& reduction);
Status FinishSharedReduceScatter(Exchange& exchange, MutableBytes input, MutableBytes output,
                                 const Reduction& reduction);
// blocks[r] is where rank r's block belongs; blocks[rank] is filled in, and what was shown.
Status FinishSharedAllGather(Exchange& exchange, const std::vector<MutableBytes>& blocks,
                             std::size_t element_bytes);
Status FinishSharedBroadcast(Exchange& exchange, MutableBytes data, int root,
                             std::size_t element_bytes);

}  // namespace cohort
