#include <cohort/data/idx.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

#include <cohort/core/random.h>
#include <cohort/io/compression.h>
#include <cohort/io/crc32c.h>

namespace cohort::data {
namespace {

// The third byte of the magic.
enum class IdxType : unsigned char {
  kUInt8 = 0x08,
  kInt8 = 0x09,
  kInt16 = 0x0B,
  kInt32 = 0x0C,
  kFloat32 = 0x0D,
  kFloat64 = 0x0E,
};

std::size_t StoredBytes(IdxType type) {
  switch (type) {
    case IdxType::kUInt8:
    case IdxType::kInt8:
      return 1;
    case IdxType::kInt16:
      return 2;
    case IdxType::kInt32:
    case IdxType::kFloat32:
      return 4;
    case IdxType::kFloat64:
      return 8;
  }
  return 0;  // not a type of IDX
}

// The bytes of a file that have not been read yet.
class Content {
 public:
  explicit Content(std::string_view bytes) : rest_(bytes) {}
  std::size_t left() const { return rest_.size(); }
  // As many of `count` as there are.
  std::string_view Read(std::size_t count) {
    const std::string_view bytes = rest_.substr(0, count);
    rest_.remove_prefix(bytes.size());
    return bytes;
  }

 private:
  std::string_view rest_;
};

std::uint32_t BigEndian(std::string_view bytes) {
  std::uint32_t value = 0;
  for (const char byte : bytes) {
    value = (value << 8) | static_cast<unsigned char>(byte);
  }
  return value;
}

constexpr std::uint64_t kMaxElements = std::uint64_t{1} << 48;

struct Header {
  IdxType type = IdxType::kUInt8;
  std::vector<std::int64_t> dims;
  std::size_t bytes = 0;    // of the header
  std::uint64_t count = 1;  // elements

  static Result<Header> Read(Content& content);
};

Status CutShort(const std::string& field, std::uint64_t offset, std::uint64_t want,
                std::uint64_t got) {
  return DataLoss(field + " at byte " + std::to_string(offset) + ": " + std::to_string(want) +
                  " bytes expected, " + std::to_string(got) + " there [the file is cut short]");
}

Result<Header> Header::Read(Content& content) {
  constexpr std::size_t kWord = 4;
  const std::string_view magic = content.Read(kWord);
  if (magic.size() < kWord) {
    return CutShort("magic", 0, kWord, magic.size());
  }
  Header header;
  header.type = static_cast<IdxType>(magic[2]);
  const int axes = static_cast<unsigned char>(magic[3]);
  if (magic[0] != 0 || magic[1] != 0 || StoredBytes(header.type) == 0 || axes == 0) {
    constexpr char kHex[] = "0123456789abcdef";
    std::string text;
    for (const char byte : magic) {
      const auto value = static_cast<unsigned char>(byte);
      text += {kHex[value >> 4], kHex[value & 15]};
    }
    return DataLoss("magic at byte 0: " + text +
                    " is not IDX [0000, an element type of 08 09 0b 0c 0d 0e, and the number of "
                    "axes are expected]");
  }
  header.bytes = kWord;
  for (int axis = 0; axis < axes; ++axis) {
    const std::string field = "size of axis " + std::to_string(axis);
    const std::string_view dim = content.Read(kWord);
    if (dim.size() < kWord) {
      return CutShort(field, header.bytes, kWord, dim.size());
    }
    const std::uint64_t size = BigEndian(dim);
    if (size != 0 && header.count > kMaxElements / size) {
      return DataLoss(field + " at byte " + std::to_string(header.bytes) + ": " +
                      std::to_string(size) + " makes the file larger than any");
    }
    header.count *= size;
    header.dims.push_back(static_cast<std::int64_t>(size));
    header.bytes += kWord;
  }
  return header;
}

// Big-endian elements to the machine's own order and to a type that Tensor has.
template <typename Stored, typename T>
Tensor Decode(std::string_view payload, Shape shape) {
  using Bits = std::conditional_t<
      sizeof(Stored) == 8, std::uint64_t,
      std::conditional_t<sizeof(Stored) == 4, std::uint32_t,
                         std::conditional_t<sizeof(Stored) == 2, std::uint16_t, std::uint8_t>>>;
  Tensor tensor(DTypeOf<T>::value, std::move(shape));
  T* out = tensor.data<T>().data();
  for (std::size_t i = 0; i < payload.size() / sizeof(Stored); ++i) {
    std::uint64_t bits = 0;
    for (std::size_t k = 0; k < sizeof(Stored); ++k) {
      bits = (bits << 8) | static_cast<unsigned char>(payload[i * sizeof(Stored) + k]);
    }
    const auto stored = std::bit_cast<Stored>(static_cast<Bits>(bits));
    out[i] = static_cast<T>(stored);  // NOLINT(bugprone-signed-char-misuse): int8 is a number here
  }
  return tensor;
}

Tensor DecodeAs(IdxType type, std::string_view payload, const Shape& shape) {
  switch (type) {
    case IdxType::kInt8:
      return Decode<std::int8_t, std::int32_t>(payload, shape);
    case IdxType::kInt16:
      return Decode<std::int16_t, std::int32_t>(payload, shape);
    case IdxType::kInt32:
      return Decode<std::int32_t, std::int32_t>(payload, shape);
    case IdxType::kFloat32:
      return Decode<float, float>(payload, shape);
    case IdxType::kFloat64:
      return Decode<double, double>(payload, shape);
    case IdxType::kUInt8:
      break;
  }
  Tensor tensor(DType::kUInt8, shape);
  std::copy(payload.begin(), payload.end(), reinterpret_cast<char*>(tensor.raw()));
  return tensor;
}

Result<Tensor> ParseIdx(std::string_view bytes) {
  Content content(bytes);
  COHORT_ASSIGN_OR_RETURN(const Header header, Header::Read(content));
  const Shape shape(header.dims);
  const std::uint64_t want = header.count * StoredBytes(header.type);
  const std::string_view payload = content.Read(want);
  if (payload.size() < want) {
    return CutShort("data", header.bytes, want, payload.size());
  }
  if (content.left() != 0) {
    return DataLoss(std::to_string(content.left()) + " bytes follow the data of " +
                    shape.ToString() + ", from byte " + std::to_string(header.bytes + want) +
                    " [is an axis size wrong?]");
  }
  return DecodeAs(header.type, payload, shape);
}

class IdxSource final : public Source {
 public:
  // Images of any type and rank >= 1, int64 labels, as many of both.
  IdxSource(std::string path, Tensor images, Tensor labels, const IdxOptions& options)
      : path_(std::move(path)),
        images_(std::move(images)),
        labels_(std::move(labels)),
        scale_(options.unit_range && images_.dtype() == DType::kUInt8) {
    std::vector<std::int64_t> dims = images_.shape().dims();
    dims.erase(dims.begin());
    if (options.channel_axis && dims.size() == 2) {
      dims.push_back(1);
    }
    features_ = {{"image", scale_ ? DType::kFloat32 : images_.dtype(), Shape(std::move(dims))},
                 {"label", DType::kInt64, Shape()}};
  }

  std::int64_t size() const override { return labels_.elements(); }
  const std::vector<FeatureSpec>& features() const override { return features_; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    const auto i = static_cast<std::size_t>(index);
    const auto pixels = static_cast<std::size_t>(features_[0].shape.elements());
    if (scale_) {
      const auto* in = reinterpret_cast<const std::uint8_t*>(images_.raw()) + i * pixels;
      auto* out = reinterpret_cast<float*>(rows[0]);
      for (std::size_t p = 0; p < pixels; ++p) {
        out[p] = static_cast<float>(in[p]) / 255.0F;
      }
    } else if (pixels != 0) {
      const std::size_t bytes = features_[0].bytes();
      std::memcpy(rows[0], images_.raw() + i * bytes, bytes);
    }
    std::memcpy(rows[1], labels_.raw() + i * sizeof(std::int64_t), sizeof(std::int64_t));
    return {};
  }

  std::string Where(std::int64_t index) const override {
    return path_ + ", image " + std::to_string(index);
  }
  std::vector<FileRange> files() const override {
    return {{path_, 0, size(), static_cast<std::int64_t>(images_.bytes())}};
  }

  std::uint64_t Fingerprint() const override {
    std::uint64_t digest = Hash64(images_.shape().ToString(), scale_ ? 1 : 0);
    for (const Tensor& tensor : {images_, labels_}) {
      digest = Hash64(std::to_string(io::Crc32c({tensor.raw(), tensor.bytes()})), digest);
    }
    return digest;
  }

 private:
  std::string path_;
  Tensor images_;
  Tensor labels_;
  bool scale_;  // bytes to [0, 1]
  std::vector<FeatureSpec> features_;
};

Result<Tensor> ReadLabels(FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const Tensor stored, ReadIdx(files, path));
  if (stored.shape().rank() != 1) {
    return InvalidArgument(path + ": labels have one axis, this file has shape " +
                           stored.shape().ToString() + " [are images and labels swapped?]");
  }
  Tensor labels(DType::kInt64, stored.shape());
  const auto widen = [&labels](auto values) {
    std::copy(values.begin(), values.end(), labels.data<std::int64_t>().begin());
  };
  if (stored.dtype() == DType::kUInt8) {
    widen(stored.data<std::uint8_t>());
  } else if (stored.dtype() == DType::kInt32) {
    widen(stored.data<std::int32_t>());
  } else {
    return InvalidArgument(path + ": labels are integers, this file has " +
                           std::string(DTypeName(stored.dtype())));
  }
  return labels;
}

std::int64_t LargestLabel(const Dataset& dataset) {
  // One pass over labels only would need more of Source; this one is as fast as reading the images.
  std::int64_t largest = -1;
  const Source& source = dataset.source();
  std::vector<std::byte> image(source.features()[0].bytes());
  std::int64_t label = 0;
  const std::vector<std::byte*> rows = {image.data(), reinterpret_cast<std::byte*>(&label)};
  for (std::int64_t i = 0; i < source.size(); ++i) {
    if (source.ReadInto(i, rows).ok()) {
      largest = std::max(largest, label);
    }
  }
  return largest;
}

}  // namespace

Result<Tensor> ReadIdx(FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const std::string bytes, io::ReadMaybeCompressed(files, path));
  Result<Tensor> tensor = ParseIdx(bytes);
  return tensor.ok() ? std::move(tensor) : Result<Tensor>(tensor.status().Annotate(path));
}

Status WriteIdx(FileSystem& files, const std::string& path, const Tensor& tensor) {
  const Shape& shape = tensor.shape();
  Require(tensor.dtype() == DType::kUInt8 && shape.rank() >= 1 && shape.rank() <= 255,
          "WriteIdx writes uint8 tensors with at least one axis");
  std::string bytes = {0, 0, static_cast<char>(IdxType::kUInt8), static_cast<char>(shape.rank())};
  for (const std::int64_t dim : shape.dims()) {
    Require(dim <= std::numeric_limits<std::uint32_t>::max(), "IDX axes have 32 bits");
    for (int shift = 24; shift >= 0; shift -= 8) {
      bytes += static_cast<char>((dim >> shift) & 0xFF);
    }
  }
  bytes.append(reinterpret_cast<const char*>(tensor.raw()), tensor.bytes());
  return WriteFileAtomically(files, path, path.ends_with(".gz") ? io::Gzip(bytes) : bytes);
}

Result<Dataset> Idx(const std::string& images_path, const std::string& labels_path,
                    const IdxOptions& options) {
  COHORT_ASSIGN_OR_RETURN(Tensor images, ReadIdx(*options.files, images_path));
  COHORT_ASSIGN_OR_RETURN(Tensor labels, ReadLabels(*options.files, labels_path));
  if (images.shape()[0] != labels.elements()) {
    return InvalidArgument(images_path + " has " + std::to_string(images.shape()[0]) + " images, " +
                           labels_path + " has " + std::to_string(labels.elements()) +
                           " labels [do the files belong together?]");
  }
  return Dataset(
      std::make_shared<IdxSource>(images_path, std::move(images), std::move(labels), options));
}

Result<ImageClassification> LoadImageClassification(const std::string& folder,
                                                    const IdxOptions& options) {
  const char* const names[] = {"train-images-idx3-ubyte", "train-labels-idx1-ubyte",
                               "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"};
  std::vector<std::string> paths;
  std::string missing;
  for (const std::string name : names) {
    std::string path = folder + "/" + name;
    if (!options.files->Exists(path)) {
      path += ".gz";
    }
    if (!options.files->Exists(path)) {
      missing += (missing.empty() ? "" : ", ") + name + "[.gz]";
    }
    paths.push_back(std::move(path));
  }
  if (!missing.empty()) {
    return NotFound("no image classification data in " + folder + ": missing " + missing +
                    " [`cohort data digits --out " + folder + "` generates such files]");
  }
  COHORT_ASSIGN_OR_RETURN(Dataset train, Idx(paths[0], paths[1], options));
  COHORT_ASSIGN_OR_RETURN(Dataset test, Idx(paths[2], paths[3], options));
  if (train.source().features() != test.source().features()) {
    return InvalidArgument(folder + ": images of train and test differ: " +
                           train.source().features()[0].shape.ToString() + " and " +
                           test.source().features()[0].shape.ToString());
  }
  const std::int64_t classes = std::max(LargestLabel(train), LargestLabel(test)) + 1;
  if (classes > std::numeric_limits<std::int32_t>::max()) {
    return InvalidArgument(folder + ": label " + std::to_string(classes - 1) + " is not a class");
  }
  return ImageClassification{std::move(train), std::move(test), static_cast<int>(classes)};
}

}  // namespace cohort::data
