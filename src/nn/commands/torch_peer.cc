#include "nn/commands/torch_peer.h"

#include <cohort/core/environment.h>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <vector>

namespace cohort {
namespace {

std::string ProgramPath() {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  const auto path = self.parent_path() / "cohort-bench-torch";
  return !error && std::filesystem::exists(path) ? path.string() : "";
}

std::vector<std::string> TunedEnvironment(int threads) {
  Environment environment = Environment::OfProcess();
  environment.Set("OMP_NUM_THREADS", std::to_string(threads));
  if (__builtin_cpu_supports("avx512f") != 0) {
    // Also where the variable asks for older kernels: the peer is to be as fast as it can.
    environment.Set("OPENBLAS_CORETYPE", "SKYLAKEX");
  }
  std::vector<std::string> lines;
  for (const auto& [name, value] : environment.variables()) {
    lines.push_back(name + "=" + value);
  }
  return lines;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& s : strings) {
    pointers.push_back(s.data());
  }
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

Result<std::unique_ptr<TorchPeer>> TorchPeer::Start(std::vector<std::string> arguments,
                                                    int threads) {
  const std::string program = ProgramPath();
  if (program.empty()) {
    return NotFound("no cohort-bench-torch beside this program [build with LibTorch installed]");
  }
  std::array<int, 2> in{};
  std::array<int, 2> out{};
  if (pipe2(in.data(), O_CLOEXEC) != 0) {
    return ErrnoStatus(errno, "pipe");
  }
  if (pipe2(out.data(), O_CLOEXEC) != 0) {
    const int error = errno;
    close(in[0]);
    close(in[1]);
    return ErrnoStatus(error, "pipe");
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
  arguments.insert(arguments.begin(), program);
  std::vector<std::string> environment = TunedEnvironment(threads);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, program.c_str(), &actions, nullptr,
                                Pointers(arguments).data(), Pointers(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  close(in[0]);
  close(out[1]);
  if (error != 0) {
    close(in[1]);
    close(out[0]);
    return ErrnoStatus(error, "start of " + program);
  }
  return std::unique_ptr<TorchPeer>(new TorchPeer(pid, fdopen(in[1], "w"), fdopen(out[0], "r")));
}

TorchPeer::~TorchPeer() {
  std::fclose(to_);
  std::fclose(from_);
  kill(pid_, SIGTERM);  // it holds nothing; at end of input it would leave by itself
  waitpid(pid_, nullptr, 0);
}

Result<StepTimes> TorchPeer::Round(int steps) {
  std::array<char, 128> line{};
  StepTimes times;
  if (std::fprintf(to_, "%d\n", steps) < 0 || std::fflush(to_) != 0 ||
      std::fgets(line.data(), static_cast<int>(line.size()), from_) == nullptr ||
      std::sscanf(line.data(), "%lf %lf", &times.fastest, &times.median) != 2) {
    return Unavailable("cohort-bench-torch ended [run it by itself to see why]");
  }
  return times;
}

}  // namespace cohort
