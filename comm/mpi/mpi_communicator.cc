#include <cohort/comm/mpi.h>

#include <thread>
#include <vector>

#include "mpi/mpi_runtime.h"
#include "mpi/mpi_transport.h"
#include "transport_communicator.h"

namespace cohort {
namespace {

constexpr std::int64_t kMostSegmentBytes = std::int64_t{1} << 30;
constexpr int kHereTag = 20011;  // on MPI_COMM_WORLD, while communicators are made

// Duplicates MPI_COMM_WORLD, which all ranks must do. Each tells all others that it is here, so
// that at the deadline the absent can be named.
Result<MPI_Comm> DuplicateWorld(MpiRuntime& runtime, const CommunicatorOptions& options,
                                std::chrono::milliseconds timeout) {
  const Deadline deadline = DeadlineAfter(timeout);
  int rank = 0;
  int size = 1;
  std::vector<MPI_Request> told;
  std::vector<MPI_Request> heard;
  runtime.Call([&] {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    told.assign(static_cast<std::size_t>(size), MPI_REQUEST_NULL);
    heard.assign(static_cast<std::size_t>(size), MPI_REQUEST_NULL);
    for (int peer = 0; peer < size; ++peer) {
      if (peer != rank) {
        const auto at = static_cast<std::size_t>(peer);
        MPI_Irecv(nullptr, 0, MPI_BYTE, peer, kHereTag, MPI_COMM_WORLD, &heard[at]);
        MPI_Isend(nullptr, 0, MPI_BYTE, peer, kHereTag, MPI_COMM_WORLD, &told[at]);
      }
    }
  });
  const auto wait_all = [&](std::vector<MPI_Request>& requests) {
    for (;;) {
      const bool done = runtime.Call([&] {
        int flag = 0;
        MPI_Testall(size, requests.data(), &flag, MPI_STATUSES_IGNORE);
        return flag != 0;
      });
      if (done || std::chrono::steady_clock::now() >= deadline) {
        return done;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  };
  if (!wait_all(heard) || !wait_all(told)) {
    std::string absent;
    for (int peer = 0; peer < size; ++peer) {
      MPI_Request& request = heard[static_cast<std::size_t>(peer)];
      if (request != MPI_REQUEST_NULL) {
        absent += (absent.empty() ? "" : ", ") + NameOf(options, peer);
        runtime.Call([&] {
          MPI_Cancel(&request);
          MPI_Request_free(&request);
        });
      }
    }
    return DeadlineExceeded(NameOf(options, rank) + " did not meet all " + std::to_string(size) +
                            " ranks within " + std::to_string(timeout.count()) + " ms: missing " +
                            absent + " [every rank of MPI_COMM_WORLD must make the communicator]");
  }
  MPI_Comm comm = MPI_COMM_NULL;  // all are here, so this call does not wait for anybody long
  const int code = runtime.Call([&] { return MPI_Comm_dup(MPI_COMM_WORLD, &comm); });
  COHORT_RETURN_IF_ERROR(MpiRuntime::Check(code, "MPI_Comm_dup"));
  return comm;
}

}  // namespace

bool MpiBuilt() { return true; }

Result<std::unique_ptr<Communicator>> MakeMpiCommunicator(const MpiOptions& mpi,
                                                          const CommunicatorOptions& options) {
  if (mpi.implementation != "cohort" && mpi.implementation != "mpi") {
    return InvalidArgument("no MPI implementation '" + mpi.implementation +
                           "' [choose cohort or mpi]");
  }
  if (mpi.implementation == "mpi" && options.deterministic) {
    return InvalidArgument(
        "MPI's own collectives do not combine in the canonical order, which `deterministic` asks "
        "for [choose the MPI implementation cohort]");
  }
  if (options.segment_bytes > kMostSegmentBytes) {
    return InvalidArgument("segments of " + std::to_string(options.segment_bytes) +
                           " bytes over MPI, whose messages are counted in int [at most " +
                           std::to_string(kMostSegmentBytes) + "]");
  }
  COHORT_ASSIGN_OR_RETURN(
      const std::shared_ptr<MpiRuntime> runtime,
      MpiRuntime::Get(mpi.funneled ? MPI_THREAD_FUNNELED : MPI_THREAD_SERIALIZED));
  COHORT_ASSIGN_OR_RETURN(const MPI_Comm comm,
                          DuplicateWorld(*runtime, options, mpi.connect_timeout));
  TransportCommunicatorParts parts;
  runtime->Call([&] {
    MPI_Comm_rank(comm, &parts.rank);
    MPI_Comm_size(comm, &parts.size);
  });
  parts.transport = MakeMpiTransport(runtime, comm, mpi.implementation == "mpi");
  return std::make_unique<TransportCommunicator>(std::move(parts), options);
}

}  // namespace cohort
