// Products on cuBLASLt, which takes matrices by columns: ours, by rows, are their transposes to it,
// and it is asked for c' = op(b)' op(a)'. What runs along n, as the bias, are its rows.

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "cuda/cuda_common.h"
#include "cuda/layout.h"
#include "cuda/libraries.h"
#include "cuda/measured.h"
#include "cuda/stopwatch.h"

namespace cohort::cuda {
namespace {

constexpr int kCandidates = 8;
constexpr int kTimed = 3;  // runs of each
// The library's first guess stays unless another is so much faster: what noise decides should be
// rare.
constexpr float kWorthwhile = 0.9F;

// How pointers are aligned, as an index: to 16 bytes, 8, 4, or (16-bit elements) 2.
constexpr std::array<std::uint32_t, 4> kAlignments = {16, 8, 4, 2};

std::size_t AlignmentOf(std::initializer_list<const void*> pointers) {
  std::uintptr_t bits = 0;
  for (const void* const p : pointers) {
    bits |= reinterpret_cast<std::uintptr_t>(p);
  }
  return bits % 16 == 0 ? 0 : bits % 8 == 0 ? 1 : bits % 4 == 0 ? 2 : 3;
}

std::string Text(const MatMulSpec& s) {
  return "a product [" + std::to_string(s.m) + "," + std::to_string(s.k) + "] x [" +
         std::to_string(s.k) + "," + std::to_string(s.n) + "] of " + std::string(DTypeName(s.type));
}

cudaDataType_t NativeType(DType type) {
  return type == DType::kBFloat16 ? CUDA_R_16BF : type == DType::kFloat16 ? CUDA_R_16F : CUDA_R_32F;
}

bool HasGelu(const MatMulSpec& s) {
  return s.activation == Activation::kGelu || s.gradient_of == Activation::kGelu;
}

// GPU, TF32, spec, alignment.
using Algorithms = Measured<std::tuple<int, bool, MatMulSpec, std::size_t>, cublasLtMatmulAlgo_t>;

class CublasLtMatMul final : public MatMulPlan {
 public:
  CublasLtMatMul(Libraries& libraries, const MatMulSpec& spec)
      : libraries_(libraries), calls_(*libraries.handles().calls), spec_(spec), text_(Text(spec)) {
    if (empty()) {
      return;
    }
    try {
      Describe();
    } catch (...) {
      Destroy();
      throw;
    }
  }
  ~CublasLtMatMul() override { Destroy(); }
  CublasLtMatMul(const CublasLtMatMul&) = delete;
  CublasLtMatMul& operator=(const CublasLtMatMul&) = delete;

  void Run(Stream& stream, const void* a, const void* b, const void* bias, void* c,
           void* before) override {
    if (empty()) {
      FillRows(stream, spec_.m, spec_.n, spec_.bias ? bias : nullptr, spec_.activation, c,
               spec_.out);
      return;
    }
    const cudaStream_t native = Native(stream);
    const std::size_t alignment = AlignmentOf({a, b, c, before, spec_.bias ? bias : nullptr});
    if (before != nullptr) {
      OrThrow(CublasStatus(
          calls_,
          calls_.cublasLtMatmulDescSetAttribute(product_, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
                                                &before, sizeof(before)),
          text_));
    }
    if (spec_.bias) {
      OrThrow(CublasStatus(calls_,
                           calls_.cublasLtMatmulDescSetAttribute(
                               product_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias)),
                           text_));
    }
    if (!chosen_[alignment] && !widens_[alignment]) {
      Choose(stream, alignment, a, b, c);
    }
    if (widens_[alignment]) {
      widened_->Run(stream, a, b, bias, c);
      return;
    }
    const cublasStatus_t status = Put(native, algorithms_[alignment], a, b, c);
    if (status != CUBLAS_STATUS_SUCCESS) {
      Fail(stream, CublasStatus(calls_, status, text_));
    }
    Launched(stream, "a product");
  }

 private:
  bool empty() const { return spec_.m == 0 || spec_.n == 0 || spec_.k == 0; }

  void Describe() {
    const auto check = [&](cublasStatus_t status) { OrThrow(CublasStatus(calls_, status, text_)); };
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
      check(calls_.cublasLtMatmulDescSetAttribute(product_, attribute, &value, sizeof(value)));
    };
    const auto layout = [&](cublasLtMatrixLayout_t& made, DType type, std::int64_t columns,
                            std::int64_t rows) {
      // By rows [rows, columns]; to the library columns x rows.
      check(calls_.cublasLtMatrixLayoutCreate(&made, NativeType(type),
                                              static_cast<std::uint64_t>(columns),
                                              static_cast<std::uint64_t>(rows), columns));
    };
    check(calls_.cublasLtMatmulDescCreate(&product_,
                                          libraries_.tf32() && !IsHalf(spec_.type)
                                              ? CUBLAS_COMPUTE_32F_FAST_TF32
                                              : CUBLAS_COMPUTE_32F,
                                          CUDA_R_32F));
    // Its first operand is b.
    set(CUBLASLT_MATMUL_DESC_TRANSA, spec_.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, spec_.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, Epilogue());
    if (spec_.keeps_before || spec_.gradient_of != Activation::kNone) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, spec_.n);
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, NativeType(spec_.out));
    }
    // The bias is of the result's type, as the library expects.
    layout(b_, spec_.type, spec_.transpose_b ? spec_.k : spec_.n,
           spec_.transpose_b ? spec_.n : spec_.k);
    layout(a_, spec_.type, spec_.transpose_a ? spec_.m : spec_.k,
           spec_.transpose_a ? spec_.k : spec_.m);
    layout(c_, spec_.out, spec_.n, spec_.m);
  }

  cublasLtEpilogue_t Epilogue() const {
    if (spec_.gradient_of == Activation::kGelu) {
      return CUBLASLT_EPILOGUE_DGELU;
    }
    switch (spec_.activation) {
      case Activation::kRelu:
        return spec_.bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
      case Activation::kGelu:
        if (spec_.keeps_before) {
          return spec_.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
        }
        return spec_.bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
      default:
        return spec_.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    }
  }

  void Destroy() {
    for (const cublasLtMatrixLayout_t layout : {a_, b_, c_}) {
      if (layout != nullptr) {
        (void)calls_.cublasLtMatrixLayoutDestroy(layout);
      }
    }
    if (product_ != nullptr) {
      (void)calls_.cublasLtMatmulDescDestroy(product_);
    }
  }

  cublasStatus_t Put(cudaStream_t stream, const cublasLtMatmulAlgo_t& algorithm, const void* a,
                     const void* b, void* c) {
    const float one = 1.0F;
    const float zero = 0.0F;
    return calls_.cublasLtMatmul(libraries_.handles().cublas, product_, &one, b, b_, a, a_, &zero,
                                 c, c_, c, c_, &algorithm, libraries_.Scratch(kLeastScratch),
                                 kLeastScratch, stream);
  }

  // The library's guesses for that alignment, best first.
  int Guess(std::size_t alignment,
            std::array<cublasLtMatmulHeuristicResult_t, kCandidates>& guesses) {
    const auto check = [&](cublasStatus_t status) { OrThrow(CublasStatus(calls_, status, text_)); };
    cublasLtMatmulPreference_t preference = nullptr;
    check(calls_.cublasLtMatmulPreferenceCreate(&preference));
    const auto destroy = [&](cublasLtMatmulPreference_t p) {
      (void)calls_.cublasLtMatmulPreferenceDestroy(p);
    };
    const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>, decltype(destroy)>
        owner(preference, destroy);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      check(calls_.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value,
                                                        sizeof(value)));
    };
    const std::size_t workspace = kLeastScratch;
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
    if (IsHalf(spec_.out)) {
      // What parts of a sum come to is added up in float32, and rounded once.
      const std::uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
      set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
    }
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      set(attribute, kAlignments[alignment]);
    }
    int count = 0;
    const cublasStatus_t status =
        calls_.cublasLtMatmulAlgoGetHeuristic(libraries_.handles().cublas, product_, b_, a_, c_, c_,
                                              preference, kCandidates, guesses.data(), &count);
    if (status != CUBLAS_STATUS_SUCCESS) {
      return 0;
    }
    const auto end = std::remove_if(guesses.begin(), guesses.begin() + count,
                                    [](const auto& g) { return g.state != CUBLAS_STATUS_SUCCESS; });
    return static_cast<int>(end - guesses.begin());
  }

  // Where the library has no way: by the float32 plan, or a ContractError.
  void RequireAnother(std::size_t alignment) {
    // Seen for products of a vector whose elements are aligned to 2 bytes.
    Require(IsHalf(spec_.type) && !HasGelu(spec_), text_ + ": cuBLASLt has no way to compute it");
    if (widened_ == nullptr) {
      widened_ = MakeWidenedMatMul(libraries_, spec_);
    }
    widens_[alignment] = true;
  }

  // By measurement, or, while a graph is recorded, by guess.
  void Choose(Stream& stream, std::size_t alignment, const void* a, const void* b, void* c) {
    Algorithms& measured = Algorithms::OfProcess();
    const std::tuple key{libraries_.ordinal(), libraries_.tf32(), spec_, alignment};
    if (const auto known = measured.Find(key)) {
      algorithms_[alignment] = *known;
      chosen_[alignment] = true;
      return;
    }
    std::array<cublasLtMatmulHeuristicResult_t, kCandidates> guesses{};
    const int count = Guess(alignment, guesses);
    if (count == 0) {
      RequireAnother(alignment);
      return;
    }
    algorithms_[alignment] = guesses[0].algo;
    if (Capturing(stream)) {
      return;  // measured by the first run outside
    }
    const cudaStream_t native = Native(stream);
    Stopwatch watch;
    float best = Stopwatch::kNever;
    bool ran = false;
    for (int i = 0; i < count; ++i) {
      const cublasLtMatmulAlgo_t& algorithm = guesses[static_cast<std::size_t>(i)].algo;
      const auto run = [&](int times) {
        bool ok = true;
        for (int t = 0; ok && t < times; ++t) {
          ok = Put(native, algorithm, a, b, c) == CUBLAS_STATUS_SUCCESS;
        }
        return ok;
      };
      if (!run(1)) {
        continue;
      }
      ran = true;
      if (count == 1) {
        break;
      }
      const float time = watch.Time(native, [&] { return run(kTimed); });
      if (time < kWorthwhile * best) {
        best = time;
        algorithms_[alignment] = algorithm;
      }
    }
    if (!ran) {
      RequireAnother(alignment);
      return;
    }
    algorithms_[alignment] = measured.Keep(key, algorithms_[alignment]);
    chosen_[alignment] = true;
  }

  Libraries& libraries_;
  const LibraryCalls& calls_;
  const MatMulSpec spec_;
  const std::string text_;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, c_ = nullptr;
  std::array<cublasLtMatmulAlgo_t, kAlignments.size()> algorithms_{};
  std::array<bool, kAlignments.size()> chosen_{};
  std::array<bool, kAlignments.size()> widens_{};  // the library has no way
  std::unique_ptr<MatMulPlan> widened_;            // for those
};

// Products with gelu: by the library's kernels for that, or apart.
class GeluMatMul final : public MatMulPlan {
 public:
  GeluMatMul(Libraries& libraries, const MatMulSpec& spec, std::unique_ptr<MatMulPlan> apart)
      : key_{libraries.ordinal(), libraries.tf32(), spec},
        together_(std::make_unique<CublasLtMatMul>(libraries, spec)),
        apart_(std::move(apart)) {}

  void Run(Stream& stream, const void* a, const void* b, const void* bias, void* c,
           void* before) override {
    if (!best_) {
      best_ = Ways::OfProcess().Find(key_);
    }
    if (!best_ && !Capturing(stream)) {
      const auto time = [&](MatMulPlan& plan) { return Time(plan, stream, a, b, bias, c, before); };
      best_ = Ways::OfProcess().Keep(
          key_, time(*together_) < time(*apart_) ? Way::kTogether : Way::kApart);
    }
    if (best_ == Way::kTogether) {
      try {
        together_->Run(stream, a, b, bias, c, before);
        return;
      } catch (const ContractError&) {
        best_ = Way::kApart;  // memory is aligned otherwise than when it was measured
      }
    }
    apart_->Run(stream, a, b, bias, c, before);
  }

 private:
  enum class Way { kTogether, kApart };
  using Key = std::tuple<int, bool, MatMulSpec>;  // GPU, TF32
  using Ways = Measured<Key, Way>;

  static float Time(MatMulPlan& plan, Stream& stream, const void* a, const void* b,
                    const void* bias, void* c, void* before) {
    const auto run = [&](int times) {
      for (int i = 0; i < times; ++i) {
        plan.Run(stream, a, b, bias, c, before);
      }
      return true;
    };
    try {
      run(1);
    } catch (const ContractError&) {
      return Stopwatch::kNever;  // the library has no such kernel
    }
    Stopwatch watch;
    return watch.Time(Native(stream), [&] { return run(kTimed); });
  }

  const Key key_;
  const std::unique_ptr<MatMulPlan> together_;
  const std::unique_ptr<MatMulPlan> apart_;
  std::optional<Way> best_;
};

}  // namespace

std::unique_ptr<MatMulPlan> MakeMatMul(Libraries& libraries, const MatMulSpec& spec) {
  Require(spec.out == spec.type || spec.out == DType::kFloat32,
          "a product into float32, or the type of its operands");
  RequireTypeOf(libraries, spec.type);
  return std::make_unique<CublasLtMatMul>(libraries, spec);
}

std::unique_ptr<MatMulPlan> MakeGeluMatMul(Libraries& libraries, const MatMulSpec& spec,
                                           std::unique_ptr<MatMulPlan> apart) {
  // An empty product is the other way's, which knows gelu.
  if (spec.m == 0 || spec.n == 0 || spec.k == 0) {
    return apart;
  }
  return std::make_unique<GeluMatMul>(libraries, spec, std::move(apart));
}

}  // namespace cohort::cuda
