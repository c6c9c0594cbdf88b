// One task of a job of workers, as a process that a test can kill.
//
//   coordination_task ADDRESS worker:INDEX WORKERS HEARTBEAT_TIMEOUT_MS [may_leave] [grace_ms=N]
//
// worker:0 runs the service at ADDRESS and prints "port N" and "lost TASK: TEXT"; every task joins,
// prints "joined", waits for the job to fail, prints "failure TEXT" and exits with that code. With
// may_leave, all but worker:0 may. grace_ms: how long a broken connection may take to come back.
#include <chrono>
#include <cstdio>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <cohort/rpc/coordination.h>

namespace cohort {
namespace {

void Say(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

int Run(std::string address, const std::string& name, int workers, int timeout_ms,
        const std::vector<std::string>& settings) {
  const TaskId task = OrThrow(TaskId::Parse(name));
  std::map<TaskId, std::string> addresses;
  for (int i = 0; i < workers; ++i) {
    addresses[{TaskType::kWorker, i}] = "127.0.0.1:0";
  }
  const ClusterSpec cluster(addresses);
  CoordinationOptions options;
  options.join_timeout = std::chrono::seconds(60);
  options.heartbeat_interval = std::chrono::milliseconds(200);
  options.heartbeat_timeout = std::chrono::milliseconds(timeout_ms);
  options.log = StderrLog(name);
  for (const std::string& setting : settings) {
    if (setting == "may_leave") {
      options.may_leave = [](const TaskId& id) { return id.index > 0; };
    } else if (setting.starts_with("grace_ms=")) {
      options.reconnect_grace = std::chrono::milliseconds(std::stoi(setting.substr(9)));
    } else {
      return 2;
    }
  }

  std::promise<Status> ended;
  std::unique_ptr<CoordinationServer> server;
  if (task.index == 0) {
    server = OrThrow(CoordinationServer::Start(address, cluster, options));
    address = "127.0.0.1:" + std::to_string(server->port());
    server->OnTaskLost([](const TaskId& id, const Status& why) {
      Say("lost " + id.ToString() + ": " + why.ToString());
    });
    Say("port " + std::to_string(server->port()) + ".");
  }
  auto client = CoordinationClient::Join(address, cluster, task, true, options);
  if (!client.ok()) {
    Say("refused " + client.status().ToString());
    return ExitCode(client.status());
  }
  Say("joined");
  (*client)->OnFailure([&ended](const Status& status) { ended.set_value(status); });
  std::future<Status> failure = ended.get_future();
  if (failure.wait_for(std::chrono::seconds(120)) != std::future_status::ready) {
    return 3;
  }
  const Status status = failure.get();
  Say("failure " + status.ToString());
  return ExitCode(status);
}

}  // namespace
}  // namespace cohort

int main(int argc, char** argv) {
  return argc < 5 ? 2
                  : cohort::Run(argv[1], argv[2], std::stoi(argv[3]), std::stoi(argv[4]),
                                {argv + 5, argv + argc});
}
