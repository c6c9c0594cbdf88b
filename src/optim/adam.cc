#include <cmath>

#include "rule.h"

namespace cohort {
namespace optim {
namespace {

struct AdamFactors {
  double beta1;
  double beta2;
  double epsilon;
  double l2;
  double eta;
  double decay;  // what is taken off each value beside the adaptive step, as a share of it
};

// The bias corrections are the same for every element: eta / (1 - b1^t) and 1 / sqrt(1 - b2^t) are
// taken out of the loop.
void AdamPass(const OptimizerUpdate& update, const AdamFactors& f) {
  float* __restrict w = update.value.data();
  float* __restrict m = update.slots[0].data();
  float* __restrict v = update.slots[1].data();
  const float* __restrict gradient = update.gradient.data();
  const auto t = static_cast<double>(update.bias_step > 0 ? update.bias_step : update.step);
  const float scale = update.gradient_scale;
  const float l2 = static_cast<float>(f.l2);
  const float beta1 = static_cast<float>(f.beta1);
  const float beta2 = static_cast<float>(f.beta2);
  const float fresh1 = static_cast<float>(1 - f.beta1);
  const float fresh2 = static_cast<float>(1 - f.beta2);
  const float rate = static_cast<float>(f.eta / (1 - std::pow(f.beta1, t)));
  const float root = static_cast<float>(1 / std::sqrt(1 - std::pow(f.beta2, t)));
  const float epsilon = static_cast<float>(f.epsilon);
  const float decay = static_cast<float>(f.decay);
  for (std::size_t i = 0; i < update.value.size(); ++i) {
    const float g = gradient[i] * scale + l2 * w[i];
    m[i] = beta1 * m[i] + fresh1 * g;
    v[i] = beta2 * v[i] + fresh2 * g * g;
    w[i] -= rate * m[i] / (std::sqrt(v[i]) * root + epsilon) + decay * w[i];
  }
}

class AdamRule final : public Rule<AdamOptions> {
 public:
  explicit AdamRule(AdamOptions options) : Rule("adam", options, {"m", "v"}) {}

 private:
  void Update(const OptimizerUpdate& update) const override {
    AdamPass(update, {options_.beta1, options_.beta2, options_.epsilon, options_.l2,
                      options_.learning_rate.At(update.step), 0});
  }
};

class AdamWRule final : public Rule<AdamWOptions> {
 public:
  explicit AdamWRule(AdamWOptions options) : Rule("adamw", options, {"m", "v"}) {}

 private:
  void Update(const OptimizerUpdate& update) const override {
    const double eta = options_.learning_rate.At(update.step);
    AdamPass(update, {options_.beta1, options_.beta2, options_.epsilon, options_.l2, eta,
                      eta * options_.weight_decay});
  }
};

template <typename Options>
void VisitAdamFields(FieldVisitor& fields, Options& options) {
  fields.Rate("learning_rate", options.learning_rate);
  fields.Number("beta1", options.beta1, kFraction);
  fields.Number("beta2", options.beta2, kFraction);
  fields.Number("epsilon", options.epsilon, kPositive);
}

}  // namespace

void VisitFields(FieldVisitor& fields, AdamOptions& options) {
  VisitAdamFields(fields, options);
  VisitCommonFields(fields, options);
}

void VisitFields(FieldVisitor& fields, AdamWOptions& options) {
  VisitAdamFields(fields, options);
  fields.Number("weight_decay", options.weight_decay);
  VisitCommonFields(fields, options);
}

}  // namespace optim

std::unique_ptr<Optimizer> Adam(AdamOptions options) {
  return std::make_unique<optim::AdamRule>(options);
}

std::unique_ptr<Optimizer> AdamW(AdamWOptions options) {
  return std::make_unique<optim::AdamWRule>(options);
}

}  // namespace cohort
