// Workers of a parameter-server job on devices, for the suites about these.
#pragma once

#include <cohort/strategies/parameter_server.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "conformance/parameter_server_job.h"
#include "testing/far_device.h"
#include "testing/late_stream.h"
#include "testing/run_ranks.h"

namespace cohort::testing {

// Makes a worker's device.
using MakeDevice = std::function<std::shared_ptr<Device>()>;

inline std::shared_ptr<Device> OnTheCpu() { return CpuDevice(); }
inline std::shared_ptr<Device> Far() {
  return MakeFarDevice("far:0", [] { return MakeInlineStream(); });
}
inline std::shared_ptr<Device> FarAndLate() {
  return MakeFarDevice("far:0", LateStreams(4, std::chrono::microseconds(40)));
}

// fn on every worker's strategy, with two servers; worker:0 coordinates.
using OfWorker = std::function<Status(int worker, ParameterServerStrategy&)>;
inline void RunWorkers(int workers, const StrategyOptions& options, const MakeDevice& device,
                       const OfWorker& fn) {
  Job job(workers, 2);
  job.Start();
  ExpectAllOk(RunRanks(workers, [&](int worker) -> Status {
    StrategyOptions mine = options;
    mine.devices = {device()};
    mine.intra_op_threads = 1;
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            job.Make({TaskType::kWorker, worker}, std::move(mine)));
    COHORT_RETURN_IF_ERROR(fn(worker, *strategy));
    return strategy->Shutdown();
  }));
  job.Stop();
}
inline void RunWorkers(int workers, const std::string& consistency, const MakeDevice& device,
                       const OfWorker& fn) {
  StrategyOptions options;
  options.consistency = OrThrow(Consistency::Parse(consistency));
  RunWorkers(workers, options, device, fn);
}

}  // namespace cohort::testing
