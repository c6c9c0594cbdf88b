#include <arpa/inet.h>
#include <cohort/obs/metrics_server.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace cohort {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

class Client {
 public:
  explicit Client(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const timeval patience = {20, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  ~Client() { ::close(fd_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool Send(std::string_view text) {
    return ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL) == std::ssize(text);
  }
  // All that comes until the server closes.
  std::string Receive() {
    std::string all;
    char buffer[4096];
    for (ssize_t got = 0; (got = ::recv(fd_, buffer, sizeof buffer, 0)) > 0;) {
      all.append(buffer, static_cast<std::size_t>(got));
    }
    return all;
  }

 private:
  const int fd_;
};

std::string Ask(int port, std::string_view request) {
  Client client(port);
  EXPECT_TRUE(client.Send(request));
  return client.Receive();
}

std::string Get(int port, const std::string& path) {
  return Ask(port, "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
}

class MetricsServerTest : public ::testing::Test {
 protected:
  void Start(MetricsServerOptions options = {}) {
    metrics_.AddCounter("cohort_steps_total", "Steps.").Add(7);
    server_ = OrThrow(MetricsServer::Start(metrics_, std::move(options)));
  }
  int port() const { return server_->port(); }

  Metrics metrics_;
  std::unique_ptr<MetricsServer> server_;
};

TEST_F(MetricsServerTest, ShowsThePage) {
  Start();
  EXPECT_GT(port(), 0);
  EXPECT_EQ(server_->url(), "http://127.0.0.1:" + std::to_string(port()) + "/metrics");
  const std::string page = metrics_.ToText();
  EXPECT_EQ(Get(port(), "/metrics"),
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
            "Content-Length: " +
                std::to_string(page.size()) + "\r\nConnection: close\r\n\r\n" + page);
  EXPECT_THAT(Get(port(), "/metrics?name=x"), EndsWith("\r\n\r\n" + page));
  EXPECT_THAT(Ask(port(), "GET /metrics HTTP/1.0\n\n"), EndsWith("\r\n\r\n" + page));
}

TEST_F(MetricsServerTest, HeadIsAnAnswerWithoutItsBody) {
  Start();
  const std::string answer = Ask(port(), "HEAD /metrics HTTP/1.1\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("\r\nContent-Length: " + std::to_string(metrics_.ToText().size()) +
                                "\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\n"));
  EXPECT_THAT(Ask(port(), "HEAD /x HTTP/1.1\r\n\r\n"),
              AllOf(StartsWith("HTTP/1.1 404 "), EndsWith("\r\n\r\n")));
}

TEST_F(MetricsServerTest, ReadyWhenTheProgramSaysSo) {
  Start();
  EXPECT_THAT(Get(port(), "/healthz"), StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(Get(port(), "/readyz"), StartsWith("HTTP/1.1 503 "));
  metrics_.SetReady();
  EXPECT_THAT(Get(port(), "/readyz"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(MetricsServerTest, WhatIsWrongIsSaid) {
  Start();
  EXPECT_THAT(Get(port(), "/"), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(Get(port(), "/metrics/"), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(Ask(port(), "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"),
              AllOf(StartsWith("HTTP/1.1 405 "), HasSubstr("\r\nAllow: GET, HEAD\r\n")));
  for (const char* const request :
       {"\r\n\r\n", "GET\r\n\r\n", "GET /metrics\r\n\r\n", "GET /metrics HTTP/2\r\n\r\n",
        "get /metrics HTTP/1.1\r\n\r\n", "GET metrics HTTP/1.1\r\n\r\n",
        "GET /a /b HTTP/1.1\r\n\r\n", "\x16\x03\x01 \x02 \x01\r\n\r\n"}) {
    EXPECT_THAT(Ask(port(), request), StartsWith("HTTP/1.1 400 ")) << request;
  }
}

TEST_F(MetricsServerTest, ALongRequestIsRefusedAndItsAnswerArrives) {
  Start();
  Client client(port());
  (void)client.Send("GET /metrics HTTP/1.1\r\nX: " + std::string(4 << 20, 'x'));
  EXPECT_THAT(client.Receive(), StartsWith("HTTP/1.1 431 "));
  EXPECT_THAT(Ask(port(), "GET /metrics HTTP/1.1\r\nX: " + std::string(8192, 'x') + "\r\n\r\n"),
              StartsWith("HTTP/1.1 431 "));
  EXPECT_THAT(Get(port(), "/metrics"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(MetricsServerTest, ARequestMayComeInPieces) {
  Start();
  Client client(port());
  for (const char c : std::string_view("GET /metrics HTTP/1.1\r\n\r\n")) {
    ASSERT_TRUE(client.Send({&c, 1}));
  }
  EXPECT_THAT(client.Receive(), EndsWith(metrics_.ToText()));
}

TEST_F(MetricsServerTest, ASlowClientIsCutOffAndNobodyWaitsForIt) {
  Start({.timeout = milliseconds(300)});
  const auto begin = steady_clock::now();
  Client silent(port());
  Client slow(port());
  ASSERT_TRUE(slow.Send("GET /met"));
  EXPECT_THAT(Get(port(), "/metrics"), StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(slow.Receive(), IsEmpty());
  EXPECT_THAT(silent.Receive(), IsEmpty());
  EXPECT_GE(steady_clock::now() - begin, milliseconds(290));
  EXPECT_LT(steady_clock::now() - begin, milliseconds(10'000));
}

TEST_F(MetricsServerTest, AClientThatDoesNotReadIsCutOff) {
  for (int i = 0; i < 200; ++i) {
    metrics_.AddGauge("g", std::string(20, 'h'),
                      {{"a", std::string(100'000, 'x')}, {"b", std::to_string(i)}});
  }
  Start({.timeout = milliseconds(300)});
  Client deaf(port());
  ASSERT_TRUE(deaf.Send("GET /metrics HTTP/1.1\r\n\r\n"));
  EXPECT_THAT(Get(port(), "/healthz"), StartsWith("HTTP/1.1 200 "));
  std::this_thread::sleep_for(milliseconds(400));  // past its deadline
  EXPECT_LT(deaf.Receive().size(), metrics_.ToText().size());
  EXPECT_THAT(Get(port(), "/healthz"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(MetricsServerTest, ManyConnectionsKeepNobodyOut) {
  Start({.max_connections = 4, .timeout = milliseconds(60'000)});
  std::vector<std::unique_ptr<Client>> idle;
  for (int i = 0; i < 50; ++i) {
    idle.push_back(std::make_unique<Client>(port()));
  }
  EXPECT_THAT(Get(port(), "/metrics"), StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(idle.front()->Receive(), IsEmpty());  // the oldest are gone
}

TEST_F(MetricsServerTest, ManyAtOnceAllGetTheirs) {
  Start();
  std::atomic<int> good = 0;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 50; ++i) {
          good += Get(port(), "/metrics").ends_with("cohort_steps_total 7\n") ? 1 : 0;
        }
      });
    }
  }
  EXPECT_EQ(good, 200);
}

TEST_F(MetricsServerTest, APortThatIsTakenIsAnErrorThatNamesTheFlag) {
  Start();
  const Status status = MetricsServer::Start(metrics_, {.port = port()}).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("port " + std::to_string(port())));
  EXPECT_THAT(status.message(), HasSubstr("--metrics-port"));
  const int port_before = port();
  server_.reset();  // with connections that linger: the port can be taken anew
  EXPECT_TRUE(MetricsServer::Start(metrics_, {.port = port_before}).ok());
}

TEST_F(MetricsServerTest, WrongAddressesAreErrors) {
  EXPECT_EQ(MetricsServer::Start(metrics_, {.port = 65536}).status().code(),
            StatusCode::kInvalidArgument);
  const Status status = MetricsServer::Start(metrics_, {.host = "300.1.1.1"}).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("--metrics-host"));
}

TEST_F(MetricsServerTest, EndsAtOnceWithConnectionsOpen) {
  Start({.timeout = milliseconds(60'000)});
  Client silent(port());
  EXPECT_THAT(Get(port(), "/metrics"), Not(IsEmpty()));
  const auto begin = steady_clock::now();
  server_.reset();
  EXPECT_LT(steady_clock::now() - begin, milliseconds(10'000));
  EXPECT_THAT(silent.Receive(), IsEmpty());
}

}  // namespace
}  // namespace cohort
