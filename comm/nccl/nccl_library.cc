// NCCL's library behind the table. It is opened at run time, so that programs start where it is
// not: only its header is needed to build.

#include <dlfcn.h>
#include <nccl.h>

#include <array>
#include <cstring>
#include <string>

#include "cuda/cuda_common.h"
#include "nccl/nccl_api.h"

namespace cohort {
namespace {

// What we call, by name.
struct Functions {
  decltype(&::ncclGetVersion) get_version;
  decltype(&::ncclGetErrorString) get_error_string;
  decltype(&::ncclGetLastError) get_last_error;
  decltype(&::ncclGetUniqueId) get_unique_id;
  decltype(&::ncclCommInitRankConfig) comm_init_rank_config;
  decltype(&::ncclCommGetAsyncError) comm_get_async_error;
  decltype(&::ncclCommFinalize) comm_finalize;
  decltype(&::ncclCommDestroy) comm_destroy;
  decltype(&::ncclCommAbort) comm_abort;
  decltype(&::ncclGroupStart) group_start;
  decltype(&::ncclGroupEnd) group_end;
  decltype(&::ncclAllReduce) all_reduce;
  decltype(&::ncclReduce) reduce;
  decltype(&::ncclReduceScatter) reduce_scatter;
  decltype(&::ncclAllGather) all_gather;
  decltype(&::ncclBroadcast) broadcast;
  decltype(&::ncclSend) send;
  decltype(&::ncclRecv) recv;
};

// Calls that do not block are of 2.14.
constexpr int kLeastVersion = NCCL_VERSION(2, 14, 0);

std::string VersionText(int code) {
  return std::to_string(code / 10000) + "." + std::to_string(code / 100 % 100) + "." +
         std::to_string(code % 100);
}

ncclDataType_t TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ncclFloat32;
    case DType::kFloat64:
      return ncclFloat64;
    case DType::kInt32:
      return ncclInt32;
    case DType::kInt64:
      return ncclInt64;
    case DType::kFloat16:
      return ncclFloat16;
    case DType::kBFloat16:
      return ncclBfloat16;
    case DType::kUInt8:
      return ncclUint8;
  }
  return ncclNumTypes;  // NCCL refuses it
}

ncclRedOp_t OperationOf(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return ncclSum;
    case ReduceOp::kMean:
      return ncclAvg;
    case ReduceOp::kMin:
      return ncclMin;
    case ReduceOp::kMax:
      return ncclMax;
    case ReduceOp::kProduct:
      return ncclProd;
  }
  return ncclNumOps;
}

ncclComm_t CommOf(NcclApi::Handle handle) { return static_cast<ncclComm_t>(handle); }

std::size_t CountOf(const Buffer& buffer) { return static_cast<std::size_t>(buffer.count); }

class NcclLibrary final : public NcclApi {
 public:
  explicit NcclLibrary(const Functions& functions) : nccl_(functions) {}

  Result<std::string> Version() override {
    int version = 0;
    COHORT_RETURN_IF_ERROR(Say(nccl_.get_version(&version), nullptr).status);
    return VersionText(version);
  }

  Result<std::string> Uuid(Stream& stream) override {
    (void)cuda::Native(stream);  // its device is this thread's from here
    int device = 0;
    cuda::Check(cudaGetDevice(&device), "asking for the GPU of a communicator");
    cudaDeviceProp properties = {};
    cuda::Check(cudaGetDeviceProperties(&properties, device), "asking for a GPU's UUID");
    static constexpr char kDigits[] = "0123456789abcdef";
    std::string text = "GPU-";
    for (std::size_t i = 0; i < sizeof(properties.uuid.bytes); ++i) {
      const auto byte = static_cast<unsigned char>(properties.uuid.bytes[i]);
      text += i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "";
      text += kDigits[byte / 16];
      text += kDigits[byte % 16];
    }
    return text;
  }

  Result<std::string> UniqueId() override {
    ncclUniqueId id = {};
    COHORT_RETURN_IF_ERROR(Say(nccl_.get_unique_id(&id), nullptr).status);
    return std::string(id.internal, sizeof(id.internal));
  }

  Outcome Init(Stream& stream, int rank, int size, const std::string& text,
               Handle* handle) override {
    ncclUniqueId id = {};
    if (text.size() != sizeof(id.internal)) {
      return {Internal("NCCL's id has " + std::to_string(text.size()) + " bytes, not " +
                       std::to_string(sizeof(id.internal)) + " [do all ranks have one version?]")};
    }
    std::memcpy(id.internal, text.data(), text.size());
    (void)cuda::Native(stream);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t comm = nullptr;
    const ncclResult_t result = nccl_.comm_init_rank_config(&comm, size, id, rank, &config);
    *handle = comm;
    return Say(result, comm);
  }

  Outcome Poll(Handle handle) override {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = nccl_.comm_get_async_error(CommOf(handle), &state);
    return Say(asked == ncclSuccess ? state : asked, CommOf(handle));
  }

  Outcome Finalize(Handle handle) override {
    return Say(nccl_.comm_finalize(CommOf(handle)), CommOf(handle));
  }
  void Destroy(Handle handle) override { (void)nccl_.comm_destroy(CommOf(handle)); }
  void Abort(Handle handle) override { (void)nccl_.comm_abort(CommOf(handle)); }
  void Fail(Stream& stream, const Status& status) override { cuda::Fail(stream, status); }

  Outcome GroupStart() override { return Say(nccl_.group_start(), nullptr); }
  Outcome GroupEnd() override { return Say(nccl_.group_end(), nullptr); }

  Outcome AllReduce(Handle handle, Buffer input, Buffer output, ReduceOp op,
                    Stream& stream) override {
    return Say(nccl_.all_reduce(input.data, output.data, CountOf(output), TypeOf(output.dtype),
                                OperationOf(op), CommOf(handle), cuda::Native(stream)),
               CommOf(handle));
  }
  Outcome Reduce(Handle handle, Buffer buffer, ReduceOp op, int root, Stream& stream) override {
    return Say(nccl_.reduce(buffer.data, buffer.data, CountOf(buffer), TypeOf(buffer.dtype),
                            OperationOf(op), root, CommOf(handle), cuda::Native(stream)),
               CommOf(handle));
  }
  Outcome ReduceScatter(Handle handle, Buffer input, Buffer output, ReduceOp op,
                        Stream& stream) override {
    return Say(nccl_.reduce_scatter(input.data, output.data, CountOf(output), TypeOf(output.dtype),
                                    OperationOf(op), CommOf(handle), cuda::Native(stream)),
               CommOf(handle));
  }
  Outcome AllGather(Handle handle, Buffer input, Buffer output, Stream& stream) override {
    return Say(nccl_.all_gather(input.data, output.data, CountOf(input), TypeOf(input.dtype),
                                CommOf(handle), cuda::Native(stream)),
               CommOf(handle));
  }
  Outcome Broadcast(Handle handle, Buffer input, Buffer output, int root, Stream& stream) override {
    return Say(nccl_.broadcast(input.data, output.data, CountOf(output), TypeOf(output.dtype), root,
                               CommOf(handle), cuda::Native(stream)),
               CommOf(handle));
  }
  Outcome Send(Handle handle, Buffer buffer, int to, Stream& stream) override {
    return Say(nccl_.send(buffer.data, CountOf(buffer), TypeOf(buffer.dtype), to, CommOf(handle),
                          cuda::Native(stream)),
               CommOf(handle));
  }
  Outcome Receive(Handle handle, Buffer buffer, int from, Stream& stream) override {
    return Say(nccl_.recv(buffer.data, CountOf(buffer), TypeOf(buffer.dtype), from, CommOf(handle),
                          cuda::Native(stream)),
               CommOf(handle));
  }

 private:
  Outcome Say(ncclResult_t result, ncclComm_t comm) const {
    if (result == ncclSuccess || result == ncclInProgress) {
      return {{}, result == ncclInProgress};
    }
    std::string text = "NCCL: " + std::string(nccl_.get_error_string(result));
    if (const char* const last = nccl_.get_last_error(comm); last != nullptr && *last != '\0') {
      text += ": " + std::string(last);
    }
    switch (result) {
      case ncclRemoteError:
        return {Unavailable(text + " [see the other processes' logs for which ended, and why]")};
      case ncclSystemError:
        return {Unavailable(text + " [NCCL_DEBUG=INFO prints the call that failed; in a container, "
                                   "/dev/shm may be too small]")};
      default:
        return {Internal(text)};
    }
  }

  const Functions nccl_;
};

template <typename F>
bool Find(void* library, const char* name, F* function) {
  void* const found = dlsym(library, name);
  std::memcpy(function, &found, sizeof(found));
  return found != nullptr;
}

Result<std::shared_ptr<NcclApi>> Open() {
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  const std::string why = library == nullptr ? dlerror() : "";
  if (library == nullptr) {  // beside the header that this was built with
    library = dlopen(COHORT_NCCL_BESIDE_HEADER, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) {
    return FailedPrecondition("NCCL's library cannot be opened: " + why +
                              " [install libnccl2, or add its folder to LD_LIBRARY_PATH]");
  }
  Functions f = {};
  const char* missing = nullptr;
  const auto find = [&](const char* name, auto* function) {
    if (!Find(library, name, function) && missing == nullptr) {
      missing = name;
    }
  };
  find("ncclGetVersion", &f.get_version);
  int version = 0;
  if (missing == nullptr && f.get_version(&version) == ncclSuccess && version < kLeastVersion) {
    return FailedPrecondition("NCCL's library is of version " + VersionText(version) +
                              " [2.14 or later is needed]");
  }
  find("ncclGetErrorString", &f.get_error_string);
  find("ncclGetLastError", &f.get_last_error);
  find("ncclGetUniqueId", &f.get_unique_id);
  find("ncclCommInitRankConfig", &f.comm_init_rank_config);
  find("ncclCommGetAsyncError", &f.comm_get_async_error);
  find("ncclCommFinalize", &f.comm_finalize);
  find("ncclCommDestroy", &f.comm_destroy);
  find("ncclCommAbort", &f.comm_abort);
  find("ncclGroupStart", &f.group_start);
  find("ncclGroupEnd", &f.group_end);
  find("ncclAllReduce", &f.all_reduce);
  find("ncclReduce", &f.reduce);
  find("ncclReduceScatter", &f.reduce_scatter);
  find("ncclAllGather", &f.all_gather);
  find("ncclBroadcast", &f.broadcast);
  find("ncclSend", &f.send);
  find("ncclRecv", &f.recv);
  if (missing != nullptr) {
    return FailedPrecondition("NCCL's library has no " + std::string(missing) +
                              " [2.14 or later is needed]");
  }
  return std::make_shared<NcclLibrary>(f);
}

}  // namespace

Result<std::shared_ptr<NcclApi>> LoadNccl() {
  // Never closed: NCCL has threads.
  static const Result<std::shared_ptr<NcclApi>> api = Open();
  return api;
}

}  // namespace cohort
