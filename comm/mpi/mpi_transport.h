// MpiTransport: ranks as processes of one MPI job, by MPI's point-to-point messages.
//
// Of each pair, one message stream carries frames (a header, with small bodies inside), one the
// bodies of large data frames, and one aborts and signs of life, which overtake data. The record of
// an operation goes in one message with the frame after it. All are on a duplicate of the program's
// communicator, so nothing else's messages can be met; groups are on it too, told apart by tags.
//
// A data frame that comes before its receive is kept if it is small, up to 1 MiB of a peer's; a
// large one, or one more, waits in MPI, and with it the frames behind. The sender notices: of its
// data one frame in 256 KiB is done only when it is received.
//
// MPI cannot take back a send that has begun: after a failure the library may still hold the
// address of a buffer that was being sent, though nobody will ask for its bytes.

#pragma once

#include <mpi.h>

#include <memory>

#include "mpi/mpi_runtime.h"
#include "transport.h"

namespace cohort {

// Takes over `comm`. `native`: offer MPI's own collectives.
std::unique_ptr<Transport> MakeMpiTransport(std::shared_ptr<MpiRuntime> runtime, MPI_Comm comm,
                                            bool native);

}  // namespace cohort
