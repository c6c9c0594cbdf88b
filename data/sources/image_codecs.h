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
// As DecodeImage and FitImage, and ToUnitRange if `unit_range`, into `out`, which has room for it.
// The image is decoded to memory that the thread keeps.
Status DecodeAndFit(std::string_view bytes, const DecodeOptions& options, ImageFit fit,
                    std::int64_t height, std::int64_t width, bool unit_range, std::byte* out);

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
