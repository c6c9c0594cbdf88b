#include <cmath>

#include "rule.h"

namespace cohort {
namespace optim {
namespace {

class RmsPropRule final : public Rule<RmsPropOptions> {
 public:
  explicit RmsPropRule(RmsPropOptions options)
      : Rule("rmsprop", options,
             options.momentum > 0 ? std::vector<std::string_view>{"mean_square", "momentum"}
                                  : std::vector<std::string_view>{"mean_square"}) {}

 private:
  void Update(const OptimizerUpdate& update) const override {
    if (num_slots() == 2) {
      Pass<true>(update, update.slots[1].data());
    } else {
      Pass<false>(update, nullptr);
    }
  }

  template <bool kMomentum>
  void Pass(const OptimizerUpdate& update, float* __restrict v) const {
    float* __restrict w = update.value.data();
    float* __restrict a = update.slots[0].data();
    const float* __restrict gradient = update.gradient.data();
    const float scale = update.gradient_scale;
    const float l2 = static_cast<float>(options_.l2);
    const float eta = learning_rate(update.step);
    const float rho = static_cast<float>(options_.rho);
    const float fresh = static_cast<float>(1 - options_.rho);
    const float mu = static_cast<float>(options_.momentum);
    const float epsilon = static_cast<float>(options_.epsilon);
    for (std::size_t i = 0; i < update.value.size(); ++i) {
      const float g = gradient[i] * scale + l2 * w[i];
      a[i] = rho * a[i] + fresh * g * g;
      const float push = eta * g / (std::sqrt(a[i]) + epsilon);
      if constexpr (kMomentum) {
        v[i] = mu * v[i] + push;
        w[i] -= v[i];
      } else {
        w[i] -= push;
      }
    }
  }
};

}  // namespace

void VisitFields(FieldVisitor& fields, RmsPropOptions& options) {
  fields.Rate("learning_rate", options.learning_rate);
  fields.Number("rho", options.rho, kFraction);
  fields.Number("momentum", options.momentum, kFraction);
  fields.Number("epsilon", options.epsilon, kPositive);
  VisitCommonFields(fields, options);
}

}  // namespace optim

std::unique_ptr<Optimizer> RmsProp(RmsPropOptions options) {
  return std::make_unique<optim::RmsPropRule>(options);
}

}  // namespace cohort
