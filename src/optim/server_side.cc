#include <cohort/optim/server_side.h>

#include <cohort/optim/gradients.h>
#include <cohort/optim/table_spec.h>

#include <algorithm>
#include <functional>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "rule.h"

namespace cohort {
namespace optim {
namespace {

// Everything that the rate is a factor of.
struct ScaleRate {
  float factor;
  template <typename Update>
  void operator()(Update& update) const {
    if constexpr (requires { update.eta; }) {
      update.eta *= factor;
    } else if constexpr (requires { update.plain.eta; }) {
      update.plain.eta *= factor;
    } else if constexpr (requires { update.decay; }) {
      update.rate *= factor;
      update.decay *= factor;
    } else {
      static_assert(std::is_same_v<Update, FtrlUpdate>, "a rule whose rate is not known here");
      Require(false, "staleness_scaling is not for ftrl");
    }
  }
};

// Runs `rule`, which updates `value`, and takes off `share` of what the values were before it.
template <typename Fn>
void WithDecay(std::span<float> value, float share, const Fn& rule) {
  if (share == 0) {
    rule();
    return;
  }
  thread_local std::vector<float> taken;  // grows to the longest part
  taken.resize(value.size());
  for (std::size_t i = 0; i < value.size(); ++i) {
    taken[i] = share * value[i];
  }
  rule();
  for (std::size_t i = 0; i < value.size(); ++i) {
    value[i] -= taken[i];
  }
}

// What dense values and rows have in common: `options` but for clip_norm. `decay`: the share that
// is taken off at the whole rate; `rule`: what is left to do, of a gradient, its scale, and the
// factor of the rate.
template <typename Fn>
void Late(const ServerSideOptions& options, float decay, std::span<float> value,
          std::span<const float> gradient, float scale, std::span<const float> pulled,
          std::uint64_t staleness, const Fn& rule) {
  Require(gradient.size() == value.size() && (pulled.empty() || pulled.size() == value.size()),
          "as many gradients, and values that they were computed from, as values");
  const bool compensate = options.delay_compensation > 0 && !pulled.empty();
  const auto most = static_cast<float>(options.clip_value);
  if (compensate || most > 0) {
    thread_local std::vector<float> changed;  // grows to the longest part
    changed.resize(value.size());
    const auto lambda = static_cast<float>(options.delay_compensation);
    for (std::size_t i = 0; i < changed.size(); ++i) {
      const float g = gradient[i] * scale;
      changed[i] = compensate ? g + lambda * g * g * (value[i] - pulled[i]) : g;
    }
    if (most > 0) {
      for (float& g : changed) {
        g = std::clamp(g, -most, most);
      }
    }
    gradient = changed;
    scale = 1;
  }
  const bool scaled = options.staleness_scaling && staleness >= 2;
  const float factor = scaled ? 1.0F / static_cast<float>(staleness) : 1.0F;
  WithDecay(value, decay * factor, [&] { rule(gradient, scale, factor); });
}

class ServerSideRule final : public ServerSideOptimizer {
 public:
  ServerSideRule(std::unique_ptr<Optimizer> rule, ServerSideOptions options)
      : rule_(std::move(rule)), options_(options) {}

  const ServerSideOptions& options() const override { return options_; }
  std::string_view name() const override { return rule_->name(); }
  int num_slots() const override { return rule_->num_slots(); }
  std::string_view slot_name(int slot) const override { return rule_->slot_name(slot); }
  float slot_initial_value(int slot) const override { return rule_->slot_initial_value(slot); }
  float learning_rate(std::int64_t step) const override { return rule_->learning_rate(step); }
  float global_clip_norm() const override { return rule_->global_clip_norm(); }
  std::string config() const override { return ServerSide(rule_->config(), options_); }

  void Apply(const OptimizerUpdate& update) const override { ApplyLate(update, {}, 0); }
  UpdateRule RuleAt(std::int64_t /*step*/, std::int64_t /*bias_step*/) const override {
    Require(false, "options of the server side where there is no server");
    return {};
  }

  void ApplyLate(const OptimizerUpdate& update, std::span<const float> pulled,
                 std::uint64_t staleness) const override {
    Late(options_, DecayAt(update.step), update.value, update.gradient, update.gradient_scale,
         pulled, staleness, [&](std::span<const float> gradient, float scale, float factor) {
           OptimizerUpdate late = update;
           late.gradient = gradient;
           late.gradient_scale = scale;
           UpdateAtRate(*rule_, late, factor);
         });
  }

 private:
  // Of the weights, what an update takes off beside the rule.
  float DecayAt(std::int64_t step) const {
    return options_.weight_decay == 0
               ? 0.0F
               : static_cast<float>(rule_->learning_rate(step) * options_.weight_decay);
  }

  std::unique_ptr<Optimizer> rule_;
  ServerSideOptions options_;
};

class ServerSideRowRule final : public RowOptimizer {
 public:
  ServerSideRowRule(std::unique_ptr<RowOptimizer> rule, ServerSideOptions options,
                    std::function<float(std::int64_t step)> rate)
      : rule_(std::move(rule)), options_(options), rate_(std::move(rate)) {}

  std::string_view name() const override { return rule_->name(); }
  int num_slots() const override { return rule_->num_slots(); }
  std::string_view slot_name(int slot) const override { return rule_->slot_name(slot); }
  std::size_t slot_floats(std::size_t dim) const override { return rule_->slot_floats(dim); }
  void Initialize(std::span<float> slots) const override { rule_->Initialize(slots); }
  void Apply(const RowUpdate& update) const override {
    float of_norm = update.gradient_scale;
    if (options_.clip_norm > 0) {
      const auto scale = static_cast<double>(update.gradient_scale);
      of_norm *= static_cast<float>(
          ClipFactor(SquaredNorm(update.gradient) * scale * scale, options_.clip_norm));
    }
    const float decay = options_.weight_decay == 0
                            ? 0.0F
                            : static_cast<float>(rate_(update.step) * options_.weight_decay);
    Late(options_, decay, update.weights, update.gradient, of_norm, update.pulled, update.staleness,
         [&](std::span<const float> gradient, float scale, float factor) {
           RowUpdate late = update;
           late.gradient = gradient;
           late.gradient_scale = scale;
           late.rate_factor = factor;
           rule_->Apply(late);
         });
  }
  const ServerSideOptions* server_side() const override { return &options_; }
  std::string config() const override { return ServerSide(rule_->config(), options_); }

 private:
  std::unique_ptr<RowOptimizer> rule_;
  ServerSideOptions options_;
  std::function<float(std::int64_t step)> rate_;
};

}  // namespace

void UpdateAtRate(const Optimizer& rule, const OptimizerUpdate& update, float factor) {
  if (factor == 1) {
    rule.Apply(update);
    return;
  }
  UpdateRule scaled = rule.RuleAt(update.step, update.bias_step);
  std::visit(ScaleRate{factor}, scaled);
  UpdatePart part{.value = update.value,
                  .gradient = update.gradient,
                  .slots = {},
                  .gradient_scale = update.gradient_scale};
  std::ranges::copy(update.slots, part.slots.begin());
  UpdateOnHost(scaled, part);
}

void VisitFields(FieldVisitor& fields, ServerSideOptions& options) {
  fields.Number("clip_value", options.clip_value);
  fields.Number("clip_norm", options.clip_norm);
  fields.Number("delay_compensation", options.delay_compensation);
  fields.Flag("staleness_scaling", options.staleness_scaling);
  fields.Number(kDecoupledDecay, options.weight_decay);
}

Status CheckServerSide(std::string_view rule, const ServerSideOptions& options) {
  if (rule == "ftrl" && options.staleness_scaling) {
    return InvalidArgument(
        "optimizer ftrl: staleness_scaling is not for it: its weights are a function of the "
        "present learning rate [another rule, or delay_compensation]");
  }
  if (options.weight_decay > 0 && (rule == "ftrl" || rule == "adamw")) {
    return InvalidArgument(
        "optimizer " + std::string(rule) + ": " + std::string(kDecoupledDecay) +
        (rule == "adamw"
             ? " is not for it, which has a decay of its own [its weight_decay]"
             : " is not for it: its weights are a function of its slots, and a decay would be "
               "forgotten at the next update [its lambda2]"));
  }
  return {};
}

std::unique_ptr<RowOptimizer> ServerSideRows(std::unique_ptr<RowOptimizer> rule,
                                             ServerSideOptions options,
                                             std::function<float(std::int64_t step)> rate) {
  return std::make_unique<ServerSideRowRule>(std::move(rule), options, std::move(rate));
}

}  // namespace optim

std::unique_ptr<Optimizer> ServerSide(std::unique_ptr<Optimizer> rule, ServerSideOptions options) {
  Require(rule != nullptr && ServerSideOptimizer::Of(*rule) == nullptr,
          "an optimizer, without options of the server side so far");
  optim::CheckOptions(rule->name(),
                      [&options](optim::FieldVisitor& fields) { VisitFields(fields, options); });
  const Status applies = optim::CheckServerSide(rule->name(), options);
  Require(applies.ok(), applies.message());
  if (options == ServerSideOptions()) {
    return rule;
  }
  return std::make_unique<optim::ServerSideRule>(std::move(rule), options);
}

Status RefuseServerSide(const Optimizer& optimizer, std::string_view strategy) {
  return ServerSideOptimizer::Of(optimizer) == nullptr
             ? OkStatus()
             : InvalidArgument("optimizer " + std::string(optimizer.name()) +
                               " has options of the server side under " + std::string(strategy) +
                               ", where no server updates parameters [global_clip_norm, or "
                               "parameter_server; a table's own optimizer may clip]");
}

Status RefuseLateRows(const TableSpec& table, std::string_view where) {
  const auto rule = RowOptimizer::Make(table.optimizer);
  const ServerSideOptions* const options =
      rule.ok() ? (*rule)->server_side() : nullptr;  // who checks the table says what is wrong
  if (options == nullptr || !(options->staleness_scaling || options->delay_compensation > 0)) {
    return {};
  }
  return InvalidArgument(
      "table \"" + table.name + "\": optimizer " + std::string((*rule)->name()) +
      (options->staleness_scaling ? ": staleness_scaling" : ": delay_compensation") +
      " is for pushes of single workers, which there are not under " + std::string(where) +
      " [parameter_server with consistency async or ssp; gradients are not "
      "stale here]");
}

const ServerSideOptimizer* ServerSideOptimizer::Of(const Optimizer& optimizer) {
  return dynamic_cast<const ServerSideOptimizer*>(&optimizer);
}

}  // namespace cohort
