// MetricsServer: shows a registry on an HTTP port, as Prometheus scrapes it.
//
//   /metrics   the registry's page
//   /healthz   200 while the process lives
//   /readyz    200 once metrics.ready(), 503 before
//
// GET and HEAD; a connection is closed after its answer. Other paths are 404, other methods 405,
// what is no HTTP is 400, a long request 431. One thread, that of the server, which owns and joins
// it: nothing that a client does, or does not do, is waited for by anyone else. There are so many
// connections at most, each of so many bytes and so long; one more ends the oldest.
//
// No encryption, and no password: whoever reaches the port can read the page.

#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include <cohort/core/metrics.h>
#include <cohort/core/status.h>

namespace cohort {

struct MetricsServerOptions {
  std::string host = "127.0.0.1";  // "0.0.0.0", or "::": reached by other hosts, too
  int port = 0;                    // 0: a free one
  int max_connections = 32;
  std::size_t max_request_bytes = 8192;
  std::chrono::milliseconds timeout{5'000};  // of a connection, from its begin to its end
};

class MetricsServer {
 public:
  // `metrics` must outlive the server. FailedPrecondition where the port is taken.
  static Result<std::unique_ptr<MetricsServer>> Start(const Metrics& metrics,
                                                      MetricsServerOptions options = {});

  virtual ~MetricsServer() = default;  // closes the connections
  virtual int port() const = 0;
  virtual std::string url() const = 0;  // "http://127.0.0.1:9100/metrics"
};

}  // namespace cohort
