#include <cohort/optim/row_optimizer.h>

#include <cohort/optim/gradients.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "rule.h"

namespace cohort {
namespace optim {
namespace {

class SpanRule final : public RowOptimizer {
 public:
  explicit SpanRule(std::unique_ptr<Optimizer> rule)
      : rule_(std::move(rule)), num_slots_(rule_->num_slots()) {
    Require(num_slots_ <= static_cast<int>(kMaxUpdateSlots), "a rule has at most 2 slots");
  }

  std::string_view name() const override { return rule_->name(); }
  int num_slots() const override { return num_slots_; }
  std::string_view slot_name(int slot) const override { return rule_->slot_name(slot); }
  std::size_t slot_floats(std::size_t dim) const override {
    return static_cast<std::size_t>(num_slots()) * dim;
  }
  void Initialize(std::span<float> slots) const override {
    const int count = num_slots();
    for (int s = 0; s < count; ++s) {
      const std::size_t dim = slots.size() / static_cast<std::size_t>(count);
      std::ranges::fill(slots.subspan(static_cast<std::size_t>(s) * dim, dim),
                        rule_->slot_initial_value(s));
    }
  }
  void Apply(const RowUpdate& update) const override {
    const std::size_t dim = update.weights.size();
    const std::size_t count = dim == 0 ? 0 : update.slots.size() / dim;
    Require(count <= kMaxUpdateSlots && count * dim == update.slots.size(), "whole slots");
    std::array<std::span<float>, kMaxUpdateSlots> slots;
    for (std::size_t s = 0; s < count; ++s) {
      slots[s] = update.slots.subspan(s * dim, dim);
    }
    UpdateAtRate(*rule_,
                 {.value = update.weights,
                  .gradient = update.gradient,
                  .slots = std::span(slots).first(count),
                  .gradient_scale = update.gradient_scale,
                  .step = update.step,
                  .bias_step = update.bias_step},
                 update.rate_factor);
  }
  std::optional<UpdateRule> RuleAt(std::int64_t step, std::int64_t bias_step) const override {
    UpdateRule rule = rule_->RuleAt(step, bias_step);
    const bool corrects_bias = std::holds_alternative<AdamUpdate>(rule);
    return bias_step == 0 && corrects_bias ? std::nullopt : std::optional(std::move(rule));
  }
  std::string config() const override { return rule_->config(); }

 private:
  const std::unique_ptr<Optimizer> rule_;
  const int num_slots_;
};

class RowWiseAdagradRule final : public RowOptimizer {
 public:
  explicit RowWiseAdagradRule(RowWiseAdagradOptions options) : options_(options) {}

  std::string_view name() const override { return kRowWiseAdagrad; }
  int num_slots() const override { return 1; }
  std::string_view slot_name(int /*slot*/) const override { return "accumulator"; }
  std::size_t slot_floats(std::size_t /*dim*/) const override { return 1; }
  void Initialize(std::span<float> slots) const override {
    std::ranges::fill(slots, static_cast<float>(options_.initial_accumulator));
  }
  void Apply(const RowUpdate& update) const override {
    Require(update.step >= 1, "updates count from 1");
    Require(update.gradient.size() == update.weights.size() && update.slots.size() == 1,
            "as many gradients as values, and one accumulator");
    const std::size_t dim = update.weights.size();
    float* __restrict w = update.weights.data();
    const float* __restrict gradient = update.gradient.data();
    const float scale = update.gradient_scale;
    const float l2 = static_cast<float>(options_.l2);
    // In pieces, so that nothing is allocated; the order of the sum depends on dim only.
    constexpr std::size_t kPiece = 256;
    std::array<float, kPiece> g;
    double squares = 0;
    for (std::size_t begin = 0; begin < dim; begin += kPiece) {
      const std::size_t count = std::min(kPiece, dim - begin);
      for (std::size_t i = 0; i < count; ++i) {
        g[i] = gradient[begin + i] * scale + l2 * w[begin + i];
      }
      squares += SquaredNorm(std::span(g).first(count));
    }
    float& a = update.slots[0];
    a += static_cast<float>(squares / static_cast<double>(dim));
    const float eta =
        static_cast<float>(options_.learning_rate.At(update.step)) * update.rate_factor;
    const float root = std::sqrt(a) + static_cast<float>(options_.epsilon);
    for (std::size_t i = 0; i < dim; ++i) {
      w[i] -= eta * (gradient[i] * scale + l2 * w[i]) / root;
    }
  }
  std::string config() const override { return RowWiseAdagradConfig(options_); }

 private:
  RowWiseAdagradOptions options_;
};

using Rate = std::function<float(std::int64_t step)>;

Result<Rate> RateOf(std::string_view name, const std::string& config) {
  if (name == kRowWiseAdagrad) {
    COHORT_ASSIGN_OR_RETURN(const RowWiseAdagradOptions options, ReadRowWiseAdagrad(config));
    return Rate([rate = options.learning_rate](std::int64_t step) {
      return static_cast<float>(rate.At(step));
    });
  }
  COHORT_ASSIGN_OR_RETURN(std::shared_ptr<const Optimizer> rule, MakeOptimizer(config));
  return Rate([rule = std::move(rule)](std::int64_t step) { return rule->learning_rate(step); });
}

}  // namespace

void VisitFields(FieldVisitor& fields, RowWiseAdagradOptions& options) {
  fields.Rate("learning_rate", options.learning_rate);
  fields.Number("initial_accumulator", options.initial_accumulator);
  fields.Number("epsilon", options.epsilon, kPositive);
  fields.Number("l2", options.l2);
}

}  // namespace optim

std::string RowWiseAdagradConfig(RowWiseAdagradOptions options) {
  const auto visit = [&options](optim::FieldVisitor& fields) { VisitFields(fields, options); };
  optim::CheckOptions(kRowWiseAdagrad, visit);
  return optim::WriteConfig(kRowWiseAdagrad, visit);
}

Result<std::unique_ptr<RowOptimizer>> RowOptimizer::Make(const std::string& config) {
  COHORT_ASSIGN_OR_RETURN(const optim::ServerSideConfig split, optim::SplitServerSide(config));
  COHORT_ASSIGN_OR_RETURN(const std::string name, optim::ReadName(config));
  if (split.options != ServerSideOptions()) {
    COHORT_ASSIGN_OR_RETURN(std::unique_ptr<RowOptimizer> rule, Make(split.rule));
    COHORT_ASSIGN_OR_RETURN(auto rate, optim::RateOf(name, split.rule));
    return optim::ServerSideRows(std::move(rule), split.options, std::move(rate));
  }
  if (name == kRowWiseAdagrad) {
    COHORT_ASSIGN_OR_RETURN(const RowWiseAdagradOptions options, optim::ReadRowWiseAdagrad(config));
    return std::make_unique<optim::RowWiseAdagradRule>(options);
  }
  COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Optimizer> rule, MakeOptimizer(config));
  if (rule->global_clip_norm() > 0) {
    return InvalidArgument("optimizer " + name +
                           ": global_clip_norm is not for tables of rows, whose norm nobody knows "
                           "[set it to 0, or clip where the gradient is computed]");
  }
  return std::make_unique<optim::SpanRule>(std::move(rule));
}

}  // namespace cohort
