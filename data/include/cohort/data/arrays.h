// Arrays in files whose first axis is the example: NumPy's .npy and safetensors, told apart by
// content.
//
// Formats: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html (versions 1, 2
// and 3) and https://github.com/huggingface/safetensors. Element types are read as they are; those
// of .npy that Tensor does not have become a wider one: bool uint8, int8, int16 and uint16 int32,
// uint32 int64. Refused: Fortran order, big-endian, structured types, Python objects, uint64.
//
// Headers are read and checked against the size of the file when it is opened; rows stay on disk:
// an example costs one read of its bytes for each feature, straight into the batch. Neither format
// has checksums. Bad bytes are DataLoss, naming file, byte and row.
//
// Thread rules: free functions, any thread; blocks for the disk.

#pragma once

#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

struct ArrayFeature {
  std::string name;
  std::string path;
  std::string tensor = {};  // in a safetensors file; empty: called like the feature
};

struct ArrayOptions {
  FileSystem* files = &FileSystem::Local();
};

// One array for each feature: an array of shape [N, ...] is N examples of shape [...].
// InvalidArgument: no features, a name twice, an array without an axis, numbers of examples that
// differ, an element type or order that is refused; NotFound: a tensor that the file does not have.
Result<Dataset> Arrays(const std::vector<ArrayFeature>& features, const ArrayOptions& options = {});
// All tensors of one safetensors file, under their own names, in bytewise order.
Result<Dataset> Safetensors(const std::string& path, const ArrayOptions& options = {});

// A .npy file whole, of any rank.
Result<Tensor> ReadNpy(FileSystem& files, const std::string& path);
// Writes version 1.0 in C order; ContractError for bfloat16, which the format does not have.
// Atomic, see WriteFileAtomically.
Status WriteNpy(FileSystem& files, const std::string& path, const Tensor& tensor);

}  // namespace cohort::data
