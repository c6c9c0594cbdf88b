// One shot: every rank shows its contribution on the board, and combines what all show. One step
// whatever the number of ranks, no message, and (n-1) S bytes read: for small operations.
//
// What a rank shows carries the operation's number and the fingerprint of its record. Only where
// one keeps the others waiting, or the fingerprints differ, do records go as messages, which name
// both sides.

#pragma once

#include <cohort/core/status.h>

#include <cstddef>

#include "exchange.h"
#include "reduction.h"

namespace cohort {

// One shot is for so many bytes of all ranks together.
inline constexpr std::size_t kMostOneShotRead = 64 << 10;

// Whether operations over `bytes` can go in one shot here, which all ranks answer alike. Two ranks
// have no faster way then, wherever the buffers lie.
bool HasOneShot(Transport& transport, std::size_t bytes);

// Until all ranks show something for the operation under way, and that they are in the same one.
Status AwaitAgreement(Exchange& exchange);
// The same without waiting, but for a moment: false where that is not enough.
bool AgreeAtOnce(Exchange& exchange);

// The two halves: the first returns at once and lets the other ranks go on without this one.
void ShowOneShot(Exchange& exchange, Bytes data);
// In place. `reduction` nullptr: nothing is combined, for a barrier.
Status FinishOneShot(Exchange& exchange, MutableBytes data, const Reduction* reduction);
// Where all are known to agree, what is left of it. Aborted, `data` being of no use: see Overtaken.
Status CombineShown(Exchange& exchange, MutableBytes data, const Reduction* reduction);
// What a rank shows was replaced before this one had read it: see Board::StillShown.
Status Overtaken(Exchange& exchange);

}  // namespace cohort
