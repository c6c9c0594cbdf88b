#include "process/ps_job.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string_view>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/optim/optimizers.h>

#include "process/ps_report.h"

namespace cohort::testing {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

Job::Job(const std::vector<std::string>& arguments, int gate_at, const Tasks& tasks,
         JobSettings settings)
    : settings_(std::move(settings)) {
  argv_ = {COHORT_BIN_DIR "/../tests/" + settings_.program};
  argv_.insert(argv_.end(), arguments.begin(), arguments.end());
  argv_.insert(argv_.end(), {"--gate", Gate(), "--gate-at", std::to_string(gate_at)});
  if (settings_.proxied) {
    proxy_.emplace(network_);
    argv_.insert(argv_.end(), {"--communication", "tcp"});
  }
  std::vector<std::string> names;
  for (const auto& [type, count] : tasks) {
    for (int index = 0; index < count; ++index) {
      names.push_back(type + ":" + std::to_string(index));
    }
  }
  cluster_json_ = cluster.StartTasks(tasks, argv_, {}, /*absent=*/names);
  if (settings_.network) {
    settings_.network(*proxy_);
  }
  for (const std::string& name : names) {
    if (std::ranges::find(settings_.absent, name) == settings_.absent.end()) {
      StartTask(name);
    }
  }
}

void Job::Kill(const std::string& name) {
  cluster.Signal(name, SIGKILL);
  EXPECT_EQ(cluster.Wait(name, kPatience), kKilled);
  expected_[name] = kKilled;
}

void Job::StartTask(const std::string& task) {
  const std::size_t colon = task.find(':');
  Start(task.substr(0, colon), std::stoi(task.substr(colon + 1)), task);
}

void Job::Start(const std::string& type, int index, const std::string& name) {
  Variables environment = proxy_.has_value() ? proxy_->Environment() : Variables();
  if (const auto own = settings_.of_task.find(type + ":" + std::to_string(index));
      own != settings_.of_task.end()) {
    environment.insert(own->second.begin(), own->second.end());
  }
  environment["TF_CONFIG"] = R"({"cluster":)" + cluster_json_ + R"(,"task":{"type":")" + type +
                             R"(","index":)" + std::to_string(index) + "}}";
  cluster.Start(name, argv_, environment);
  expected_[name] = 0;
}

void Job::OpenGate(const std::string& suffix) { std::ofstream(Gate() + suffix) << "open"; }

void Job::ExpectCodes() {
  const auto codes = cluster.WaitAll(kPatience);
  for (const auto& [name, code] : expected_) {
    EXPECT_EQ(codes.at(name), code) << name;
  }
}

bool Job::WaitForSave(const std::string& folder, bool whole) {
  return Await([&] {
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator(folder, none)) {
      const std::string name = entry.path().filename();
      if (whole ? name.starts_with("step") : name.starts_with(".tmp-")) {
        return true;
      }
    }
    return false;
  });
}

bool Job::WaitForChain(const std::string& folder, std::filesystem::path* after) {
  return Await([&] {
    std::filesystem::path newest;
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator(folder, none)) {
      if (entry.path().filename().string().starts_with("step")) {
        newest = std::max(newest, entry.path());
      }
    }
    std::ifstream manifest(newest / "manifest.json");
    const std::string text((std::istreambuf_iterator<char>(manifest)), {});
    if (text.find("\"base\"") == std::string::npos || (after != nullptr && newest <= *after)) {
      return false;
    }
    if (after != nullptr) {
      *after = newest;
    }
    return true;
  });
}

bool Job::WaitForWriting(const std::string& folder, const std::string& file,
                         std::set<std::string>& seen) {
  return Await([&] {
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator(folder, none)) {
      const std::string name = entry.path().filename();
      if (name.starts_with(".tmp-") && !seen.contains(name) &&
          std::filesystem::exists(entry.path() / file, none)) {
        seen.insert(name);
        return true;
      }
    }
    return false;
  });
}

bool Job::Await(const std::function<bool()>& holds) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < deadline) {
    if (holds()) {
      return true;
    }
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

std::uint64_t FaultSeed() {
  const char* const asked = std::getenv("COHORT_FAULT_SEED");
  return asked != nullptr
             ? std::strtoull(asked, nullptr, 10)
             : static_cast<std::uint64_t>(
                   std::chrono::system_clock::now().time_since_epoch().count() / 1'000'000);
}

std::string DigestOf(int epochs) {
  return DigestOf(2000, 10, epochs, *Sgd({.learning_rate = 0.0625, .momentum = 0.5}));
}

bool TakeFar(std::string& parameter) {
  constexpr std::string_view kFar = "_far";
  const bool far = parameter.ends_with(kFar);
  parameter.resize(parameter.size() - (far ? kFar.size() : 0));
  return far;
}

std::vector<std::string> Arguments(std::string consistency, int epochs,
                                   std::vector<std::string> more) {
  if (TakeFar(consistency)) {
    more.emplace_back("--far");
  }
  more.insert(more.end(), {"--consistency", consistency, "--epochs", std::to_string(epochs)});
  if (!consistency.starts_with("sync")) {
    more.emplace_back("--count");
  }
  return more;
}

void ExpectNobodyCame(Job& job, const std::vector<std::string>& names, const std::string& task) {
  for (const std::string& name : names) {
    EXPECT_EQ(job.cluster.Wait(name, kPatience), kPeerLost) << name;
    EXPECT_THAT(
        job.cluster.Stderr(name),
        HasSubstr("no other process has taken its place within 0.5 s (rejoin_grace) [start " +
                  task + " again"))
        << name;
  }
}

void ExpectWholeOutcome(Job& job, const std::string& chief, std::string consistency, int epochs) {
  TakeFar(consistency);
  const std::string out = job.cluster.Stdout(chief);
  if (consistency == "sync") {
    EXPECT_THAT(out, HasSubstr(DigestOf(epochs)));
  } else if (consistency == "sync:1") {
    EXPECT_THAT(out, HasSubstr("step " + std::to_string(200 * epochs) + " digest"));
  } else {
    const std::string times = std::to_string(epochs);
    EXPECT_THAT(out, HasSubstr("counted " + std::to_string(2000 * epochs) + ", each " + times +
                               " to " + times + " times"));
  }
  for (int epoch = 0; epoch < epochs; ++epoch) {
    EXPECT_THAT(out, HasSubstr("epoch " + std::to_string(epoch) + ": 2000 of 2000 seen"));
  }
}

}  // namespace cohort::testing
