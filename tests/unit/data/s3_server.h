// S3Server: what of S3's protocol cohort speaks, behind a loopback socket: objects, uploads in
// parts, lists in pages of two, copies, and signatures, which are checked.

#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "http_server.h"

namespace cohort::testing {

class S3Server {
 public:
  // Of one bucket, "bucket", and the keys "AK" and "SK" of region "eu-north-1".
  explicit S3Server(HttpServer::Faults faults = {});

  std::string origin() const { return server_.origin(); }
  std::vector<HttpServer::Request> requests() { return server_.requests(); }
  // Decoded keys.
  std::map<std::string, std::string> objects();
  int open_uploads();

 private:
  struct Upload {
    std::string target;
    std::string mark;  // what its writer calls it
    std::map<int, std::string> parts;
  };

  std::optional<HttpServer::Reply> Answer(const HttpServer::Request& request);
  HttpServer::Reply List(const std::map<std::string, std::string>& query);

  std::mutex mutex_;
  std::map<std::string, Upload> uploads_;     // by id; guarded by mutex_
  std::map<std::string, std::string> marks_;  // of objects; guarded by mutex_
  int next_upload_ = 0;                       // guarded by mutex_
  HttpServer server_;                         // last: its threads use what is before it
};

}  // namespace cohort::testing
