#include "core/commands/child_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include <fmt/format.h>

namespace cohort {
namespace {

void Close(int& fd) {
  if (const int open = std::exchange(fd, -1); open >= 0) {
    ::close(open);
  }
}

struct Pipe {
  int read = -1;
  int write = -1;

  Pipe() = default;
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  ~Pipe() {
    Close(read);
    Close(write);
  }
  Status Open() {
    std::array<int, 2> ends = {};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
      return ErrnoStatus(errno, "pipe");
    }
    read = ends[0];
    write = ends[1];
    return OkStatus();
  }
};

std::vector<char*> Pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  result.reserve(texts.size() + 1);
  for (std::string& text : texts) {
    result.push_back(text.data());
  }
  result.push_back(nullptr);
  return result;
}

// In the child, between fork and exec: async-signal-safe calls only. Returns only if it failed.
void Become(char* const* argv, char* const* environment, int out, int err, pid_t parent) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) {
    ::_exit(1);  // the parent died before the tie was made
  }
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);  // NOLINT(concurrency-mt-unsafe): one thread here
  ::signal(SIGPIPE, SIG_DFL);
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ::dup2(null, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  ::execvpe(argv[0], argv, environment);
}

}  // namespace

std::string SignalName(int signal) {
  const char* name = ::sigabbrev_np(signal);
  return name != nullptr ? fmt::format("SIG{}", name) : fmt::format("signal {}", signal);
}

std::string ProcessEnd::ToString() const {
  return signal != 0 ? fmt::format("killed by signal {} ({}), exit code {}", signal,
                                   SignalName(signal), code)
                     : fmt::format("exit code {}", code);
}

Result<ChildProcess> ChildProcess::Start(std::vector<std::string> argv,
                                         std::vector<std::string> environment) {
  Require(!argv.empty(), "a process needs a program");
  Pipe out;
  Pipe err;
  Pipe report;  // closed by a successful exec, else carries errno
  COHORT_RETURN_IF_ERROR(out.Open());
  COHORT_RETURN_IF_ERROR(err.Open());
  COHORT_RETURN_IF_ERROR(report.Open());
  const std::vector<char*> argv_pointers = Pointers(argv);
  const std::vector<char*> environment_pointers = Pointers(environment);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    return ErrnoStatus(errno, "cannot start " + argv[0] + ": fork");
  }
  if (pid == 0) {
    Become(argv_pointers.data(), environment_pointers.data(), out.write, err.write, parent);
    const int error = errno;
    [[maybe_unused]] const ssize_t written = ::write(report.write, &error, sizeof error);
    ::_exit(1);
  }
  Close(report.write);
  int error = 0;
  ssize_t got = 0;
  do {
    got = ::read(report.read, &error, sizeof error);
  } while (got < 0 && errno == EINTR);
  if (error != 0) {
    ::waitpid(pid, nullptr, 0);
    return ErrnoStatus(error, "cannot execute " + argv[0]);
  }
  ChildProcess child;
  child.pid_ = pid;
  child.stdout_ = std::exchange(out.read, -1);
  child.stderr_ = std::exchange(err.read, -1);
  ::fcntl(child.stdout_, F_SETFL, O_NONBLOCK);
  ::fcntl(child.stderr_, F_SETFL, O_NONBLOCK);
  return child;
}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(stdout_, other.stdout_);
  std::swap(stderr_, other.stderr_);
  std::swap(end_, other.end_);
  return *this;
}

ChildProcess::~ChildProcess() {
  CloseStdout();
  CloseStderr();
  if (pid_ > 0) {
    Signal(SIGKILL);
    if (!end_) {
      ::waitpid(pid_, nullptr, 0);
    }
  }
}

void ChildProcess::CloseStdout() { Close(stdout_); }
void ChildProcess::CloseStderr() { Close(stderr_); }

void ChildProcess::Signal(int signal) const {
  if (pid_ > 0) {
    ::kill(-pid_, signal);
  }
}

const std::optional<ProcessEnd>& ChildProcess::Poll() {
  int status = 0;
  if (running() && ::waitpid(pid_, &status, WNOHANG) == pid_) {
    end_ = WIFSIGNALED(status) ? ProcessEnd{128 + WTERMSIG(status), WTERMSIG(status)}
                               : ProcessEnd{WEXITSTATUS(status), 0};
  }
  return end_;
}

}  // namespace cohort
