#include "open_files.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <set>
#include <utility>

#include <cohort/data/arrays.h>
#include <cohort/data/combine.h>
#include <cohort/data/csv.h>
#include <cohort/data/idx.h>
#include <cohort/data/tf_example.h>
#include <cohort/data/tf_record.h>
#include <cohort/data/webdataset.h>
#include <cohort/io/record_file.h>

#include "../../commands/file_kind.h"
#include "../../commands/files.h"
#include "../../commands/infer.h"
#include "../../sources/content.h"
#include "../../sources/sample_name.h"
#include "../../sources/tar.h"

namespace cohort::data {
namespace {

Result<ImageSpec> SpecOf(const OpenOptions& options) {
  ImageSpec spec{.unit_range = options.unit_range};
  const std::string& text = options.image;
  const char* const end = text.data() + text.size();
  const auto height = std::from_chars(text.data(), end, spec.height);
  if (height.ec != std::errc() || height.ptr == end || *height.ptr != 'x' || spec.height < 1) {
    return InvalidArgument("--image is HEIGHTxWIDTH, as in 224x224, not '" + text + "'");
  }
  const auto width = std::from_chars(height.ptr + 1, end, spec.width);
  if (width.ec != std::errc() || width.ptr != end || spec.width < 1) {
    return InvalidArgument("--image is HEIGHTxWIDTH, as in 224x224, not '" + text + "'");
  }
  spec.fit = options.fit == "exact"     ? ImageFit::kExact
             : options.fit == "stretch" ? ImageFit::kStretch
                                        : ImageFit::kCover;
  return spec;
}

// ServedPipeline::version.
std::string VersionOf(const ImageSpec& spec) {
  return ImageElements(spec).name + " " + std::to_string(spec.height) + "x" +
         std::to_string(spec.width) + (spec.unit_range ? " in [0, 1]" : " of bytes");
}

// The image features of a data set whose bytes they are in become these images.
Dataset DecodeImages(const Dataset& data, const std::vector<std::string>& names,
                     const ImageSpec& spec) {
  return data.Map([names, decoder = ImageElements(spec)](Example& example) -> Status {
    for (const std::string& name : names) {
      const Tensor& bytes = example.at(name);
      Tensor image(decoder.dtype, decoder.shape);
      const Status status =
          decoder.decode({reinterpret_cast<const char*>(bytes.raw()), bytes.bytes()}, image.raw());
      COHORT_RETURN_IF_ERROR(status.Annotate("feature '" + name + "'"));
      example[name + "/pixels"] = std::move(image);
      example.erase(name);
    }
    return {};
  });
}

// Features of the first Example that hold JPEG or PNG.
Result<std::set<std::string>> ImagesOf(FileSystem& files, const std::string& path) {
  std::set<std::string> names;
  COHORT_ASSIGN_OR_RETURN(const auto reader, io::RecordReader::Open(files, path));
  COHORT_ASSIGN_OR_RETURN(const auto record, reader->Next());
  if (record.has_value()) {
    COHORT_ASSIGN_OR_RETURN(const TfFeatures features, ParseTfExample(*record));
    for (const auto& [name, feature] : features) {
      if (feature.bytes.size() == 1 && ImageFormatOf(feature.bytes[0]) != ImageFormat::kUnknown) {
        names.insert(name);
      }
    }
  }
  return names;
}

Result<OpenedFiles> OpenTfRecords(FileSystem& files, const OpenOptions& options) {
  COHORT_ASSIGN_OR_RETURN(std::vector<TfFeatureSpec> features,
                          InferTfFeatures(files, options.paths[0]));
  COHORT_ASSIGN_OR_RETURN(const std::set<std::string> images, ImagesOf(files, options.paths[0]));
  if (features.empty()) {
    return InvalidArgument(options.paths[0] + ": no record of it has a feature");
  }
  for (TfFeatureSpec& feature : features) {
    feature.missing.reset();  // nothing stands for what is not there
    if (images.contains(feature.name)) {
      feature.type = TfType::kBytes;
      feature.ragged = true;
    }
  }
  COHORT_ASSIGN_OR_RETURN(Dataset data,
                          TfRecords(options.paths, {.features = features, .files = &files}));
  if (images.empty()) {
    return OpenedFiles{std::move(data), "", {}};
  }
  if (options.image.empty()) {
    return InvalidArgument(options.paths[0] + ": feature '" + *images.begin() +
                           "' holds images [--image says of what size they are to be]");
  }
  COHORT_ASSIGN_OR_RETURN(const ImageSpec spec, SpecOf(options));
  return OpenedFiles{DecodeImages(data, {images.begin(), images.end()}, spec), VersionOf(spec), {}};
}

Result<OpenedFiles> OpenTar(FileSystem& files, const OpenOptions& options) {
  COHORT_ASSIGN_OR_RETURN(const auto file, OpenMaybeGzip(files, options.paths[0]));
  COHORT_ASSIGN_OR_RETURN(const std::vector<TarMember> members, IndexTar(*file, options.paths[0]));
  const std::vector<std::string> image_extensions = {"jpg", "jpeg", "png"};
  bool images = false;
  bool labels = false;
  std::set<std::string> unread;
  for (const TarMember& member : members) {
    const SampleName name = SplitSampleName(member.name);
    if (name.key.empty()) {
      continue;
    }
    if (std::find(image_extensions.begin(), image_extensions.end(), name.extension) !=
        image_extensions.end()) {
      images = true;
    } else if (name.extension == "cls") {
      labels = true;
    } else {
      unread.insert(name.extension);
    }
  }
  WebDatasetOptions web{.files = &files};
  if (images && options.image.empty()) {
    return InvalidArgument(options.paths[0] +
                           ": it holds images [--image says of what size they are to be]");
  }
  std::string version;
  if (images) {
    COHORT_ASSIGN_OR_RETURN(const ImageSpec spec, SpecOf(options));
    version = VersionOf(spec);
    web.features.push_back(
        {.name = "image", .extensions = image_extensions, .decoder = ImageElements(spec)});
  }
  if (labels) {
    web.features.push_back({.name = "label", .extensions = {"cls"}, .decoder = IntegerText()});
  }
  if (web.features.empty()) {
    return InvalidArgument(options.paths[0] + ": no sample has an image or a \"cls\" member");
  }
  COHORT_ASSIGN_OR_RETURN(Dataset data, WebDataset(options.paths, web));
  return OpenedFiles{std::move(data), version, {unread.begin(), unread.end()}};
}

Result<OpenedFiles> OpenCsv(FileSystem& files, const OpenOptions& options, char delimiter) {
  COHORT_ASSIGN_OR_RETURN(CsvOptions csv, InferCsvColumns(files, options.paths[0], delimiter));
  for (CsvColumn& column : csv.columns) {
    column.missing.reset();
  }
  csv.files = &files;
  COHORT_ASSIGN_OR_RETURN(CsvData data, Csv(options.paths, csv));
  return OpenedFiles{std::move(data.dataset), "", {}};
}

// One data set a file, one behind another.
template <typename Open>
Result<OpenedFiles> OpenEach(const OpenOptions& options, const Open& open) {
  std::vector<Dataset> parts;
  for (const std::string& path : options.paths) {
    COHORT_ASSIGN_OR_RETURN(Dataset part, open(path));
    parts.push_back(std::move(part));
  }
  if (parts.size() == 1) {
    return OpenedFiles{std::move(parts[0]), "", {}};
  }
  COHORT_ASSIGN_OR_RETURN(Dataset all, Concatenate(parts));
  return OpenedFiles{std::move(all), "", {}};
}

}  // namespace

Result<OpenedFiles> OpenFiles(const OpenOptions& options) {
  FileSystem& files = CommandFiles();
  const std::string& path = options.paths.at(0);
  if (std::filesystem::is_directory(path)) {
    if (options.paths.size() != 1) {
      return InvalidArgument(path + ": a folder comes alone");
    }
    COHORT_ASSIGN_OR_RETURN(
        ImageClassification images,
        LoadImageClassification(path, {.unit_range = options.unit_range, .files = &files}));
    return OpenedFiles{std::move(images.train), options.unit_range ? "" : "images of bytes", {}};
  }
  COHORT_ASSIGN_OR_RETURN(const FileKind kind, KindOf(files, path));
  switch (kind.format) {
    case Format::kTfRecord:
      return OpenTfRecords(files, options);
    case Format::kTar:
      return OpenTar(files, options);
    case Format::kCsv:
      return OpenCsv(files, options, kind.delimiter);
    case Format::kNpy:
      return OpenEach(options, [&](const std::string& file) {
        return Arrays({{.name = "values", .path = file}}, {.files = &files});
      });
    case Format::kSafetensors:
      return OpenEach(
          options, [&](const std::string& file) { return Safetensors(file, {.files = &files}); });
    default:
      return InvalidArgument(path + ": " + std::string(FormatName(kind.format)) +
                             " is not served by this tool [data::Serve serves any data set of a "
                             "program of your own]");
  }
}

}  // namespace cohort::data
