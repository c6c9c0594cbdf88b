#include "mpi/mpi_collectives.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "algorithms/algorithms.h"
#include "mpi/mpi_types.h"

namespace cohort {
namespace {

MPI_Op OperationOf(ReduceOp op) {
  switch (op) {
    case ReduceOp::kMin:
      return MPI_MIN;
    case ReduceOp::kMax:
      return MPI_MAX;
    case ReduceOp::kProduct:
      return MPI_PROD;
    default:
      return MPI_SUM;
  }
}

class MpiCollectives final : public NativeCollectives {
 public:
  MpiCollectives(std::shared_ptr<MpiRuntime> runtime, MPI_Comm comm)
      : runtime_(std::move(runtime)), comm_(comm) {}

  Algorithm algorithm() const override { return Algorithm::kNative; }
  bool keeps_order() const override { return false; }
  bool Supports(OperationKind kind, DType dtype) const override {
    return (kind == OperationKind::kAllReduce || kind == OperationKind::kBroadcast ||
            kind == OperationKind::kAllGather) &&
           MpiTypeOf(dtype).has_value();
  }

  Status AllReduce(Exchange& exchange, Buffer buffer, ReduceOp op) override {
    COHORT_RETURN_IF_ERROR(DisseminationBarrier(exchange));
    COHORT_RETURN_IF_ERROR(InPieces(buffer, [&](void* data, int count) {
      return Run(exchange, "MPI_Iallreduce", [&](MPI_Request* request) {
        return MPI_Iallreduce(MPI_IN_PLACE, data, count, *MpiTypeOf(buffer.dtype), OperationOf(op),
                              comm_, request);
      });
    }));
    Reduction(buffer.dtype, op)
        .Finish(static_cast<std::byte*>(buffer.data), buffer.bytes(), exchange.size());
    return {};
  }

  Status Broadcast(Exchange& exchange, Buffer buffer, int root) override {
    COHORT_RETURN_IF_ERROR(DisseminationBarrier(exchange));
    return InPieces(buffer, [&](void* data, int count) {
      return Run(exchange, "MPI_Ibcast", [&](MPI_Request* request) {
        return MPI_Ibcast(data, count, *MpiTypeOf(buffer.dtype), root, comm_, request);
      });
    });
  }

  Status AllGather(Exchange& exchange, Buffer input, Buffer output) override {
    if (input.count > kMaxMpiElements) {
      return Unimplemented("MPI_Iallgather of more than 2^30 elements [choose algorithm ring]");
    }
    COHORT_RETURN_IF_ERROR(DisseminationBarrier(exchange));
    if (input.count > 0) {  // it may lie in output, which MPI allows as MPI_IN_PLACE only
      std::memmove(static_cast<std::byte*>(output.data) +
                       static_cast<std::size_t>(exchange.rank()) * input.bytes(),
                   input.data, input.bytes());
    }
    return Run(exchange, "MPI_Iallgather", [&](MPI_Request* request) {
      const MPI_Datatype type = *MpiTypeOf(input.dtype);
      const int count = static_cast<int>(input.count);
      return MPI_Iallgather(MPI_IN_PLACE, count, type, output.data, count, type, comm_, request);
    });
  }

 private:
  template <typename F>
  static Status InPieces(Buffer buffer, F f) {
    auto* data = static_cast<std::byte*>(buffer.data);
    for (std::int64_t at = 0; at < buffer.count; at += kMaxMpiElements) {
      COHORT_RETURN_IF_ERROR(f(data + static_cast<std::size_t>(at) * SizeOf(buffer.dtype),
                               static_cast<int>(std::min(kMaxMpiElements, buffer.count - at))));
    }
    return {};
  }

  // Starts an operation and looks at it until it is done. At the deadline it is left to MPI, which
  // cannot cancel it.
  Status Run(Exchange& exchange, const char* what, const std::function<int(MPI_Request*)>& start) {
    MPI_Request request = MPI_REQUEST_NULL;
    const int code = runtime_->Call([&] { return start(&request); });
    COHORT_RETURN_IF_ERROR(MpiRuntime::Check(code, what));
    Status failure;
    const auto done = [&] {
      int flag = 0;
      const int result =
          runtime_->Call([&] { return MPI_Test(&request, &flag, MPI_STATUS_IGNORE); });
      failure = MpiRuntime::Check(result, what);
      return flag != 0 || !failure.ok();
    };
    COHORT_RETURN_IF_ERROR(exchange.Poll(done, what, std::chrono::microseconds(20)));
    return failure;
  }

  const std::shared_ptr<MpiRuntime> runtime_;  // owners: the transports of this process
  const MPI_Comm comm_;
};

}  // namespace

std::unique_ptr<NativeCollectives> MakeMpiCollectives(std::shared_ptr<MpiRuntime> runtime,
                                                      MPI_Comm comm) {
  return std::make_unique<MpiCollectives>(std::move(runtime), comm);
}

}  // namespace cohort
