// LibTorch owns the model and the optimizer; cohort feeds it and averages its gradients over the
// job.
//
//   cohort launch -n 2 -- libtorch_gradients        or        mpirun -n 2 libtorch_gradients
//
// Every process ends with the same parameters, which the last line lets you compare.

#include <cohort/cohort.h>
#include <cohort/data/digits.h>
#include <cohort/io/crc32c.h>
#include <torch/torch.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

torch::Tensor AsTorch(const cohort::Tensor& tensor, torch::Dtype dtype) {
  return torch::from_blob(tensor.raw(), tensor.shape().dims(), dtype);
}

// What cohort is to average: the gradients' own memory.
std::vector<std::span<float>> Gradients(const std::vector<torch::Tensor>& parameters) {
  std::vector<std::span<float>> spans;
  for (const torch::Tensor& p : parameters) {
    spans.emplace_back(p.grad().data_ptr<float>(), static_cast<std::size_t>(p.numel()));
  }
  return spans;
}

void Train(int epochs) {
  const auto strategy =
      cohort::OrThrow(cohort::Strategy::FromEnv({}, {.log = cohort::StderrLog("")}));
  const auto digits =
      cohort::data::GeneratedDigits({.count = 4000, .seed = 1}).Shuffle(1).Batch(64).Prefetch(2);
  const auto dataset = cohort::OrThrow(strategy->Distribute(digits));

  torch::manual_seed(1);  // the same initial values in every process
  torch::set_num_threads(1);
  torch::nn::Sequential model(torch::nn::Linear(784, 128), torch::nn::ReLU(),
                              torch::nn::Linear(128, 10));
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(1e-3));

  for (int epoch = 0; epoch < epochs; ++epoch) {
    double loss_sum = 0;
    double examples = 0;
    cohort::OrThrow(dataset->BeginEpoch(epoch));
    while (auto batch = cohort::OrThrow(dataset->Next())) {
      const auto& part = batch->replicas.at(0);
      optimizer.zero_grad();
      const auto images = AsTorch(part["image"], torch::kFloat).reshape({part.size, 784});
      const auto loss = torch::nn::functional::cross_entropy(
          model->forward(images), AsTorch(part["label"], torch::kLong),
          torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kSum));
      // The mean over this process's examples, of which there may be none.
      (loss / std::max<double>(static_cast<double>(part.size), 1)).backward();
      cohort::OrThrow(strategy->ReduceGradients(Gradients(model->parameters()),
                                                static_cast<double>(part.size)));
      optimizer.step();
      loss_sum += loss.item<double>();
      examples += static_cast<double>(part.size);
    }
    std::printf("epoch %d: loss %.4f over this process's %.0f examples\n", epoch + 1,
                loss_sum / examples, examples);
  }
  std::uint32_t crc = 0;
  for (const torch::Tensor& p : model->parameters()) {
    crc = cohort::io::Crc32c(
        std::as_bytes(std::span(p.data_ptr<float>(), static_cast<std::size_t>(p.numel()))), crc);
  }
  std::printf("parameters crc32c %08x\n", crc);
  cohort::OrThrow(strategy->Shutdown());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Train(argc > 1 ? std::atoi(argv[1]) : 3);
    return 0;
  } catch (const cohort::StatusError& error) {
    std::fprintf(stderr, "libtorch_gradients: %s\n", error.what());
    return cohort::ExitCode(error.status());
  }
}
