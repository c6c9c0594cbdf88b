#include <cmath>

#include "rule.h"

namespace cohort {
namespace optim {
namespace {

// The bias corrections are the same for every element: eta / (1 - b1^t) and 1 / sqrt(1 - b2^t) are
// taken out of the loop.
template <typename Options>
AdamUpdate AdamAt(const Options& options, double eta, double decay, std::int64_t t) {
  const auto power = static_cast<double>(t);
  return {.beta1 = static_cast<float>(options.beta1),
          .beta2 = static_cast<float>(options.beta2),
          .fresh1 = static_cast<float>(1 - options.beta1),
          .fresh2 = static_cast<float>(1 - options.beta2),
          .rate = static_cast<float>(eta / (1 - std::pow(options.beta1, power))),
          .root = static_cast<float>(1 / std::sqrt(1 - std::pow(options.beta2, power))),
          .epsilon = static_cast<float>(options.epsilon),
          .l2 = static_cast<float>(options.l2),
          .decay = static_cast<float>(decay)};
}

class AdamRule final : public Rule<AdamOptions> {
 public:
  explicit AdamRule(AdamOptions options) : Rule("adam", options, {"m", "v"}) {}

  UpdateRule RuleAt(std::int64_t step, std::int64_t bias_step) const override {
    return AdamAt(options_, options_.learning_rate.At(step), 0, bias_step > 0 ? bias_step : step);
  }
};

class AdamWRule final : public Rule<AdamWOptions> {
 public:
  explicit AdamWRule(AdamWOptions options) : Rule("adamw", options, {"m", "v"}) {}

  UpdateRule RuleAt(std::int64_t step, std::int64_t bias_step) const override {
    const double eta = options_.learning_rate.At(step);
    return AdamAt(options_, eta, eta * options_.weight_decay, bias_step > 0 ? bias_step : step);
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
