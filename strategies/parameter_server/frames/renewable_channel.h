// RenewableChannel: a channel of gRPC that may be replaced by a new one, where no answers come by
// it (renewable_stub.h).

#pragma once

#include <memory>
#include <utility>

#include <grpcpp/grpcpp.h>

#include "renewable_stub.h"

namespace cohort::ps {

struct PlainChannel {
  using Stub = grpc::Channel;
  static std::shared_ptr<Stub> NewStub(std::shared_ptr<grpc::Channel> channel) { return channel; }
};

class RenewableChannel final : public RenewableStub<PlainChannel> {
 public:
  using RenewableStub::RenewableStub;
};

}  // namespace cohort::ps
