#include <cohort/data/image_folder.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>
#include <string_view>
#include <utility>

#include <cohort/core/random.h>

#include "sources/content.h"
#include "sources/exact_text.h"
#include "sources/image_codecs.h"

namespace cohort::data {
namespace {

struct File {
  std::int64_t label = 0;
  std::string name;  // in the folder of its class
};

struct Listing {
  std::string folder;
  std::vector<std::string> classes;
  std::vector<File> images;  // by class, then by name

  std::string PathOf(const File& file) const {
    return folder + "/" + classes[static_cast<std::size_t>(file.label)] + "/" + file.name;
  }
};

bool IsImageName(std::string name) {
  std::transform(name.begin(), name.end(), name.begin(), [](char c) {
    return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  });
  return name.ends_with(".jpg") || name.ends_with(".jpeg") || name.ends_with(".png");
}

// What is not there for its images.
class Others {
 public:
  explicit Others(const ImageFolderOptions& options) : options_(options) {}

  Status Meet(const std::string& path, const char* what) {
    if (!options_.skip_others) {
      return InvalidArgument(path + ": " + what +
                             " [FOLDER/CLASS/*.jpg, *.jpeg, *.png; skip_others passes it over]");
    }
    if (count_++ == 0) {
      first_ = path;
    }
    return {};
  }
  void Report(const std::string& folder) const {
    if (count_ > 0) {
      options_.log.Warning(folder + ": " + std::to_string(count_) +
                           " files are no images of a class and passed over, the first: " + first_);
    }
  }

 private:
  const ImageFolderOptions& options_;
  std::int64_t count_ = 0;
  std::string first_;
};

// The images of one class, whose folder is there.
Status ListClass(const std::string& path, std::int64_t label, const std::vector<std::string>& names,
                 Others& others, std::vector<File>& images) {
  const std::size_t before = images.size();
  for (const std::string& name : names) {
    if (name.starts_with('.')) {
      continue;
    }
    if (IsImageName(name)) {
      images.push_back({label, name});
    } else {
      COHORT_RETURN_IF_ERROR(others.Meet(path + "/" + name, "its name is no image's"));
    }
  }
  return images.size() > before ? Status() : InvalidArgument(path + ": a class without images");
}

Result<Listing> List(const std::string& folder, const ImageFolderOptions& options) {
  FileSystem& files = *options.files;
  Listing listing{.folder = folder, .classes = options.classes, .images = {}};
  Others others(options);
  COHORT_ASSIGN_OR_RETURN(const std::vector<std::string> names, files.List(folder));
  for (const std::string& name : names) {
    if (name.starts_with('.')) {
      continue;
    }
    const std::string path = folder + "/" + name;
    const Result<std::vector<std::string>> inside = files.List(path);
    if (!inside.ok() && files.OpenForRead(path).ok()) {
      COHORT_RETURN_IF_ERROR(others.Meet(path, "not the folder of a class"));
      continue;
    }
    COHORT_RETURN_IF_ERROR(inside.status());
    auto place = std::find(listing.classes.begin(), listing.classes.end(), name);
    if (place == listing.classes.end()) {
      if (!options.classes.empty()) {
        return InvalidArgument(path + ": the folder of none of the " +
                               std::to_string(options.classes.size()) + " classes, the first '" +
                               options.classes.front() + "'");
      }
      place = listing.classes.insert(place, name);
    }
    COHORT_RETURN_IF_ERROR(
        ListClass(path, place - listing.classes.begin(), *inside, others, listing.images));
  }
  others.Report(folder);
  if (listing.images.empty()) {
    return InvalidArgument(folder + ": no folders of classes with images [FOLDER/CLASS/*.jpg]");
  }
  std::stable_sort(listing.images.begin(), listing.images.end(),
                   [](const File& a, const File& b) { return a.label < b.label; });
  return listing;
}

// The middle of `part`, so much of each side.
ImagePart Middle(const ImagePart& part, double share) {
  const auto side = [&](std::int64_t all) {
    return std::max<std::int64_t>(1, std::llround(static_cast<double>(all) * share));
  };
  ImagePart middle{.height = side(part.height), .width = side(part.width)};
  middle.top = part.top + (part.height - middle.height) / 2;
  middle.left = part.left + (part.width - middle.width) / 2;
  return middle;
}

// Numbers for one example of one epoch, in the order of the draws.
class Draws {
 public:
  Draws(std::uint64_t seed, std::int64_t epoch, std::int64_t index)
      : random_(seed, "image augmentation"),
        next_(static_cast<std::uint64_t>(epoch) * kMost),
        index_(static_cast<std::uint64_t>(index)) {}

  double Between(double low, double high) {
    return low + (high - low) * static_cast<double>(random_.Uniform(next_++, index_));
  }
  // In [0, most].
  std::int64_t UpTo(std::int64_t most) {
    return static_cast<std::int64_t>(
        random_.Below(static_cast<std::uint64_t>(most) + 1, next_++, index_));
  }

 private:
  static constexpr std::uint64_t kMost = 64;  // for an example
  Philox random_;
  std::uint64_t next_;
  std::uint64_t index_;
};

// As torchvision's RandomResizedCrop: ten tries, then the middle.
Result<ImagePart> RandomPart(const ImageAugmentation& a, const ImageSpec& spec, std::int64_t rows,
                             std::int64_t columns, Draws& draws) {
  constexpr int kTries = 10;
  const double area = static_cast<double>(rows) * static_cast<double>(columns);
  const double aspect = static_cast<double>(spec.width) / static_cast<double>(spec.height);
  const double most = std::log(a.max_aspect);
  for (int i = 0; i < kTries; ++i) {
    const double of_part = area * draws.Between(a.min_area, a.max_area);
    const double ratio = aspect * std::exp(draws.Between(-most, most));
    ImagePart part{.height = std::llround(std::sqrt(of_part / ratio)),
                   .width = std::llround(std::sqrt(of_part * ratio))};
    if (part.height >= 1 && part.width >= 1 && part.height <= rows && part.width <= columns) {
      part.top = draws.UpTo(rows - part.height);
      part.left = draws.UpTo(columns - part.width);
      return part;
    }
  }
  return PartThatFits(ImageFit::kCover, rows, columns, spec.height, spec.width);
}

class ImageFolderSource final : public Source {
 public:
  ImageFolderSource(std::shared_ptr<const Listing> listing, const ImageFolderOptions& options,
                    std::int64_t epoch)
      : listing_(std::move(listing)), options_(options), epoch_(epoch) {
    const ImageSpec& image = options_.image;
    features_ = {{"image",
                  image.unit_range ? DType::kFloat32 : DType::kUInt8,
                  {image.height, image.width, image.decode.channels}},
                 {"label", DType::kInt64, {}}};
  }

  std::int64_t size() const override { return std::ssize(listing_->images); }
  const std::vector<FeatureSpec>& features() const override { return features_; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    const File& file = At(index);
    COHORT_ASSIGN_OR_RETURN(const std::string bytes,
                            ReadFile(*options_.files, listing_->PathOf(file)));
    const Status status = DecodeView(
        bytes, options_.image,
        [&](std::int64_t height, std::int64_t width) { return ViewOf(index, height, width); },
        rows[0]);
    std::memcpy(rows[1], &file.label, sizeof(file.label));
    return status.ok() ? status : status.Annotate(listing_->PathOf(file));
  }

  std::shared_ptr<const Source> AtEpoch(std::int64_t epoch) const override {
    return options_.augmentation
               ? std::make_shared<const ImageFolderSource>(listing_, options_, epoch)
               : nullptr;
  }
  std::string Where(std::int64_t index) const override { return listing_->PathOf(At(index)); }
  std::vector<FileRange> files() const override {
    std::vector<FileRange> ranges;
    ranges.reserve(listing_->images.size());
    for (std::int64_t i = 0; i < size(); ++i) {
      ranges.push_back({Where(i), i, i + 1, 0});
    }
    return ranges;
  }

  // Of all names, and of the sizes and beginnings of files spread evenly.
  std::uint64_t Fingerprint() const override {
    constexpr std::uint64_t kOfAFile = std::uint64_t{128} << 10;
    constexpr auto kFiles = static_cast<std::int64_t>(kDigestBytes / kOfAFile);
    const ImageSpec& image = options_.image;
    std::uint64_t digest = Hash64("image folder " + features_[0].shape.ToString() +
                                  std::string(DTypeName(features_[0].dtype)));
    const auto add = [&](std::string_view text) { digest = Hash64(text, digest); };
    if (const auto& a = options_.augmentation) {
      add("random " + ExactText(a->min_area) + " " + ExactText(a->max_area) + " " +
          ExactText(a->max_aspect) + (a->flip ? " flip " : " ") + std::to_string(a->seed));
    } else {
      add("fit " + std::to_string(static_cast<int>(image.fit)) + " " + ExactText(options_.center));
    }
    for (const std::string& name : listing_->classes) {
      add(name);
    }
    const std::int64_t every = (size() + kFiles - 1) / kFiles;
    for (std::int64_t i = 0; i < size(); ++i) {
      add(std::to_string(At(i).label) + "/" + At(i).name);
      if (i % every == 0) {
        add(ContentText(Where(i), kOfAFile));
      }
    }
    return digest;
  }

 private:
  const File& At(std::int64_t index) const {
    return listing_->images[static_cast<std::size_t>(index)];
  }
  std::string ContentText(const std::string& path, std::uint64_t bytes) const {
    const auto file = options_.files->OpenForRead(path);
    if (!file.ok()) {
      return file.status().ToString();
    }
    const std::uint64_t size = (*file)->size();
    return std::to_string(size) + "/" +
           std::to_string(ContentDigest(**file, 0, std::min(size, bytes)));
  }
  Result<ImageView> ViewOf(std::int64_t index, std::int64_t rows, std::int64_t columns) const {
    const ImageSpec& spec = options_.image;
    if (!options_.augmentation) {
      COHORT_ASSIGN_OR_RETURN(const ImagePart part,
                              PartThatFits(spec.fit, rows, columns, spec.height, spec.width));
      return ImageView{.part = spec.fit == ImageFit::kCover ? Middle(part, options_.center) : part};
    }
    const ImageAugmentation& a = *options_.augmentation;
    Draws draws(a.seed, epoch_, index);
    const bool flipped = draws.UpTo(1) == 1 && a.flip;
    COHORT_ASSIGN_OR_RETURN(const ImagePart part, RandomPart(a, spec, rows, columns, draws));
    return ImageView{.part = part, .flipped = flipped};
  }

  std::shared_ptr<const Listing> listing_;  // owners: the sources of all epochs
  ImageFolderOptions options_;
  std::int64_t epoch_;
  std::vector<FeatureSpec> features_;
};

Status Check(const ImageFolderOptions& o) {
  if (o.image.height < 1 || o.image.width < 1) {
    return InvalidArgument("ImageFolder: an image has at least one pixel");
  }
  if (o.image.decode.channels != 1 && o.image.decode.channels != 3 &&
      o.image.decode.channels != 4) {
    return InvalidArgument("ImageFolder: images have 1, 3 or 4 channels, not " +
                           std::to_string(o.image.decode.channels));
  }
  if (!(o.center > 0 && o.center <= 1)) {
    return InvalidArgument("ImageFolder: `center` is above 0, and at most 1");
  }
  if (std::set<std::string>(o.classes.begin(), o.classes.end()).size() != o.classes.size()) {
    return InvalidArgument("ImageFolder: one of `classes` stands there twice");
  }
  if (const auto& a = o.augmentation;
      a && !(a->min_area > 0 && a->min_area <= a->max_area && a->max_area <= 1)) {
    return InvalidArgument("ImageFolder: 0 < min_area <= max_area <= 1");
  } else if (a && !(a->max_aspect >= 1 && std::isfinite(a->max_aspect))) {
    return InvalidArgument("ImageFolder: max_aspect is at least 1");
  }
  return {};
}

}  // namespace

Result<LabelledImages> ImageFolder(const std::string& folder, const ImageFolderOptions& options) {
  COHORT_RETURN_IF_ERROR(Check(options));
  COHORT_ASSIGN_OR_RETURN(Listing listing, List(folder, options));
  std::vector<std::string> classes = listing.classes;
  return LabelledImages{Dataset(std::make_shared<ImageFolderSource>(
                            std::make_shared<const Listing>(std::move(listing)), options, 0)),
                        std::move(classes)};
}

}  // namespace cohort::data
