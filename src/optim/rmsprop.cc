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

  UpdateRule RuleAt(std::int64_t step, std::int64_t /*bias_step*/) const override {
    const RmsPropUpdate plain{.eta = learning_rate(step),
                              .rho = static_cast<float>(options_.rho),
                              .fresh = static_cast<float>(1 - options_.rho),
                              .epsilon = static_cast<float>(options_.epsilon),
                              .l2 = l2()};
    if (num_slots() == 1) {
      return plain;
    }
    return RmsPropMomentumUpdate{.plain = plain, .mu = static_cast<float>(options_.momentum)};
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
