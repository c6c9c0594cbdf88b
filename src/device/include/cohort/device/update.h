// Update rules of the optimizers, element by element, for every device.
//
// Each rule is what one element goes through in one step, with the step's coefficients worked out:
// <cohort/optim/optimizers.h> has the formulas in full, and makes these. `g` is the gradient,
// scaled already; l2 is added here. The arithmetic is float32, without contraction, so that all
// devices come to the same bits.

#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <variant>

#if defined(__CUDACC__)
#define COHORT_HOST_DEVICE __host__ __device__
#else
#define COHORT_HOST_DEVICE
#endif

namespace cohort {

struct SgdUpdate {
  static constexpr int kSlots = 0;
  float eta = 0, l2 = 0;
  COHORT_HOST_DEVICE void operator()(float g, float& w) const { w -= eta * (g + l2 * w); }
};

template <bool kNesterov>
struct MomentumUpdate {
  static constexpr int kSlots = 1;
  float eta = 0, mu = 0, l2 = 0;
  COHORT_HOST_DEVICE void operator()(float g, float& w, float& v) const {
    const float push = eta * (g + l2 * w);
    v = mu * v - push;
    w += kNesterov ? mu * v - push : v;
  }
};

struct AdagradUpdate {
  static constexpr int kSlots = 1;
  float eta = 0, epsilon = 0, l2 = 0;
  COHORT_HOST_DEVICE void operator()(float g, float& w, float& a) const {
    g += l2 * w;
    a += g * g;
    w -= eta * g / (std::sqrt(a) + epsilon);
  }
};

struct RmsPropUpdate {
  static constexpr int kSlots = 1;
  float eta = 0, rho = 0, fresh = 0, epsilon = 0, l2 = 0;  // fresh: 1 - rho
  COHORT_HOST_DEVICE float Push(float g, float w, float& a) const {
    g += l2 * w;
    a = rho * a + fresh * g * g;
    return eta * g / (std::sqrt(a) + epsilon);
  }
  COHORT_HOST_DEVICE void operator()(float g, float& w, float& a) const { w -= Push(g, w, a); }
};

struct RmsPropMomentumUpdate {
  static constexpr int kSlots = 2;
  RmsPropUpdate plain;
  float mu = 0;
  COHORT_HOST_DEVICE void operator()(float g, float& w, float& a, float& v) const {
    v = mu * v + plain.Push(g, w, a);
    w -= v;
  }
};

// Adam, and AdamW with `decay`: what is taken off beside the adaptive step, as a share of w.
struct AdamUpdate {
  static constexpr int kSlots = 2;
  float beta1 = 0, beta2 = 0, fresh1 = 0, fresh2 = 0;  // fresh: 1 - beta
  float rate = 0;                                      // eta / (1 - beta1^t)
  float root = 0;                                      // 1 / sqrt(1 - beta2^t)
  float epsilon = 0, l2 = 0, decay = 0;
  COHORT_HOST_DEVICE void operator()(float g, float& w, float& m, float& v) const {
    g += l2 * w;
    m = beta1 * m + fresh1 * g;
    v = beta2 * v + fresh2 * g * g;
    w -= rate * m / (std::sqrt(v) * root + epsilon) + decay * w;
  }
};

struct FtrlUpdate {
  static constexpr int kSlots = 2;
  float inverse_eta = 0, beta = 0, lambda1 = 0, lambda2 = 0, l2 = 0;
  COHORT_HOST_DEVICE void operator()(float g, float& w, float& z, float& n) const {
    g += l2 * w;
    const float root_before = std::sqrt(n);
    n += g * g;
    const float root = std::sqrt(n);
    z += g - (root - root_before) * inverse_eta * w;
    const float outside = z - std::copysign(lambda1, z);
    const float share = -outside / ((beta + root) * inverse_eta + lambda2);
    w = std::fabs(z) <= lambda1 ? 0.0F : share;
  }
};

using UpdateRule =
    std::variant<SgdUpdate, MomentumUpdate<false>, MomentumUpdate<true>, AdagradUpdate,
                 RmsPropUpdate, RmsPropMomentumUpdate, AdamUpdate, FtrlUpdate>;

inline constexpr std::size_t kMaxUpdateSlots = 2;

// One run of elements: value, gradient and as many slots as the rule has, all of equal length.
struct UpdatePart {
  std::span<float> value;
  std::span<const float> gradient;
  std::array<std::span<float>, kMaxUpdateSlots> slots;
  float gradient_scale = 1.0F;
};

// On the calling thread, of memory that the host reads.
void UpdateOnHost(const UpdateRule& rule, const UpdatePart& part);
// The sum of squares, added up in double in an order that depends on the length only: the same bits
// on every machine. Sum the results of several spans in an agreed order.
double SquaredNorm(std::span<const float> values);

}  // namespace cohort
