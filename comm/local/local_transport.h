// LocalTransport: ranks as threads of one process.
//
// Each rank has an inbox that the others put frames in. Small payloads are copied into the frame; a
// larger one is lent: the receiver reads it where it lies, straight into its reduction, and then
// gives it back. A rank that gives up its operation takes back what it has lent, waiting out a
// reader that is in the middle of a segment, so that no buffer is read after its operation ended.

#pragma once

#include <memory>

#include "transport.h"

namespace cohort {

class LocalHub;

// Owners of a hub: the transports of its ranks.
std::shared_ptr<LocalHub> MakeLocalHub(int size);
std::unique_ptr<Transport> MakeLocalTransport(std::shared_ptr<LocalHub> hub, int rank);

}  // namespace cohort
