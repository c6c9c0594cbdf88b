#include <cohort/nn/models.h>

#include <cohort/nn/resnet.h>

#include <algorithm>

#include "checks.h"

namespace cohort::nn {
namespace {

std::int64_t Pixels(const ImageModelOptions& o) { return o.image.elements(); }

class Linear final : public ImageModel {
 public:
  Linear(ParameterSet& p, const ImageModelOptions& o)
      : logits_(p, "logits", Pixels(o), o.classes, {.seed = o.seed}) {}
  Variable Logits(const Variable& images) const override { return logits_(Flatten(images)); }

 private:
  Dense logits_;
};

class Mlp final : public ImageModel {
 public:
  Mlp(ParameterSet& p, const ImageModelOptions& o)
      : hidden1_(p, "hidden1", Pixels(o), o.hidden, Relu(o)),
        hidden2_(p, "hidden2", o.hidden, o.hidden, Relu(o)),
        logits_(p, "logits", o.hidden, o.classes, {.seed = o.seed}) {}
  Variable Logits(const Variable& images) const override {
    return logits_(hidden2_(hidden1_(Flatten(images))));
  }

 private:
  static DenseOptions Relu(const ImageModelOptions& o) {
    return {.activation = Activation::kRelu, .seed = o.seed};
  }
  Dense hidden1_, hidden2_, logits_;
};

class Cnn final : public ImageModel {
 public:
  Cnn(ParameterSet& p, const ImageModelOptions& o)
      : conv1_(p, "conv1", o.image[2], 32, Relu(o)),
        conv2_(p, "conv2", 32, 64, Relu(o)),
        hidden_(p, "hidden", (o.image[0] / 4) * (o.image[1] / 4) * 64, 128,
                {.activation = Activation::kRelu, .seed = o.seed}),
        logits_(p, "logits", 128, o.classes, {.seed = o.seed}) {}
  Variable Logits(const Variable& images) const override {
    const Variable half = MaxPool2D(conv1_(images));
    const Variable quarter = MaxPool2D(conv2_(half));
    return logits_(hidden_(Flatten(quarter)));
  }

 private:
  static Conv2DOptions Relu(const ImageModelOptions& o) {
    return {.activation = Activation::kRelu, .seed = o.seed};
  }
  Conv2D conv1_, conv2_;
  Dense hidden_, logits_;
};

bool HasSmallImages(const ImageModelOptions& o) { return std::min(o.image[0], o.image[1]) < 64; }

}  // namespace

Result<std::unique_ptr<ImageModel>> MakeImageModel(std::string_view name, ParameterSet& parameters,
                                                   const ImageModelOptions& options) {
  if (options.image.rank() != 3 || options.classes < 1) {
    return InvalidArgument("an image model for images " + options.image.ToString() + " and " +
                           std::to_string(options.classes) +
                           " classes [images are [height,width,channels], classes at least 1]");
  }
  if (name == "linear") {
    return std::make_unique<Linear>(parameters, options);
  }
  if (name == "mlp") {
    return std::make_unique<Mlp>(parameters, options);
  }
  if (name == "cnn") {
    if (options.image[0] < 4 || options.image[1] < 4) {
      return InvalidArgument("model cnn for images " + options.image.ToString() +
                             " [it halves them twice: at least 4 by 4]");
    }
    return std::make_unique<Cnn>(parameters, options);
  }
  for (const int depth : {18, 34, 50}) {
    if (name == "resnet" + std::to_string(depth)) {
      return std::make_unique<ResNet>(parameters,
                                      ResNetOptions{.depth = depth,
                                                    .classes = options.classes,
                                                    .channels = options.image[2],
                                                    .small_images = HasSmallImages(options),
                                                    .seed = options.seed});
    }
  }
  return InvalidArgument("unknown model '" + std::string(name) +
                         "' [linear, mlp, cnn, resnet18, resnet34 or resnet50]");
}

Dlrm::Dlrm(ParameterSet& parameters, const DlrmOptions& o)
    : width_(o.width),
      vectors_(parameters, "vectors", 0, o.width, {.seed = o.seed, .table = o.table}) {
  const DenseOptions relu{.activation = Activation::kRelu, .seed = o.seed};
  const auto stack = [&](const std::string& name, std::int64_t in,
                         const std::vector<std::int64_t>& widths) {
    std::vector<Dense> layers;
    for (const std::int64_t out : widths) {
      layers.emplace_back(parameters, name + std::to_string(layers.size() + 1), in, out, relu);
      in = out;
    }
    return layers;
  };
  std::vector<std::int64_t> bottom = o.bottom;
  bottom.push_back(o.width);
  bottom_ = stack("bottom", o.integers, bottom);
  const std::int64_t interactions = o.width + (o.categories + 1) * o.categories / 2;
  top_ = stack("top", interactions, o.top);
  top_.emplace_back(parameters, "logit", o.top.empty() ? interactions : o.top.back(), 1,
                    DenseOptions{.seed = o.seed});
}

Variable Dlrm::Logits(Tape& tape, const Tensor& integers, const Tensor& categories) const {
  const std::int64_t batch = integers.shape()[0];
  Variable dense = tape.Input(integers);
  for (const Dense& layer : bottom_) {
    dense = layer(dense);
  }
  Variable top = DotInteraction(dense, vectors_(tape, categories));
  for (const Dense& layer : top_) {
    top = layer(top);
  }
  return Reshape(top, {batch});
}

}  // namespace cohort::nn
