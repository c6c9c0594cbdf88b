#include "sockets.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "grpc_util.h"

namespace cohort {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

// A port of 127.0.0.1 that this process holds, listening or not.
class HeldPort {
 public:
  explicit HeldPort(bool listen) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(::bind(fd_, generic, size), 0);
    if (listen) {
      EXPECT_EQ(::listen(fd_, 4), 0);
    }
    EXPECT_EQ(::getsockname(fd_, generic, &size), 0);
    port_ = ntohs(address.sin_port);
  }
  ~HeldPort() { ::close(fd_); }
  HeldPort(const HeldPort&) = delete;
  HeldPort& operator=(const HeldPort&) = delete;
  int port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  int fd_;
  int port_ = 0;
};

TEST(ParseHostPort, TakesNamesAndBothFamilies) {
  EXPECT_EQ(ParseHostPort("host:2222")->host, "host");
  EXPECT_EQ(ParseHostPort("host:2222")->port, 2222);
  EXPECT_EQ(ParseHostPort("[::1]:0")->host, "::1");
  for (const char* bad :
       {"", "host", "host:", ":1", "host:x", "host:70000", "host:1x", "::1:5", "[]:1", "host:-1"}) {
    EXPECT_EQ(ParseHostPort(bad).status().code(), StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ListenAddress, StaysOnTheLoopbackWhereTheAddressIs) {
  EXPECT_EQ(ListenAddress("127.0.0.1:2222"), "127.0.0.1:2222");
  EXPECT_EQ(ListenAddress("127.0.0.2:0"), "127.0.0.2:0");
  EXPECT_EQ(ListenAddress("localhost:2222"), "127.0.0.1:2222");
  EXPECT_EQ(ListenAddress("[::1]:2222"), "[::1]:2222");
}

TEST(ListenAddress, IsEveryInterfaceElsewhere) {
  EXPECT_EQ(ListenAddress("10.0.0.3:2222"), "0.0.0.0:2222");
  EXPECT_EQ(ListenAddress("0.0.0.0:2222"), "0.0.0.0:2222");
  EXPECT_EQ(ListenAddress("worker-0:0"), "0.0.0.0:0");
  EXPECT_EQ(ListenAddress("127.example.com:1"), "0.0.0.0:1");  // a name
  EXPECT_EQ(ListenAddress("localhost.example.com:1"), "0.0.0.0:1");
  EXPECT_EQ(ListenAddress("[2001:db8::1]:2222"), "[::]:2222");
}

TEST(ListenAddress, WhatIsNoAddressIsRefusedByWhoListens) {
  EXPECT_EQ(CheckCanBind(ListenAddress("127.0.0.1")).code(), StatusCode::kInvalidArgument);
}

TEST(ProbeAddress, TellsWhy) {
  const std::chrono::milliseconds timeout(500);
  const HeldPort listening(true);
  const HeldPort silent(false);
  EXPECT_EQ(ProbeAddress(listening.address(), timeout), kAcceptsConnections);
  EXPECT_EQ(ProbeAddress(silent.address(), timeout), "connection refused");
  EXPECT_THAT(ProbeAddress("no-such-host.invalid:1", timeout), HasSubstr("host name not known"));
  EXPECT_EQ(ProbeAddress("nonsense", timeout), "no valid address");
}

TEST(CheckCanBind, ABusyPortNamesItsHolder) {
  const HeldPort busy(true);
  const Status status = CheckCanBind(busy.address());
  EXPECT_EQ(status.code(), StatusCode::kAlreadyExists);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr(busy.address()), HasSubstr("pid " + std::to_string(::getpid()))));
}

TEST(CheckCanBind, AForeignAddressOrNameIsTold) {
  EXPECT_TRUE(CheckCanBind("127.0.0.1:0").ok());
  // TEST-NET-1: no machine has it.
  EXPECT_EQ(CheckCanBind("192.0.2.1:0").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(CheckCanBind("no-such-host.invalid:0").code(), StatusCode::kNotFound);
  EXPECT_EQ(CheckCanBind("127.0.0.1").code(), StatusCode::kInvalidArgument);
}

TEST(GrpcStatus, CodesCrossUnchanged) {
  for (int code = 1; code < 16; ++code) {
    const Status status(static_cast<StatusCode>(code), "text");
    EXPECT_EQ(static_cast<int>(ToGrpc(status).error_code()), code);
    EXPECT_EQ(FromGrpc(ToGrpc(status)), status);
  }
  EXPECT_TRUE(ToGrpc(OkStatus()).ok());
  EXPECT_EQ(FromGrpc(grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "who?")).code(),
            StatusCode::kUnknown);
}

}  // namespace
}  // namespace cohort
