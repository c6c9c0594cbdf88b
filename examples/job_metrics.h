// What a job's process shows to Prometheus.

#pragma once

#include <cohort/cohort.h>
#include <cohort/core/metrics.h>
#include <cohort/obs/metrics_server.h>

#include <memory>

#include "job.h"

// What this program counts, wherever that is shown.
cohort::Metrics& ProcessMetrics();

// On the port of --metrics-port that is this process's; nullptr without it. The chief writes where
// all of the job are, into the log folder.
cohort::Result<std::unique_ptr<cohort::MetricsServer>> ServeMetrics(
    const JobFlags& f, const cohort::ClusterConfig& config, const cohort::Log& log);
