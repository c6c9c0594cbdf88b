#include "parameter_server/rows/row_service.h"

#include <exception>
#include <utility>
#include <vector>

#include <grpcpp/grpcpp.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "guarded.h"
#include "parameter_server/frames/wire.h"
#include "parameter_server/rows/row_frames.h"

namespace cohort::ps {
namespace {

using Context = grpc::CallbackServerContext;
using Base = Rows::WithRawCallbackMethod_Dump<Rows::WithRawCallbackMethod_Restore<
    Rows::WithRawCallbackMethod_Move<Rows::WithRawCallbackMethod_Loads<Rows::Service>>>>;

// In the reply's block for each, which is there.
void SayMoved(const RowStore::Moved& moved, FrameHeader* reply) {
  for (const RowStore::Elsewhere& one : moved) {
    RowBlock& block = MutableBlockAt(*reply, one.block);
    block.add_moved(one.bucket);
    block.add_moved(one.server);
  }
}

class RowService final : public Base {
 public:
  RowService(std::function<RowStore*(bool copy)> store, EpochGate& gate, std::string name, Log log)
      : store_(std::move(store)), gate_(gate), name_(std::move(name)), log_(std::move(log)) {}

  grpc::ServerUnaryReactor* Dump(Context* context, const grpc::ByteBuffer* request,
                                 grpc::ByteBuffer* reply) override {
    return Answer(context, *request, reply, [](Request& r) {
      std::vector<BucketPiece> pieces;
      std::string bytes;
      RowStore::Moved moved;
      Error error = r.store->Dump(r.received.frame.header, &pieces, &bytes, &moved);
      r.header.mutable_rows();
      SayMoved(moved, &r.header);
      for (BucketPiece& piece : pieces) {
        *r.header.add_buckets() = std::move(piece);
      }
      r.payload.push_back(OwnedSlice(std::move(bytes)));
      return error;
    });
  }

  grpc::ServerUnaryReactor* Restore(Context* context, const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* reply) override {
    return Answer(context, *request, reply, [](Request& r) {
      return r.store->Restore(r.received.frame.header, r.received.frame.payload);
    });
  }

  grpc::ServerUnaryReactor* Move(Context* context, const grpc::ByteBuffer* request,
                                 grpc::ByteBuffer* reply) override {
    return Answer(context, *request, reply,
                  [](Request& r) { return r.store->Move(r.received.frame.header); });
  }

  grpc::ServerUnaryReactor* Loads(Context* context, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* reply) override {
    return Answer(context, *request, reply,
                  [](Request& r) { return r.store->Loads(r.received.frame.header, &r.header); });
  }

 private:
  struct Request {
    RowStore* store = nullptr;
    ReceivedFrame received;
    FrameHeader header;  // of the answer, as its payload
    std::vector<grpc::Slice> payload;
  };

  template <typename Fn>
  grpc::ServerUnaryReactor* Answer(Context* context, const grpc::ByteBuffer& bytes,
                                   grpc::ByteBuffer* reply, const Fn& fn) {
    return Guarded(context, name_, [&] {
      Request request;
      Error error;
      EpochGate::Pass pass;
      if (Result<ReceivedFrame> received = Receive(bytes); !received.ok()) {
        error.set_kind(Error::BAD_FRAME);
        error.set_message(received.status().message());
      } else if (pass = gate_.Enter(received->frame.header.epoch());
                 pass.error().kind() != Error::NONE) {
        error = pass.error();
      } else if (request.store = store_(received->frame.header.copy()); request.store == nullptr) {
        error.set_kind(Error::NOT_READY);
        error.set_message(name_ + " has not been told to keep a copy");
      } else {
        request.received = std::move(received).value();
        request.header.set_epoch(request.received.frame.header.epoch());
        error = Do(fn, request);
      }
      if (error.kind() != Error::NONE) {
        log_.Warning(name_ + " rejected a frame of " + context->peer() + ": " + error.message());
        *request.header.mutable_error() = std::move(error);
        request.payload.clear();
      }
      *reply = Assemble(request.header, std::move(request.payload));
      grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
      reactor->Finish(grpc::Status::OK);
      return reactor;
    });
  }

  // An error in the answer, which is not asked for again as a call that has failed would be.
  template <typename Fn>
  static Error Do(const Fn& fn, Request& request) {
    try {
      return fn(request);
    } catch (const std::exception& error) {
      const Status status = StatusOf(error, "a frame of buckets");
      return MakeError(
          status.code() == StatusCode::kResourceExhausted ? Error::TABLE_FULL : Error::BAD_FRAME,
          status.message());
    }
  }

  const std::function<RowStore*(bool copy)> store_;
  EpochGate& gate_;
  const std::string name_;
  const Log log_;
};

}  // namespace

Error AnswerRows(RowStore& store, bool ready, FrameMethod method, const FrameHeader& header,
                 const PayloadReader& payload, Deadline deadline, FrameReply* reply) {
  Error error;
  if (!ready) {
    error.set_kind(Error::NOT_READY);
    error.set_message("not all variables have been initialised");
    return error;
  }
  RowStore::Moved moved;
  if (method == FrameMethod::kPushRows) {
    error = store.Push(header, payload, &moved);
  } else {
    RowStore::Reading reading;
    error = store.Plan(header, payload, &reading);
    if (error.kind() == Error::NONE) {
      error = store.Admit(header, deadline);
    }
    if (error.kind() == Error::NONE) {
      error = store.Pull(reading, reply->payload->Append(reading.floats()), &moved);
    }
    if (error.kind() != Error::NONE || !moved.empty()) {
      reply->payload->Clear();
    }
  }
  for (std::size_t i = 0; error.kind() == Error::NONE && i < NumBlocks(header); ++i) {
    AddBlock(reply->header).set_tag(BlockAt(header, i).tag());
  }
  SayMoved(moved, &reply->header);
  return error;
}

std::unique_ptr<grpc::Service> MakeRowService(std::function<RowStore*(bool copy)> store,
                                              EpochGate& gate, std::string name, const Log& log) {
  return std::make_unique<RowService>(std::move(store), gate, std::move(name), log);
}

}  // namespace cohort::ps
