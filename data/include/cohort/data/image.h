// Images: JPEG and PNG to tensors and back, and what is done to them before a model sees them.
//
// Formats: ITU-T T.81 with JFIF, read by libjpeg-turbo; PNG, 3rd edition (www.w3.org/TR/png-3),
// read by libpng. An image is [height, width, channels], row 0 at the top: uint8, or float32 of any
// range. Gray is 0.299 R + 0.587 G + 0.114 B, of PNG rounded down. Gamma, colour profiles and EXIF
// orientation are not looked at; 16-bit PNG is scaled to 8.
//
// Decoding takes width * height * channels bytes for the result, which max_pixels bounds before
// memory is asked for, and for progressive JPEG six bytes a pixel besides.
//
// Thread rules: pure functions, any thread, nothing blocks. Results share no memory with arguments.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <cohort/core/status.h>
#include <cohort/core/tensor.h>

namespace cohort::data {

enum class ImageFormat { kUnknown, kJpeg, kPng };
ImageFormat ImageFormatOf(std::string_view bytes);  // told by the first bytes

struct DecodeOptions {
  // 1 gray, 3 RGB, 4 RGBA, whatever is stored: a file without alpha is opaque, alpha that is not
  // asked for is left out.
  int channels = 3;
  // A larger image is ResourceExhausted, told from its header.
  std::int64_t max_pixels = std::int64_t{1} << 25;
};

// uint8 [height, width, channels]; of a JPEG of four inks (CMYK) what it looks like without a
// colour profile. DataLoss, naming the byte, where the image is damaged or cut off, and where it is
// neither JPEG nor PNG; InvalidArgument: channels that are not 1, 3, 4.
Result<Tensor> DecodeImage(std::string_view bytes, const DecodeOptions& options = {});

// uint8 [height, width, 1, 3 or 4] as PNG, [height, width, 1 or 3] as JPEG with `quality` from 1 to
// 100. ContractError for anything else; a build without these formats throws StatusError.
std::string EncodePng(const Tensor& image);
std::string EncodeJpeg(const Tensor& image, int quality = 90);

// The functions below take uint8 or float32 [height, width, channels], height and width at least 1,
// and are InvalidArgument otherwise.

// Bilinear, by half-pixel centres: output (y, x) samples the input at ((y + 0.5) * H / height -
// 0.5, (x + 0.5) * W / width - 0.5), clamped to the pixels there are; no antialiasing. As
// tf.image.resize and torch's interpolate(align_corners=False). uint8 is rounded to nearest.
Result<Tensor> Resize(const Tensor& image, std::int64_t height, std::int64_t width);
// Rows [top, top + height), columns [left, left + width), all inside of the image.
Result<Tensor> Crop(const Tensor& image, std::int64_t top, std::int64_t left, std::int64_t height,
                    std::int64_t width);
// Height x width pixels around the middle; where the rest is odd the larger part is at the end.
Result<Tensor> CenterCrop(const Tensor& image, std::int64_t height, std::int64_t width);
// Left becomes right.
Result<Tensor> FlipHorizontally(const Tensor& image);
// uint8 as float32 in [0, 1] (value / 255); float32 as it is.
Result<Tensor> ToUnitRange(const Tensor& image);

// How an image of another size comes to height x width.
enum class ImageFit {
  kExact,    // not at all: it is an error
  kStretch,  // Resize: its aspect may change
  kCover,    // CenterCrop to the largest part of the aspect asked for, in whole pixels; then Resize
};
Result<Tensor> FitImage(const Tensor& image, ImageFit fit, std::int64_t height, std::int64_t width);

// What an encoded image becomes in a data set: [height, width, decode.channels].
struct ImageSpec {
  std::int64_t height = 0;
  std::int64_t width = 0;
  DecodeOptions decode = {};
  ImageFit fit = ImageFit::kCover;
  bool unit_range = true;  // float32 in [0, 1] (value / 255); false: uint8
};

}  // namespace cohort::data
