#include <cohort/nn/precision.h>

#include <string>

namespace cohort::nn {

Result<Precision> ParsePrecision(std::string_view name) {
  for (const Precision precision :
       {Precision::kFloat32, Precision::kMixedBFloat16, Precision::kMixedFloat16}) {
    if (name == PrecisionName(precision)) {
      return precision;
    }
  }
  return InvalidArgument("precision '" + std::string(name) +
                         "' [float32, mixed_bfloat16 or mixed_float16]");
}

std::string_view PrecisionName(Precision precision) {
  switch (precision) {
    case Precision::kFloat32:
      return "float32";
    case Precision::kMixedBFloat16:
      return "mixed_bfloat16";
    case Precision::kMixedFloat16:
      return "mixed_float16";
  }
  throw ContractError("a known precision");
}

DType ComputeType(Precision precision) {
  return precision == Precision::kFloat32         ? DType::kFloat32
         : precision == Precision::kMixedBFloat16 ? DType::kBFloat16
                                                  : DType::kFloat16;
}

}  // namespace cohort::nn
