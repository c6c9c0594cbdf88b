// What a server answers about its rows: frames (frame_listener.h), and the gRPC service Rows for
// whole buckets.
//
// Thread rules: those of the connections, and gRPC's.

#pragma once

#include <functional>
#include <memory>
#include <string>

#include <grpcpp/impl/service_type.h>

#include <cohort/core/clock.h>
#include <cohort/core/log.h>

#include "parameter_server/frames/frame_listener.h"
#include "parameter_server/rows/row_store.h"
#include "parameter_server/variables/epoch_gate.h"

namespace cohort::ps {

// A frame of rows; on an error the reply is empty. Until the server is `ready` (all of its
// variables have been assigned) the error is NOT_READY. A pull that is to have a round that is not
// complete waits for it, until `deadline`: NOT_YET.
Error AnswerRows(RowStore& store, bool ready, FrameMethod method, const FrameHeader& header,
                 const PayloadReader& payload, Deadline deadline, FrameReply* reply);

// `store`: of a frame with that FrameHeader::copy; null where there is none. All must outlive the
// service.
std::unique_ptr<grpc::Service> MakeRowService(std::function<RowStore*(bool copy)> store,
                                              EpochGate& gate, std::string name, const Log& log);

}  // namespace cohort::ps
