#include "mpi/mpi_peer.h"

#include <array>
#include <optional>

#include "mpi/mpi_runtime.h"
#include "mpi/mpi_types.h"

namespace cohort {
namespace {

class WorldPeer final : public MpiPeer {
 public:
  explicit WorldPeer(std::shared_ptr<MpiRuntime> runtime)
      : runtime_(std::move(runtime)), lock_(runtime_->mutex()) {
    runtime_->Funnel([this] {
      MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
      MPI_Comm_size(MPI_COMM_WORLD, &size_);
    });
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  Status AllReduce(Buffer b) override {
    COHORT_ASSIGN_OR_RETURN(const MPI_Datatype type, TypeFor(b));
    const int count = static_cast<int>(b.count);
    return Call("MPI_Allreduce", [&] {
      return MPI_Allreduce(MPI_IN_PLACE, b.data, count, type, MPI_SUM, MPI_COMM_WORLD);
    });
  }
  Status ReduceScatter(Buffer input, Buffer output) override {
    COHORT_ASSIGN_OR_RETURN(const MPI_Datatype type, TypeFor(input));
    const int count = static_cast<int>(output.count);
    return Call("MPI_Reduce_scatter_block", [&] {
      return MPI_Reduce_scatter_block(input.data, output.data, count, type, MPI_SUM,
                                      MPI_COMM_WORLD);
    });
  }
  Status AllGather(Buffer input, Buffer output) override {
    COHORT_ASSIGN_OR_RETURN(const MPI_Datatype type, TypeFor(output));
    const int count = static_cast<int>(input.count);
    return Call("MPI_Allgather", [&] {
      return MPI_Allgather(input.data, count, type, output.data, count, type, MPI_COMM_WORLD);
    });
  }
  Status Broadcast(Buffer b) override {
    COHORT_ASSIGN_OR_RETURN(const MPI_Datatype type, TypeFor(b));
    const int count = static_cast<int>(b.count);
    return Call("MPI_Bcast", [&] { return MPI_Bcast(b.data, count, type, 0, MPI_COMM_WORLD); });
  }
  Status Barrier() override {
    return Call("MPI_Barrier", [] { return MPI_Barrier(MPI_COMM_WORLD); });
  }

 private:
  template <typename F>
  Status Call(const char* what, F f) {
    return MpiRuntime::Check(runtime_->Funnel(f), what);
  }
  static Result<MPI_Datatype> TypeFor(const Buffer& buffer) {
    const std::optional<MPI_Datatype> type = MpiTypeOf(buffer.dtype);
    if (!type || buffer.count > kMaxMpiElements) {
      return Unimplemented("MPI has no " + std::string(DTypeName(buffer.dtype)) +
                           " of that many elements");
    }
    return *type;
  }

  const std::shared_ptr<MpiRuntime> runtime_;  // owners: as in mpi_runtime.h
  const std::lock_guard<std::mutex> lock_;
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace

std::string MpiLibrary() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text = {};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  return {text.data(), static_cast<std::size_t>(length)};
}

Result<std::unique_ptr<MpiPeer>> MakeMpiPeer() {
  COHORT_ASSIGN_OR_RETURN(std::shared_ptr<MpiRuntime> runtime, MpiRuntime::Get());
  return std::make_unique<WorldPeer>(std::move(runtime));
}

}  // namespace cohort
