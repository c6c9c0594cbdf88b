// Images of classes that can be told apart, held in memory: for a fresh machine, and to measure
// speed.

#pragma once

#include <cstdint>

#include <cohort/core/status.h>
#include <cohort/data/dataset.h>

namespace cohort::workloads {

struct DrawnImages {
  std::int64_t count = 512;
  std::int64_t size = 224;  // height and width
  std::int64_t classes = 10;
  std::uint64_t seed = 1;
  std::uint64_t part = 0;  // of one seed, different ones differ in their noise: train and test
};

// Features "image" float32 [size, size, 3] and "label" int64. Each class is a pattern of 4 x 4
// colours, of which an image is a blurred and noisy copy. A pure function of its options. Cost: the
// memory, count * size^2 * 12 bytes.
Result<data::Dataset> DrawImages(const DrawnImages& options);

}  // namespace cohort::workloads
