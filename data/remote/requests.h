// Requests to servers: where a path is, attempts until one succeeds, signing, deadlines.

#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <cohort/core/status.h>
#include <cohort/core/thread_pool.h>
#include <cohort/data/remote.h>

#include "remote/http.h"
#include "remote/sigv4.h"

namespace cohort::data {

using RemoteClock = std::chrono::steady_clock;

// http://, https:// or s3://.
bool IsRemote(std::string_view path);
inline bool IsS3(std::string_view path) { return path.starts_with("s3://"); }

// s3://BUCKET/KEY, as it is.
struct S3Path {
  std::string bucket;
  std::string key;
};
// InvalidArgument: no bucket.
Result<S3Path> SplitS3(const std::string& path);

// Where a file, or a bucket, is, and how it is asked for.
struct Target {
  std::string url;
  std::string name;  // for messages: without query and credentials
  std::optional<SigningRequest> signing;
};
// InvalidArgument: no key, or an endpoint that is none.
Result<Target> TargetOf(const std::string& path, const S3Options& s3);
Result<Target> BucketTarget(const std::string& bucket, const S3Options& s3);

// What all files of a file system share.
struct Shared {
  explicit Shared(RemoteOptions given)
      : options(std::move(given)), pool(std::max(1, options.parallel - 1), "remote") {}

  RemoteClock::time_point Deadline() const { return RemoteClock::now() + options.deadline; }

  const RemoteOptions options;
  HttpClient client;
  std::atomic<bool> stop = false;
  // Beside the thread that reads; of no use where that is to be alone. Last: its tasks use what is
  // before it.
  ThreadPool pool;
};

struct Wanted {
  std::string method = "GET";
  std::map<std::string, std::string> query = {};    // of S3, decoded
  std::map<std::string, std::string> headers = {};  // lower-case names
  std::string_view body = {};
  std::uint64_t begin = 0;  // a range of the file, if end > 0
  std::uint64_t end = 0;
};

// Runs requests until one has given what is wanted, none will, or the thread's StopScope says so.
class Requests {
 public:
  // `closed`: the file is being closed.
  Requests(Shared& shared, const Target& target, const std::atomic<bool>& closed)
      : shared_(shared), target_(target), closed_(closed) {}

  using Take = std::function<bool(const HttpAnswer&, std::span<const std::byte>)>;

  // `progress`: how many bytes of a range have come, over all attempts; the range asked for begins
  // behind them. `judge` says what is wrong with a 2xx answer.
  Status Run(const Wanted& wanted, RemoteClock::time_point deadline, const std::uint64_t& progress,
             const Take& take, const std::function<Status(const HttpAnswer&)>& judge) const;

  struct Reply {
    HttpAnswer answer;
    std::string body;
  };
  // The whole of a 2xx answer of at most 16 MiB.
  Result<Reply> Send(const Wanted& wanted, RemoteClock::time_point deadline) const;

 private:
  HttpRequest Make(const Wanted& wanted, std::uint64_t progress, const Take& take,
                   RemoteClock::time_point deadline) const;
  void Sleep(std::chrono::milliseconds pause) const;
  bool stopped() const;

  Shared& shared_;
  const Target& target_;
  const std::atomic<bool>& closed_;
};

}  // namespace cohort::data
