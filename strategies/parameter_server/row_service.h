// The gRPC service Rows on top of a RowStore.
//
// Thread rules: gRPC's threads.

#pragma once

#include <functional>
#include <memory>

#include <grpcpp/impl/service_type.h>

#include <cohort/core/log.h>

#include "parameter_server/epoch_gate.h"
#include "parameter_server/row_store.h"

namespace cohort::ps {

// `ready`: have all variables of this server been assigned? Until then pulls and pushes are
// NOT_READY. All must outlive the service.
std::unique_ptr<grpc::Service> MakeRowService(RowStore& store, EpochGate& gate,
                                              std::function<bool()> ready, std::string name,
                                              const Log& log);

}  // namespace cohort::ps
