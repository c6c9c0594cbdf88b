// ServiceStub: where a client's calls to the coordination service go.

#pragma once

#include <cohort/coordination.grpc.pb.h>

#include "renewable_stub.h"

namespace cohort {

using ServiceStub = RenewableStub<wire::Coordination>;

}  // namespace cohort
