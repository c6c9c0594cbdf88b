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
  UpdateRule RuleAt(std::int64_t step, std::int64_t /*bias_step*/) const override {
    return FtrlUpdate{.inverse_eta = static_cast<float>(1 / options_.learning_rate.At(step)),
                      .beta = static_cast<float>(options_.beta),
                      .lambda1 = static_cast<float>(options_.lambda1),
                      .lambda2 = static_cast<float>(options_.lambda2),
                      .l2 = l2()};
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
