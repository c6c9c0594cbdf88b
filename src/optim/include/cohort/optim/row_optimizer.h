// RowOptimizer: an update rule on the rows of a table, one row at a time.
//
// Every rule of optimizers.h is one, by the same code: a row is one flat span, so a table whose
// rows are all updated in every step has the bits of a dense variable. Rows without a gradient are
// left alone: Adam is what others call LazyAdam. RowWiseAdagrad needs to know where a row ends, and
// so is no Optimizer.
//
// Thread rules: const; any thread, on disjoint rows. Nothing blocks or allocates in Apply.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <cohort/core/status.h>
#include <cohort/device/update.h>
#include <cohort/optim/optimizer.h>
#include <cohort/optim/schedule.h>

namespace cohort {

inline constexpr std::string_view kRowWiseAdagrad = "row_wise_adagrad";

// Adagrad with one accumulator for each row of n elements (a single float, slot "accumulator"):
//   a += (g_1^2 + ... + g_n^2) / n;  w -= eta g / (sqrt(a) + epsilon)
// The squares are added up in double, in an order that depends on n only (SquaredNorm). As
// "row-wise Adagrad" in FBGEMM and DLRM.
struct RowWiseAdagradOptions {
  Schedule learning_rate = 0.01;
  double initial_accumulator = 0.1;
  double epsilon = 1e-7;
  double l2 = 0;
};
// {"name":"row_wise_adagrad",...}, for RowOptimizer::Make.
std::string RowWiseAdagradConfig(RowWiseAdagradOptions options = {});

// One row, updated in place.
struct RowUpdate {
  std::span<float> weights;
  std::span<float> slots;  // slot_floats(weights.size()), one slot after the other
  std::span<const float> gradient;
  float gradient_scale = 1.0F;
  std::int64_t step = 1;       // from 1: schedules, and bias correction unless:
  std::int64_t bias_step = 0;  // of Adam's bias correction; 0: step
  // To a rule that has server_side(): the weights that the gradient was computed from, or empty:
  // those there are; and how many updates by others there have been since.
  std::span<const float> pulled{};
  std::uint64_t staleness = 0;
  float rate_factor = 1.0F;  // of the learning rate; not with ftrl, unless it is 1
};

struct ServerSideOptions;

class RowOptimizer {
 public:
  virtual ~RowOptimizer() = default;

  virtual std::string_view name() const = 0;
  virtual int num_slots() const = 0;
  virtual std::string_view slot_name(int slot) const = 0;
  virtual std::size_t slot_floats(std::size_t dim) const = 0;  // of all slots of a row
  // Fills the slots of a new row.
  virtual void Initialize(std::span<float> slots) const = 0;
  virtual void Apply(const RowUpdate& update) const = 0;
  // What Apply does to the elements of a row in a step, where it is that alone: for UpdateOnHost,
  // to many rows. Nothing: it does something else, or more. bias_step 0: each row has its own, on
  // which what Apply does may not depend then.
  virtual std::optional<UpdateRule> RuleAt(std::int64_t /*step*/,
                                           std::int64_t /*bias_step*/) const {
    return std::nullopt;
  }
  virtual std::string config() const = 0;
  // What else is done (server_side.h), for which delay_compensation asks for `pulled`, and that and
  // staleness_scaling for `staleness`. Null: nothing.
  virtual const ServerSideOptions* server_side() const { return nullptr; }

  // From Optimizer::config() or RowWiseAdagradConfig(). InvalidArgument names the field that is
  // unknown or out of range; global_clip_norm is refused: nobody knows the norm over all rows.
  static Result<std::unique_ptr<RowOptimizer>> Make(const std::string& config);
};

}  // namespace cohort
