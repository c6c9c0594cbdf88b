// What is behind image.h: the two decoders, and images that come where they are wanted.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include <cohort/data/image.h>

namespace cohort::data {

// Where pixels are decoded to: at least so many bytes, unzeroed.
using PixelMemory = std::function<std::shared_ptr<std::byte>(std::size_t bytes)>;

Result<Tensor> DecodeJpeg(std::string_view bytes, const DecodeOptions& options,
                          const PixelMemory& memory);
Result<Tensor> DecodePng(std::string_view bytes, const DecodeOptions& options,
                         const PixelMemory& memory);

// What of an image is looked at.
struct ImagePart {
  std::int64_t top = 0;
  std::int64_t left = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;
};
// The part that FitImage makes an image of.
Result<ImagePart> PartThatFits(ImageFit fit, std::int64_t rows, std::int64_t columns,
                               std::int64_t height, std::int64_t width);

// A part inside of an image of rows x columns, and whether left becomes right.
struct ImageView {
  ImagePart part;
  bool flipped = false;
};
using ChooseView = std::function<Result<ImageView>(std::int64_t rows, std::int64_t columns)>;
// Decodes, and resizes what `choose` says to spec.height x spec.width (spec.fit does not count),
// into `out`, which has room for it. The image is decoded to memory that the thread keeps.
Status DecodeView(std::string_view bytes, const ImageSpec& spec, const ChooseView& choose,
                  std::byte* out);
// The view that FitImage takes.
Status DecodeAndFit(std::string_view bytes, const ImageSpec& spec, std::byte* out);

// Whether an image of this size may be decoded.
inline Status CheckImageSize(std::uint64_t width, std::uint64_t height,
                             const DecodeOptions& options) {
  if (width == 0 || height == 0) {
    return DataLoss("an image of " + std::to_string(width) + " x " + std::to_string(height) +
                    " pixels");
  }
  if (width > static_cast<std::uint64_t>(options.max_pixels) / height) {
    return ResourceExhausted("an image of " + std::to_string(width) + " x " +
                             std::to_string(height) + " pixels, more than " +
                             std::to_string(options.max_pixels) + " [DecodeOptions.max_pixels]");
  }
  return {};
}

}  // namespace cohort::data
