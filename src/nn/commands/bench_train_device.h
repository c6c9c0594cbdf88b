// Training steps of one replica on a device, for `cohort bench train --device`.

#pragma once

#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/nn/precision.h>

#include <nlohmann/json.hpp>
#include <string>

namespace cohort {

struct DeviceBenchOptions {
  std::string device = "cuda:0";
  std::string model = "mlp";  // mlp, cnn, resnet18, resnet50, gpt2
  int batch = 256;            // examples, or sequences
  int length = 1024;          // of a sequence
  int image_size = 224;       // of resnet18 and resnet50
  int threads = 1;            // of a CPU's kernels
  int rounds = 9;
  nn::Precision precision = nn::Precision::kFloat32;  // gradients are not scaled
  std::string step_trace;  // a file for the timeline of up to ten steps; they count no less
  Log log;
};

// Steps on data that is on the device already, each waited for. Beside their time stands the speed
// of one large matrix product on the same device, the limit of a step's arithmetic.
Result<nlohmann::json> MeasureOnDevice(const DeviceBenchOptions& options);

}  // namespace cohort
