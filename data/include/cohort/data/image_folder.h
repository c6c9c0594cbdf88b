// Image folders: FOLDER/CLASS/anything.jpg, as torchvision's ImageFolder and ImageNet have them.
//
// Features "image", [height, width, channels], and "label" (int64, a scalar): the place of the
// class among the names of the folders in bytewise order. Images are JPEG or PNG by content, files
// whose names end in .jpg, .jpeg or .png in any case. What begins with a dot is passed over.
//
// The folders are listed once, and about 50 bytes a file are kept; an example costs the reading of
// its file, and its decoding. Errors name the file.
//
// Thread rules: free functions, any thread; blocks for the disk.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/data/dataset.h>
#include <cohort/data/image.h>

namespace cohort::data {

// A random part of the image, resized, of half of them flipped: Szegedy et al., "Going deeper with
// convolutions", CVPR 2015, as torchvision's RandomResizedCrop and RandomHorizontalFlip. What
// becomes of an image is a function of (seed, epoch, its index): the same for any number of workers
// and threads, and when an epoch is resumed. The passes of Repeat are of one epoch.
struct ImageAugmentation {
  double min_area = 0.08;  // of the part, as a share of the image's
  double max_area = 1;
  // The part's width / height is that of the result, times or over at most this.
  double max_aspect = 4.0 / 3.0;
  bool flip = true;
  std::uint64_t seed = 0;
};

struct ImageFolderOptions {
  ImageSpec image = {.height = 224, .width = 224};
  // Under ImageFit::kCover, of the sides of the part that is looked at, around its middle: 0.875 is
  // to resize to 256 and to take the middle 224.
  double center = 1;
  std::optional<ImageAugmentation> augmentation =
      {};  // for training; then image.fit does not count
  // The classes by label, such as those of the training images for the others; empty: the folders
  // that there are. One without a folder has no images.
  std::vector<std::string> classes = {};
  // Files that are no images by name, folders inside of a class, and files beside the classes are
  // passed over, and the first of them is logged, instead of being an error.
  bool skip_others = false;
  Log log = {};
  FileSystem* files = &FileSystem::Local();
};

struct LabelledImages {
  Dataset dataset;
  std::vector<std::string> classes;  // by label
};
// InvalidArgument: no classes, a class without images, a folder that is none of `classes`, what is
// no image (skip_others), options out of their range. NotFound: no such folder.
Result<LabelledImages> ImageFolder(const std::string& folder,
                                   const ImageFolderOptions& options = {});

}  // namespace cohort::data
