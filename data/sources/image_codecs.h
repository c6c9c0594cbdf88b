// The two decoders behind DecodeImage.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <cohort/data/image.h>

namespace cohort::data {

Result<Tensor> DecodeJpeg(std::string_view bytes, const DecodeOptions& options);
Result<Tensor> DecodePng(std::string_view bytes, const DecodeOptions& options);

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
