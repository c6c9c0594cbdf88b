// All of cohort in one include. Each part's own header says what it guarantees.

#pragma once

#include <cohort/cluster/cluster_spec.h>
#include <cohort/comm/communicator.h>
#include <cohort/core/environment.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/data/dataset.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/strategy.h>
#include <cohort/train/console.h>
#include <cohort/train/trainer.h>
