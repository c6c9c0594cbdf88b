#include <cohort/workloads/drawn_images.h>

#include <cohort/core/random.h>
#include <cohort/core/tensor.h>
#include <cohort/data/image.h>
#include <cohort/data/memory.h>

namespace cohort::workloads {

Result<data::Dataset> DrawImages(const DrawnImages& options) {
  const Philox random(options.seed, "images");
  const auto size = static_cast<std::size_t>(options.size);
  const std::size_t elements = size * size * 3;
  Tensor images(DType::kFloat32, {options.count, options.size, options.size, 3});
  Tensor labels(DType::kInt64, {options.count});
  const Philox noise(options.seed + 1 + options.part, "noise");
  for (std::int64_t i = 0; i < options.count; ++i) {
    const auto place = static_cast<std::size_t>(i);
    const std::int64_t label = i % options.classes;
    labels.data<std::int64_t>()[place] = label;
    Tensor pattern(DType::kFloat32, {4, 4, 3});
    for (std::size_t e = 0; e < 48; ++e) {
      pattern.data<float>()[e] = random.Uniform(e, static_cast<std::uint64_t>(label));
    }
    COHORT_ASSIGN_OR_RETURN(const Tensor blurred,
                            data::Resize(pattern, options.size, options.size));
    const auto out = images.data<float>().subspan(place * elements, elements);
    for (std::size_t e = 0; e < elements; ++e) {
      out[e] = 0.7F * blurred.data<float>()[e] + 0.3F * noise.Uniform(e, place);
    }
  }
  return data::FromTensors({{"image", images}, {"label", labels}});
}

}  // namespace cohort::workloads
