#include "testing/process_cluster.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <stdexcept>
#include <thread>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cohort/cluster/resolve.h>

#include "port_reservation.h"

namespace cohort::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Ports that this process alone hands out while it lives: its claim is a socket's name.
class PortBlock {
 public:
  static constexpr int kPorts = 64;

  PortBlock() {
    constexpr int kBlocks = 200;  // below the ports that the kernel hands out
    for (int tries = 0; tries < kBlocks; ++tries) {
      const int block = (::getpid() + tries) % kBlocks;
      first_ = 15'000 + block * kPorts;
      sockaddr_un name = {};
      name.sun_family = AF_UNIX;  // abstract: gone with the process
      const std::string text = "cohort test ports " + std::to_string(block);
      text.copy(name.sun_path + 1, sizeof(name.sun_path) - 1);
      claim_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
      if (::bind(claim_, reinterpret_cast<sockaddr*>(&name), size) == 0) {
        return;
      }
      ::close(claim_);
    }
  }
  int Next() { return first_ + next_++ % kPorts; }

 private:
  int claim_ = -1;
  int first_ = 0;
  int next_ = static_cast<int>(std::random_device()() % kPorts);
};

// The kernel has no way to wait for "this process ended or that file grew" at once, so waits look
// again and again.
bool PollUntil(milliseconds timeout, const std::function<bool()>& done) {
  const auto deadline = steady_clock::now() + timeout;
  while (!done()) {
    if (steady_clock::now() >= deadline) {
      return false;
    }
    std::this_thread::sleep_for(milliseconds(2));
  }
  return true;
}

std::vector<std::string> EnvironmentWith(const Variables& extra) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('='));
    if (!extra.contains(name) && !IsLauncherVariable(name)) {
      result.push_back(text);
    }
  }
  for (const auto& [name, value] : extra) {
    result.push_back(name + "=" + value);
  }
  return result;
}

std::vector<char*> Pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  result.reserve(texts.size() + 1);
  for (std::string& text : texts) {
    result.push_back(text.data());
  }
  result.push_back(nullptr);
  return result;
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// In the child, between fork and exec: async-signal-safe calls only. Returns only if it failed.
void Become(char* const* argv, char* const* envp, int out, int err, pid_t parent) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) {
    ::_exit(127);  // the test died before the tie was made
  }
  for (const int signal : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE}) {
    ::signal(signal, SIG_DFL);  // a shell's & lets its children ignore some
  }
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);  // NOLINT(concurrency-mt-unsafe)
  const int null = ::open("/dev/null", O_RDONLY);
  ::dup2(null, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  ::execvpe(argv[0], argv, envp);
}

int OpenLog(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) {
    OrThrow(ErrnoStatus(errno, "open " + path));
  }
  return fd;
}

}  // namespace

ProcessCluster::~ProcessCluster() {
  for (const Process& process : processes_) {
    ::kill(-process.pid, SIGKILL);  // also the children of one that has ended
  }
  for (Process& process : processes_) {
    PollUntil(std::chrono::seconds(10), [&] { return Ended(process); });
  }
  if (::testing::Test::HasFailure()) {
    std::fputs(Logs().c_str(), stderr);
  }
}

void ProcessCluster::Start(const std::string& name, const std::vector<std::string>& argv,
                           const Variables& env) {
  if (argv.empty() || std::any_of(processes_.begin(), processes_.end(),
                                  [&](const Process& other) { return other.name == name; })) {
    throw std::runtime_error("process '" + name + "': no command line, or the name is taken");
  }
  Process process;
  process.name = name;
  const std::string stem = dir_ / std::to_string(processes_.size());
  process.stdout_path = stem + ".stdout";
  process.stderr_path = stem + ".stderr";
  const int out = OpenLog(process.stdout_path);
  const int err = OpenLog(process.stderr_path);

  std::vector<std::string> arguments = argv;
  std::vector<std::string> environment = EnvironmentWith(env);
  const std::vector<char*> argv_pointers = Pointers(arguments);
  const std::vector<char*> env_pointers = Pointers(environment);
  int report[2];  // closed by a successful exec, else carries errno
  if (::pipe2(report, O_CLOEXEC) != 0) {
    OrThrow(ErrnoStatus(errno, "pipe"));
  }
  const pid_t parent = ::getpid();
  process.pid = ::fork();
  if (process.pid == 0) {
    Become(argv_pointers.data(), env_pointers.data(), out, err, parent);
    const int error = errno;
    [[maybe_unused]] const ssize_t written = ::write(report[1], &error, sizeof error);
    ::_exit(127);
  }
  ::close(out);
  ::close(err);
  ::close(report[1]);
  int error = process.pid < 0 ? errno : 0;
  [[maybe_unused]] const ssize_t got = ::read(report[0], &error, sizeof error);
  ::close(report[0]);
  if (error != 0) {
    if (process.pid > 0) {
      ::waitpid(process.pid, nullptr, 0);
    }
    OrThrow(ErrnoStatus(error, "cannot execute " + argv[0]));
  }
  processes_.push_back(std::move(process));
}

std::string ProcessCluster::StartTasks(const std::vector<std::pair<std::string, int>>& jobs,
                                       const std::vector<std::string>& argv, const Variables& env,
                                       const std::vector<std::string>& absent) {
  int total = 0;
  for (const auto& [type, count] : jobs) {
    total += count;
  }
  const std::vector<int> ports = UnusedPorts(total);
  nlohmann::json cluster;
  std::size_t next = 0;
  for (const auto& [type, count] : jobs) {
    for (int index = 0; index < count; ++index) {
      cluster[type].push_back("127.0.0.1:" + std::to_string(ports[next++]));
    }
  }
  for (const auto& [type, count] : jobs) {
    for (int index = 0; index < count; ++index) {
      const std::string name = type + ":" + std::to_string(index);
      if (std::find(absent.begin(), absent.end(), name) != absent.end()) {
        continue;
      }
      Variables variables = env;
      variables["TF_CONFIG"] =
          nlohmann::json{{"cluster", cluster}, {"task", {{"type", type}, {"index", index}}}}.dump();
      Start(name, argv, variables);
    }
  }
  return cluster.dump();
}

const ProcessCluster::Process& ProcessCluster::Find(const std::string& name) const {
  for (const Process& process : processes_) {
    if (process.name == name) {
      return process;
    }
  }
  throw std::runtime_error("no process named '" + name + "' was started");
}

ProcessCluster::Process& ProcessCluster::Find(const std::string& name) {
  return const_cast<Process&>(std::as_const(*this).Find(name));
}

bool ProcessCluster::Ended(Process& process) {
  int status = 0;
  rusage usage = {};
  if (!process.code && ::wait4(process.pid, &status, WNOHANG, &usage) == process.pid) {
    process.peak_kilobytes = usage.ru_maxrss;
    process.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }
  return process.code.has_value();
}

std::int64_t ProcessCluster::PeakKilobytes(const std::string& name) const {
  const Process& process = Find(name);
  if (!process.code) {
    throw std::runtime_error("process '" + name + "' has not ended");
  }
  return process.peak_kilobytes;
}

pid_t ProcessCluster::pid(const std::string& name) const { return Find(name).pid; }

std::vector<std::string> ProcessCluster::names() const {
  std::vector<std::string> result;
  for (const Process& process : processes_) {
    result.push_back(process.name);
  }
  return result;
}

bool ProcessCluster::Signal(const std::string& name, int signal) {
  Process& process = Find(name);
  return !Ended(process) && ::kill(process.pid, signal) == 0;
}

std::optional<int> ProcessCluster::Wait(const std::string& name, milliseconds timeout) {
  Process& process = Find(name);
  PollUntil(timeout, [&] { return Ended(process); });
  return process.code;
}

std::map<std::string, std::optional<int>> ProcessCluster::WaitAll(milliseconds timeout) {
  PollUntil(timeout, [&] { return std::all_of(processes_.begin(), processes_.end(), Ended); });
  std::map<std::string, std::optional<int>> result;
  for (const Process& process : processes_) {
    result[process.name] = process.code;
  }
  return result;
}

bool ProcessCluster::WaitForOutput(const std::string& name, const std::string& text,
                                   milliseconds timeout) {
  Process& process = Find(name);
  const auto seen = [&] {
    return ReadAll(process.stdout_path).find(text) != std::string::npos ||
           ReadAll(process.stderr_path).find(text) != std::string::npos;
  };
  bool found = false;
  PollUntil(timeout, [&] {
    const bool ended = Ended(process);  // first, so that its last words are read
    found = seen();
    return found || ended;
  });
  return found;
}

std::string ProcessCluster::Stdout(const std::string& name) const {
  return ReadAll(Find(name).stdout_path);
}

std::string ProcessCluster::Stderr(const std::string& name) const {
  return ReadAll(Find(name).stderr_path);
}

std::string ProcessCluster::Logs() const {
  std::string result;
  for (const Process& process : processes_) {
    const std::string code =
        process.code ? "exit code " + std::to_string(*process.code) : "running";
    result += "---- " + process.name + " (pid " + std::to_string(process.pid) + ", " + code +
              ") stdout:\n" + ReadAll(process.stdout_path) + "---- " + process.name + " stderr:\n" +
              ReadAll(process.stderr_path);
  }
  return result;
}

bool CanListen(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const bool can = ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
                   ::listen(fd, 1) == 0;
  ::close(fd);
  return can;
}

std::vector<int> UnusedPorts(int count) {
  static PortBlock block;
  std::vector<int> ports;
  for (int tries = 0; tries < PortBlock::kPorts && static_cast<int>(ports.size()) < count;
       ++tries) {
    const int port = block.Next();
    if (CanListen(port)) {
      ports.push_back(port);
    }
  }
  return static_cast<int>(ports.size()) == count ? ports
                                                 : OrThrow(PortReservation::Make(count)).ports();
}

}  // namespace cohort::testing
