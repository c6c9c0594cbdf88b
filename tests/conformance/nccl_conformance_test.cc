// Communicators over NCCL: with a fake in NCCL's place everywhere; with NCCL on one GPU, and on all
// of them, where there are any.
#include <cohort/comm/nccl.h>

#include "conformance/communicator_conformance.h"
#include "nccl/nccl_communicator.h"
#include "testing/fake_nccl.h"
#include "testing/memory_store.h"
#include "testing/passing_communicator.h"
#include "testing/run_ranks.h"

namespace cohort::testing {
namespace {

std::vector<Status> RunFake(int size, const CommunicatorOptions& options,
                            const std::function<Status(Communicator&)>& fn) {
  const auto world = std::make_shared<FakeNccl::World>();
  const auto store = std::make_shared<MemoryStore>();
  std::vector<Status> statuses = RunRanks(size, [&](int rank) -> Status {
    COHORT_ASSIGN_OR_RETURN(
        const std::unique_ptr<Communicator> mine,
        MakeNcclCommunicatorOn(std::make_shared<FakeNccl>(world, "GPU-" + std::to_string(rank)),
                               rank, size, store, "job",
                               {.device = MakeFakeGpu(static_cast<std::uint64_t>(rank)),
                                .connect_timeout = std::chrono::seconds(30)},
                               options));
    return fn(*mine);
  });
  EXPECT_EQ(world->live, 0) << "handles of NCCL left behind";
  return statuses;
}

// Memory of the device in place of the suite's, for one operation.
class Staged {
 public:
  explicit Staged(Device& device) : device_(device), stream_(device.MakeStream()) {}

  // Its place on the device, where it is copied; one that lies inside an earlier one shares it.
  Buffer Take(const Buffer& buffer) {
    auto* const data = static_cast<std::byte*>(buffer.data);
    if (buffer.count == 0 || data == nullptr) {  // a breach of the contract goes on as it is
      return buffer;
    }
    for (const Place& place : places_) {
      if (data >= place.host && data + buffer.bytes() <= place.host + place.bytes) {
        return {place.device.get() + (data - place.host), buffer.count, buffer.dtype};
      }
    }
    places_.push_back({data, device_.Allocate(buffer.bytes(), "a test's buffer"), buffer.bytes()});
    const Place& place = places_.back();
    device_.Copy(*stream_, place.host, place.device.get(), place.bytes);
    return {place.device.get(), buffer.count, buffer.dtype};
  }
  Buffer Take(const ConstBuffer& buffer) {
    return Take(Buffer(const_cast<void*>(buffer.data), buffer.count, buffer.dtype));
  }
  Status Return() {
    for (const Place& place : places_) {
      device_.Copy(*stream_, place.device.get(), place.host, place.bytes);
    }
    return stream_->Synchronize(DeadlineAfter(std::chrono::seconds(30)));
  }
  Stream& stream() { return *stream_; }

 private:
  struct Place {
    std::byte* host;
    std::shared_ptr<std::byte> device;
    std::size_t bytes;
  };

  Device& device_;
  std::unique_ptr<Stream> stream_;
  std::vector<Place> places_;
};

class StagedWork final : public Work {
 public:
  StagedWork(std::unique_ptr<Work> work, std::unique_ptr<Staged> staged)
      : work_(std::move(work)), staged_(std::move(staged)) {}
  bool done() const override { return work_->done(); }
  Status Wait(Deadline deadline) override {
    COHORT_RETURN_IF_ERROR(work_->Wait(deadline));
    return staged_->Return();
  }
  Status Wait() override {
    COHORT_RETURN_IF_ERROR(work_->Wait());
    return staged_->Return();
  }
  void Order(Stream& stream) override { work_->Order(stream); }

 private:
  const std::unique_ptr<Work> work_;
  const std::unique_ptr<Staged> staged_;
};

// A communicator for buffers of the host, over one for buffers of `device`.
class StagingCommunicator final : public PassingCommunicator {
 public:
  StagingCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<Device> device)
      : PassingCommunicator(std::move(inner)), device_(std::move(device)) {}

  using Communicator::AllReduce;
  Pending AllReduce(ConstBuffer input, Buffer output, ReduceOp op,
                    const CollectiveOptions& options) override {
    return Run(options, [&](Staged& staged, const CollectiveOptions& o) {
      const Buffer from = staged.Take(input);
      return inner().AllReduce(from, staged.Take(output), op, o);
    });
  }
  Pending Reduce(Buffer buffer, ReduceOp op, int root, const CollectiveOptions& options) override {
    return Run(options, [&](Staged& staged, const CollectiveOptions& o) {
      return inner().Reduce(staged.Take(buffer), op, root, o);
    });
  }
  Pending ReduceScatter(Buffer input, Buffer output, ReduceOp op,
                        const CollectiveOptions& options) override {
    return Run(options, [&](Staged& staged, const CollectiveOptions& o) {
      const Buffer from = staged.Take(input);
      return inner().ReduceScatter(from, staged.Take(output), op, o);
    });
  }
  Pending AllGather(ConstBuffer input, Buffer output, const CollectiveOptions& options) override {
    return Run(options, [&](Staged& staged, const CollectiveOptions& o) {
      const Buffer to = staged.Take(output);
      return inner().AllGather(staged.Take(input), to, o);
    });
  }
  Pending AllGatherV(ConstBuffer input, Buffer output, std::span<const std::int64_t> counts,
                     const CollectiveOptions& options) override {
    return Run(options, [&](Staged& staged, const CollectiveOptions& o) {
      const Buffer to = staged.Take(output);
      return inner().AllGatherV(staged.Take(input), to, counts, o);
    });
  }
  Pending Broadcast(Buffer buffer, int root, const CollectiveOptions& options) override {
    return Run(options, [&](Staged& staged, const CollectiveOptions& o) {
      return inner().Broadcast(staged.Take(buffer), root, o);
    });
  }
  Pending AllToAll(ConstBuffer input, Buffer output, const CollectiveOptions& options) override {
    return Run(options, [&](Staged& staged, const CollectiveOptions& o) {
      const Buffer from = staged.Take(input);
      return inner().AllToAll(from, staged.Take(output), o);
    });
  }
  Pending AllToAllV(ConstBuffer input, std::span<const std::int64_t> send_counts, Buffer output,
                    std::span<const std::int64_t> receive_counts,
                    const CollectiveOptions& options) override {
    return Run(options, [&](Staged& staged, const CollectiveOptions& o) {
      const Buffer from = staged.Take(input);
      return inner().AllToAllV(from, send_counts, staged.Take(output), receive_counts, o);
    });
  }
  Pending Send(ConstBuffer buffer, int to, const CollectiveOptions& options) override {
    return Run(options, [&](Staged& staged, const CollectiveOptions& o) {
      return inner().Send(staged.Take(buffer), to, o);
    });
  }
  Pending Receive(Buffer buffer, int from, const CollectiveOptions& options) override {
    return Run(options, [&](Staged& staged, const CollectiveOptions& o) {
      return inner().Receive(staged.Take(buffer), from, o);
    });
  }
  Result<std::unique_ptr<Communicator>> Split(int color, int key) override {
    COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> group, inner().Split(color, key));
    if (group == nullptr) {
      return group;
    }
    return std::make_unique<StagingCommunicator>(std::move(group), device_);
  }

 private:
  template <typename F>
  Pending Run(const CollectiveOptions& options, F f) {
    auto staged = std::make_unique<Staged>(*device_);
    CollectiveOptions on_device = options;
    on_device.stream = &staged->stream();
    COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Work> work, f(*staged, on_device));
    return std::make_unique<StagedWork>(std::move(work), std::move(staged));
  }

  const std::shared_ptr<Device> device_;
};

// Those of this machine; none where there is no CUDA.
std::vector<std::shared_ptr<Device>> Gpus() {
  Result<std::vector<std::shared_ptr<Device>>> gpus = OpenDevices("cuda");
  return gpus.ok() ? std::move(gpus).value() : std::vector<std::shared_ptr<Device>>();
}

std::vector<Status> RunNccl(int size, const CommunicatorOptions& options,
                            const std::function<Status(Communicator&)>& fn) {
  std::vector<std::shared_ptr<Device>> gpus = Gpus();
  gpus.resize(static_cast<std::size_t>(size));
  Result<std::vector<std::unique_ptr<Communicator>>> made =
      MakeLocalNcclCommunicators(gpus, std::chrono::seconds(30), options);
  if (!made.ok()) {
    return std::vector<Status>(static_cast<std::size_t>(size), made.status());
  }
  return RunRanks(size, [&](int rank) {
    const auto at = static_cast<std::size_t>(rank);
    StagingCommunicator mine(std::move(made.value()[at]), gpus[at]);
    return fn(mine);
  });
}

std::vector<CommunicatorCase> Cases() {
  std::vector<CommunicatorCase> cases;
  const auto add = [&](const std::string& name, const RunGroup& run, int size) {
    cases.push_back({.name = name,
                     .run = run,
                     .size = size,
                     .deterministic = false,
                     .joins = false,
                     .reckons = false});
  };
  for (const int size : {1, 2, 3}) {
    add("fake", RunFake, size);
  }
  const int gpus = static_cast<int>(Gpus().size());
  for (int size = 1; size <= gpus; size += std::max(gpus - 1, 1)) {
    add("gpu", RunNccl, size);
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Nccl, CommunicatorConformance, ::testing::ValuesIn(Cases()),
                         CommunicatorCaseName);

}  // namespace
}  // namespace cohort::testing
