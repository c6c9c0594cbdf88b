#include "cpu/half_plans.h"

#include <cstdint>
#include <vector>

#include "cpu/half.h"
#include "cpu/parallel.h"

namespace cohort::cpu {
namespace {

// The float32 operands of one run. The stream may come to them late: whoever puts work there keeps
// them until it has run.
class HalfRun {
 public:
  HalfRun(Stream& stream, int threads) : stream_(stream), threads_(threads) {}

  // Where the float32 plan finds an operand, widened once the stream has come here; nullptr stays.
  const float* Read(const void* data, std::int64_t size, DType type) {
    if (type == DType::kFloat32 || data == nullptr) {
      return static_cast<const float*>(data);
    }
    float* const to = Take(size);
    stream_.Enqueue([to, threads = threads_,
                     from = ConstElements(data, static_cast<std::size_t>(size), type)]() -> Status {
      const OmpThreads scope(threads);
      Widen(from, to);
      return {};
    });
    return to;
  }
  // Where it writes a result, which Finish rounds.
  float* Write(void* data, std::int64_t size, DType type) {
    if (type == DType::kFloat32) {
      return static_cast<float*>(data);
    }
    written_ = Take(size);
    to_ = Elements(data, static_cast<std::size_t>(size), type);
    return written_;
  }
  // Behind the float32 plan's work.
  void Finish() {
    stream_.Enqueue(
        [kept = std::move(kept_), written = written_, to = to_, threads = threads_]() -> Status {
          if (written != nullptr) {
            const OmpThreads scope(threads);
            Round(written, to);
          }
          return {};
        });
  }

 private:
  float* Take(std::int64_t size) {
    kept_.push_back(Scratch(static_cast<std::size_t>(size)));
    return kept_.back().data<float>().data();
  }

  Stream& stream_;
  const int threads_;
  std::vector<Tensor> kept_;
  float* written_ = nullptr;
  Elements to_;
};

class HalfMatMul final : public MatMulPlan {
 public:
  HalfMatMul(int threads, const MatMulSpec& spec, MatMulPlan& plan)
      : threads_(threads), s_(spec), plan_(plan) {}

  void Run(Stream& stream, const void* a, const void* b, const void* bias, void* c,
           void* /*before*/) override {
    HalfRun run(stream, threads_);
    const float* const wide_a = run.Read(a, s_.m * s_.k, s_.type);
    const float* const wide_b = run.Read(b, s_.k * s_.n, s_.type);
    const float* const wide_bias = s_.bias ? run.Read(bias, s_.n, s_.out) : nullptr;
    plan_.Run(stream, wide_a, wide_b, wide_bias, run.Write(c, s_.m * s_.n, s_.out));
    run.Finish();
  }

 private:
  const int threads_;
  const MatMulSpec s_;
  MatMulPlan& plan_;
};

class HalfConv final : public ConvPlan {
 public:
  HalfConv(int threads, const ConvSpec& s, ConvPlan& plan)
      : threads_(threads),
        s_(s),
        x_(s.batch * s.height * s.width * s.in),
        y_(s.batch * s.out_height() * s.out_width() * s.out),
        kernel_(s.kernel_h * s.kernel_w * (s.in / s.groups) * s.out),
        plan_(plan) {}

  void Forward(Stream& stream, const void* x, const void* kernel, const void* bias,
               void* y) override {
    HalfRun run(stream, threads_);
    const float* const wide_x = run.Read(x, x_, s_.type);
    const float* const wide_kernel = run.Read(kernel, kernel_, s_.type);
    const float* const wide_bias = s_.bias ? run.Read(bias, s_.out, s_.type) : nullptr;
    plan_.Forward(stream, wide_x, wide_kernel, wide_bias, run.Write(y, y_, s_.type));
    run.Finish();
  }
  void BackwardKernel(Stream& stream, const void* x, const void* dy, float* dkernel) override {
    HalfRun run(stream, threads_);
    const float* const wide_x = run.Read(x, x_, s_.type);
    plan_.BackwardKernel(stream, wide_x, run.Read(dy, y_, s_.type), dkernel);
    run.Finish();
  }
  void BackwardInput(Stream& stream, const void* kernel, const void* dy, void* dx) override {
    HalfRun run(stream, threads_);
    const float* const wide_kernel = run.Read(kernel, kernel_, s_.type);
    const float* const wide_dy = run.Read(dy, y_, s_.type);
    plan_.BackwardInput(stream, wide_kernel, wide_dy, run.Write(dx, x_, s_.type));
    run.Finish();
  }

 private:
  const int threads_;
  const ConvSpec s_;
  const std::int64_t x_, y_, kernel_;
  ConvPlan& plan_;
};

class HalfPool final : public PoolPlan {
 public:
  HalfPool(int threads, const PoolSpec& s, PoolPlan& plan)
      : threads_(threads),
        type_(s.type),
        x_(s.batch * s.height * s.width * s.channels),
        y_(s.batch * s.out_height() * s.out_width() * s.channels),
        plan_(plan) {}

  std::int64_t workspace_bytes() const override { return plan_.workspace_bytes(); }
  void Forward(Stream& stream, const void* x, void* y, std::byte* workspace) override {
    HalfRun run(stream, threads_);
    const float* const wide = run.Read(x, x_, type_);
    plan_.Forward(stream, wide, run.Write(y, y_, type_), workspace);
    run.Finish();
  }
  void Backward(Stream& stream, const void* dy, const std::byte* workspace, void* dx) override {
    HalfRun run(stream, threads_);
    const float* const wide = run.Read(dy, y_, type_);
    plan_.Backward(stream, wide, workspace, run.Write(dx, x_, type_));
    run.Finish();
  }

 private:
  const int threads_;
  const DType type_;
  const std::int64_t x_, y_;
  PoolPlan& plan_;
};

class HalfAttention final : public AttentionPlan {
 public:
  HalfAttention(int threads, const AttentionSpec& s, AttentionPlan& plan)
      : threads_(threads),
        type_(s.type),
        places_(s.batch * s.length * s.heads * s.head_size),
        plan_(plan) {}

  std::int64_t saved_elements() const override { return plan_.saved_elements(); }
  void Forward(Stream& stream, const void* qkv, void* y, float* saved) override {
    HalfRun run(stream, threads_);
    const float* const wide = run.Read(qkv, 3 * places_, type_);
    plan_.Forward(stream, wide, run.Write(y, places_, type_), saved);
    run.Finish();
  }
  void Backward(Stream& stream, const void* qkv, const void* y, const float* saved, const void* dy,
                void* dqkv) override {
    HalfRun run(stream, threads_);
    const float* const wide = run.Read(qkv, 3 * places_, type_);
    const float* const wide_y = run.Read(y, places_, type_);
    const float* const wide_dy = run.Read(dy, places_, type_);
    plan_.Backward(stream, wide, wide_y, saved, wide_dy, run.Write(dqkv, 3 * places_, type_));
    run.Finish();
  }

 private:
  const int threads_;
  const DType type_;
  const std::int64_t places_;
  AttentionPlan& plan_;
};

}  // namespace

std::unique_ptr<MatMulPlan> MakeHalfMatMul(int threads, const MatMulSpec& spec, MatMulPlan& plan) {
  return std::make_unique<HalfMatMul>(threads, spec, plan);
}

std::unique_ptr<ConvPlan> MakeHalfConv(int threads, const ConvSpec& spec, ConvPlan& plan) {
  return std::make_unique<HalfConv>(threads, spec, plan);
}

std::unique_ptr<PoolPlan> MakeHalfPool(int threads, const PoolSpec& spec, PoolPlan& plan) {
  return std::make_unique<HalfPool>(threads, spec, plan);
}

std::unique_ptr<AttentionPlan> MakeHalfAttention(int threads, const AttentionSpec& spec,
                                                 AttentionPlan& plan) {
  return std::make_unique<HalfAttention>(threads, spec, plan);
}

}  // namespace cohort::cpu
