// Where the build has no libjpeg and no libpng.
#include "sources/image_codecs.h"

namespace cohort::data {
namespace {

Status NoImages(const char* what, const char* library) {
  return FailedPrecondition(std::string(what) + ": built without " + library +
                            " [build with COHORT_IMAGES=ON]");
}

}  // namespace

Result<Tensor> DecodeJpeg(std::string_view /*bytes*/, const DecodeOptions& /*options*/,
                          const PixelMemory& /*memory*/) {
  return NoImages("a JPEG", "libjpeg");
}

Result<Tensor> DecodePng(std::string_view /*bytes*/, const DecodeOptions& /*options*/,
                         const PixelMemory& /*memory*/) {
  return NoImages("a PNG", "libpng");
}

std::string EncodeJpeg(const Tensor& /*image*/, int /*quality*/) {
  throw StatusError(NoImages("EncodeJpeg", "libjpeg"));
}

std::string EncodePng(const Tensor& /*image*/) {
  throw StatusError(NoImages("EncodePng", "libpng"));
}

}  // namespace cohort::data
