// Where the build has no libjpeg and no libpng.
#include "sources/image_codecs.h"

namespace cohort::data {

Result<Tensor> DecodeJpeg(std::string_view /*bytes*/, const DecodeOptions& /*options*/) {
  return FailedPrecondition("a JPEG: built without libjpeg [build with COHORT_IMAGES=ON]");
}

Result<Tensor> DecodePng(std::string_view /*bytes*/, const DecodeOptions& /*options*/) {
  return FailedPrecondition("a PNG: built without libpng [build with COHORT_IMAGES=ON]");
}

}  // namespace cohort::data
