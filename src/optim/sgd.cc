#include "rule.h"

namespace cohort {
namespace optim {
namespace {

class SgdRule final : public Rule<SgdOptions> {
 public:
  explicit SgdRule(SgdOptions options)
      : Rule("sgd", options,
             options.momentum > 0 ? std::vector<std::string_view>{"momentum"}
                                  : std::vector<std::string_view>{}) {}

  UpdateRule RuleAt(std::int64_t step, std::int64_t /*bias_step*/) const override {
    const float eta = learning_rate(step);
    const auto mu = static_cast<float>(options_.momentum);
    if (num_slots() == 0) {
      return SgdUpdate{.eta = eta, .l2 = l2()};
    }
    if (options_.nesterov) {
      return MomentumUpdate<true>{.eta = eta, .mu = mu, .l2 = l2()};
    }
    return MomentumUpdate<false>{.eta = eta, .mu = mu, .l2 = l2()};
  }
};

}  // namespace

void VisitFields(FieldVisitor& fields, SgdOptions& options) {
  fields.Rate("learning_rate", options.learning_rate);
  fields.Number("momentum", options.momentum, kFraction);
  fields.Flag("nesterov", options.nesterov);
  fields.Check("nesterov", !options.nesterov || options.momentum > 0, "needs a momentum above 0");
  VisitCommonFields(fields, options);
}

}  // namespace optim

std::unique_ptr<Optimizer> Sgd(SgdOptions options) {
  return std::make_unique<optim::SgdRule>(options);
}

}  // namespace cohort
