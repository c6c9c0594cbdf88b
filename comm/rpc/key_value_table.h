// KeyValueTable: the service's side of KeyValueStore. Not synchronised.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include <cohort/core/status.h>

#include "waiting.h"

namespace cohort {

// "a//b/" as "a/b". InvalidArgument if nothing is left, or more than 4 KiB.
Result<std::string> NormalizeKey(std::string_view key);
// InvalidArgument for a value of more than 1 MiB.
Status CheckValueSize(std::string_view key, std::size_t bytes);

class KeyValueTable {
 public:
  using Done = WaitList<Result<std::string>>::Done;

  // `origin` names one request: the same again is the same insertion, and OK.
  Status Insert(std::string_view key, std::string value, const std::string& origin,
                Completions& completions);
  Result<std::string> Get(std::string_view key) const;
  // Answers `done` when the key has a value, or DeadlineExceeded from Expire on.
  void Wait(std::string_view key, Deadline deadline, Done done, Completions& completions);

  void Expire(Deadline now, Completions& completions);
  void FailAll(const Status& status, Completions& completions);
  Deadline Next() const;

 private:
  struct Entry {
    std::string value;
    std::string origin;
  };
  std::map<std::string, Entry, std::less<>> entries_;
  std::map<std::string, WaitList<Result<std::string>>> waiting_;
};

}  // namespace cohort
