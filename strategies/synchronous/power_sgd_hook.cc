// PowerSGD: gradient matrices as products of two thin ones.
//
// M (n x m) is this process's gradient plus feedback; the sum over processes is approximated by
// P Q^T with `rank` columns each. From the last step's Q, made orthonormal:
//
//   on the stream   P = M Q                         travels with the parts that are not compressed
//   in Wait()       P summed; P made orthonormal;
//                   Q = M^T P                       travels
//                   Q summed; values = P Q^T        feedback: M - P (own Q)^T
//
// P has the span of a power iteration's step on the summed matrix, so values are its projection
// onto that span; with `rank` = min(n, m) the span is all, and nothing is lost. All processes have
// the same P and Q, bit by bit, since the sums are.
//
// Q is stored transposed, a row for each column, so that loops run along memory.

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/strategies/bucket_hook.h>

#include "synchronous/agreement.h"
#include "synchronous/feedback.h"

namespace cohort {
namespace {

constexpr double kVanished = 1e-6;  // of a column's length: what is left is rounding

float Dot(const float* a, const float* b, std::int64_t n) {
  constexpr int kLanes = 16;
  float lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      lanes[k] += a[i + k] * b[i + k];
    }
  }
  for (; i < n; ++i) {
    lanes[0] += a[i] * b[i];
  }
  float sum = 0;
  for (const float lane : lanes) {
    sum += lane;
  }
  return sum;
}

void AddScaled(float* to, const float* from, float factor, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    to[i] += factor * from[i];
  }
}

// `count` vectors of `length`, one after the other, made orthonormal in their order. One that lies
// in the span of those before it becomes zero. Subtracting twice is what keeps them orthogonal in
// floats.
void MakeOrthonormal(std::span<float> vectors, std::int64_t count, std::int64_t length) {
  for (std::int64_t k = 0; k < count; ++k) {
    float* mine = vectors.data() + k * length;
    const double before = std::sqrt(static_cast<double>(Dot(mine, mine, length)));
    for (int round = 0; round < 2; ++round) {
      for (std::int64_t j = 0; j < k; ++j) {
        const float* other = vectors.data() + j * length;
        AddScaled(mine, other, -Dot(mine, other, length), length);
      }
    }
    const double after = std::sqrt(static_cast<double>(Dot(mine, mine, length)));
    const bool vanished = after <= kVanished * before;  // false for NaN, which must show
    const auto factor = vanished ? 0.0F : static_cast<float>(1 / after);
    for (std::int64_t i = 0; i < length; ++i) {
      mine[i] = vanished ? 0.0F : mine[i] * factor;
    }
  }
}

// A part of a bucket that is compressed.
struct Matrix {
  const BucketPart* part = nullptr;
  std::int64_t n = 0;
  std::int64_t m = 0;
  std::int64_t rank = 0;
  std::size_t p = 0;  // where its factor begins in the bucket's
  std::size_t q = 0;
};

// One bucket's way.
struct Journey {
  std::vector<Matrix> matrices;
  std::vector<const BucketPart*> vectors;
  std::size_t vector_elements = 0;
  std::vector<float> first;   // vectors, then every P, column by column
  std::vector<float> own_q;   // this process's
  std::vector<float> second;  // every Q, summed
};

class PowerSgdHook final : public BucketHook {
 public:
  explicit PowerSgdHook(const PowerSgdOptions& options) : options_(options) {}

  std::string name() const override {
    return "PowerSGD of rank " + std::to_string(options_.rank) + " from step " +
           std::to_string(options_.start_step) + ", seed " + std::to_string(options_.seed) +
           (options_.error_feedback ? ", with error feedback" : ", without error feedback");
  }

  Status Bind(const ParameterSet& parameters, Communicator& /*communicator*/) override {
    feedback_.Bind(parameters, options_.error_feedback);
    factors_.resize(static_cast<std::size_t>(parameters.size()));
    return {};
  }

  Communicator::Pending Launch(const GradientBucket& bucket) override {
    if (bucket.step < options_.start_step) {
      return AllReduceBucket(bucket);
    }
    Journey& journey = journeys_[bucket.index];
    Plan(bucket, journey);
    bucket.stream.Enqueue([this, &bucket, &journey]() -> Status {
      Project(bucket, journey);
      return {};
    });
    Communicator::Pending sent =
        bucket.communicator.AllReduce(std::span(journey.first), ReduceOp::kSum, bucket.options);
    COHORT_RETURN_IF_ERROR(sent.status());
    return Then(std::move(sent).value(),
                [this, &bucket, &journey] { return Finish(bucket, journey); });
  }

 private:
  // What of the bucket is a matrix worth compressing.
  void Plan(const GradientBucket& bucket, Journey& journey) const {
    journey.matrices.clear();
    journey.vectors.clear();
    journey.vector_elements = 0;
    std::size_t p = 0;
    std::size_t q = 0;
    for (const BucketPart& part : bucket.parts) {
      const std::int64_t elements = part.shape.elements();
      const std::int64_t m = part.shape.rank() >= 2 ? part.shape[part.shape.rank() - 1] : 0;
      const std::int64_t n = m > 0 ? elements / m : 0;
      const std::int64_t rank = std::min({std::int64_t{options_.rank}, n, m});
      // A rank as large as the matrix has is asked for to lose nothing, whatever it costs.
      if (m == 0 || ((n + m) * rank >= elements && options_.rank < std::min(n, m))) {
        journey.vectors.push_back(&part);
        journey.vector_elements += static_cast<std::size_t>(elements);
        continue;
      }
      journey.matrices.push_back({.part = &part, .n = n, .m = m, .rank = rank, .p = p, .q = q});
      p += static_cast<std::size_t>(n * rank);
      q += static_cast<std::size_t>(m * rank);
    }
    for (Matrix& matrix : journey.matrices) {
      matrix.p += journey.vector_elements;
    }
    journey.first.resize(journey.vector_elements + p);
    journey.own_q.assign(q, 0.0F);
  }

  static std::span<float> ValuesOf(const GradientBucket& bucket, const BucketPart& part) {
    return bucket.values.subspan(static_cast<std::size_t>(part.begin),
                                 static_cast<std::size_t>(part.shape.elements()));
  }

  // The factor that a matrix starts from, orthonormal: the last step's, and random numbers where it
  // has none or has lost a column.
  std::span<float> Warm(const Matrix& matrix, std::int64_t step) {
    std::vector<float>& factor = factors_[static_cast<std::size_t>(matrix.part->parameter)];
    factor.resize(static_cast<std::size_t>(matrix.m * matrix.rank));
    MakeOrthonormal(factor, matrix.rank, matrix.m);
    bool refilled = false;
    for (std::int64_t k = 0; k < matrix.rank; ++k) {
      float* column = factor.data() + k * matrix.m;
      if (Dot(column, column, matrix.m) > 0) {
        continue;
      }
      refilled = true;
      const Philox random(options_.seed, "power sgd/" + std::to_string(matrix.part->parameter));
      for (std::int64_t i = 0; i < matrix.m; ++i) {
        column[i] = static_cast<float>(random.Uniform(static_cast<std::uint64_t>(k * matrix.m + i),
                                                      static_cast<std::uint64_t>(step))) -
                    0.5F;
      }
    }
    if (refilled) {
      MakeOrthonormal(factor, matrix.rank, matrix.m);
    }
    return factor;
  }

  void Project(const GradientBucket& bucket, Journey& journey) {
    auto to = journey.first.begin();
    for (const BucketPart* part : journey.vectors) {
      to = std::ranges::copy(ValuesOf(bucket, *part), to).out;
    }
    for (const Matrix& matrix : journey.matrices) {
      const std::span<float> values = ValuesOf(bucket, *matrix.part);
      feedback_.Add(*matrix.part, bucket.weight, values);
      const std::span<const float> q = Warm(matrix, bucket.step);
      float* p = journey.first.data() + matrix.p;
      for (std::int64_t i = 0; i < matrix.n; ++i) {
        for (std::int64_t k = 0; k < matrix.rank; ++k) {
          p[k * matrix.n + i] =
              Dot(values.data() + i * matrix.m, q.data() + k * matrix.m, matrix.m);
        }
      }
    }
  }

  Status Finish(const GradientBucket& bucket, Journey& journey) {
    auto from = journey.first.begin();
    for (const BucketPart* part : journey.vectors) {
      const std::span<float> values = ValuesOf(bucket, *part);
      std::copy_n(from, values.size(), values.begin());
      from += static_cast<std::ptrdiff_t>(values.size());
    }
    for (const Matrix& matrix : journey.matrices) {
      const std::span<float> p =
          std::span(journey.first)
              .subspan(matrix.p, static_cast<std::size_t>(matrix.n * matrix.rank));
      MakeOrthonormal(p, matrix.rank, matrix.n);
      const std::span<const float> values = ValuesOf(bucket, *matrix.part);
      float* q = journey.own_q.data() + matrix.q;
      for (std::int64_t i = 0; i < matrix.n; ++i) {
        for (std::int64_t k = 0; k < matrix.rank; ++k) {
          AddScaled(q + k * matrix.m, values.data() + i * matrix.m,
                    p[static_cast<std::size_t>(k * matrix.n + i)], matrix.m);
        }
      }
    }
    journey.second = journey.own_q;
    CollectiveOptions options = bucket.options;
    options.stream = nullptr;
    options.name += ", second factor";
    COHORT_RETURN_IF_ERROR(
        Await(bucket.communicator.AllReduce(std::span(journey.second), ReduceOp::kSum, options)));
    for (const Matrix& matrix : journey.matrices) {
      Reconstruct(bucket, journey, matrix);
    }
    return {};
  }

  void Reconstruct(const GradientBucket& bucket, const Journey& journey, const Matrix& matrix) {
    const float* p = journey.first.data() + matrix.p;
    const float* q = journey.second.data() + matrix.q;
    const float* own = journey.own_q.data() + matrix.q;
    const std::span<float> values = ValuesOf(bucket, *matrix.part);
    const std::span<float> residual = feedback_.Of(*matrix.part);
    const auto unit = bucket.weight > 0 ? static_cast<float>(1 / bucket.weight) : 0.0F;
    for (std::int64_t i = 0; i < matrix.n; ++i) {
      float* row = values.data() + i * matrix.m;
      if (!residual.empty() && unit > 0) {
        for (std::int64_t k = 0; k < matrix.rank; ++k) {
          AddScaled(row, own + k * matrix.m, -p[k * matrix.n + i], matrix.m);
        }
        float* kept = residual.data() + i * matrix.m;
        for (std::int64_t j = 0; j < matrix.m; ++j) {
          kept[j] = row[j] * unit;
        }
      }
      std::fill_n(row, matrix.m, 0.0F);
      for (std::int64_t k = 0; k < matrix.rank; ++k) {
        AddScaled(row, q + k * matrix.m, p[k * matrix.n + i], matrix.m);
      }
    }
    std::ranges::copy(std::span(q, static_cast<std::size_t>(matrix.m * matrix.rank)),
                      factors_[static_cast<std::size_t>(matrix.part->parameter)].begin());
  }

  const PowerSgdOptions options_;
  Feedback feedback_;
  std::vector<std::vector<float>> factors_;  // by parameter: Q, column by column
  std::map<int, Journey> journeys_;          // by bucket: memory that stays
};

}  // namespace

std::unique_ptr<BucketHook> MakePowerSgdHook(const PowerSgdOptions& options) {
  Require(options.rank >= 1, "PowerSGD of a rank of at least 1");
  return std::make_unique<PowerSgdHook>(options);
}

}  // namespace cohort
