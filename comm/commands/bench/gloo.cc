// Gloo's collectives, as the peer in benchmarks.

#include <gloo/allgather.h>
#include <gloo/allreduce.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/math.h>
#include <gloo/reduce_scatter.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/types.h>

#include <bit>
#include <filesystem>
#include <limits>

#include "../../tcp/socket.h"
#include "subject.h"

namespace cohort::bench {
namespace {

// Calls f with an element of the type, if Gloo adds it.
template <typename F>
Status AsNumber(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:  // NOLINT(bugprone-branch-clone): types differ
      return f(float());
    case DType::kFloat64:
      return f(double());
    case DType::kInt32:
      return f(std::int32_t());
    case DType::kInt64:
      return f(std::int64_t());
    case DType::kFloat16:
      return f(gloo::float16());
    case DType::kUInt8:
      return f(std::uint8_t());
    default:
      return Unimplemented("Gloo has no " + std::string(DTypeName(dtype)));
  }
}

// Calls set(pointer, elements) with a pointer to a type as wide as the buffer's.
template <typename F>
void AsElements(const Buffer& buffer, F set) {
  const auto count = static_cast<std::size_t>(buffer.count);
  switch (SizeOf(buffer.dtype)) {
    case 1:
      return set(static_cast<std::uint8_t*>(buffer.data), count);
    case 2:
      return set(static_cast<std::uint16_t*>(buffer.data), count);
    case 4:
      return set(static_cast<float*>(buffer.data), count);
    default:
      return set(static_cast<double*>(buffer.data), count);
  }
}

// Gloo's copies its result to the front of the buffer, which may not be sent by then. Here the last
// sum waits until it is. Of a power of two of ranks, and elements that divide by it: then each step
// sends once, and sums once.
template <typename T>
class ReduceScatter final : public gloo::ReduceScatterHalvingDoubling<T> {
 public:
  ReduceScatter(const std::shared_ptr<gloo::Context>& context, T* data, int part)
      : gloo::ReduceScatterHalvingDoubling<T>(
            context, {data}, part * context->size,
            std::vector<int>(static_cast<std::size_t>(context->size), part), &kSum) {}

  void run() override {
    running_ = this;
    sums_ = 0;
    gloo::ReduceScatterHalvingDoubling<T>::run();
  }

 private:
  static void Sum(T* to, const T* from, std::size_t n) {
    gloo::sum<T>(to, from, n);
    if (++running_->sums_ == running_->sendDataBufs_.size()) {
      for (const auto& sent : running_->sendDataBufs_) {
        sent->waitSend();
      }
    }
  }

  static inline const gloo::ReductionFunction<T> kSum{gloo::CUSTOM, &Sum};
  static inline ReduceScatter* running_ = nullptr;  // a rank is a process
  std::size_t sums_ = 0;
};

class GlooSubject final : public Subject {
 public:
  GlooSubject(std::shared_ptr<gloo::Context> context, bool bcube)
      : context_(std::move(context)), bcube_(bcube) {}

  int rank() const override { return context_->rank; }
  int size() const override { return context_->size; }

  Status Barrier() override {
    return Try([&] {
      gloo::BarrierOptions options(context_);
      gloo::barrier(options);
    });
  }

  bool scatters_in_place() const override { return true; }
  Status Prepare(Operation operation, const Buffers& buffers) override {
    if (operation != Operation::kReduceScatter) {
      return {};
    }
    if (buffers.input.bytes() > std::numeric_limits<int>::max()) {
      return Unimplemented("Gloo's reduce-scatter has no more than 2 GiB");
    }
    return AsNumber(buffers.input.dtype, [&]<typename T>(T /*element*/) {
      return Try([&] {
        reduce_scatter_ = std::make_unique<ReduceScatter<T>>(
            context_, static_cast<T*>(buffers.input.data), static_cast<int>(buffers.output.count));
      });
    });
  }

  Status Run(Operation operation, const Buffers& buffers) override {
    switch (operation) {
      case Operation::kAllReduce:
        return AllReduce(buffers.input);
      case Operation::kAllGather:
        return Try([&] {
          gloo::AllgatherOptions options(context_);
          AsElements(buffers.input, [&](auto* data, std::size_t n) { options.setInput(data, n); });
          AsElements(buffers.output,
                     [&](auto* data, std::size_t n) { options.setOutput(data, n); });
          gloo::allgather(options);
        });
      case Operation::kBroadcast:
        return Try([&] {
          gloo::BroadcastOptions options(context_);
          AsElements(buffers.input, [&](auto* data, std::size_t n) { options.setOutput(data, n); });
          options.setRoot(0);
          gloo::broadcast(options);
        });
      case Operation::kReduceScatter:
        return Try([&] { reduce_scatter_->run(); });
    }
    return Internal("no such operation");
  }

 private:
  Status AllReduce(const Buffer& buffer) {
    return AsNumber(buffer.dtype, [&]<typename T>(T /*element*/) {
      return Try([&] {
        gloo::AllreduceOptions options(context_);
        options.setAlgorithm(bcube_ ? gloo::AllreduceOptions::Algorithm::BCUBE
                                    : gloo::AllreduceOptions::Algorithm::RING);
        options.setReduceFunction(
            static_cast<void (*)(void*, const void*, const void*, std::size_t)>(gloo::sum<T>));
        AsElements(buffer, [&](auto* data, std::size_t n) { options.setOutput(data, n); });
        gloo::allreduce(options);
      });
    });
  }

  template <typename F>
  static Status Try(F f) {
    try {
      f();
      return {};
    } catch (const std::exception& error) {
      return Unavailable(std::string("gloo: ") + error.what());
    }
  }

  const std::shared_ptr<gloo::Context> context_;  // owners: Gloo's pairs and this
  const bool bcube_;
  std::unique_ptr<gloo::Algorithm> reduce_scatter_;  // of the buffers prepared
};

}  // namespace

Status GlooHas(const Options& options) {
  // Else it may write to what it has not sent yet.
  return options.operation == Operation::kReduceScatter &&
                 !std::has_single_bit(static_cast<unsigned>(options.ranks))
             ? Unimplemented("Gloo's reduce-scatter is for 2, 4, 8, ... ranks")
             : OkStatus();
}

Result<std::unique_ptr<Subject>> MakeGlooSubject(const Options& options,
                                                 const std::string& configuration) {
  gloo::transport::tcp::attr where;
  COHORT_ASSIGN_OR_RETURN(where.hostname, InterfaceTowards(options.rendezvous_host));
  try {
    auto device = gloo::transport::tcp::CreateDevice(where);
    const std::string folder = options.folder + "/gloo_" + configuration;
    std::filesystem::create_directories(folder);
    gloo::rendezvous::FileStore store(folder);
    auto context = std::make_shared<gloo::rendezvous::Context>(options.rank, options.ranks);
    context->setTimeout(options.timeout);
    context->connectFullMesh(store, device);
    return std::make_unique<GlooSubject>(std::move(context), configuration == "bcube");
  } catch (const std::exception& error) {
    return Unavailable(std::string("gloo: ") + error.what());
  }
}

}  // namespace cohort::bench
