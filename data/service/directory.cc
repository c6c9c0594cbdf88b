#include "directory.h"

#include <set>
#include <utility>

namespace cohort::data {
namespace {

std::string Place(const InputWorker& worker) {
  return worker.address.empty()            ? "the dispatcher"
         : worker.address.starts_with(':') ? "the dispatcher's host" + worker.address
                                           : worker.address;
}

}  // namespace

void Directory::Forget(Deadline now) {
  std::erase_if(workers_, [&](const auto& item) {
    return !item.second.worker.address.empty() && now - item.second.heard > silence_;
  });
}

Status Directory::Register(InputWorker worker, Deadline now) {
  Forget(now);
  std::erase_if(workers_, [&](const auto& item) {
    return item.first != worker.incarnation && item.second.worker.address == worker.address;
  });
  for (const auto& [incarnation, entry] : workers_) {
    if (incarnation == worker.incarnation) {
      continue;
    }
    for (const PipelineInfo& known : entry.worker.pipelines) {
      for (const PipelineInfo& offered : worker.pipelines) {
        if (offered.name != known.name) {
          continue;
        }
        if (const std::string difference = Difference(offered, known); !difference.empty()) {
          workers_.erase(worker.incarnation);
          return FailedPrecondition(
              "pipeline '" + known.name + "' of the input worker at " + Place(worker) +
              " is not that of " + Place(entry.worker) + ": " + difference +
              " [serve the same data with the same options, or another name]");
        }
      }
    }
  }
  const std::uint64_t incarnation = worker.incarnation;
  workers_[incarnation] = {std::move(worker), now};
  return {};
}

bool Directory::Knows(std::uint64_t incarnation, Deadline now) {
  Forget(now);
  return workers_.contains(incarnation);
}

Result<Directory::Found> Directory::Find(const std::string& pipeline, Deadline now) {
  Forget(now);
  Found found;
  std::set<std::string> served;
  for (const auto& [incarnation, entry] : workers_) {
    for (const PipelineInfo& info : entry.worker.pipelines) {
      served.insert("'" + info.name + "'");
      if (info.name == pipeline) {
        found.pipeline = info;
        found.workers.push_back(&entry.worker);
      }
    }
  }
  if (!found.workers.empty()) {
    return found;
  }
  std::string names;
  for (const std::string& name : served) {
    names += (names.empty() ? "" : ", ") + name;
  }
  return NotFound("no input worker serves pipeline '" + pipeline + "'; " +
                  (names.empty() ? "there is none of any" : "served are: " + names));
}

}  // namespace cohort::data
