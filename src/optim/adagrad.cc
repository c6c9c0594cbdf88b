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
  UpdateRule RuleAt(std::int64_t step, std::int64_t /*bias_step*/) const override {
    return AdagradUpdate{
        .eta = learning_rate(step), .epsilon = static_cast<float>(options_.epsilon), .l2 = l2()};
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
