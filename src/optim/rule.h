// What every update rule shares: its options as a list of fields, from which the configuration is
// written, read and checked, and the parts of Optimizer that depend on nothing else.

#pragma once

#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_optimizer.h>
#include <cohort/optim/server_side.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace cohort::optim {

struct Range {
  double least = 0;
  double below = 1e30;
  bool above_least = false;  // least itself is out of range
};

// Visits the fields of an options struct, in the order in which they are written.
class FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;
  virtual void Rate(std::string_view name, Schedule& schedule) = 0;
  virtual void Number(std::string_view name, double& number, Range range = {}) = 0;
  virtual void Flag(std::string_view name, bool& flag) = 0;
  // A rule between fields, blamed on `name`; stands after the fields that it reads.
  virtual void Check(std::string_view name, bool holds, std::string_view rule) = 0;
};

inline constexpr Range kFraction{0, 1};  // [0, 1)
inline constexpr Range kPositive{0, 1e30, true};

void VisitFields(FieldVisitor& fields, SgdOptions& options);
void VisitFields(FieldVisitor& fields, AdagradOptions& options);
void VisitFields(FieldVisitor& fields, RmsPropOptions& options);
void VisitFields(FieldVisitor& fields, AdamOptions& options);
void VisitFields(FieldVisitor& fields, AdamWOptions& options);
void VisitFields(FieldVisitor& fields, FtrlOptions& options);
void VisitFields(FieldVisitor& fields, RowWiseAdagradOptions& options);
void VisitFields(FieldVisitor& fields, ServerSideOptions& options);

// ServerSideOptions::weight_decay; adamw has a field of that name.
inline constexpr std::string_view kDecoupledDecay = "decoupled_weight_decay";

// What of a configuration is the server side's, and the rest.
struct ServerSideConfig {
  std::string rule;
  ServerSideOptions options;
};
Result<ServerSideConfig> SplitServerSide(const std::string& config);
// InvalidArgument: options that do not go with the rule.
Status CheckServerSide(std::string_view rule, const ServerSideOptions& options);
// An update at `factor` times the rate; not of ftrl, unless that is 1.
void UpdateAtRate(const Optimizer& rule, const OptimizerUpdate& update, float factor);
// The same options of a rule for rows, whose rate in a step is `rate`.
std::unique_ptr<RowOptimizer> ServerSideRows(std::unique_ptr<RowOptimizer> rule,
                                             ServerSideOptions options,
                                             std::function<float(std::int64_t step)> rate);

// From a configuration whose name is row_wise_adagrad; InvalidArgument as MakeOptimizer's.
Result<RowWiseAdagradOptions> ReadRowWiseAdagrad(const std::string& config);
// The field "name"; InvalidArgument if the text is no JSON object that has one.
Result<std::string> ReadName(const std::string& config);

// The fields that all have; the rate comes first, the others last.
template <typename Options>
void VisitCommonFields(FieldVisitor& fields, Options& options) {
  fields.Number("l2", options.l2);
  fields.Number("global_clip_norm", options.global_clip_norm);
}

// One-line JSON of the fields.
std::string WriteConfig(std::string_view name,
                        const std::function<void(FieldVisitor&)>& visit_fields);
// ContractError naming the field that is out of range.
void CheckOptions(std::string_view name, const std::function<void(FieldVisitor&)>& visit_fields);

// The slots' names are those of the checkpoint.
template <typename Options>
class Rule : public Optimizer {
 public:
  Rule(std::string_view name, Options options, std::vector<std::string_view> slots)
      : options_(std::move(options)), name_(name), slots_(std::move(slots)) {
    CheckOptions(name_, [this](FieldVisitor& fields) { VisitFields(fields, options_); });
  }

  std::string_view name() const final { return name_; }
  int num_slots() const final { return static_cast<int>(slots_.size()); }
  std::string_view slot_name(int slot) const final {
    return slots_.at(static_cast<std::size_t>(slot));
  }
  float learning_rate(std::int64_t step) const final {
    return static_cast<float>(options_.learning_rate.At(step));
  }
  float global_clip_norm() const final { return static_cast<float>(options_.global_clip_norm); }
  std::string config() const final {
    Options copy = options_;
    return WriteConfig(name_, [&copy](FieldVisitor& fields) { VisitFields(fields, copy); });
  }
  void Apply(const OptimizerUpdate& update) const final {
    Require(update.step >= 1, "updates count from 1");
    Require(update.gradient.size() == update.value.size(), "as many gradients as values");
    Require(update.slots.size() == slots_.size(), "one span for each slot");
    for (const std::span<float>& slot : update.slots) {
      Require(slot.size() == update.value.size(), "slots as long as the values");
    }
    UpdatePart part{.value = update.value,
                    .gradient = update.gradient,
                    .slots = {},
                    .gradient_scale = update.gradient_scale};
    std::ranges::copy(update.slots, part.slots.begin());
    UpdateOnHost(RuleAt(update.step, update.bias_step), part);
  }

 protected:
  float l2() const { return static_cast<float>(options_.l2); }

  Options options_;

 private:
  std::string_view name_;
  std::vector<std::string_view> slots_;
};

}  // namespace cohort::optim
