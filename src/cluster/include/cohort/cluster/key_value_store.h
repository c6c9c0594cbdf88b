// KeyValueStore: the small shared memory through which processes find each other.
//
// Keys are paths; `a//b/` equals `a/b`. Values are bytes, at most 1 MiB. Thread rules: all methods
// from any thread.

#pragma once

#include <string>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

namespace cohort {

class KeyValueStore {
 public:
  virtual ~KeyValueStore() = default;

  // AlreadyExists if the key has a value.
  virtual Status Insert(const std::string& key, const std::string& value) = 0;
  // NotFound if it has none.
  virtual Result<std::string> Get(const std::string& key) = 0;
  // Blocks until the key has a value; DeadlineExceeded names the key.
  virtual Result<std::string> Wait(const std::string& key, Deadline deadline) = 0;
};

}  // namespace cohort
