// cohort-bench-torch: the same training step under LibTorch, as the peer of `cohort bench train`,
// `cohort bench scaling` and `cohort bench dlrm`.
//
//   cohort-bench-torch MODEL BATCH THREADS STEPS [RANK SIZE FILE]
//   cohort-bench-torch dlrm BATCH THREADS STEPS OPTIMIZER ROWS WIDTH ZIPF
//
// MODEL is mlp (784-512-512-10), mlp2048 (784-2048-2048-10) or cnn
// (conv32-pool-conv64-pool-dense128-dense10 on 28x28x1), with SGD; dlrm has 13 integers and 26
// categories of ROWS rows of WIDTH, and OPTIMIZER sgd or adagrad. For every line read from standard
// input it runs STEPS steps of forward, backward and update and prints the fastest one's and the
// median time in milliseconds, so that a caller can interleave its own rounds; a line with a number
// runs so many. With RANK, SIZE and FILE, where they meet, it is one of SIZE processes that train
// one model by DistributedDataParallel's reducer. A program of its own, because nothing else of
// cohort links LibTorch.

#include <cohort/core/zipf.h>
#include <malloc.h>
#include <sys/prctl.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#ifdef USE_C10D_GLOO
#include "torch_ddp.h"
#else
struct TorchDdp {  // nobody makes one
  void BeforeForward() {}
  void BeforeBackward() {}
};
#endif

namespace {

namespace nn = torch::nn;

nn::Sequential MakeModel(const std::string& name) {
  if (name == "mlp" || name == "mlp2048") {
    const int width = name == "mlp" ? 512 : 2048;
    return nn::Sequential(nn::Flatten(), nn::Linear(784, width), nn::ReLU(),
                          nn::Linear(width, width), nn::ReLU(), nn::Linear(width, 10));
  }
  const auto convolution = [](int in, int out) {
    return nn::Conv2d(nn::Conv2dOptions(in, out, 3).padding(1));
  };
  return nn::Sequential(convolution(1, 32), nn::ReLU(), nn::MaxPool2d(2), convolution(32, 64),
                        nn::ReLU(), nn::MaxPool2d(2), nn::Flatten(), nn::Linear(64 * 7 * 7, 128),
                        nn::ReLU(), nn::Linear(128, 10));
}

// One of the processes that train together; size 1: none.
struct Place {
  int rank = 0;
  int size = 1;
  std::string file;
};

std::function<void()> ImageStep(const std::string& name, int batch, const Place& place) {
  nn::Sequential model = MakeModel(name);
  const auto optimizer =
      std::make_shared<torch::optim::SGD>(model->parameters(), torch::optim::SGDOptions(0.01));
  const torch::Tensor images = torch::rand({batch, 1, 28, 28});
  const torch::Tensor labels = torch::randint(0, 10, {batch}, torch::kLong);
  std::shared_ptr<TorchDdp> ddp;
#ifdef USE_C10D_GLOO
  if (place.size > 1) {
    ddp = std::make_shared<TorchDdp>(model->parameters(), place.rank, place.size, place.file);
  }
#endif
  return [=]() mutable {
    optimizer->zero_grad();
    if (ddp != nullptr) {
      ddp->BeforeForward();
    }
    const torch::Tensor loss = nn::functional::cross_entropy(model->forward(images), labels);
    if (ddp != nullptr) {
      ddp->BeforeBackward();
    }
    loss.backward();
    optimizer->step();
  };
}

struct DlrmFlags {
  int batch;
  std::string optimizer;
  std::int64_t rows, width;
  double zipf;
};

std::function<void()> DlrmStep(const DlrmFlags& f) {
  constexpr int kCategories = 26;
  constexpr int kBatches = 32;
  nn::Sequential bottom(nn::Linear(13, 128), nn::ReLU(), nn::Linear(128, 64), nn::ReLU(),
                        nn::Linear(64, f.width), nn::ReLU());
  nn::Sequential top(nn::Linear(f.width + (kCategories + 1) * kCategories / 2, 128), nn::ReLU(),
                     nn::Linear(128, 64), nn::ReLU(), nn::Linear(64, 1));
  std::vector<torch::Tensor> parameters = bottom->parameters();
  for (const torch::Tensor& p : top->parameters()) {
    parameters.push_back(p);
  }
  std::vector<nn::Embedding> tables;
  for (int c = 0; c < kCategories; ++c) {
    tables.push_back(nn::Embedding(nn::EmbeddingOptions(f.rows, f.width).sparse(true)));
    parameters.push_back(tables.back()->weight);
  }
  std::shared_ptr<torch::optim::Optimizer> optimizer;
  if (f.optimizer == "sgd") {
    optimizer = std::make_shared<torch::optim::SGD>(parameters, torch::optim::SGDOptions(0.01));
  } else {
    optimizer =
        std::make_shared<torch::optim::Adagrad>(parameters, torch::optim::AdagradOptions(0.01));
  }
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform(0, 1);
  const cohort::Zipf zipf(static_cast<std::uint64_t>(f.rows), f.zipf);
  std::vector<torch::Tensor> integers;
  std::vector<torch::Tensor> labels;
  std::vector<std::vector<torch::Tensor>> ids(kBatches);
  for (auto& columns : ids) {
    integers.push_back(torch::rand({f.batch, 13}));
    labels.push_back((torch::rand({f.batch}) < 0.25).to(torch::kFloat));
    for (int c = 0; c < kCategories; ++c) {
      torch::Tensor column = torch::empty({f.batch}, torch::kLong);
      for (int i = 0; i < f.batch; ++i) {
        column.data_ptr<std::int64_t>()[i] =
            static_cast<std::int64_t>(zipf([&] { return uniform(random); }) - 1);
      }
      columns.push_back(column);
    }
  }
  const torch::Tensor pairs = torch::tril_indices(kCategories + 1, kCategories + 1, -1);
  const torch::Tensor flat = pairs[0] * (kCategories + 1) + pairs[1];
  int step = 0;
  return [=]() mutable {
    const auto b = static_cast<std::size_t>(step++ % kBatches);
    optimizer->zero_grad();
    const torch::Tensor dense = bottom->forward(integers[b]);
    std::vector<torch::Tensor> vectors = {dense};
    for (std::size_t c = 0; c < kCategories; ++c) {
      vectors.push_back(tables[c]->forward(ids[b][c]));
    }
    const torch::Tensor all = torch::stack(vectors, 1);
    const torch::Tensor dots =
        torch::bmm(all, all.transpose(1, 2)).flatten(1).index_select(1, flat);
    const torch::Tensor logits = top->forward(torch::cat({dense, dots}, 1)).squeeze(1);
    nn::functional::binary_cross_entropy_with_logits(logits, labels[b]).backward();
    optimizer->step();
  };
}

}  // namespace

int main(int argc, char** argv) {
  const std::string model = argc > 1 ? argv[1] : "";
  const bool dlrm = model == "dlrm" && argc == 9;
  const bool image = model == "mlp" || model == "mlp2048" || model == "cnn";
  if (!dlrm && !(image && (argc == 5 || argc == 8))) {
    std::fprintf(
        stderr,
        "usage: cohort-bench-torch mlp|mlp2048|cnn BATCH THREADS STEPS [RANK SIZE FILE]\n"
        "       cohort-bench-torch dlrm BATCH THREADS STEPS sgd|adagrad ROWS WIDTH ZIPF\n");
    return 2;
  }
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // steps go on for nobody when the caller is killed
  // Tuned as the caller is: freed memory stays mapped, or every step pays for page faults.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  const int batch = std::atoi(argv[2]);
  const int threads = std::atoi(argv[3]);
  const int steps = std::max(1, std::atoi(argv[4]));
  Place place;
  if (argc == 8) {
#ifdef USE_C10D_GLOO
    place = {std::atoi(argv[5]), std::atoi(argv[6]), argv[7]};
#else
    std::fprintf(stderr, "cohort-bench-torch: built without LibTorch's or Gloo's headers\n");
    return 1;
#endif
  }
  torch::set_num_threads(threads);
  torch::manual_seed(1);

  const std::function<void()> step =
      dlrm
          ? DlrmStep({batch, argv[5], std::atoll(argv[6]), std::atoll(argv[7]), std::atof(argv[8])})
          : ImageStep(model, batch, place);
  for (int i = 0; i < 5; ++i) {
    step();
  }
  std::string line;
  while (std::getline(std::cin, line)) {
    std::vector<double> milliseconds;
    const int asked = std::atoi(line.c_str());
    const int count = asked > 0 ? asked : steps;
    for (int i = 0; i < count; ++i) {
      const auto start = std::chrono::steady_clock::now();
      step();
      milliseconds.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
              .count());
    }
    std::sort(milliseconds.begin(), milliseconds.end());
    std::printf("%.6f %.6f\n", milliseconds.front(),
                milliseconds[static_cast<std::size_t>(count / 2)]);
    std::fflush(stdout);
  }
  return 0;
}
