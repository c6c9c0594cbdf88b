#include "report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace cohort::doctor {
namespace {

using Json = nlohmann::ordered_json;

bool AnyProblem(const std::vector<Finding>& findings) {
  return std::any_of(findings.begin(), findings.end(),
                     [](const Finding& finding) { return finding.problem; });
}

std::string Row(const std::string& name, const std::string& text) {
  return fmt::format("{:<12}{}\n", name, text);
}

std::string OrNone(const std::string& text) { return text.empty() ? "none" : text; }

std::string BuildText(const Facts& facts) {
  std::string text;
  for (const auto& [option, value] : facts.build) {
    text += value.empty() ? "" : fmt::format("{}{} {}", text.empty() ? "" : ", ", option, value);
  }
  return text;
}

std::string CpuText(const Machine& machine) {
  std::string text = fmt::format("{}, {} of {} cores usable",
                                 machine.cpu.empty() ? "of no known name" : machine.cpu,
                                 machine.usable, machine.cores);
  if (machine.quota > 0) {
    text += fmt::format(", the time of {:.4g}", machine.quota);
  }
  text += fmt::format(", {} NUMA node{}", machine.numa_nodes, machine.numa_nodes == 1 ? "" : "s");
  text += fmt::format("\n{:<12}{}", "",
                      OrNone(fmt::format("{}", fmt::join(machine.instructions, " "))));
  return text;
}

std::string MemoryText(const Machine& machine) {
  std::string text = Bytes(machine.memory) + ", " + Bytes(machine.available) + " available";
  if (machine.memory_limit > 0) {
    text += ", the container's limit is " + Bytes(machine.memory_limit);
  }
  return text;
}

std::string HugePagesText(const Machine& machine) {
  return fmt::format("{} of {} set aside; transparent: {}, of shared memory: {}",
                     machine.huge_pages, Bytes(machine.huge_page_bytes),
                     machine.transparent.empty() ? "not told" : machine.transparent,
                     machine.transparent_shared.empty() ? "not told" : machine.transparent_shared);
}

std::string LibraryText(const GpuReport::Library& library, std::string (*version)(int)) {
  return library.found == 0 ? "not found" : version(library.found);
}

std::string GpuText(const GpuReport& report) {
  std::string text;
  for (std::size_t g = 0; g < report.gpus.size(); ++g) {
    const GpuReport::Gpu& gpu = report.gpus[g];
    text +=
        Row(g == 0 ? "GPUs" : "", fmt::format("{}: {}, {}, compute capability {}.{}, {}{}", g,
                                              gpu.name, Bytes(gpu.memory), gpu.major, gpu.minor,
                                              gpu.bus, gpu.has_code ? "" : ", not for this build"));
  }
  if (report.gpus.size() > 1) {
    for (std::size_t g = 0; g < report.gpus.size(); ++g) {
      std::string reached;
      for (std::size_t p = 0; p < report.gpus[g].peers.size(); ++p) {
        reached += report.gpus[g].peers[p] ? " yes" : "  no";
      }
      text += Row(g == 0 ? "peers" : "", fmt::format("{:>2}:{}", g, reached));
    }
  }
  return text;
}

Json ToJson(const GpuReport::Library& library, std::string (*version)(int)) {
  Json json = {{"built_with", version(library.built)},
               {"found", library.found == 0 ? Json() : Json(version(library.found))}};
  if (library.cuda != 0) {
    json["cuda"] = CudaVersion(library.cuda);
  }
  if (!library.error.empty()) {
    json["error"] = library.error;
  }
  return json;
}

Json ToJson(const GpuReport::Gpu& gpu) {
  Json json = {{"name", gpu.name},
               {"bus", gpu.bus},
               {"memory_bytes", gpu.memory},
               {"compute_capability", fmt::format("{}.{}", gpu.major, gpu.minor)},
               {"in_this_build", gpu.has_code},
               {"peers", gpu.peers}};
  if (!gpu.error.empty()) {
    json["error"] = gpu.error;
  }
  return json;
}

Json TextOrNull(const std::string& text) { return text.empty() ? Json() : Json(text); }

}  // namespace

std::string ToText(const Facts& facts, const std::vector<Finding>& findings) {
  const Machine& machine = facts.machine;
  const GpuReport& gpus = facts.gpus;
  std::string text = Row("cohort", BuildText(facts));
  text += Row("system", machine.kernel);
  text += Row("CPU", CpuText(machine));
  text += Row("memory", MemoryText(machine));
  text += Row("/dev/shm", machine.shm_size == 0
                              ? "none"
                              : Bytes(machine.shm_size) + ", " + Bytes(machine.shm_free) + " free");
  text += Row("huge pages", HugePagesText(machine));
  text += Row("MPI", facts.mpi.empty() ? "none in this build" : facts.mpi);
  text += Row("gRPC", facts.rpc.grpc.empty() ? "none in this build"
                                             : facts.rpc.grpc + ", protobuf " + facts.rpc.protobuf);
  if (gpus.built) {
    text += Row("CUDA",
                fmt::format("{} in this build, {}", CudaVersion(gpus.runtime),
                            gpus.driver == 0 ? "no driver"
                                             : "the driver can do " + CudaVersion(gpus.driver)));
    text += Row("cuBLAS", LibraryText(gpus.cublas, CublasVersion));
    text += Row("cuDNN", LibraryText(gpus.cudnn, CudnnVersion));
    text += Row("NCCL", facts.nccl.ok() ? *facts.nccl : "not found");
  }
  const std::string none = NoGpus(facts);
  text += none.empty() ? GpuText(gpus) : Row("GPUs", none);
  for (const Finding& finding : findings) {
    text += fmt::format("\n{}: {}\n  -> {}\n", finding.problem ? "problem" : "advice", finding.what,
                        finding.remedy);
  }
  text += AnyProblem(findings) ? "" : "\nnothing here stands in the way of training\n";
  return text;
}

std::string ToJson(const Facts& facts, const std::vector<Finding>& findings) {
  const Machine& machine = facts.machine;
  const GpuReport& gpus = facts.gpus;
  Json json = {{"ok", !AnyProblem(findings)}};
  json["build"] = Json::object();
  for (const auto& [option, value] : facts.build) {
    json["build"][option] = value;
  }
  json["system"] = machine.kernel;
  json["cpu"] = {{"model", TextOrNull(machine.cpu)},
                 {"cores", machine.cores},
                 {"usable", machine.usable},
                 {"quota", machine.quota > 0 ? Json(machine.quota) : Json()},
                 {"instructions", machine.instructions},
                 {"numa_nodes", machine.numa_nodes}};
  json["memory"] = {
      {"bytes", machine.memory},
      {"available", machine.available},
      {"limit", machine.memory_limit > 0 ? Json(machine.memory_limit) : Json()},
      {"huge_pages", machine.huge_pages},
      {"huge_page_bytes", machine.huge_page_bytes},
      {"transparent_huge_pages", TextOrNull(machine.transparent)},
      {"transparent_huge_pages_of_shared_memory", TextOrNull(machine.transparent_shared)}};
  json["dev_shm"] = {{"bytes", machine.shm_size}, {"free", machine.shm_free}};
  json["mpi"] = TextOrNull(facts.mpi);
  json["grpc"] = TextOrNull(facts.rpc.grpc);
  json["protobuf"] = TextOrNull(facts.rpc.protobuf);
  json["gpus"] = Json::array();
  for (const GpuReport::Gpu& gpu : gpus.gpus) {
    json["gpus"].push_back(ToJson(gpu));
  }
  json["no_gpus"] = TextOrNull(NoGpus(facts));
  json["cuda"] = Json();
  if (gpus.built) {
    json["cuda"] = {{"runtime", CudaVersion(gpus.runtime)},
                    {"driver", gpus.driver == 0 ? Json() : Json(CudaVersion(gpus.driver))},
                    {"cublas", ToJson(gpus.cublas, CublasVersion)},
                    {"cudnn", ToJson(gpus.cudnn, CudnnVersion)},
                    {"nccl", facts.nccl.ok() ? Json(*facts.nccl) : Json()}};
  }
  json["findings"] = Json::array();
  for (const Finding& finding : findings) {
    json["findings"].push_back({{"kind", finding.problem ? "problem" : "advice"},
                                {"what", finding.what},
                                {"remedy", finding.remedy}});
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace cohort::doctor
