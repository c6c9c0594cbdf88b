// One HTTP request, and when another one may help.

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/status.h>

namespace cohort::data {

// What a writer of an S3 object puts beside it, to know it again.
inline constexpr const char* kMarkHeader = "x-amz-meta-cohort-mark";

struct HttpAnswer {
  long status = 0;  // 0: none came
  std::string etag;
  std::string mark;                // kMarkHeader
  std::int64_t length = -1;        // Content-Length
  std::int64_t begin = -1;         // Content-Range: of the bytes that follow
  std::int64_t total = -1;         // and of the file; -1: not said
  std::string body;                // of an error, its beginning
  std::uint64_t received = 0;      // bytes of a 2xx body before those that are being taken
  std::int64_t wait_seconds = -1;  // Retry-After
};

struct HttpRequest {
  std::string url;
  std::string method = "GET";
  std::string_view body = {};  // of a PUT or a POST
  std::map<std::string, std::string> headers;
  std::chrono::milliseconds connect_timeout{0};
  std::chrono::milliseconds timeout{0};       // of all of it
  std::chrono::milliseconds idle_timeout{0};  // without a byte either way; 0: none
  std::string ca_file;
  bool follow = true;  // redirections; headers go with the request, so not where they are secret
  // Takes the body of a 2xx answer; false ends the request.
  std::function<bool(const HttpAnswer&, std::span<const std::byte>)> take;
  // Asked ten times a second and between pieces.
  std::function<bool()> stopped;
};

// Connections that are kept. Thread rules: all methods from any thread.
class HttpClient {
 public:
  HttpClient();
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // OK: the whole answer came, whatever its status. Unavailable: no connection, a time limit, an
  // answer that is cut off, or `take` ended it. InvalidArgument: no URL; PermissionDenied: the
  // server's certificate.
  Status Perform(const HttpRequest& request, HttpAnswer& answer);

 private:
  // curl's handles: of a request, and of what drives it and keeps its connections.
  struct Connection {
    void* easy = nullptr;
    void* multi = nullptr;
  };

  std::mutex mutex_;
  std::vector<Connection> idle_;  // guarded by mutex_
};

}  // namespace cohort::data
