#include <cmath>

#include "rule.h"

namespace cohort {
namespace optim {
namespace {

class AdagradRule final : public Rule<AdagradOptions> {
 public:
  explicit AdagradRule(AdagradOptions options) : Rule("adagrad", options, {"accumulator"}) {}

  float slot_initial_value(int /*slot*/) const override {
    return static_cast<float>(options_.initial_accumulator);
  }

 private:
  void Update(const OptimizerUpdate& update) const override {
    float* __restrict w = update.value.data();
    float* __restrict a = update.slots[0].data();
    const float* __restrict gradient = update.gradient.data();
    const float scale = update.gradient_scale;
    const float l2 = static_cast<float>(options_.l2);
    const float eta = learning_rate(update.step);
    const float epsilon = static_cast<float>(options_.epsilon);
    for (std::size_t i = 0; i < update.value.size(); ++i) {
      const float g = gradient[i] * scale + l2 * w[i];
      a[i] += g * g;
      w[i] -= eta * g / (std::sqrt(a[i]) + epsilon);
    }
  }
};

}  // namespace

void VisitFields(FieldVisitor& fields, AdagradOptions& options) {
  fields.Rate("learning_rate", options.learning_rate);
  fields.Number("initial_accumulator", options.initial_accumulator);
  fields.Number("epsilon", options.epsilon, kPositive);
  VisitCommonFields(fields, options);
}

}  // namespace optim

std::unique_ptr<Optimizer> Adagrad(AdagradOptions options) {
  return std::make_unique<optim::AdagradRule>(options);
}

}  // namespace cohort
