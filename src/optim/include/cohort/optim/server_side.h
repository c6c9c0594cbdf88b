// ServerSide: what a parameter server does to a gradient, and to weights, beside its update rule.
//
//   strategy->Bind(parameters, ServerSide(Sgd(), {.delay_compensation = 0.04}))
//
// Of a parameter, under `parameter_server`. Before the rule sees the mean gradient g of a push:
//   clip_norm            g is scaled so that the norm of the parameter's is at most this. By the
//                        worker, which has the whole of it
//   delay_compensation   g += lambda g g (w - w_pulled), element by element, with the value that
//                        the server has and the one that the gradient was computed from.
//                        Zheng et al., "Asynchronous Stochastic Gradient Descent with Delay
//                        Compensation", ICML 2017 (DC-ASGD-c). Costs the servers a copy of the
//                        values for each worker; with server_loss kReplica instead pushes that are
//                        4 bytes a float longer
//   clip_value           every element is kept within [-clip_value, clip_value]
//   staleness_scaling    the learning rate is divided by the staleness, where that is 2 or more:
//                        updates by others between the worker's copy and this push. Zhang, Gupta,
//                        Lian, Liu, "Staleness-aware Async-SGD for Distributed Deep Learning",
//                        IJCAI 2016. Not with ftrl, whose weights are a function of the present
//                        rate
// Beside the rule, under `sync` too:
//   weight_decay         an update takes rate weight_decay w off every element as well, with the
//                        rate and the w that the rule sees, outside of its adaptive step.
//                        Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019, as
//                        AdamW. Divided by the staleness with the rate. Each push is an update
//                        under `async` and `ssp`. Not with adamw, which has its own, nor with ftrl,
//                        whose weights are what its slots say
// What needs single pushes (all but clip_value and weight_decay) is for `async` and `ssp` only; the
// other strategies take none of these options.
//
// Of a row of a sparse table, as TableSpec::optimizer or that of Bind has them: clip_norm of the
// row's gradient by the server, then the rest in the order above. clip_norm, clip_value and
// weight_decay under every strategy; a row decays when it is in a push, and not in between.
// delay_compensation and staleness_scaling under `async` and `ssp`; staleness is counted row by
// row, and the rows that a gradient was computed from travel with it, so that servers keep nothing
// for each worker.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <cohort/core/status.h>
#include <cohort/optim/optimizer.h>

namespace cohort {

struct TableSpec;

// 0, false: not done.
struct ServerSideOptions {
  double clip_value = 0;
  double clip_norm = 0;
  double delay_compensation = 0;  // lambda
  bool staleness_scaling = false;
  double weight_decay = 0;  // "decoupled_weight_decay" in configurations

  bool operator==(const ServerSideOptions&) const = default;
};

// `rule` with these; the rule itself where there are none. Throws ContractError for an option out
// of its range; MakeOptimizer returns InvalidArgument instead. The name, the slots and the rest are
// the rule's; the configuration has the options among its fields.
std::unique_ptr<Optimizer> ServerSide(std::unique_ptr<Optimizer> rule, ServerSideOptions options);
// The same of a configuration, also of a rule for rows.
std::string ServerSide(const std::string& config, ServerSideOptions options);

// InvalidArgument for an optimizer with options, under a strategy without servers for parameters.
Status RefuseServerSide(const Optimizer& optimizer, std::string_view strategy);

// InvalidArgument, naming the table, where its optimizer has delay_compensation or
// staleness_scaling, and single workers' gradients are not what rows are updated with: under
// `where`.
Status RefuseLateRows(const TableSpec& table, std::string_view where);

class ServerSideOptimizer : public Optimizer {
 public:
  virtual const ServerSideOptions& options() const = 0;
  // An update of a part of a parameter whose gradient is `staleness` updates old; `pulled`: the
  // values it was computed from, or empty: those there are. All but clip_norm.
  virtual void ApplyLate(const OptimizerUpdate& update, std::span<const float> pulled,
                         std::uint64_t staleness) const = 0;

  // Null: an optimizer without such options.
  static const ServerSideOptimizer* Of(const Optimizer& optimizer);
};

}  // namespace cohort
