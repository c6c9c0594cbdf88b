// cohort-bench-torch: the same training step under LibTorch, as the peer of `cohort bench train`.
//
//   cohort-bench-torch MODEL BATCH THREADS STEPS
//
// MODEL is mlp (784-512-512-10) or cnn (conv32-pool-conv64-pool-dense128-dense10 on 28x28x1). For
// every line read from standard input it runs STEPS steps of forward, backward and SGD and prints
// the fastest one's and the median time in milliseconds, so that a caller can interleave its own
// rounds. A program of its own, because nothing else of cohort links LibTorch.

#include <malloc.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

namespace {

namespace nn = torch::nn;

nn::Sequential MakeModel(const std::string& name) {
  if (name == "mlp") {
    return nn::Sequential(nn::Flatten(), nn::Linear(784, 512), nn::ReLU(), nn::Linear(512, 512),
                          nn::ReLU(), nn::Linear(512, 10));
  }
  const auto convolution = [](int in, int out) {
    return nn::Conv2d(nn::Conv2dOptions(in, out, 3).padding(1));
  };
  return nn::Sequential(convolution(1, 32), nn::ReLU(), nn::MaxPool2d(2), convolution(32, 64),
                        nn::ReLU(), nn::MaxPool2d(2), nn::Flatten(), nn::Linear(64 * 7 * 7, 128),
                        nn::ReLU(), nn::Linear(128, 10));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5 || (std::string(argv[1]) != "mlp" && std::string(argv[1]) != "cnn")) {
    std::fprintf(stderr, "usage: cohort-bench-torch mlp|cnn BATCH THREADS STEPS\n");
    return 2;
  }
  // Tuned as the caller is: freed memory stays mapped, or every step pays for page faults.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  const int batch = std::atoi(argv[2]);
  const int threads = std::atoi(argv[3]);
  const int steps = std::max(1, std::atoi(argv[4]));
  torch::set_num_threads(threads);
  torch::manual_seed(1);

  nn::Sequential model = MakeModel(argv[1]);
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.01));
  const torch::Tensor images = torch::rand({batch, 1, 28, 28});
  const torch::Tensor labels = torch::randint(0, 10, {batch}, torch::kLong);
  const auto step = [&] {
    optimizer.zero_grad();
    const torch::Tensor loss = nn::functional::cross_entropy(model->forward(images), labels);
    loss.backward();
    optimizer.step();
  };
  for (int i = 0; i < 5; ++i) {
    step();
  }
  std::string line;
  while (std::getline(std::cin, line)) {
    std::vector<double> milliseconds;
    for (int i = 0; i < steps; ++i) {
      const auto start = std::chrono::steady_clock::now();
      step();
      milliseconds.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
              .count());
    }
    std::sort(milliseconds.begin(), milliseconds.end());
    std::printf("%.6f %.6f\n", milliseconds.front(),
                milliseconds[static_cast<std::size_t>(steps / 2)]);
    std::fflush(stdout);
  }
  return 0;
}
