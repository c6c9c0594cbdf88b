#include <cohort/comm/mpi.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "mpi/mpi_runtime.h"
#include "mpi/mpi_transport.h"
#include "transport_communicator.h"

namespace cohort {
namespace {

constexpr std::int64_t kMostSegmentBytes = std::int64_t{1} << 30;
// On MPI_COMM_WORLD, while communicators are made.
constexpr int kHereTag = 20011;
constexpr int kMadeTag = 20013;
constexpr auto kWhoIsLeft = std::chrono::milliseconds(500);  // to say so at the deadline
constexpr auto kLeave = std::chrono::milliseconds(1000);     // where somebody is absent

// done(), which may call MPI, asked again and again until it is true, or `until`.
template <typename F>
bool Await(MpiRuntime& runtime, Deadline until, F done) {
  const Deadline since = std::chrono::steady_clock::now();
  for (;;) {
    const bool is_done = runtime.Call(done);
    const Deadline now = std::chrono::steady_clock::now();
    if (is_done || now >= until) {
      return is_done;
    }
    std::this_thread::sleep_for(std::min(MpiRuntime::Nap(now - since), until - now));
  }
}

// Tells all other ranks `tag` and waits until all have told it; the ranks that have not by `until`.
std::vector<int> Absent(MpiRuntime& runtime, int tag, Deadline until) {
  int rank = 0;
  int size = 1;
  std::vector<MPI_Request> requests;  // of each rank what is heard, then what is told
  runtime.Call([&] {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    requests.assign(2 * static_cast<std::size_t>(size), MPI_REQUEST_NULL);
    for (int peer = 0; peer < size; ++peer) {
      if (peer != rank) {
        MPI_Request* const of = &requests[2 * static_cast<std::size_t>(peer)];
        MPI_Irecv(nullptr, 0, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &of[0]);
        MPI_Isend(nullptr, 0, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &of[1]);
      }
    }
  });
  Await(runtime, until, [&] {
    bool all = true;
    for (MPI_Request& request : requests) {  // MPI_Testall does not say which are done
      int flag = 0;
      MPI_Test(&request, &flag, MPI_STATUS_IGNORE);
      all &= flag != 0;
    }
    return all;
  });
  std::vector<int> absent;
  for (int peer = 0; peer < size; ++peer) {
    runtime.Call([&] {
      MPI_Request* const of = &requests[2 * static_cast<std::size_t>(peer)];
      if (of[0] != MPI_REQUEST_NULL) {
        MPI_Cancel(&of[0]);
        MPI_Request_free(&of[0]);
        absent.push_back(peer);
      }
      if (of[1] != MPI_REQUEST_NULL) {
        MPI_Request_free(&of[1]);
      }
    });
  }
  return absent;
}

// Duplicates MPI_COMM_WORLD, which all ranks must do. Each tells all others that it is here, and at
// the end that it has done so, or still waits: so the absent can be named.
Result<MPI_Comm> DuplicateWorld(MpiRuntime& runtime, const CommunicatorOptions& options,
                                std::chrono::milliseconds timeout) {
  const Deadline deadline = DeadlineAfter(timeout);
  struct Duplicate {
    MPI_Comm comm = MPI_COMM_NULL;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  auto duplicate = std::make_unique<Duplicate>();
  bool made = false;
  std::vector<int> absent = Absent(runtime, kHereTag, deadline);
  if (absent.empty()) {
    int code = runtime.Call(
        [&] { return MPI_Comm_idup(MPI_COMM_WORLD, &duplicate->comm, &duplicate->request); });
    const auto is_made = [&] {
      int flag = 0;
      code = MPI_Test(&duplicate->request, &flag, MPI_STATUS_IGNORE);
      return flag != 0 || code != MPI_SUCCESS;
    };
    made = code == MPI_SUCCESS && Await(runtime, deadline, is_made);
    COHORT_RETURN_IF_ERROR(MpiRuntime::Check(code, "MPI_Comm_idup"));
    absent = Absent(runtime, kMadeTag, std::max(deadline, DeadlineAfter(kWhoIsLeft)));
    if (!made && absent.empty()) {  // the others, whose deadline is later, may have made it since
      made = Await(runtime, DeadlineAfter(kWhoIsLeft), is_made);
      COHORT_RETURN_IF_ERROR(MpiRuntime::Check(code, "MPI_Comm_idup"));
    }
  }
  if (made && absent.empty()) {
    return duplicate->comm;
  }
  runtime.LeaveWithin(kLeave);
  if (duplicate->request != MPI_REQUEST_NULL) {
    (void)duplicate.release();  // MPI may still write to it
  }
  std::string names;
  for (const int peer : absent) {
    names += (names.empty() ? ": missing " : ", ") + NameOf(options, peer);
  }
  int rank = 0;
  int size = 1;
  runtime.Call([&] {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
  });
  return DeadlineExceeded(NameOf(options, rank) + " did not meet all " + std::to_string(size) +
                          " ranks within " + std::to_string(timeout.count()) + " ms" + names +
                          " [every rank of MPI_COMM_WORLD must make the communicator]");
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
  runtime->LeaveWithin(mpi.finish_timeout);
  TransportCommunicatorParts parts;
  runtime->Call([&] {
    MPI_Comm_rank(comm, &parts.rank);
    MPI_Comm_size(comm, &parts.size);
  });
  parts.transport = MakeMpiTransport(runtime, comm, mpi.implementation == "mpi");
  return std::make_unique<TransportCommunicator>(std::move(parts), options);
}

}  // namespace cohort
