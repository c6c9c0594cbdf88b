// What the larger examples have in common: the flags of a distributed job, and its life from
// joining to leaving.

#pragma once

#include <cohort/cohort.h>
#include <cohort/nn/precision.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

struct JobFlags {
  std::string strategy;
  std::int64_t global_batch = 64;
  std::uint64_t seed = 1;
  std::string devices;
  int threads = 0;
  std::string precision = "float32";
  std::string loss_scale = "global_mean";
  bool synchronous_ps = false;
  std::string consistency = "auto";
  std::string communication = "auto";
  std::string algorithm = "auto";
  std::string bind_host;
  std::string cross_device_ops = "auto";
  int rails = 1;
  int virtual_shards = 0;
  bool deterministic = false;
  int batches_per_step = 1;
  std::string compression = "none";
  int powersgd_rank = 4;
  std::int64_t bytes_per_pack = 0;
  std::string mpi_implementation = "cohort";
  std::string checkpoint_dir;
  std::int64_t save_every_steps = 0;
  bool no_resume = false;
  bool data_allow_changed = false;
  std::string log_dir;
  std::string metrics_json;
  double join_timeout = 300;
  double rejoin_grace = 60;
  double worker_patience = 10;
  int min_workers = 1;
  std::string server_loss = "rollback";
  int lookahead = 1;
  bool compress_values = false;
  std::string partitioner = "pieces";
  std::string start = "all";
  double communication_timeout = 120;
  std::string flight_folder;
  std::string step_trace;
  std::string traced_steps = "10-19";
  int metrics_port = 0;
  std::string metrics_host = "127.0.0.1";
  bool quiet = false;
};

// Values that `f` has are the defaults.
void DeclareJobFlags(CLI::App& app, JobFlags& f);

// What a step function's tapes compute in.
cohort::nn::Precision PrecisionOf(const JobFlags& f);

// All but epochs and metric names. From here on SIGTERM ends training with its state saved; before,
// it just ends the process.
cohort::TrainerOptions MakeTrainerOptions(const JobFlags& f);

// Joins the job, trains, and leaves: also after an error, so that the others end with its reason.
// `model`: what is trained, by which --consistency auto chooses. SIGUSR1 writes the flight record.
cohort::Status RunJob(const JobFlags& f, const cohort::ParameterSet& model,
                      const std::function<cohort::Status(cohort::Strategy&)>& train);
// Of a model without sparse tables, which `train` makes.
cohort::Status RunJob(const JobFlags& f,
                      const std::function<cohort::Status(cohort::Strategy&)>& train);

// What every job says of itself in its metrics.
cohort::Result<nlohmann::json> JobMetrics(cohort::Strategy& strategy,
                                          const cohort::ParameterSet& parameters,
                                          const cohort::History& history);
// To f.metrics_json, if there is one, and says what else was written.
cohort::Status WriteMetrics(const JobFlags& f, const nlohmann::json& metrics);

// main: parses the flags, runs, prints an error. The process's exit code.
int RunProgram(const std::string& name, CLI::App& app, int argc, char** argv,
               const std::function<cohort::Status()>& run);
