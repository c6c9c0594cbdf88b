// Jobs whose processes are scraped while they train.

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>
#include <thread>

#include <cohort/core/file_system.h>

#include "testing/http_get.h"
#include "testing/temp_dir.h"
#include "training.h"

namespace cohort::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// Of a sample, with its labels; -1 where there is none.
double Value(const std::string& page, const std::string& sample) {
  const std::size_t at = page.find("\n" + sample + " ");
  return at == page.npos ? -1 : std::stod(page.substr(at + sample.size() + 2));
}

// Of all series of a family.
double SumOver(const std::string& page, const std::string& family) {
  double sum = 0;
  for (std::size_t at = 0; (at = page.find("\n" + family + "{", at)) != page.npos; ++at) {
    sum += std::stod(page.substr(page.find("} ", at) + 2));
  }
  return sum;
}

// A socket that has a port of its own, until it is destroyed.
class TakenPort {
 public:
  explicit TakenPort(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    taken_ = ::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
             ::listen(fd_, 1) == 0;
  }
  ~TakenPort() { ::close(fd_); }
  TakenPort(const TakenPort&) = delete;
  TakenPort& operator=(const TakenPort&) = delete;
  bool taken() const { return taken_; }

 private:
  const int fd_;
  bool taken_ = false;
};

// The first of so many ports in a row that are free now.
int FreePorts(int count) {
  for (;;) {
    const std::vector<int> ports = UnusedPorts(count);
    if (ports.back() == ports.front() + count - 1 && std::ranges::is_sorted(ports)) {
      return ports.front();
    }
  }
}

struct Scraped {
  std::vector<std::string> pages;        // the last of each process
  std::vector<std::set<double>> values;  // of the sample that was looked at
  std::vector<bool> ready;               // was /readyz ever OK
  std::vector<bool> healthy;             // likewise
};

// Scrapes `count` processes until the cluster's only process ends.
Scraped ScrapeUntilEnd(ProcessCluster& cluster, int base, std::size_t count,
                       const std::string& sample) {
  Scraped scraped = {std::vector<std::string>(count), std::vector<std::set<double>>(count),
                     std::vector<bool>(count), std::vector<bool>(count)};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(3);
  while (!cluster.Wait("job", std::chrono::milliseconds(10)).has_value() &&
         std::chrono::steady_clock::now() < deadline) {
    for (std::size_t i = 0; i < count; ++i) {
      const int port = base + static_cast<int>(i);
      std::string page = HttpGet(port, "/metrics");
      if (!page.empty()) {
        EXPECT_THAT(page, StartsWith("HTTP/1.1 200 OK\r\n"));
        EXPECT_EQ(page.back(), '\n');
        scraped.values[i].insert(Value(page, sample));
        scraped.pages[i] = std::move(page);
      }
      scraped.ready[i] = scraped.ready[i] || HttpGet(port, "/readyz").starts_with("HTTP/1.1 200 ");
      scraped.healthy[i] =
          scraped.healthy[i] || HttpGet(port, "/healthz").starts_with("HTTP/1.1 200 ");
    }
  }
  return scraped;
}

TEST(MetricsOfAJob, AreScrapedFromEachWorkerAndAgreeWithItsResults) {
  const TempDir dir;
  ProcessCluster digits;
  digits.Start("digits", {Bin("cohort"), "data", "digits", "--out", dir / "digits", "--train",
                          "3000", "--test", "20000"});
  ASSERT_EQ(digits.Wait("digits", std::chrono::minutes(1)), 0) << digits.Logs();
  const int base = FreePorts(2);
  ProcessCluster cluster;
  // The evaluation behind the last step leaves time to look at what training came to.
  cluster.Start("job", {Bin("cohort"),
                        "launch",
                        "-n",
                        "2",
                        "--metrics-port",
                        std::to_string(base),
                        "--",
                        Bin("image_classifier"),
                        "--data",
                        dir / "digits",
                        "--global-batch",
                        "50",
                        "--epochs",
                        "2",
                        "--checkpoint-dir",
                        dir / "checkpoints",
                        "--log-dir",
                        dir / "logs",
                        "--metrics-json",
                        dir / "metrics.json"});
  const Scraped scraped = ScrapeUntilEnd(cluster, base, 2, "cohort_steps_total");
  ASSERT_EQ(cluster.Wait("job", std::chrono::seconds(1)), 0) << cluster.Logs();

  const json results = json::parse(OrThrow(ReadFile(FileSystem::Local(), dir / "metrics.json")));
  ASSERT_EQ(results.at("steps"), 120);
  double examples = 0;
  for (std::size_t i = 0; i < 2; ++i) {
    const std::string& page = scraped.pages[i];
    EXPECT_EQ(Value(page, "cohort_steps_total"), results.at("steps")) << page;
    EXPECT_GT(scraped.values[i].size(), 3U) << "it was seen to grow";
    EXPECT_EQ(Value(page, "cohort_step_duration_seconds_count"), results.at("steps"));
    EXPECT_EQ(Value(page, "cohort_step_duration_seconds_bucket{le=\"+Inf\"}"), results.at("steps"));
    EXPECT_EQ(Value(page, "cohort_progress_ratio"), 1);
    EXPECT_GT(Value(page, "cohort_loss"), 0);
    // The gradients of every step, in one bucket or more: over 10 KB.
    EXPECT_THAT(page, HasSubstr("\n# TYPE cohort_allreduce_bytes_total counter\n"));
    EXPECT_GE(SumOver(page, "cohort_allreduce_operations_total"), results.at("steps"));
    EXPECT_GE(SumOver(page, "cohort_allreduce_bytes_total"),
              10'000 * results.at("steps").get<double>());
    EXPECT_GT(Value(page, "process_resident_memory_bytes"), 1 << 20);
    EXPECT_GT(Value(page, "process_cpu_seconds_total"), 0);
    EXPECT_GT(Value(page, "process_open_fds"), 3);
    EXPECT_THAT(page, HasSubstr("\ncohort_build_info{version="));
    EXPECT_TRUE(scraped.ready[i]);
    EXPECT_TRUE(scraped.healthy[i]);
    examples += Value(page, "cohort_examples_total");
  }
  EXPECT_EQ(examples, results.at("examples").get<double>());
  const std::string& chief = scraped.pages[0];
  EXPECT_NEAR(Value(chief, "cohort_input_wait_seconds_total"),
              results.at("input_seconds").get<double>(), 1e-6);
  EXPECT_NEAR(Value(chief, "cohort_exposed_communication_seconds_total"),
              results.at("exposed_communication_seconds").get<double>(), 1e-6);
  EXPECT_EQ(Value(chief, "cohort_checkpoint_duration_seconds_count"), 2);
  EXPECT_GT(Value(chief, "cohort_checkpoint_last_success_timestamp_seconds"), 1.7e9);
  EXPECT_THAT(scraped.pages[1], Not(HasSubstr("cohort_checkpoint")));

  const json targets =
      json::parse(OrThrow(ReadFile(FileSystem::Local(), dir / "logs/metrics_targets.json")));
  const auto target = [&](int i) {
    return json{{"targets", {"127.0.0.1:" + std::to_string(base + i)}},
                {"labels", {{"task", "worker:" + std::to_string(i)}}}};
  };
  EXPECT_EQ(targets, json::array({target(0), target(1)}));
}

TEST(MetricsOfAJob, AreCountedByParameterServers) {
  const TempDir dir;
  const int base = FreePorts(3);
  ProcessCluster cluster;
  cluster.Start("job",
                {Bin("cohort"), "launch", "-n", "1", "--ps", "1", "--chief", "--metrics-port",
                 std::to_string(base), "--", Bin("image_classifier"), "--model", "mlp", "--epochs",
                 "5", "--log-dir", dir / "logs", "--metrics-json", dir / "metrics.json"});
  const std::string pushes = "cohort_ps_requests_total{method=\"Push\",code=\"OK\"}";
  const Scraped scraped = ScrapeUntilEnd(cluster, base, 3, pushes);
  ASSERT_EQ(cluster.Wait("job", std::chrono::seconds(1)), 0) << cluster.Logs();
  const json results = json::parse(OrThrow(ReadFile(FileSystem::Local(), dir / "metrics.json")));
  const std::string& server = scraped.pages[2];
  EXPECT_GT(scraped.values[2].size(), 3U) << "it was seen to grow";
  EXPECT_GT(Value(server, pushes), 0);
  EXPECT_LE(Value(server, pushes), results.at("parameter_server").at("pushes"));
  // Two counters, one behind the other where the page is of a moment in training.
  EXPECT_NEAR(Value(server, "cohort_ps_staleness_steps_count"), Value(server, pushes), 1);
  EXPECT_EQ(Value(scraped.pages[0], pushes), -1) << "no server";
  EXPECT_EQ(Value(scraped.pages[0], "cohort_steps_total"), 0) << "does not train";
  EXPECT_GT(Value(scraped.pages[1], "cohort_steps_total"), 0);
  for (const bool ready : scraped.ready) {
    EXPECT_TRUE(ready);
  }
  const json targets =
      json::parse(OrThrow(ReadFile(FileSystem::Local(), dir / "logs/metrics_targets.json")));
  EXPECT_EQ(targets.at(2).at("labels").at("task"), "ps:0");
  EXPECT_EQ(targets.at(2).at("targets").at(0), "127.0.0.1:" + std::to_string(base + 2));
}

TEST(MetricsOfAJob, APortThatIsTakenEndsItWithTheFlagsName) {
  const int port = UnusedPorts(1)[0];
  const TakenPort taken(port);
  ASSERT_TRUE(taken.taken());
  ProcessCluster cluster;
  cluster.Start("flag", {Bin("image_classifier"), "--metrics-port", std::to_string(port)});
  cluster.Start("variable", {Bin("image_classifier")},
                {{"COHORT_METRICS_PORT", std::to_string(port)}});
  cluster.Start("none", {Bin("image_classifier"), "--metrics-port", "65536"});
  cluster.Start("launch", {Bin("cohort"), "launch", "-n", "3", "--metrics-port", "65534", "--",
                           Bin("image_classifier")});
  for (const std::string name : {"flag", "variable", "none", "launch"}) {
    EXPECT_EQ(cluster.Wait(name, std::chrono::minutes(1)), 2) << cluster.Logs();
    EXPECT_THAT(cluster.Stderr(name), HasSubstr("--metrics-port"));
  }
  EXPECT_THAT(cluster.Stderr("flag"), HasSubstr("port " + std::to_string(port)));
}

}  // namespace
}  // namespace cohort::testing
