#include <cohort/data/image.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "sources/image_codecs.h"

namespace cohort::data {
namespace {

constexpr std::int64_t kMaxSide = std::int64_t{1} << 20;

std::string SizeText(std::int64_t height, std::int64_t width) {
  return std::to_string(height) + " x " + std::to_string(width);
}

Status CheckImage(const Tensor& image) {
  if ((image.dtype() != DType::kUInt8 && image.dtype() != DType::kFloat32) ||
      image.shape().rank() != 3 || image.shape()[0] < 1 || image.shape()[1] < 1 ||
      image.shape()[0] > kMaxSide || image.shape()[1] > kMaxSide) {
    return InvalidArgument("an image is uint8 or float32 [height, width, channels], not " +
                           std::string(DTypeName(image.dtype())) + image.shape().ToString());
  }
  return {};
}

Status CheckSize(std::int64_t height, std::int64_t width) {
  return height >= 1 && width >= 1 && height <= kMaxSide && width <= kMaxSide
             ? Status()
             : InvalidArgument("an image of " + SizeText(height, width) + " pixels is asked for");
}

// What one row or column of the output is made of.
struct Tap {
  std::size_t low = 0;
  std::size_t high = 0;
  float weight = 0;  // of high
};

std::vector<Tap> Taps(std::int64_t in, std::int64_t out) {
  std::vector<Tap> taps;
  taps.reserve(static_cast<std::size_t>(out));
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  for (std::int64_t i = 0; i < out; ++i) {
    const double at =
        std::clamp((static_cast<double>(i) + 0.5) * scale - 0.5, 0.0, static_cast<double>(in - 1));
    const auto low = static_cast<std::int64_t>(at);
    taps.push_back({static_cast<std::size_t>(low),
                    static_cast<std::size_t>(std::min(low + 1, in - 1)),
                    static_cast<float>(at - static_cast<double>(low))});
  }
  return taps;
}

void Store(float value, float* out) { *out = value; }
void Store(float value, std::uint8_t* out) { *out = static_cast<std::uint8_t>(value + 0.5F); }

template <typename T>
void ResizeInto(const Tensor& image, const Tensor& result) {
  const auto channels = static_cast<std::size_t>(image.shape()[2]);
  const auto in_row = static_cast<std::size_t>(image.shape()[1]) * channels;
  const std::vector<Tap> rows = Taps(image.shape()[0], result.shape()[0]);
  const std::vector<Tap> columns = Taps(image.shape()[1], result.shape()[1]);
  const T* const in = image.data<T>().data();
  T* out = result.data<T>().data();
  for (const Tap& row : rows) {
    const T* const top = in + row.low * in_row;
    const T* const bottom = in + row.high * in_row;
    for (const Tap& column : columns) {
      const std::size_t left = column.low * channels;
      const std::size_t right = column.high * channels;
      for (std::size_t c = 0; c < channels; ++c) {
        const auto mix = [](float a, float b, float weight) { return a + (b - a) * weight; };
        const float above = mix(static_cast<float>(top[left + c]),
                                static_cast<float>(top[right + c]), column.weight);
        const float below = mix(static_cast<float>(bottom[left + c]),
                                static_cast<float>(bottom[right + c]), column.weight);
        Store(mix(above, below, row.weight), out++);
      }
    }
  }
}

std::size_t PixelBytes(const Tensor& image) {
  return static_cast<std::size_t>(image.shape()[2]) * SizeOf(image.dtype());
}

}  // namespace

ImageFormat ImageFormatOf(std::string_view bytes) {
  if (bytes.starts_with("\xff\xd8\xff")) {
    return ImageFormat::kJpeg;
  }
  return bytes.starts_with("\x89PNG\r\n\x1a\n") ? ImageFormat::kPng : ImageFormat::kUnknown;
}

Result<Tensor> DecodeImage(std::string_view bytes, const DecodeOptions& options) {
  if (options.channels != 1 && options.channels != 3 && options.channels != 4) {
    return InvalidArgument("images have 1, 3 or 4 channels, not " +
                           std::to_string(options.channels));
  }
  if (options.max_pixels < 1) {
    return InvalidArgument("max_pixels is at least 1");
  }
  switch (ImageFormatOf(bytes)) {
    case ImageFormat::kJpeg:
      return DecodeJpeg(bytes, options);
    case ImageFormat::kPng:
      return DecodePng(bytes, options);
    case ImageFormat::kUnknown:
      break;
  }
  return DataLoss("neither JPEG nor PNG at byte 0, of " + std::to_string(bytes.size()) + " bytes");
}

Result<Tensor> Resize(const Tensor& image, std::int64_t height, std::int64_t width) {
  COHORT_RETURN_IF_ERROR(CheckImage(image));
  COHORT_RETURN_IF_ERROR(CheckSize(height, width));
  Tensor result(image.dtype(), {height, width, image.shape()[2]});
  if (image.dtype() == DType::kUInt8) {
    ResizeInto<std::uint8_t>(image, result);
  } else {
    ResizeInto<float>(image, result);
  }
  return result;
}

Result<Tensor> Crop(const Tensor& image, std::int64_t top, std::int64_t left, std::int64_t height,
                    std::int64_t width) {
  COHORT_RETURN_IF_ERROR(CheckImage(image));
  COHORT_RETURN_IF_ERROR(CheckSize(height, width));
  const std::int64_t rows = image.shape()[0];
  const std::int64_t columns = image.shape()[1];
  if (top < 0 || left < 0 || height > rows || width > columns || top > rows - height ||
      left > columns - width) {
    return InvalidArgument("a crop of " + SizeText(height, width) + " pixels at (" +
                           std::to_string(top) + ", " + std::to_string(left) +
                           ") reaches beyond an image of " + SizeText(rows, columns));
  }
  Tensor result(image.dtype(), {height, width, image.shape()[2]});
  const std::size_t pixel = PixelBytes(image);
  const std::size_t in_row = static_cast<std::size_t>(columns) * pixel;
  const std::size_t out_row = static_cast<std::size_t>(width) * pixel;
  const std::byte* in =
      image.raw() + static_cast<std::size_t>(top) * in_row + static_cast<std::size_t>(left) * pixel;
  for (std::int64_t y = 0; y < height && out_row != 0; ++y, in += in_row) {
    std::memcpy(result.raw() + static_cast<std::size_t>(y) * out_row, in, out_row);
  }
  return result;
}

Result<Tensor> CenterCrop(const Tensor& image, std::int64_t height, std::int64_t width) {
  COHORT_RETURN_IF_ERROR(CheckImage(image));
  return Crop(image, std::max<std::int64_t>(0, (image.shape()[0] - height) / 2),
              std::max<std::int64_t>(0, (image.shape()[1] - width) / 2), height, width);
}

Result<Tensor> FlipHorizontally(const Tensor& image) {
  COHORT_RETURN_IF_ERROR(CheckImage(image));
  Tensor result(image.dtype(), image.shape());
  const std::size_t pixel = PixelBytes(image);
  const auto width = static_cast<std::size_t>(image.shape()[1]);
  const std::size_t pixels = static_cast<std::size_t>(image.shape()[0]) * width;
  for (std::size_t row = 0; row < pixels && pixel != 0; row += width) {
    for (std::size_t x = 0; x < width; ++x) {
      std::memcpy(result.raw() + (row + x) * pixel, image.raw() + (row + width - 1 - x) * pixel,
                  pixel);
    }
  }
  return result;
}

Result<Tensor> ToUnitRange(const Tensor& image) {
  COHORT_RETURN_IF_ERROR(CheckImage(image));
  Tensor result(DType::kFloat32, image.shape());
  const auto out = result.data<float>();
  if (image.dtype() == DType::kUInt8) {
    const auto in = image.data<std::uint8_t>();
    std::transform(in.begin(), in.end(), out.begin(),
                   [](std::uint8_t value) { return static_cast<float>(value) / 255.0F; });
  } else {
    const auto in = image.data<float>();
    std::copy(in.begin(), in.end(), out.begin());
  }
  return result;
}

Result<Tensor> FitImage(const Tensor& image, ImageFit fit, std::int64_t height,
                        std::int64_t width) {
  COHORT_RETURN_IF_ERROR(CheckImage(image));
  COHORT_RETURN_IF_ERROR(CheckSize(height, width));
  const std::int64_t rows = image.shape()[0];
  const std::int64_t columns = image.shape()[1];
  if (rows == height && columns == width) {
    return Crop(image, 0, 0, height, width);
  }
  switch (fit) {
    case ImageFit::kExact:
      return InvalidArgument("an image of " + SizeText(rows, columns) + " pixels, " +
                             SizeText(height, width) + " are asked for [ImageFit resizes]");
    case ImageFit::kStretch:
      return Resize(image, height, width);
    case ImageFit::kCover: {
      // Cut before it is resized: a long thin image takes no more memory than the result.
      const auto part = [](std::int64_t side, std::int64_t other, std::int64_t to,
                           std::int64_t other_to) {
        const double whole =
            static_cast<double>(other) * static_cast<double>(to) / static_cast<double>(other_to);
        return std::clamp<std::int64_t>(std::llround(whole), 1, side);
      };
      COHORT_ASSIGN_OR_RETURN(const Tensor middle,
                              CenterCrop(image, part(rows, columns, height, width),
                                         part(columns, rows, width, height)));
      return Resize(middle, height, width);
    }
  }
  return image;
}

}  // namespace cohort::data
