// Measured: which of several ways was the fastest on a GPU, for all plans of the process, so that
// replicas compute alike, and nothing is measured twice.
//
// Thread rules: all methods from any thread.

#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <utility>

namespace cohort::cuda {

template <typename Key, typename Choice>
class Measured {
 public:
  // One for each kind of key and choice. Never destroyed: plans may outlive what is.
  static Measured& OfProcess() {
    static auto& measured = *new Measured;
    return measured;
  }

  std::optional<Choice> Find(const Key& key) const {
    const std::lock_guard lock(mutex_);
    const auto known = choices_.find(key);
    return known == choices_.end() ? std::nullopt : std::optional<Choice>(known->second);
  }
  // This, or what another thread kept first.
  Choice Keep(const Key& key, Choice choice) {
    const std::lock_guard lock(mutex_);
    return choices_.try_emplace(key, std::move(choice)).first->second;
  }

 private:
  mutable std::mutex mutex_;
  std::map<Key, Choice> choices_;
};

}  // namespace cohort::cuda
