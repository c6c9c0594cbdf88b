// What every gRPC server and client of cohort shares: statuses, channels, binding a port, and the
// plain reason why an address cannot be reached.
//
// Private to the modules that speak gRPC; they get it from the target cohort_grpc_util.

#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

namespace cohort {

grpc::Status ToGrpc(const Status& status);
Status FromGrpc(const grpc::Status& status);

// The wall-clock time at which a deadline of the monotonic clock falls: what ClientContext takes.
std::chrono::system_clock::time_point GrpcDeadline(Deadline deadline);
// As GrpcDeadline(DeadlineAfter(timeout)).
std::chrono::system_clock::time_point GrpcTimeout(Duration timeout);

struct ChannelOptions {
  int max_message_bytes = 4 << 20;
};

// A channel with a connection of its own to `address` ("host:port", "[::1]:port"): no proxy
// whatever the environment says, no hidden retries, keepalive 10 s with 5 s for the answer, quick
// reconnect. Does not connect before its first use.
std::shared_ptr<grpc::Channel> NewChannel(const std::string& address,
                                          const ChannelOptions& options = {});

// Adds to `builder` what a server needs for NewChannel's clients (keepalive pings allowed, message
// sizes, no SO_REUSEPORT), binds `address` (port 0: any) without TLS, and starts. `port` gets the
// bound port. A busy port is AlreadyExists and names the process that holds it, where /proc tells;
// a host name without address is NotFound; an address of another machine InvalidArgument.
Result<std::unique_ptr<grpc::Server>> StartServer(grpc::ServerBuilder& builder,
                                                  const std::string& address, int* port,
                                                  const ChannelOptions& options = {});

// "host:port" or "[v6]:port" taken apart. InvalidArgument if it is neither.
struct HostPort {
  std::string host;
  int port = 0;
};
Result<HostPort> ParseHostPort(const std::string& address);

// Where a server listens that others find at `address`, port 0 included. Every interface of the
// host's family ("0.0.0.0:port", "[::]:port"), since its host may be the name of a proxy in front
// of this machine; but a loopback address as it is, and 127.0.0.1 for localhost: who comes to it is
// on this machine. What is no address is returned as it is, for StartServer to refuse.
std::string ListenAddress(const std::string& address);

inline constexpr std::string_view kAcceptsConnections = "accepts connections";

// Tries a TCP connection to every IP of `address`: "accepts connections", "connection refused",
// "no answer within 500 ms", "host name not known (Name or service not known)", ... Blocks for
// about `timeout` beside the resolver.
std::string ProbeAddress(const std::string& address, std::chrono::milliseconds timeout);

}  // namespace cohort
