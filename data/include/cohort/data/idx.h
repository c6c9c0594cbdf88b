// IDX: the format of MNIST and its kin (yann.lecun.com/exdb/mnist). Raw or gzip, told apart by
// content.
//
// A file is read, decompressed and checked whole when it is opened, and stays in memory as stored:
// 47 MB for the 60,000 images of MNIST. Bad bytes are DataLoss, naming file, field and byte offset.

#pragma once

#include <cstdint>
#include <string>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

struct IdxOptions {
  // Images of bytes as float32 in [0, 1] (value / 255); false: as they are stored.
  bool unit_range = true;
  // Images of rank 2, [height, width], get a last axis of 1 channel.
  bool channel_axis = true;
  FileSystem* files = &FileSystem::Local();
};

// Features "image" and "label" (int64, a scalar). InvalidArgument if the files do not belong
// together: as many labels as images, labels of one axis and of an integer type.
Result<Dataset> Idx(const std::string& images_path, const std::string& labels_path,
                    const IdxOptions& options = {});

// Any IDX file as a tensor: uint8, int32 (also for the 8-bit and 16-bit signed types), float32,
// float64.
Result<Tensor> ReadIdx(FileSystem& files, const std::string& path);
// Writes a uint8 tensor, gzip-compressed if the path ends in ".gz". Atomic, see
// WriteFileAtomically.
Status WriteIdx(FileSystem& files, const std::string& path, const Tensor& tensor);

// A folder as MNIST and Fashion-MNIST are published: train-images-idx3-ubyte,
// train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, each raw or with ".gz"
// (the raw one wins).
struct ImageClassification {
  Dataset train;
  Dataset test;
  int num_classes = 0;  // largest label of both + 1
};
// NotFound lists the files that are missing.
Result<ImageClassification> LoadImageClassification(const std::string& folder,
                                                    const IdxOptions& options = {});

}  // namespace cohort::data
