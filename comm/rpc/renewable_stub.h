// RenewableStub: where a client's calls to a gRPC service go. The connection may be replaced by a
// new one: one that a firewall or NAT has forgotten passes nothing more, and nobody says so before
// keepalive does, which takes longer than a short timeout of the calls.
//
// Thread rules: all methods from any thread.

#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "grpc_util.h"

namespace cohort {

template <typename Service>
class RenewableStub {
 public:
  using Stub = typename Service::Stub;

  explicit RenewableStub(std::string address, ChannelOptions options = {})
      : address_(std::move(address)), options_(options), stub_(New()) {}

  // Owners: this, until Renew, and the calls under way.
  std::shared_ptr<Stub> get() const {
    const std::lock_guard lock(mutex_);
    return stub_;
  }
  // Later calls go by another connection; what is under way stays where it is.
  void Renew() {
    std::shared_ptr<Stub> stub = New();
    const std::lock_guard lock(mutex_);
    stub_.swap(stub);
  }
  // The same, unless somebody else has replaced that one already.
  void Renew(const std::shared_ptr<Stub>& silent) {
    if (get() == silent) {
      Renew();
    }
  }

 private:
  std::shared_ptr<Stub> New() const { return Service::NewStub(NewChannel(address_, options_)); }

  const std::string address_;
  const ChannelOptions options_;
  mutable std::mutex mutex_;
  std::shared_ptr<Stub> stub_;
};

}  // namespace cohort
