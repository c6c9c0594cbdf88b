// Attention, a block of queries at a time: of the scores no more than that block's are in memory,
// and with a causal mask those of keys behind the block are never computed. The backward pass
// computes them again. Products are Eigen's. A head is one thread's work, so that results do not
// depend on the number of threads.

#include "cpu/attention.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cpu/parallel.h"

namespace cohort::cpu {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Stride = Eigen::OuterStride<>;
using Array = Eigen::Map<Eigen::ArrayXf>;

constexpr std::int64_t kBlock = 32;  // queries
constexpr std::int64_t kLanes = 16;

// Eigen's sums, and its exp, come out differently by where in memory they begin. So a block's rows
// are all aligned, and sums of what is elsewhere are this one.
float Dot(const float* a, const float* b, std::int64_t count) {
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += a[i + lane] * b[i + lane];
    }
  }
  for (; i < count; ++i) {
    lanes[i % kLanes] += a[i] * b[i];
  }
  float sum = 0;
  for (const float lane : lanes) {
    sum += lane;
  }
  return sum;
}

// One head's matrix [length, head_size] inside a wider one.
template <typename Float>
struct Head {
  Float* data;
  std::int64_t stride;
  std::int64_t width;

  auto Rows(std::int64_t first, std::int64_t count) const {
    using Matrix = std::conditional_t<std::is_const_v<Float>, const RowMajor, RowMajor>;
    return Eigen::Map<Matrix, 0, Stride>(data + first * stride, count, width, Stride(stride));
  }
  Float* Row(std::int64_t row) const { return data + row * stride; }
};

template <typename Float>
struct Heads {
  Head<Float> q, k, v;
};

class CpuAttention final : public AttentionPlan {
 public:
  CpuAttention(int threads, const AttentionSpec& spec)
      : threads_(threads),
        s_(spec),
        scale_(1.0F / std::sqrt(static_cast<float>(spec.head_size))),
        stride_((spec.length + kLanes - 1) / kLanes * kLanes) {}

  std::int64_t saved_elements() const override { return s_.batch * s_.heads * s_.length; }

  void Forward(Stream& stream, const void* packed, void* out, float* saved) override {
    stream.Enqueue([=, this, qkv = static_cast<const float*>(packed),
                    y = static_cast<float*>(out)]() -> Status {
      ForHeads([&](std::int64_t head) {
        ForwardHead(OfPacked(qkv, head), OfOne(y, head), saved + head * s_.length);
      });
      return {};
    });
  }

  void Backward(Stream& stream, const void* packed, const void* out, const float* saved,
                const void* gradient, void* dpacked) override {
    stream.Enqueue([=, this, qkv = static_cast<const float*>(packed),
                    y = static_cast<const float*>(out), dy = static_cast<const float*>(gradient),
                    dqkv = static_cast<float*>(dpacked)]() -> Status {
      ForHeads([&](std::int64_t head) {
        BackwardHead(OfPacked(qkv, head), OfOne(y, head), saved + head * s_.length, OfOne(dy, head),
                     OfPacked(dqkv, head));
      });
      return {};
    });
  }

 private:
  // body(head) for each example's heads, numbered throughout.
  template <typename Body>
  void ForHeads(const Body& body) const {
    const OmpThreads scope(threads_);
    ParallelFor(s_.batch * s_.heads, RowGrain(s_.length * s_.length),
                [&](std::int64_t begin, std::int64_t end, int /*part*/) {
                  for (std::int64_t head = begin; head < end; ++head) {
                    body(head);
                  }
                });
  }

  // The head's part of [batch, length, matrices, heads, head_size].
  template <typename Float>
  Head<Float> Of(Float* data, std::int64_t matrices, std::int64_t matrix, std::int64_t head) const {
    const std::int64_t example = head / s_.heads;
    const std::int64_t width = s_.heads * s_.head_size;
    return {
        data + (example * s_.length * matrices + matrix) * width + head % s_.heads * s_.head_size,
        matrices * width, s_.head_size};
  }
  template <typename Float>
  Heads<Float> OfPacked(Float* qkv, std::int64_t head) const {
    return {Of(qkv, 3, 0, head), Of(qkv, 3, 1, head), Of(qkv, 3, 2, head)};
  }
  template <typename Float>
  Head<Float> OfOne(Float* data, std::int64_t head) const {
    return Of(data, 1, 0, head);
  }

  // A block of queries, and how many keys its last one sees.
  struct Block {
    std::int64_t first;
    std::int64_t queries;
    std::int64_t keys;
  };
  template <typename Body>
  void ForBlocks(const Body& body) const {
    for (std::int64_t first = 0; first < s_.length; first += kBlock) {
      const std::int64_t queries = std::min(kBlock, s_.length - first);
      body(Block{first, queries, s_.causal ? first + queries : s_.length});
    }
  }
  std::int64_t Visible(const Block& b, std::int64_t query) const {
    return s_.causal ? b.first + query + 1 : b.keys;
  }
  // Memory of a block's scores; these; and those of one query.
  Eigen::ArrayXf Scratch() const { return Eigen::ArrayXf(std::min(kBlock, s_.length) * stride_); }
  Eigen::Map<RowMajor, 0, Stride> Scores(Eigen::ArrayXf& memory, const Block& b) const {
    return {memory.data(), b.queries, b.keys, Stride(stride_)};
  }
  Array ScoresOf(Eigen::ArrayXf& memory, std::int64_t query, std::int64_t visible) const {
    return {memory.data() + query * stride_, visible};
  }

  void ForwardHead(const Heads<const float>& in, const Head<float>& y, float* saved) const {
    Eigen::ArrayXf memory = Scratch();
    ForBlocks([&](const Block& b) {
      auto scores = Scores(memory, b);
      scores.noalias() = in.q.Rows(b.first, b.queries) * in.k.Rows(0, b.keys).transpose();
      float inverse_sum[kBlock];
      for (std::int64_t i = 0; i < b.queries; ++i) {
        const std::int64_t visible = Visible(b, i);
        Array row = ScoresOf(memory, i, visible);
        const float maximum = row.maxCoeff();
        row = ((row - maximum) * scale_).exp();
        const float sum = row.sum();
        std::fill(row.data() + visible, row.data() + b.keys, 0.0F);
        inverse_sum[i] = 1.0F / sum;
        saved[b.first + i] = scale_ * maximum + std::log(sum);
      }
      y.Rows(b.first, b.queries).noalias() = scores * in.v.Rows(0, b.keys);
      for (std::int64_t i = 0; i < b.queries; ++i) {
        Array(y.Row(b.first + i), y.width) *= inverse_sum[i];
      }
    });
  }

  // With p = softmax(scale q k^T):  dv = p^T dy,  dp = dy v^T,  ds = p (dp - rowsum(dy y)),
  // dq = scale ds k,  dk = scale ds^T q.
  void BackwardHead(const Heads<const float>& in, const Head<const float>& y, const float* saved,
                    const Head<const float>& dy, const Heads<float>& out) const {
    Eigen::ArrayXf p_memory = Scratch();
    Eigen::ArrayXf ds_memory = Scratch();
    out.k.Rows(0, s_.length).setZero();
    out.v.Rows(0, s_.length).setZero();
    ForBlocks([&](const Block& b) {
      auto p = Scores(p_memory, b);
      auto ds = Scores(ds_memory, b);
      const auto q = in.q.Rows(b.first, b.queries);
      const auto k = in.k.Rows(0, b.keys);
      const auto dy_block = dy.Rows(b.first, b.queries);
      p.noalias() = q * k.transpose();
      ds.noalias() = dy_block * in.v.Rows(0, b.keys).transpose();
      for (std::int64_t i = 0; i < b.queries; ++i) {
        const std::int64_t visible = Visible(b, i);
        Array p_row = ScoresOf(p_memory, i, visible);
        Array ds_row = ScoresOf(ds_memory, i, visible);
        const float dot = Dot(dy.Row(b.first + i), y.Row(b.first + i), y.width);
        p_row = (p_row * scale_ - saved[b.first + i]).exp();
        ds_row = p_row * (ds_row - dot) * scale_;
        std::fill(p_row.data() + visible, p_row.data() + b.keys, 0.0F);
        std::fill(ds_row.data() + visible, ds_row.data() + b.keys, 0.0F);
      }
      out.v.Rows(0, b.keys).noalias() += p.transpose() * dy_block;
      out.q.Rows(b.first, b.queries).noalias() = ds * k;
      out.k.Rows(0, b.keys).noalias() += ds.transpose() * q;
    });
  }

  const int threads_;
  const AttentionSpec s_;
  const float scale_;
  const std::int64_t stride_;  // of rows of scores
};

}  // namespace

std::unique_ptr<AttentionPlan> MakeAttention(int threads, const AttentionSpec& spec) {
  Require(spec.batch >= 0 && spec.length >= 0 && spec.heads >= 1 && spec.head_size >= 1,
          "attention of at least one head with at least one element");
  return std::make_unique<CpuAttention>(threads, spec);
}

}  // namespace cohort::cpu
