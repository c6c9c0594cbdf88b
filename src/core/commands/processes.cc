#include "core/commands/processes.h"

#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>

namespace cohort {
namespace {

std::vector<std::string> EnvironmentWith(const std::vector<std::string>& variables) {
  std::vector<std::string> environment;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text = *variable;
    const auto starts = [&](const char* prefix) { return text.rfind(prefix, 0) == 0; };
    if (!starts("OMPI_") && !starts("PMI") && !starts("GLIBC_TUNABLES=")) {
      environment.push_back(text);
    }
  }
  environment.emplace_back("GLIBC_TUNABLES=glibc.malloc.hugetlb=1");
  environment.insert(environment.end(), variables.begin(), variables.end());
  return environment;
}

// What the user must mend stays that.
Status StatusOf(const ProcessEnd& end, const std::string& text) {
  return end.code == 2 ? FailedPrecondition(text) : Unavailable(text);
}

// What a process has written goes on to `to`; false at its end.
bool Copy(int fd, std::FILE* to, bool& some) {
  std::array<char, 4096> text;
  for (;;) {
    const ssize_t n = ::read(fd, text.data(), text.size());
    if (n <= 0) {
      std::fflush(to);
      return n < 0 && (errno == EAGAIN || errno == EINTR);
    }
    some = true;
    std::fwrite(text.data(), 1, static_cast<std::size_t>(n), to);
  }
}

}  // namespace

std::string ThisProgram() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).string();
}

void PinToCore(int rank, int ranks) {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || ranks > CPU_COUNT(&allowed)) {
    return;
  }
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed) && seen++ == rank) {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      ::sched_setaffinity(0, sizeof(one), &one);
    }
  }
}

double Median(std::vector<double> values) {
  if (values.empty()) {
    return 0;
  }
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

Status Processes::Start(std::string name, const std::vector<std::string>& argv,
                        const std::vector<std::string>& variables) {
  COHORT_ASSIGN_OR_RETURN(ChildProcess child,
                          ChildProcess::Start(argv, EnvironmentWith(variables)));
  processes_.push_back({std::move(name), std::move(child)});
  return {};
}

bool Processes::PassOn() {
  bool some = false;
  for (Process& process : processes_) {
    if (process.child.stdout_fd() >= 0 && !Copy(process.child.stdout_fd(), out_, some)) {
      process.child.CloseStdout();
    }
    if (process.child.stderr_fd() >= 0 && !Copy(process.child.stderr_fd(), stderr, some)) {
      process.child.CloseStderr();
    }
  }
  return some;
}

void Processes::PassOnTheRest() {
  while (PassOn()) {
  }
}

bool Processes::Pump(const std::vector<int>& fds) {
  std::vector<pollfd> events;
  for (const int fd : fds) {
    events.push_back({fd, POLLIN, 0});
  }
  for (const Process& process : processes_) {
    events.push_back({process.child.stdout_fd(), POLLIN, 0});  // once closed -1: poll skips it
    events.push_back({process.child.stderr_fd(), POLLIN, 0});
  }
  ::poll(events.data(), events.size(), 200);
  PassOn();
  return std::any_of(events.begin(), events.begin() + static_cast<std::ptrdiff_t>(fds.size()),
                     [](const pollfd& event) { return event.revents != 0; });
}

Status Processes::CheckNoneEnded() {
  for (Process& process : processes_) {
    if (const auto& end = process.child.Poll()) {
      PassOnTheRest();
      return StatusOf(*end, "a process of " + process.name + " ended early: " + end->ToString());
    }
  }
  return {};
}

Status Processes::Finish(Deadline deadline) {
  for (std::size_t left = processes_.size(); left > 0;) {
    left = 0;
    for (Process& process : processes_) {
      const auto& end = process.child.Poll();
      left += end ? 0 : 1;
      if (end && end->code != 0) {
        PassOnTheRest();
        return StatusOf(*end, "a process of " + process.name + ": " + end->ToString());
      }
    }
    if (left > 0 && std::chrono::steady_clock::now() >= deadline) {
      return DeadlineExceeded(std::to_string(left) + " processes do not end");
    }
    if (left > 0) {
      Pump({});
    }
  }
  PassOnTheRest();
  return {};
}

}  // namespace cohort
