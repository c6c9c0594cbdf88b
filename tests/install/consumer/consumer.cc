// A program outside the tree: three ranks as threads sum a vector.
#include <cohort/comm/local.h>

#include <cstdio>
#include <thread>
#include <vector>

int main() {
  auto ranks = cohort::MakeLocalCommunicators(3);
  std::vector<std::vector<float>> values(3, std::vector<float>(5, 1.0F));
  std::vector<std::thread> threads;
  for (int r = 0; r < 3; ++r) {
    threads.emplace_back([&, r] {
      auto work = ranks[static_cast<std::size_t>(r)]->AllReduce(
          std::span<float>(values[static_cast<std::size_t>(r)]), cohort::ReduceOp::kSum);
      cohort::OrThrow(cohort::OrThrow(std::move(work))->Wait());
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  for (const auto& mine : values) {
    for (const float v : mine) {
      if (v != 3.0F) {
        return 1;
      }
    }
  }
  std::puts("consumer: 3 ranks agree");
  return 0;
}
