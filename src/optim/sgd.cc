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

 private:
  void Update(const OptimizerUpdate& update) const override {
    if (num_slots() == 0) {
      Plain(update);
    } else if (options_.nesterov) {
      WithMomentum<true>(update);
    } else {
      WithMomentum<false>(update);
    }
  }

  void Plain(const OptimizerUpdate& update) const {
    float* __restrict w = update.value.data();
    const float* __restrict gradient = update.gradient.data();
    const float scale = update.gradient_scale;
    const float l2 = static_cast<float>(options_.l2);
    const float eta = learning_rate(update.step);
    for (std::size_t i = 0; i < update.value.size(); ++i) {
      w[i] -= eta * (gradient[i] * scale + l2 * w[i]);
    }
  }

  template <bool kNesterov>
  void WithMomentum(const OptimizerUpdate& update) const {
    float* __restrict w = update.value.data();
    float* __restrict v = update.slots[0].data();
    const float* __restrict gradient = update.gradient.data();
    const float scale = update.gradient_scale;
    const float l2 = static_cast<float>(options_.l2);
    const float eta = learning_rate(update.step);
    const float mu = static_cast<float>(options_.momentum);
    for (std::size_t i = 0; i < update.value.size(); ++i) {
      const float push = eta * (gradient[i] * scale + l2 * w[i]);
      v[i] = mu * v[i] - push;
      w[i] += kNesterov ? mu * v[i] - push : v[i];
    }
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
