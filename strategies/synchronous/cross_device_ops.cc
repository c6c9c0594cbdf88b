#include "synchronous/cross_device_ops.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "synchronous/agreement.h"

namespace cohort {
namespace {

constexpr std::string_view kAuto = "auto";
constexpr std::string_view kNccl = "nccl";
constexpr std::string_view kOneDevice = "reduction_to_one_device";
constexpr std::string_view kTree = "hierarchical_copy";

// For ranks whose processes are all there to connect.
constexpr std::chrono::milliseconds kConnect{60'000};

constexpr std::string_view kYes = "yes";

class Choice {
 public:
  Choice(const StrategyOptions& options, const CrossDeviceParts& parts)
      : options_(options), parts_(parts) {}

  Result<CrossDeviceOps> Run() {
    CrossDeviceOps chosen;
    const std::string& name = options_.cross_device_ops;
    if (name == kOneDevice) {
      chosen.way = DeviceSums::Way::kOneDevice;
    }
    const bool alone = parts_.job == nullptr && parts_.copies.size() <= 1;
    if (name == kTree || name == kOneDevice || (name == kAuto && alone)) {
      return chosen;
    }
    if (name == kAuto && parts_.copies.empty()) {
      return chosen;
    }
    COHORT_ASSIGN_OR_RETURN(const std::string obstacle, FindRanks());
    if (obstacle.empty() && name == kAuto && ranks_.size() <= 1) {
      return chosen;  // there is nothing to add
    }
    if (obstacle.empty()) {
      COHORT_RETURN_IF_ERROR(Connect(chosen));
    } else if (name == kNccl) {
      return FailedPrecondition("cross_device_ops is 'nccl', which cannot be here: " + obstacle +
                                " [choose auto or hierarchical_copy]");
    } else if (IsChief()) {
      options_.log.Info("gradients of devices are summed by hierarchical_copy" +
                        std::string(parts_.job == nullptr ? "" : " and in the host's memory") +
                        ", not by NCCL: " + obstacle);
    }
    return chosen;
  }

 private:
  struct Rank {
    int process;
    std::string gpu;
    std::string device;
  };

  bool IsChief() const { return parts_.job == nullptr || parts_.job->rank() == 0; }

  // What stands in NCCL's way on this process, before it is asked.
  std::string ObstacleHere() const {
    if (parts_.copies.empty()) {
      return "gradients are in the host's memory";
    }
    for (const std::unique_ptr<DeviceCopy>& copy : parts_.copies) {
      if (!copy->apart()) {
        return "a replica is on the CPU";
      }
    }
    if (options_.virtual_shards > 0) {
      return "virtual_shards promise the same bits in every world, and NCCL adds in an order of "
             "its own";
    }
    if (options_.deterministic) {
      return "deterministic asks for the canonical order of sums, and NCCL adds in an order of its "
             "own";
    }
    if (parts_.job == nullptr) {
      return "";
    }
    if (parts_.hook != nullptr && !parts_.hook->on_devices().has_value()) {
      return "the bucket hook '" + parts_.hook->name() + "' takes sums in the host's memory";
    }
    if (options_.communication.implementation != "auto") {
      return "communication.implementation is '" + options_.communication.implementation +
             "', of sums in the host's memory";
    }
    if (options_.cross_device_ops == kAuto && options_.communication.transport != "auto") {
      return "communication.transport is '" + options_.communication.transport + "'";
    }
    return parts_.store == nullptr ? "the processes have no store in which their GPUs could meet"
                                   : "";
  }

  // Ends well before the others tire of waiting for what a process has to say of it.
  std::chrono::milliseconds ConnectTimeout() const {
    return std::min({options_.join_timeout, kConnect, options_.communication.timeout / 2});
  }

  // What this process tells the others: its GPUs, or what stands in the way.
  std::string Word() {
    std::string word(kYes);
    std::string obstacle = ObstacleHere();
    for (std::size_t c = 0; c < parts_.copies.size() && obstacle.empty(); ++c) {
      const std::shared_ptr<Device>& device = parts_.copies[c]->device();
      mine_.push_back({.device = device,
                       .connect_timeout = ConnectTimeout(),
                       .api = options_.make_nccl ? options_.make_nccl(*device) : nullptr});
      const Result<std::string> gpu = NcclGpu(mine_.back());
      if (gpu.ok()) {
        word += "\n" + *gpu + " " + device->name();
      } else {
        obstacle = gpu.status().message();
      }
    }
    return obstacle.empty() ? word : obstacle;
  }

  // Learns of the ranks of all processes; returns why NCCL cannot have them, or nothing.
  Result<std::string> FindRanks() {
    std::vector<std::string> words{Word()};
    if (parts_.job != nullptr && !parts_.copies.empty()) {
      COHORT_ASSIGN_OR_RETURN(words,
                              GatherTexts(*parts_.job, "GPUs of all processes", words.front()));
    }
    for (int process = 0; process < static_cast<int>(words.size()); ++process) {
      std::string_view word = words[static_cast<std::size_t>(process)];
      if (!word.starts_with(kYes)) {
        const std::string of = parts_.job == nullptr ? "" : parts_.job->peer_name(process) + ": ";
        return of + std::string(word);
      }
      word.remove_prefix(kYes.size());
      while (!word.empty()) {
        word.remove_prefix(1);
        const std::string_view line = word.substr(0, word.find('\n'));
        const std::size_t space = line.find(' ');
        ranks_.push_back({.process = process,
                          .gpu = std::string(line.substr(0, space)),
                          .device = std::string(line.substr(space + 1))});
        word.remove_prefix(line.size());
      }
    }
    std::map<std::string, const Rank*> owners;
    for (const Rank& rank : ranks_) {
      const auto [owner, first] = owners.emplace(rank.gpu, &rank);
      if (!first) {
        return NameOf(*owner->second) + " and " + NameOf(rank) + " are one GPU, " + rank.gpu +
               ", and NCCL takes one rank for each";
      }
    }
    return std::string();
  }

  std::string NameOf(const Rank& rank) const {
    return parts_.job == nullptr ? rank.device
                                 : parts_.job->peer_name(rank.process) + "'s " + rank.device;
  }

  NcclSums::Options SumsOptions() const {
    NcclSums::Options sums;
    for (const std::unique_ptr<DeviceCopy>& copy : parts_.copies) {
      sums.copies.push_back(copy.get());
    }
    sums.ranks = mine_;
    const int process = parts_.job == nullptr ? 0 : parts_.job->rank();
    std::vector<std::string> names;
    for (const Rank& rank : ranks_) {
      sums.first_rank += rank.process < process ? 1 : 0;
      names.push_back(NameOf(rank));
    }
    sums.size = static_cast<int>(ranks_.size());
    sums.job = parts_.job;
    sums.store = parts_.store;
    sums.prefix = "cross_device_ops/" + std::to_string(parts_.binding);
    sums.communicator.timeout = options_.communication.timeout;
    sums.communicator.generation = parts_.job == nullptr ? 1 : parts_.job->generation();
    sums.communicator.name = "gradients";
    sums.communicator.flight_folder = options_.flight_folder;
    sums.communicator.metrics = options_.metrics;
    sums.communicator.peer_name = [names = std::move(names)](int rank) {
      return names.at(static_cast<std::size_t>(rank));
    };
    sums.communicator.log = options_.log;
    return sums;
  }

  // All processes' GPUs, or none: where one process fails, "auto" does without on all of them.
  Status Connect(CrossDeviceOps& chosen) {
    auto made = NcclSums::Make(SumsOptions());
    Status failed = made.status();
    if (parts_.job != nullptr) {
      auto gathered = GatherTexts(*parts_.job, "connected through NCCL",
                                  failed.ok() ? std::string(kYes) : failed.message());
      if (!gathered.ok()) {
        return failed.ok() ? gathered.status()
                           : gathered.status().Annotate("after NCCL: " + failed.message());
      }
      const std::vector<std::string>& words = gathered.value();
      for (int process = 0; failed.ok() && process < static_cast<int>(words.size()); ++process) {
        if (words[static_cast<std::size_t>(process)] != kYes) {
          failed = FailedPrecondition(parts_.job->peer_name(process) + ": " +
                                      words[static_cast<std::size_t>(process)]);
        }
      }
    }
    if (failed.ok()) {
      chosen.way = DeviceSums::Way::kEach;
      chosen.nccl = std::move(made).value();
      if (IsChief()) {
        options_.log.Info("gradients of " + std::to_string(ranks_.size()) +
                          " GPU(s) are summed by NCCL");
      }
      return {};
    }
    if (options_.cross_device_ops == kNccl) {
      return failed.Annotate("cross_device_ops 'nccl'");
    }
    if (IsChief()) {
      options_.log.Warning(
          "gradients of devices are summed by hierarchical_copy, since NCCL does "
          "not start: " +
          failed.message());
    }
    return {};
  }

  const StrategyOptions& options_;
  const CrossDeviceParts& parts_;
  std::vector<NcclOptions> mine_;
  std::vector<Rank> ranks_;  // of all processes
};

}  // namespace

Status CheckCrossDeviceOps(const StrategyOptions& options) {
  const std::string& name = options.cross_device_ops;
  if (name != kAuto && name != kNccl && name != kOneDevice && name != kTree) {
    return InvalidArgument("cross_device_ops is '" + name +
                           "' [choose auto, nccl, hierarchical_copy or reduction_to_one_device]");
  }
  if (name == kOneDevice && options.virtual_shards > 0) {
    return InvalidArgument(
        "cross_device_ops is 'reduction_to_one_device' with virtual_shards, which are added in one "
        "tree [leave one of them out]");
  }
  return {};
}

Result<CrossDeviceOps> ChooseCrossDeviceOps(const StrategyOptions& options,
                                            const CrossDeviceParts& parts) {
  return Choice(options, parts).Run();
}

}  // namespace cohort
