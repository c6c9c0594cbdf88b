// What torch.nn.parallel.DistributedDataParallel does to a model, from C++: its own reducer
// (c10d::Reducer) over Gloo, with its defaults, among processes of one host. Gradients are averaged
// in buckets of 25 MB, the first of 1 MB, while the backward pass goes on.
#pragma once

#include <torch/torch.h>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

class TorchDdp {
 public:
  // `file`: where the processes meet; not there before the first of them. All hold the same values
  // of `parameters` already. Blocks until all are there, at most a minute; throws then.
  TorchDdp(std::vector<at::Tensor> parameters, int rank, int size, const std::string& file) {
    constexpr std::chrono::milliseconds kTimeout{60'000};
    const auto store = c10::make_intrusive<c10d::FileStore>(file, size);
    store->setTimeout(kTimeout);
    const auto options = c10d::ProcessGroupGloo::Options::create(kTimeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
    group_ = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, options);
    const std::vector<bool> sparse(parameters.size(), false);
    auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(
        parameters, {c10d::kDefaultFirstBucketBytes, c10d::kDefaultBucketBytesCap}, sparse);
    // As in its Python half: the last layers' gradients come first.
    std::reverse(buckets.begin(), buckets.end());
    std::reverse(limits.begin(), limits.end());
    reducer_ = std::make_unique<c10d::Reducer>(
        std::move(parameters), std::move(buckets), std::move(limits), group_, sparse,
        c10d::kDefaultBucketBytesCap, /*find_unused_parameters=*/false,
        /*gradient_as_bucket_view=*/false, std::unordered_map<std::size_t, std::string>(),
        c10d::kDefaultFirstBucketBytes);
  }

  void BeforeForward() {
    reducer_->prepare_for_forward();
    reducer_->rebuild_buckets();  // in the order in which gradients came; once
  }
  void BeforeBackward() { reducer_->prepare_for_backward({}); }

 private:
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  std::unique_ptr<c10d::Reducer> reducer_;
};
