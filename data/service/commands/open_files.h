// Files of any format that the tool knows, as a data set with what makes its examples.

#pragma once

#include <string>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

struct OpenOptions {
  std::vector<std::string> paths;
  std::string image;          // "224x224", height by width; empty: there are no images
  std::string fit = "cover";  // "cover", "stretch" or "exact"
  bool unit_range = true;     // images as float32 in [0, 1]; false: uint8
};

struct OpenedFiles {
  Dataset dataset;
  std::string version;              // of what its maps do: ServedPipeline::version
  std::vector<std::string> unread;  // fields that are left out
};

// What each format gives, told by the content of the first file:
//   TFRecord     the features of Examples: those of one value, lists ragged, text as a hash; JPEG
//                and PNG of NAME as images NAME/pixels
//   tar          images, and "label" of "cls" members
//   CSV          columns: numbers as float32, others as categories
//   .npy         "values"; safetensors: its tensors
//   a folder     of images as MNIST is published: its training half
Result<OpenedFiles> OpenFiles(const OpenOptions& options);

}  // namespace cohort::data
