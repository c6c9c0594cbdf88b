#include <cohort/workloads/clicks.h>

#include <cohort/optim/optimizers.h>

namespace cohort::workloads {

nn::DlrmOptions DlrmOfClicks(const ClickOptions& options) {
  return {.width = options.embedding,
          .table = {.optimizer = Adagrad({.learning_rate = options.row_learning_rate})->config(),
                    .initializer = {RowInitializer::Kind::kNormal, 0.05}},
          .seed = options.seed};
}

BinaryStep ClickStep(const nn::Dlrm& model, nn::Precision precision) {
  return {[&model](nn::Tape& tape, const data::Batch& batch) {
            return model.Logits(tape, batch["integers"], batch["categories"]);
          },
          "label", precision};
}

}  // namespace cohort::workloads
