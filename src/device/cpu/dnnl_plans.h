// Plans on oneDNN, and on Eigen where that is faster. Their types stay in the .cc files.

#pragma once

#include <cohort/device/plan.h>

#include <memory>

namespace cohort::cpu {

// What all plans of one table share.
class DnnlEngine {
 public:
  explicit DnnlEngine(int threads);
  ~DnnlEngine();
  struct State;
  State& state() const { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

// The engine must outlive the plan. ContractError where oneDNN has no implementation.
std::unique_ptr<MatMulPlan> MakeMatMul(const DnnlEngine& engine, const MatMulSpec& spec);
// nullptr where oneDNN is the one to ask: on processors with AVX-512, and for thin products.
std::unique_ptr<MatMulPlan> MakeEigenMatMul(int threads, const MatMulSpec& spec);
std::unique_ptr<ConvPlan> MakeConv(const DnnlEngine& engine, const ConvSpec& spec);

}  // namespace cohort::cpu
