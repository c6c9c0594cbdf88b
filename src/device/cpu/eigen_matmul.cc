// Products for processors without AVX-512. There oneDNN 2.6 reaches 55 to 65 % of the FMA peak
// where a leading dimension is a power of two, and Eigen 85 to 90 % (Zen 3).

#include <Eigen/Core>
#include <algorithm>
#include <oneapi/dnnl/dnnl.hpp>

#include "cpu/dnnl_plans.h"
#include "cpu/parallel.h"

namespace cohort::cpu {
namespace {

using Stride = Eigen::OuterStride<>;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ColumnMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;

// Rows and columns of c that one thread computes.
struct Part {
  std::int64_t row = 0, rows = 0;
  std::int64_t column = 0, columns = 0;
};

class EigenMatMul final : public MatMulPlan {
 public:
  EigenMatMul(int threads, const MatMulSpec& spec) : threads_(threads), spec_(spec) {}

  void Run(Stream& stream, const void* a, const void* b, const void* bias, void* c,
           void* /*before*/) override {
    stream.Enqueue([=, this]() -> Status {
      const OmpThreads scope(threads_);
      const bool by_rows = spec_.m >= spec_.n;
      constexpr std::int64_t kLeast = 16;  // rows or columns that are worth a thread
      ParallelFor(by_rows ? spec_.m : spec_.n, kLeast,
                  [&](std::int64_t begin, std::int64_t end, int /*part*/) {
                    Part part{0, spec_.m, 0, spec_.n};
                    (by_rows ? part.row : part.column) = begin;
                    (by_rows ? part.rows : part.columns) = end - begin;
                    Compute(part, static_cast<const float*>(a), static_cast<const float*>(b),
                            static_cast<const float*>(bias), static_cast<float*>(c));
                  });
      return {};
    });
  }

 private:
  void Compute(const Part& part, const float* a, const float* b, const float* bias,
               float* c) const {
    Eigen::Map<RowMajor, 0, Stride> out(c + part.row * spec_.n + part.column, part.rows,
                                        part.columns, Stride(spec_.n));
    if (spec_.bias) {
      out.rowwise() = Eigen::Map<const Eigen::RowVectorXf>(bias + part.column, part.columns);
    } else {
      out.setZero();
    }
    if (spec_.transpose_a) {
      AddTo(out, Of<ColumnMajor>(a + part.row, part.rows, spec_.k, spec_.m), part, b);
    } else {
      AddTo(out, Of<RowMajor>(a + part.row * spec_.k, part.rows, spec_.k, spec_.k), part, b);
    }
    if (spec_.activation == Activation::kRelu) {
      out = out.cwiseMax(0.0F);
    }
  }
  template <typename Out, typename A>
  void AddTo(Out& out, const A& a, const Part& part, const float* b) const {
    if (spec_.transpose_b) {
      out.noalias() +=
          a * Of<ColumnMajor>(b + part.column * spec_.k, spec_.k, part.columns, spec_.k);
    } else {
      out.noalias() += a * Of<RowMajor>(b + part.column, spec_.k, part.columns, spec_.n);
    }
  }
  template <typename Order>
  static Eigen::Map<const Order, 0, Stride> Of(const float* data, std::int64_t rows,
                                               std::int64_t columns, std::int64_t stride) {
    return {data, rows, columns, Stride(stride)};
  }

  const int threads_;
  const MatMulSpec spec_;
};

bool HasAvx512() {
  static const bool has = [] {
    switch (dnnl::get_effective_cpu_isa()) {
      case dnnl::cpu_isa::sse41:
      case dnnl::cpu_isa::avx:
      case dnnl::cpu_isa::avx2:
      case dnnl::cpu_isa::avx2_vnni:
        return false;
      default:
        return true;
    }
  }();
  return has;
}

}  // namespace

std::unique_ptr<MatMulPlan> MakeEigenMatMul(int threads, const MatMulSpec& spec) {
  constexpr std::int64_t kLeast = 16;
  if (HasAvx512() || std::min({spec.m, spec.n, spec.k}) < kLeast) {
    return nullptr;
  }
  Require(spec.activation == Activation::kNone || spec.activation == Activation::kRelu,
          "a fused activation is none or relu");
  return std::make_unique<EigenMatMul>(threads, spec);
}

}  // namespace cohort::cpu
