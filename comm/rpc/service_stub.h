// ServiceStub: where a client's calls to the coordination service go. The connection may be
// replaced by a new one: one that a firewall or NAT has forgotten passes nothing more, and nobody
// says so.
//
// Thread rules: all methods from any thread.

#pragma once

#include <cohort/coordination.grpc.pb.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "grpc_util.h"

namespace cohort {

class ServiceStub {
 public:
  explicit ServiceStub(std::string address) : address_(std::move(address)) { Renew(); }

  // Owners: this, until Renew, and the calls under way.
  std::shared_ptr<wire::Coordination::Stub> get() const {
    const std::lock_guard lock(mutex_);
    return stub_;
  }
  // Later calls go by another connection; what is under way stays where it is.
  void Renew() {
    std::shared_ptr<wire::Coordination::Stub> stub =
        wire::Coordination::NewStub(NewChannel(address_));
    const std::lock_guard lock(mutex_);
    stub_.swap(stub);
  }

 private:
  const std::string address_;
  mutable std::mutex mutex_;
  std::shared_ptr<wire::Coordination::Stub> stub_;
};

}  // namespace cohort
