#pragma once

#include <cohort/device/device.h>

#include <functional>
#include <memory>
#include <vector>

#include "cuda/cuda_stream.h"

namespace cohort::cuda {

// See Device::Capture. StatusError if what `feed` put on the stream can't be a graph; whatever
// `feed` throws.
std::unique_ptr<Graph> CaptureGraph(const std::shared_ptr<StreamState>& state,
                                    const std::function<void()>& feed);
// The same, of Device::CaptureParts.
std::vector<std::unique_ptr<Graph>> CaptureGraphs(
    const std::shared_ptr<StreamState>& state,
    const std::function<void(const Device::Cut& cut)>& feed);

}  // namespace cohort::cuda
