// The program cohort-bench-torch as a child process that runs a round of steps when asked.
#pragma once

#include <cohort/core/status.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace cohort {

struct StepTimes {  // of the steps of a round, in milliseconds
  double fastest = 0;
  double median = 0;
};

class TorchPeer {
 public:
  // `arguments`: the program's own (bench_train_torch.cc). NotFound where it was not built (no
  // LibTorch). It gets the settings that make LibTorch's CPU path fast: one OpenMP pool of
  // `threads`, and OpenBLAS's AVX-512 kernels, which it does not choose by itself on every CPU that
  // has them.
  static Result<std::unique_ptr<TorchPeer>> Start(std::vector<std::string> arguments, int threads);
  ~TorchPeer();  // ends the child and waits for it
  TorchPeer(const TorchPeer&) = delete;
  TorchPeer& operator=(const TorchPeer&) = delete;

  // `steps`: 0 for as many as it was started with.
  Result<StepTimes> Round(int steps = 0);

 private:
  TorchPeer(int pid, std::FILE* to, std::FILE* from) : pid_(pid), to_(to), from_(from) {}
  int pid_;
  std::FILE* to_;
  std::FILE* from_;
};

}  // namespace cohort
