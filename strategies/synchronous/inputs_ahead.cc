#include "synchronous/inputs_ahead.h"

#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include <cohort/core/host_blocks.h>
#include <cohort/device/ahead_copy.h>

#include "synchronous/distributed_dataset.h"

namespace cohort {
namespace {

constexpr std::chrono::seconds kSettleTimeout{30};

// Copies of tensors to one device.
class Feeder {
 public:
  Feeder(std::shared_ptr<Device> device, Log log)
      : device_(std::move(device)),
        log_(std::move(log)),
        blocks_(std::make_shared<HostBlocks>([device = device_](std::size_t bytes) {
          return device->Allocate(bytes, "batches that are copied ahead");
        })),
        stream_(device_->MakeStream()) {}
  // What copies are from and to goes when they have run.
  ~Feeder() { (void)stream_->Synchronize(DeadlineAfter(kSettleTimeout)); }
  Feeder(const Feeder&) = delete;
  Feeder& operator=(const Feeder&) = delete;

  // With a copy on its way, which is there when Begun has said by when; else as it is.
  Tensor WithCopy(const Tensor& tensor, std::shared_ptr<AheadCopy>* copy) {
    if (full_ || tensor.space() != MemorySpace::kHost || tensor.bytes() == 0 ||
        !device_->PageLocked(tensor.raw())) {
      return tensor;
    }
    try {
      *copy = std::make_shared<AheadCopy>(device_, blocks_->Take(tensor.bytes()));
    } catch (const StatusError& error) {
      full_ = true;
      log_.Warning("batches are not copied to " + device_->name() +
                   " ahead of their steps: " + error.status().message());
      return tensor;
    }
    device_->Copy(*stream_, tensor.raw(), (*copy)->memory(), tensor.bytes());
    begun_.copies.push_back(*copy);
    begun_.tensors.push_back(tensor);
    return tensor.WithTwin(*copy);
  }

  // After the tensors of a batch.
  void Begun() {
    while (!flights_.empty() && flights_.front().done->done()) {
      flights_.pop_front();
    }
    if (begun_.copies.empty()) {
      return;
    }
    begun_.done = stream_->Record();
    for (const std::shared_ptr<AheadCopy>& copy : begun_.copies) {
      copy->Begun(begun_.done);
    }
    flights_.push_back(std::exchange(begun_, {}));
  }

 private:
  // Of one batch: what must stay until the copies have run.
  struct Flight {
    std::shared_ptr<Event> done;
    std::vector<Tensor> tensors;
    std::vector<std::shared_ptr<AheadCopy>> copies;
  };

  const std::shared_ptr<Device> device_;
  const Log log_;
  // Of the device's memory. A step has ended when its batch goes, so what is given back is idle.
  const std::shared_ptr<HostBlocks> blocks_;
  bool full_ = false;
  Flight begun_;
  std::deque<Flight> flights_;
  const std::unique_ptr<Stream> stream_;  // ends first: its work is on the memory above
};

class InputsAhead final : public DistributedDataset {
 public:
  InputsAhead(std::unique_ptr<DistributedDataset> batches,
              const std::vector<std::shared_ptr<Device>>& devices, const Log& log)
      : batches_(std::move(batches)), ahead_(*batches_) {
    std::map<const Device*, std::shared_ptr<Feeder>> made;
    for (const std::shared_ptr<Device>& device : devices) {
      if (device->memory_space() == MemorySpace::kHost) {
        feeders_.push_back(nullptr);
        continue;
      }
      std::shared_ptr<Feeder>& feeder = made[device.get()];
      if (feeder == nullptr) {
        feeder = std::make_shared<Feeder>(device, log);
      }
      feeders_.push_back(feeder);
    }
  }

  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    return ResumeEpoch(epoch, first_batch, {});
  }
  Status ResumeEpoch(std::int64_t epoch, std::int64_t first_batch,
                     const std::vector<data::EpochDivision>& begun) override {
    ahead_.Drop();
    given_.clear();
    copied_.clear();
    unused_.clear();
    return batches_->ResumeEpoch(epoch, first_batch, begun);
  }

  Result<std::optional<DistributedBatch>> Next() override {
    Learn();
    given_ = std::exchange(copied_, {});
    Result<std::optional<DistributedBatch>> batch = ahead_.Next();
    if (batch.ok() && batch->has_value()) {
      if (DistributedBatch* const next = ahead_.Peek(); next != nullptr) {
        const SteadyClock::time_point before = SteadyClock::now();
        Copy(*next);
        copying_ += SteadyClock::now() - before;
      }
    }
    return batch;
  }

  Result<bool> MayStop() override { return batches_->MayStop(); }
  std::int64_t batches_per_epoch() const override { return batches_->batches_per_epoch(); }
  double input_seconds() const override { return batches_->input_seconds() + copying_.count(); }
  std::vector<std::int64_t> Overtaken() const override { return ahead_.Overtaken(); }

 private:
  using SteadyClock = std::chrono::steady_clock;
  struct Copied {
    std::string feature;
    std::shared_ptr<const AheadCopy> copy;
  };

  // Which features the step of the batch before did without.
  void Learn() {
    std::set<std::string> used;
    for (const Copied& copied : given_) {
      if (copied.copy->used()) {
        used.insert(copied.feature);
      }
    }
    for (const Copied& copied : given_) {
      if (!used.contains(copied.feature)) {
        unused_.insert(copied.feature);
      }
    }
    given_.clear();
  }

  void Copy(DistributedBatch& batch) {
    for (std::size_t r = 0; r < batch.replicas.size(); ++r) {
      Feeder* const feeder = feeders_.at(r).get();
      if (feeder == nullptr) {
        continue;
      }
      for (auto& [name, tensor] : batch.replicas[r].features) {
        std::shared_ptr<AheadCopy> copy;
        if (!unused_.contains(name)) {
          tensor = feeder->WithCopy(tensor, &copy);
        }
        if (copy != nullptr) {
          copied_.push_back({name, std::move(copy)});
        }
      }
    }
    for (const std::shared_ptr<Feeder>& feeder : feeders_) {
      if (feeder != nullptr) {
        feeder->Begun();
      }
    }
  }

  const std::unique_ptr<DistributedDataset> batches_;
  OneAhead ahead_;
  std::vector<std::shared_ptr<Feeder>> feeders_;  // by replica; nullptr: it is on the host
  std::vector<Copied> copied_;                    // of the batch that is ahead
  std::vector<Copied> given_;                     // of the one that was handed out last
  std::set<std::string> unused_;
  std::chrono::duration<double> copying_{0};  // what it took to begin
};

}  // namespace

std::unique_ptr<DistributedDataset> CopyAhead(std::unique_ptr<DistributedDataset> batches,
                                              const std::vector<std::shared_ptr<Device>>& devices,
                                              const Log& log) {
  return std::make_unique<InputsAhead>(std::move(batches), devices, log);
}

}  // namespace cohort
