// Bring your own gradients: the model, its parameters and its update rule belong to this program.
// cohort gives it its part of every batch, and the mean gradient of the job.
//
// Softmax regression on generated digits, written by hand. Run it alone, under mpirun -n 2, or:
//   cohort launch -n 2 -- bring_your_own_gradients

#include <cohort/cohort.h>
#include <cohort/data/digits.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <vector>

namespace {

constexpr int kPixels = 28 * 28;
constexpr int kClasses = 10;

struct Model {
  std::vector<float> weights = std::vector<float>(kPixels * kClasses);
  std::vector<float> bias = std::vector<float>(kClasses);
};

// Adds each example's gradient to `gradient`; returns how many were classified rightly.
double Accumulate(const Model& model, const cohort::data::Batch& batch, Model& gradient) {
  const auto images = batch["image"].data<float>();
  const auto labels = batch["label"].data<std::int64_t>();
  double correct = 0;
  for (std::int64_t n = 0; n < batch.size; ++n) {
    const float* x = images.data() + n * kPixels;
    std::vector<float> p = model.bias;
    for (int i = 0; i < kPixels; ++i) {
      for (int c = 0; c < kClasses; ++c) {
        p[static_cast<std::size_t>(c)] +=
            x[i] * model.weights[static_cast<std::size_t>(i * kClasses + c)];
      }
    }
    const auto best = std::max_element(p.begin(), p.end());
    const auto label = static_cast<std::size_t>(labels[static_cast<std::size_t>(n)]);
    correct += static_cast<std::size_t>(best - p.begin()) == label ? 1 : 0;
    const float top = *best;
    std::transform(p.begin(), p.end(), p.begin(), [top](float v) { return std::exp(v - top); });
    const float sum = std::accumulate(p.begin(), p.end(), 0.0F);
    std::transform(p.begin(), p.end(), p.begin(), [sum](float v) { return v / sum; });
    p[label] -= 1;
    for (int i = 0; i < kPixels; ++i) {
      for (int c = 0; c < kClasses; ++c) {
        gradient.weights[static_cast<std::size_t>(i * kClasses + c)] +=
            x[i] * p[static_cast<std::size_t>(c)];
      }
    }
    std::transform(p.begin(), p.end(), gradient.bias.begin(), gradient.bias.begin(), std::plus<>());
  }
  return correct;
}

void Descend(std::vector<float>& values, const std::vector<float>& gradient) {
  constexpr float kLearningRate = 0.5F;
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] -= kLearningRate * gradient[i];
  }
}

void Train(int epochs) {
  const auto strategy =
      cohort::OrThrow(cohort::Strategy::FromEnv({}, {.log = cohort::StderrLog("")}));
  const auto digits =
      cohort::data::GeneratedDigits({.count = 4000, .seed = 1}).Shuffle(1).Batch(64).Prefetch(2);
  const auto dataset = cohort::OrThrow(strategy->Distribute(digits));
  Model model;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    double correct = 0;
    double examples = 0;
    cohort::OrThrow(dataset->BeginEpoch(epoch));
    while (auto batch = cohort::OrThrow(dataset->Next())) {
      Model gradient;
      for (const auto& part : batch->replicas) {
        correct += Accumulate(model, part, gradient);
        examples += static_cast<double>(part.size);
      }
      double weight = 0;
      for (const auto& part : batch->replicas) {
        weight += static_cast<double>(part.size);
      }
      std::span<float> spans[] = {gradient.weights, gradient.bias};
      // Means over this process's examples in, the mean over the job's out.
      for (const std::span<float> span : spans) {
        for (float& value : span) {
          value /= static_cast<float>(std::max(weight, 1.0));
        }
      }
      cohort::OrThrow(strategy->ReduceGradients(spans, weight));
      Descend(model.weights, gradient.weights);
      Descend(model.bias, gradient.bias);
    }
    std::printf("epoch %d: %.3f of this process's %.0f examples right\n", epoch + 1,
                correct / examples, examples);
  }
  cohort::OrThrow(strategy->Shutdown());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Train(argc > 1 ? std::atoi(argv[1]) : 3);
    return 0;
  } catch (const cohort::StatusError& error) {
    std::fprintf(stderr, "bring_your_own_gradients: %s\n", error.what());
    return cohort::ExitCode(error.status());
  }
}
