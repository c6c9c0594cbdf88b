#include "machine.h"

#include <sched.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string_view>

namespace cohort::doctor {
namespace {

std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// What follows "KEY :" in the first such line, without spaces around it.
std::string Value(const std::string& text, std::string_view key) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos ||
        std::string_view(line).substr(0, line.find_last_not_of(" \t", colon - 1) + 1) != key) {
      continue;
    }
    const std::size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

// 0 where there is no number.
std::uint64_t Number(std::string_view text) {
  std::uint64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

std::uint64_t Kilobytes(const std::string& text, std::string_view key) {
  return Number(Value(text, key)) * 1024;
}

// "always [madvise] never" is madvise.
std::string Chosen(const std::string& text) {
  const std::size_t begin = text.find('[');
  const std::size_t end = text.find(']', begin);
  return begin == std::string::npos || end == std::string::npos
             ? ""
             : text.substr(begin + 1, end - begin - 1);
}

std::vector<std::string> Instructions(const std::string& flags) {
  std::istringstream words(flags);
  std::set<std::string> all;
  for (std::string word; words >> word;) {
    all.insert(word);
  }
  std::vector<std::string> found;
  for (const char* const name :
       {"avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
        "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}) {
    if (all.contains(name)) {
      found.emplace_back(name);
    }
  }
  return found;
}

// "200000 100000" is 2; "max 100000" is no quota.
double Quota(const std::string& root) {
  std::istringstream v2(ReadText(root + "/sys/fs/cgroup/cpu.max"));
  double used = 0;
  double period = 0;
  if (v2 >> used >> period && used > 0 && period > 0) {
    return used / period;
  }
  std::istringstream quota(ReadText(root + "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"));
  std::istringstream of(ReadText(root + "/sys/fs/cgroup/cpu/cpu.cfs_period_us"));
  return quota >> used && of >> period && used > 0 && period > 0 ? used / period : 0;
}

int NumaNodes(const std::string& root) {
  int nodes = 0;
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator(root + "/sys/devices/system/node", error)) {
    const std::string name = entry.path().filename().string();
    nodes += name.size() > 4 && name.starts_with("node") && name[4] >= '0' && name[4] <= '9';
  }
  return nodes == 0 ? 1 : nodes;
}

int Usable() {
  // A mask for more cores than cpu_set_t has.
  constexpr int kMost = 1 << 16;
  cpu_set_t* const mask = CPU_ALLOC(kMost);
  const std::size_t bytes = CPU_ALLOC_SIZE(kMost);
  CPU_ZERO_S(bytes, mask);
  const int usable = sched_getaffinity(0, bytes, mask) == 0 ? CPU_COUNT_S(bytes, mask) : 0;
  CPU_FREE(mask);
  return usable;
}

}  // namespace

Machine InspectMachine(const std::string& root) {
  Machine machine;
  utsname system{};
  if (uname(&system) == 0) {
    machine.kernel = std::string(system.sysname) + " " + system.release;
  }
  const std::string cpu = ReadText(root + "/proc/cpuinfo");
  machine.cpu = Value(cpu, "model name");
  machine.instructions = Instructions(Value(cpu, "flags"));
  machine.cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  machine.usable = Usable();
  machine.quota = Quota(root);
  machine.numa_nodes = NumaNodes(root);

  const std::string memory = ReadText(root + "/proc/meminfo");
  machine.memory = Kilobytes(memory, "MemTotal");
  machine.available = Kilobytes(memory, "MemAvailable");
  machine.huge_pages = Number(Value(memory, "HugePages_Total"));
  machine.huge_page_bytes = Kilobytes(memory, "Hugepagesize");
  for (const char* const limit :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    const std::uint64_t bytes = Number(ReadText(root + limit));
    if (bytes > 0 && bytes < machine.memory) {  // version 1 has a huge one for none
      machine.memory_limit = bytes;
      break;
    }
  }
  const std::string pages = root + "/sys/kernel/mm/transparent_hugepage/";
  machine.transparent = Chosen(ReadText(pages + "enabled"));
  machine.transparent_shared = Chosen(ReadText(pages + "shmem_enabled"));
  struct statvfs shm {};
  if (statvfs((root + "/dev/shm").c_str(), &shm) == 0) {
    machine.shm_size = static_cast<std::uint64_t>(shm.f_blocks) * shm.f_frsize;
    machine.shm_free = static_cast<std::uint64_t>(shm.f_bavail) * shm.f_frsize;
  }
  machine.nvidia_driver = std::filesystem::exists(root + "/proc/driver/nvidia/version");
  return machine;
}

}  // namespace cohort::doctor
