// What `cohort bench embedding` measures, a file each.

#pragma once

#include <cohort/core/status.h>

#include "workload.h"

namespace cohort::embedding {

Status RunLocal(const Options& options);   // a table of this process, beside a flat array
Status RunRemote(const Options& options);  // through a client, beside a table of this process
Status RunTables(const Options& options);  // many tables in a call, beside a call for each
Status RunRounds(const Options& options);  // parts of rounds, beside pushes by themselves

}  // namespace cohort::embedding
