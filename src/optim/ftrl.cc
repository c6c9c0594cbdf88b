#include <cmath>

#include "rule.h"

namespace cohort {
namespace optim {
namespace {

class FtrlRule final : public Rule<FtrlOptions> {
 public:
  explicit FtrlRule(FtrlOptions options) : Rule("ftrl", options, {"z", "n"}) {}

  float slot_initial_value(int slot) const override {
    return slot == 1 ? static_cast<float>(options_.initial_accumulator) : 0.0F;
  }

 private:
  void Update(const OptimizerUpdate& update) const override {
    float* __restrict w = update.value.data();
    float* __restrict z = update.slots[0].data();
    float* __restrict n = update.slots[1].data();
    const float* __restrict gradient = update.gradient.data();
    const float scale = update.gradient_scale;
    const float l2 = static_cast<float>(options_.l2);
    const float inverse_eta = static_cast<float>(1 / options_.learning_rate.At(update.step));
    const float beta = static_cast<float>(options_.beta);
    const float lambda1 = static_cast<float>(options_.lambda1);
    const float lambda2 = static_cast<float>(options_.lambda2);
    for (std::size_t i = 0; i < update.value.size(); ++i) {
      const float g = gradient[i] * scale + l2 * w[i];
      const float root_before = std::sqrt(n[i]);
      n[i] += g * g;
      const float root = std::sqrt(n[i]);
      z[i] += g - (root - root_before) * inverse_eta * w[i];
      const float outside = z[i] - std::copysign(lambda1, z[i]);
      const float share = -outside / ((beta + root) * inverse_eta + lambda2);
      w[i] = std::fabs(z[i]) <= lambda1 ? 0.0F : share;
    }
  }
};

}  // namespace

void VisitFields(FieldVisitor& fields, FtrlOptions& options) {
  const Schedule& rate = options.learning_rate;
  fields.Rate("learning_rate", options.learning_rate);
  fields.Check("learning_rate",
               rate.rate > 0 && (rate.kind != Schedule::Kind::kCosine || rate.final_rate > 0),
               "may not reach 0: the rule divides by it");
  fields.Number("beta", options.beta);
  fields.Number("lambda1", options.lambda1);
  fields.Number("lambda2", options.lambda2);
  fields.Number("initial_accumulator", options.initial_accumulator);
  VisitCommonFields(fields, options);
}

}  // namespace optim

std::unique_ptr<Optimizer> Ftrl(FtrlOptions options) {
  return std::make_unique<optim::FtrlRule>(options);
}

}  // namespace cohort
