// Gloo's collectives, as the peer in benchmarks.

#include <gloo/allgather.h>
#include <gloo/allreduce.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/math.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/types.h>

#include <filesystem>

#include "subject.h"

namespace cohort::bench {
namespace {

using Reduce = void (*)(void*, const void*, const void*, std::size_t);

Reduce SumOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return gloo::sum<float>;
    case DType::kFloat64:
      return gloo::sum<double>;
    case DType::kInt32:
      return gloo::sum<std::int32_t>;
    case DType::kInt64:
      return gloo::sum<std::int64_t>;
    case DType::kFloat16:
      return gloo::sum<gloo::float16>;
    case DType::kUInt8:
      return gloo::sum<std::uint8_t>;
    default:
      return nullptr;
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

class GlooSubject final : public Subject {
 public:
  GlooSubject(std::shared_ptr<gloo::Context> context, bool ring)
      : context_(std::move(context)), ring_(ring) {}

  int rank() const override { return context_->rank; }
  int size() const override { return context_->size; }

  Status Barrier() override {
    return Try([&] {
      gloo::BarrierOptions options(context_);
      gloo::barrier(options);
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
        break;
    }
    return GlooHas(operation);
  }

 private:
  Status AllReduce(const Buffer& buffer) {
    const Reduce sum = SumOf(buffer.dtype);
    if (sum == nullptr) {
      return Unimplemented("Gloo has no " + std::string(DTypeName(buffer.dtype)));
    }
    return Try([&] {
      gloo::AllreduceOptions options(context_);
      options.setAlgorithm(ring_ ? gloo::AllreduceOptions::Algorithm::RING
                                 : gloo::AllreduceOptions::Algorithm::BCUBE);
      options.setReduceFunction(sum);
      AsElements(buffer, [&](auto* data, std::size_t n) { options.setOutput(data, n); });
      gloo::allreduce(options);
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
  const bool ring_;
};

}  // namespace

Status GlooHas(Operation operation) {
  return operation == Operation::kReduceScatter
             ? Unimplemented("Gloo has no reduce-scatter of its current interface")
             : OkStatus();
}

Result<std::unique_ptr<Subject>> MakeGlooSubject(const Options& options, bool ring) {
  try {
    gloo::transport::tcp::attr where;
    where.hostname = "127.0.0.1";
    auto device = gloo::transport::tcp::CreateDevice(where);
    const std::string folder = options.folder + (ring ? "/gloo_ring" : "/gloo_bcube");
    std::filesystem::create_directories(folder);
    gloo::rendezvous::FileStore store(folder);
    auto context = std::make_shared<gloo::rendezvous::Context>(options.rank, options.ranks);
    context->setTimeout(options.timeout);
    context->connectFullMesh(store, device);
    return std::make_unique<GlooSubject>(std::move(context), ring);
  } catch (const std::exception& error) {
    return Unavailable(std::string("gloo: ") + error.what());
  }
}

}  // namespace cohort::bench
