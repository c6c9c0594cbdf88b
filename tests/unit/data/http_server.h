// HttpServer: serves bytes on a loopback socket, with ranges and with what goes wrong on the way.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace cohort::testing {

class HttpServer {
 public:
  struct Request {
    int number = 0;  // from 0, of all
    std::string method;
    std::string target;                          // path and query
    std::map<std::string, std::string> headers;  // lower-case names
    std::int64_t begin = 0;                      // of the range
    std::int64_t end = -1;                       // behind it; -1: no range was asked for
    std::string body;
  };
  // What happens to an answer besides what should.
  struct Fault {
    int status = 0;               // this, instead of the file
    std::string header = {};      // one more: "Retry-After: 1"
    bool drop = false;            // close without an answer
    std::int64_t cut_after = -1;  // bytes of the body, then close
    std::int64_t send_only = -1;  // bytes of the body, and say so
    bool stall = false;           // headers, then nothing until the client goes
    int trickle_ms = 0;           // a handler's body comes byte by byte, so far apart
    std::int64_t shift = 0;       // send bytes from so much further on, and say so
  };
  using Faults = std::function<Fault(const Request&)>;
  struct Reply {
    int status = 200;
    std::vector<std::string> headers = {};
    std::string body = {};
  };
  // Answers a request in its own way, after faults; null: as a server of files does.
  using Handler = std::function<std::optional<Reply>(const Request&)>;

  explicit HttpServer(Faults faults = {});
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  void Put(const std::string& target, std::string content, std::string etag = "\"1\"");
  void Remove(const std::string& target);
  std::map<std::string, std::string> files();  // content by target
  // Before the first request.
  void Handle(Handler handler) { handler_ = std::move(handler); }
  void Disconnect();  // whoever is connected
  void IgnoreRanges() { ranges_ = false; }
  std::string origin() const { return "http://127.0.0.1:" + std::to_string(port_); }
  std::vector<Request> requests();  // so far
  int most_open();                  // requests that had no answer yet, at one time

 private:
  struct File {
    std::string content;
    std::string etag;
  };

  void Accept();
  void Serve(int fd);
  // False: the connection ends.
  bool Answer(int fd, const std::string& head, std::string body);
  static bool Send(int fd, std::string_view bytes);

  Faults faults_;
  Handler handler_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> stop_ = false;
  std::atomic<bool> ranges_ = true;
  std::mutex mutex_;
  std::map<std::string, File> files_;  // guarded by mutex_
  std::vector<Request> requests_;      // guarded by mutex_
  int open_ = 0;                       // guarded by mutex_
  int most_open_ = 0;                  // guarded by mutex_
  std::vector<int> connections_;       // guarded by mutex_
  std::vector<std::thread> threads_;   // guarded by mutex_
  std::thread acceptor_;
};

}  // namespace cohort::testing
