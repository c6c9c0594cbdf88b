#include "synchronous/replica_gang.h"

#include <string>

#include <cohort/core/thread_pool.h>

namespace cohort {
namespace {

constexpr int kLooks = 50;  // some ten microseconds: each yields the core to who has work

template <typename Done>
bool LookOut(bool spin, const Done& done) {
  for (int i = 0; spin && i < kLooks; ++i) {
    if (done()) {
      return true;
    }
    std::this_thread::yield();
  }
  return done();
}

}  // namespace

ReplicaGang::ReplicaGang(int size, const std::string& name, int first)
    : spin_(size <= AvailableCores()) {
  threads_.reserve(static_cast<std::size_t>(size - 1));
  for (int replica = 1; replica < size; ++replica) {
    threads_.emplace_back([this, replica, text = name + std::to_string(first + replica)] {
      NameThisThread(text);
      Work(replica);
    });
  }
}

ReplicaGang::~ReplicaGang() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

void ReplicaGang::Run(const std::function<void(int)>& body) {
  if (threads_.empty()) {
    body(0);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    body_ = &body;
    running_ = static_cast<int>(threads_.size());
    ++round_;
  }
  wake_.notify_all();
  body(0);
  // No deadline: the bodies are the program's own computation, and whatever they wait for has one.
  const auto done = [this] { return running_ == 0; };
  if (!LookOut(spin_, done)) {
    std::unique_lock lock(mutex_);
    done_.wait(lock, done);
  }
}

void ReplicaGang::Work(int replica) {
  std::uint64_t seen = 0;
  while (true) {
    const auto called = [this, &seen] { return round_ != seen || stop_; };
    if (!LookOut(spin_, called)) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, called);
    }
    if (stop_) {
      return;
    }
    ++seen;
    (*body_)(replica);
    if (running_.fetch_sub(1) == 1) {
      // The caller either still looks, or holds the mutex from its last look until it sleeps.
      const std::lock_guard lock(mutex_);
      done_.notify_all();
    }
  }
}

}  // namespace cohort
