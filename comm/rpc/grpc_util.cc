#include "grpc_util.h"

#include <grpc/grpc.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>

#include "sockets.h"

namespace cohort {
namespace {

// gRPC ends itself when its last object goes, and then may sit in a poll for 10 s before it notices
// (its backup poller). Held once, it stays until the process ends.
void KeepGrpc() {
  static const bool kept = [] {
    grpc_init();
    return true;
  }();
  (void)kept;
}

}  // namespace

grpc::Status ToGrpc(const Status& status) {
  return status.ok() ? grpc::Status::OK
                     : grpc::Status(static_cast<grpc::StatusCode>(status.code()), status.message());
}

Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) {
    return OkStatus();
  }
  // 16 is gRPC's UNAUTHENTICATED, the one code that cohort has no name for.
  const int code = static_cast<int>(status.error_code());
  return Status(code > 0 && code < 16 ? static_cast<StatusCode>(code) : StatusCode::kUnknown,
                status.error_message());
}

std::chrono::system_clock::time_point GrpcTimeout(Duration timeout) {
  // A year is as good as for ever, and cannot overflow.
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(
             std::min<Duration>(timeout, std::chrono::hours(24 * 365)));
}

std::chrono::system_clock::time_point GrpcDeadline(Deadline deadline) {
  return GrpcTimeout(deadline - std::chrono::steady_clock::now());
}

std::shared_ptr<grpc::Channel> NewChannel(const std::string& address,
                                          const ChannelOptions& options) {
  KeepGrpc();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5'000);  // the time one attempt may take
  arguments.SetMaxReceiveMessageSize(options.max_message_bytes);
  arguments.SetMaxSendMessageSize(options.max_message_bytes);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

Result<std::unique_ptr<grpc::Server>> StartServer(grpc::ServerBuilder& builder,
                                                  const std::string& address, int* port,
                                                  const ChannelOptions& options) {
  KeepGrpc();
  // gRPC says only that it could not bind; a socket of our own says why.
  COHORT_RETURN_IF_ERROR(CheckCanBind(address));
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.SetMaxSendMessageSize(options.max_message_bytes);
  int bound = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &bound);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || bound == 0) {
    COHORT_RETURN_IF_ERROR(CheckCanBind(address));  // taken in between
    return Unavailable("cannot listen on " + address + ": gRPC refused the address");
  }
  *port = bound;
  return server;
}

}  // namespace cohort
