#include <cohort/data/image.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include <cohort/core/host_blocks.h>

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

// What one row or column of the output is made of: elements of the input.
struct Tap {
  std::size_t low = 0;
  std::size_t high = 0;
  float weight = 0;  // of high
};

std::vector<Tap> Taps(std::int64_t in, std::int64_t out, std::size_t elements) {
  std::vector<Tap> taps;
  taps.reserve(static_cast<std::size_t>(out));
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  for (std::int64_t i = 0; i < out; ++i) {
    const double at =
        std::clamp((static_cast<double>(i) + 0.5) * scale - 0.5, 0.0, static_cast<double>(in - 1));
    const auto low = static_cast<std::int64_t>(at);
    taps.push_back({static_cast<std::size_t>(low) * elements,
                    static_cast<std::size_t>(std::min(low + 1, in - 1)) * elements,
                    static_cast<float>(at - static_cast<double>(low))});
  }
  return taps;
}

float Mix(float a, float b, float weight) { return a + (b - a) * weight; }

// What a value between pixels of type T becomes.
template <typename T>
struct Rounded {
  static T Of(float value) { return value; }
};
template <>
struct Rounded<std::uint8_t> {
  static std::uint8_t Of(float value) {
    return static_cast<std::uint8_t>(static_cast<std::int32_t>(value + 0.5F));
  }
};

template <std::size_t kChannels>
void MixColumns(const float* in, const std::vector<Tap>& columns, std::size_t channels,
                float* out) {
  const std::size_t n = kChannels == 0 ? channels : kChannels;
  for (const Tap& column : columns) {
    for (std::size_t c = 0; c < n; ++c) {
      out[c] = Mix(in[column.low + c], in[column.high + c], column.weight);
    }
    out += n;
  }
}

// Resize of a part. Rows first: that pass is over neighbours, as vectors are; of the columns only
// those that are asked for are left.
template <typename In, typename Out, typename Finish>
void ResizePart(const Tensor& image, const ImagePart& part, std::int64_t height, std::int64_t width,
                Out* out, const Finish& finish) {
  const auto channels = static_cast<std::size_t>(image.shape()[2]);
  const std::size_t in_row = static_cast<std::size_t>(image.shape()[1]) * channels;
  const std::size_t used = static_cast<std::size_t>(part.width) * channels;
  const std::size_t out_row = static_cast<std::size_t>(width) * channels;
  const std::vector<Tap> rows = Taps(part.height, height, in_row);
  const std::vector<Tap> columns = Taps(part.width, width, channels);
  const In* const in = image.data<In>().data() + static_cast<std::size_t>(part.top) * in_row +
                       static_cast<std::size_t>(part.left) * channels;
  const auto mix_columns = channels == 1   ? MixColumns<1>
                           : channels == 3 ? MixColumns<3>
                           : channels == 4 ? MixColumns<4>
                                           : MixColumns<0>;
  std::vector<float> mixed(used);
  std::vector<float> line(out_row);
  for (const Tap& row : rows) {
    const In* const top = in + row.low;
    const In* const bottom = in + row.high;
    for (std::size_t i = 0; i < used; ++i) {
      mixed[i] = Mix(static_cast<float>(top[i]), static_cast<float>(bottom[i]), row.weight);
    }
    mix_columns(mixed.data(), columns, channels, line.data());
    for (std::size_t i = 0; i < out_row; ++i) {
      out[i] = finish(line[i]);
    }
    out += out_row;
  }
}

float UnitRange(std::uint8_t value) { return static_cast<float>(value) / 255.0F; }

// As Resize, and ToUnitRange if `unit_range`.
void ResizeTo(const Tensor& image, const ImagePart& part, std::int64_t height, std::int64_t width,
              bool unit_range, std::byte* out) {
  using Byte = std::uint8_t;
  if (image.dtype() == DType::kFloat32) {
    ResizePart<float>(image, part, height, width, reinterpret_cast<float*>(out),
                      Rounded<float>::Of);
  } else if (unit_range) {
    ResizePart<Byte>(image, part, height, width, reinterpret_cast<float*>(out),
                     [](float value) { return UnitRange(Rounded<Byte>::Of(value)); });
  } else {
    ResizePart<Byte>(image, part, height, width, reinterpret_cast<Byte*>(out), Rounded<Byte>::Of);
  }
}

// Memory of this thread for an image that is dropped before it asks again.
std::shared_ptr<std::byte> PixelsOfThread(std::size_t bytes) {
  constexpr std::size_t kKept = std::size_t{1} << 24;
  if (bytes > kKept) {
    return HostBytes(bytes);
  }
  struct Room {
    std::size_t bytes = 0;
    std::shared_ptr<std::byte> memory;
  };
  thread_local Room room;
  if (room.bytes < bytes) {
    room = {bytes, HostBytes(bytes)};
  }
  return room.memory;
}

Result<Tensor> Decode(std::string_view bytes, const DecodeOptions& options,
                      const PixelMemory& memory) {
  if (options.channels != 1 && options.channels != 3 && options.channels != 4) {
    return InvalidArgument("images have 1, 3 or 4 channels, not " +
                           std::to_string(options.channels));
  }
  if (options.max_pixels < 1) {
    return InvalidArgument("max_pixels is at least 1");
  }
  switch (ImageFormatOf(bytes)) {
    case ImageFormat::kJpeg:
      return DecodeJpeg(bytes, options, memory);
    case ImageFormat::kPng:
      return DecodePng(bytes, options, memory);
    case ImageFormat::kUnknown:
      break;
  }
  return DataLoss("neither JPEG nor PNG at byte 0, of " + std::to_string(bytes.size()) + " bytes");
}

// In place: left becomes right.
void FlipRows(std::int64_t height, std::int64_t width, std::size_t pixel, std::byte* image) {
  const std::size_t row = static_cast<std::size_t>(width) * pixel;
  for (std::int64_t y = 0; y < height; ++y, image += row) {
    for (std::size_t left = 0, right = row - pixel; left < right; left += pixel, right -= pixel) {
      std::swap_ranges(image + left, image + left + pixel, image + right);
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
  return Decode(bytes, options, HostBytes);
}

Result<ImagePart> PartThatFits(ImageFit fit, std::int64_t rows, std::int64_t columns,
                               std::int64_t height, std::int64_t width) {
  COHORT_RETURN_IF_ERROR(CheckSize(height, width));
  ImagePart part{.height = rows, .width = columns};
  if (rows == height && columns == width) {
    return part;
  }
  switch (fit) {
    case ImageFit::kExact:
      return InvalidArgument("an image of " + SizeText(rows, columns) + " pixels, " +
                             SizeText(height, width) + " are asked for [ImageFit resizes]");
    case ImageFit::kStretch:
      break;
    case ImageFit::kCover: {
      const auto side = [](std::int64_t one, std::int64_t other, std::int64_t to,
                           std::int64_t other_to) {
        const double whole =
            static_cast<double>(other) * static_cast<double>(to) / static_cast<double>(other_to);
        return std::clamp<std::int64_t>(std::llround(whole), 1, one);
      };
      part.height = side(rows, columns, height, width);
      part.width = side(columns, rows, width, height);
      part.top = (rows - part.height) / 2;
      part.left = (columns - part.width) / 2;
      break;
    }
  }
  return part;
}

Status DecodeView(std::string_view bytes, const ImageSpec& spec, const ChooseView& choose,
                  std::byte* out) {
  COHORT_ASSIGN_OR_RETURN(const Tensor image, Decode(bytes, spec.decode, PixelsOfThread));
  COHORT_ASSIGN_OR_RETURN(const ImageView view, choose(image.shape()[0], image.shape()[1]));
  ResizeTo(image, view.part, spec.height, spec.width, spec.unit_range, out);
  if (view.flipped) {
    const std::size_t value = spec.unit_range ? sizeof(float) : 1;
    FlipRows(spec.height, spec.width, static_cast<std::size_t>(image.shape()[2]) * value, out);
  }
  return {};
}

Status DecodeAndFit(std::string_view bytes, const ImageSpec& spec, std::byte* out) {
  return DecodeView(
      bytes, spec,
      [&](std::int64_t rows, std::int64_t columns) -> Result<ImageView> {
        COHORT_ASSIGN_OR_RETURN(const ImagePart part,
                                PartThatFits(spec.fit, rows, columns, spec.height, spec.width));
        return ImageView{.part = part};
      },
      out);
}

Result<Tensor> Resize(const Tensor& image, std::int64_t height, std::int64_t width) {
  return FitImage(image, ImageFit::kStretch, height, width);
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
    std::transform(in.begin(), in.end(), out.begin(), UnitRange);
  } else {
    const auto in = image.data<float>();
    std::copy(in.begin(), in.end(), out.begin());
  }
  return result;
}

Result<Tensor> FitImage(const Tensor& image, ImageFit fit, std::int64_t height,
                        std::int64_t width) {
  COHORT_RETURN_IF_ERROR(CheckImage(image));
  COHORT_ASSIGN_OR_RETURN(const ImagePart part,
                          PartThatFits(fit, image.shape()[0], image.shape()[1], height, width));
  if (image.shape()[0] == height && image.shape()[1] == width) {
    return Crop(image, 0, 0, height, width);
  }
  Tensor result(image.dtype(), {height, width, image.shape()[2]});
  ResizeTo(image, part, height, width, false, result.raw());
  return result;
}

}  // namespace cohort::data
