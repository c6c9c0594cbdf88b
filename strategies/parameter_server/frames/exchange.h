// Exchange: frames to several servers at once, repeated where a connection fails, on another one
// where no answer has come for half of the time that a server may be silent.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include "parameter_server/frames/wire.h"

namespace cohort::ps {

struct FrameCall {
  int server = 0;
  grpc::ByteBuffer request;
};

// Thread rules: Run from one thread at a time; Abort from any.
class Exchange {
 public:
  using OnReply = std::function<Status(int server, ReceivedFrame& reply)>;

  Exchange(std::vector<std::shared_ptr<RenewableChannel>> channels, std::vector<std::string> names,
           std::chrono::milliseconds peer_timeout, std::string service = "Servers",
           std::uint64_t epoch = 0);

  // Sends every call to /cohort.ps.`service`/`method`; `on_reply` runs on this thread, in
  // the order of arrival. Ends when all are answered or one has failed for good; no call is under
  // way any more then.
  Status Run(const std::string& method, std::vector<FrameCall> calls, const OnReply& on_reply);
  void Abort(const Status& why);
  Status aborted() const;

 private:
  struct Flight;
  void Start(const std::string& method, Flight& flight);
  Result<bool> Land(Flight& flight, const OnReply& on_reply);
  void EndFlights();
  Status RunAll(const std::string& method, std::vector<std::unique_ptr<Flight>>& flights,
                const OnReply& on_reply);

  const std::vector<std::string> names_;  // "ps:1 (10.0.0.3:2222)"
  const std::chrono::milliseconds peer_timeout_;
  const std::string service_;
  const std::uint64_t epoch_;  // that replies are of
  const std::vector<std::shared_ptr<RenewableChannel>> channels_;

  mutable std::mutex mutex_;
  std::condition_variable landed_condition_;
  std::deque<Flight*> landed_;
  std::vector<Flight*> flying_;
  Status aborted_;
};

}  // namespace cohort::ps
