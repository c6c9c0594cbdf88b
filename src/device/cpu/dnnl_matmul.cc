#include "cpu/dnnl_common.h"

namespace cohort::cpu {
namespace {

using Tag = dnnl::memory::format_tag;

// The transposed product, transposed back: c = (b' a)'. For a' b with few columns (the kernel
// gradient of a classifier's last layer) it is several times as fast as computing c itself.
class TransposedMatMul final : public MatMulPlan {
 public:
  static bool Suits(const MatMulSpec& s) {
    return s.transpose_a && !s.transpose_b && !s.bias && s.activation == Activation::kNone &&
           s.k > 0 && s.n > 0 && s.n <= 32 && s.m >= 4 * s.n;
  }

  TransposedMatMul(const DnnlEngine& engine, const MatMulSpec& s) : engine_(engine) {
    const auto b = Desc({s.n, s.k}, Tag::ba);
    const auto a = Desc({s.k, s.m}, Tag::ab);
    const auto transposed = Desc({s.n, s.m}, Tag::ab);
    const auto c = Desc({s.n, s.m}, Tag::ba);
    const dnnl::matmul::primitive_desc desc({b, a, transposed}, Attributes(),
                                            engine.state().engine);
    matmul_ = DnnlCall(engine, dnnl::matmul(desc), desc);
    matmul_.Declare(DNNL_ARG_SRC, b);
    matmul_.Declare(DNNL_ARG_WEIGHTS, a);
    matmul_.Bind(DNNL_ARG_DST, transposed);
    const dnnl::reorder::primitive_desc back(engine.state().engine, transposed,
                                             engine.state().engine, c, Attributes());
    back_ = DnnlCall(engine, dnnl::reorder(back), back);
    back_.Share(DNNL_ARG_FROM, matmul_[DNNL_ARG_DST]);
    back_.Declare(DNNL_ARG_TO, c);
  }

  void Run(Stream& stream, const void* a, const void* b, const void* /*bias*/, void* c,
           void* /*before*/) override {
    PutDnnl(stream, engine_, [=, this] {
      matmul_.Set(DNNL_ARG_SRC, b);
      matmul_.Set(DNNL_ARG_WEIGHTS, a);
      matmul_.Run();
      back_.Set(DNNL_ARG_TO, c);
      back_.Run();
    });
  }

 private:
  const DnnlEngine& engine_;
  DnnlCall matmul_;
  DnnlCall back_;
};

class DnnlMatMul final : public MatMulPlan {
 public:
  DnnlMatMul(const DnnlEngine& engine, const MatMulSpec& spec) : engine_(engine), spec_(spec) {
    if (spec.m == 0 || spec.n == 0 || spec.k == 0) {
      return;
    }
    const auto a = Desc({spec.m, spec.k}, spec.transpose_a ? Tag::ba : Tag::ab);
    const auto b = Desc({spec.k, spec.n}, spec.transpose_b ? Tag::ba : Tag::ab);
    const auto bias = Desc({1, spec.n}, Tag::ab);
    const auto c = Desc({spec.m, spec.n}, Tag::ab);
    // With both operands strided along k, packing the smaller one first is the faster way.
    const auto packed = spec.transpose_a ? Desc({spec.k, spec.n}, Tag::any) : b;
    const dnnl::matmul::desc op =
        spec.bias ? dnnl::matmul::desc(a, packed, bias, c) : dnnl::matmul::desc(a, packed, c);
    const dnnl::matmul::primitive_desc desc(op, Attributes(spec.activation), engine.state().engine);
    matmul_ = DnnlCall(engine, dnnl::matmul(desc), desc);
    matmul_.Declare(DNNL_ARG_SRC, a);
    matmul_.Declare(DNNL_ARG_DST, c);
    if (spec.bias) {
      matmul_.Declare(DNNL_ARG_BIAS, bias);
    }
    if (desc.weights_desc() == b) {
      matmul_.Declare(DNNL_ARG_WEIGHTS, b);
      return;
    }
    matmul_.Bind(DNNL_ARG_WEIGHTS, desc.weights_desc());
    const dnnl::reorder::primitive_desc pack(engine.state().engine, b, engine.state().engine,
                                             desc.weights_desc(), Attributes());
    pack_ = DnnlCall(engine, dnnl::reorder(pack), pack);
    pack_.Declare(DNNL_ARG_FROM, b);
    pack_.Share(DNNL_ARG_TO, matmul_[DNNL_ARG_WEIGHTS]);
  }

  void Run(Stream& stream, const void* a, const void* b, const void* bias, void* c,
           void* /*before*/) override {
    PutDnnl(stream, engine_, [=, this] {
      if (!matmul_) {
        Degenerate(static_cast<const float*>(bias), static_cast<float*>(c));
        return;
      }
      if (pack_) {
        pack_.Set(DNNL_ARG_FROM, b);
        pack_.Run();
      } else {
        matmul_.Set(DNNL_ARG_WEIGHTS, b);
      }
      matmul_.Set(DNNL_ARG_SRC, a);
      matmul_.Set(DNNL_ARG_DST, c);
      if (spec_.bias) {
        matmul_.Set(DNNL_ARG_BIAS, bias);
      }
      matmul_.Run();
    });
  }

 private:
  // k = 0: an empty sum, and the bias.
  void Degenerate(const float* bias, float* c) const {
    for (std::int64_t i = 0; i < spec_.m * spec_.n; ++i) {
      const float value = spec_.bias ? bias[i % spec_.n] : 0.0F;
      c[i] = spec_.activation == Activation::kRelu ? std::max(value, 0.0F) : value;
    }
  }

  const DnnlEngine& engine_;
  const MatMulSpec spec_;
  DnnlCall matmul_;
  DnnlCall pack_;
};

}  // namespace

DnnlEngine::DnnlEngine(int threads) : state_(new State{.threads = threads}) {}
DnnlEngine::~DnnlEngine() = default;

std::unique_ptr<MatMulPlan> MakeMatMul(const DnnlEngine& engine, const MatMulSpec& spec) {
  return MakeDnnl(engine,
                  "a product [" + std::to_string(spec.m) + "," + std::to_string(spec.k) + "] x [" +
                      std::to_string(spec.k) + "," + std::to_string(spec.n) + "]",
                  [&]() -> std::unique_ptr<MatMulPlan> {
                    if (TransposedMatMul::Suits(spec)) {
                      return std::make_unique<TransposedMatMul>(engine, spec);
                    }
                    return std::make_unique<DnnlMatMul>(engine, spec);
                  });
}

}  // namespace cohort::cpu
