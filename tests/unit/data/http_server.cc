#include "http_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <sstream>
#include <stdexcept>

namespace cohort::testing {

namespace {

std::size_t BodyLength(const std::string& head) {
  std::string lower = head;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const std::size_t at = lower.find("\r\ncontent-length:");
  return at == std::string::npos ? 0 : std::stoul(lower.substr(at + 17));
}

}  // namespace

HttpServer::HttpServer(Faults faults) : faults_(std::move(faults)) {
  listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (listener_ < 0 || ::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::listen(listener_, 64) != 0 ||
      ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw std::runtime_error("a listening socket");
  }
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { Accept(); });
}

HttpServer::~HttpServer() {
  stop_ = true;
  ::shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  ::close(listener_);
  Disconnect();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

void HttpServer::Disconnect() {
  std::lock_guard lock(mutex_);
  for (const int fd : connections_) {
    ::shutdown(fd, SHUT_RDWR);
  }
}

void HttpServer::Put(const std::string& target, std::string content, std::string etag) {
  std::lock_guard lock(mutex_);
  files_[target] = {std::move(content), std::move(etag)};
}

void HttpServer::Remove(const std::string& target) {
  std::lock_guard lock(mutex_);
  files_.erase(target);
}

std::map<std::string, std::string> HttpServer::files() {
  std::lock_guard lock(mutex_);
  std::map<std::string, std::string> contents;
  for (const auto& [target, file] : files_) {
    contents[target] = file.content;
  }
  return contents;
}

std::vector<HttpServer::Request> HttpServer::requests() {
  std::lock_guard lock(mutex_);
  return requests_;
}

int HttpServer::most_open() {
  std::lock_guard lock(mutex_);
  return most_open_;
}

void HttpServer::Accept() {
  while (!stop_) {
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) {
      return;
    }
    std::lock_guard lock(mutex_);
    connections_.push_back(fd);
    threads_.emplace_back([this, fd] { Serve(fd); });
  }
}

void HttpServer::Serve(int fd) {
  std::string in;
  for (;;) {
    const std::size_t end = in.find("\r\n\r\n");
    if (end != std::string::npos) {
      const std::string head = in.substr(0, end);
      const std::size_t length = BodyLength(head);
      if (in.size() >= end + 4 + length) {
        std::string body = in.substr(end + 4, length);
        in.erase(0, end + 4 + length);
        if (!Answer(fd, head, std::move(body))) {
          break;
        }
        continue;
      }
    }
    std::string piece(65536, '\0');
    const ssize_t n = ::recv(fd, piece.data(), piece.size(), 0);
    if (n <= 0) {
      break;
    }
    in.append(piece, 0, static_cast<std::size_t>(n));
  }
  std::lock_guard lock(mutex_);
  std::erase(connections_, fd);
  ::close(fd);
}

bool HttpServer::Send(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) {
      return false;
    }
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

bool HttpServer::Answer(int fd, const std::string& head, std::string body_of_request) {
  Request request;
  request.body = std::move(body_of_request);
  std::istringstream lines(head);
  lines >> request.method >> request.target;
  std::string line;
  std::getline(lines, line);
  while (std::getline(lines, line)) {
    const std::size_t colon = line.find(':');
    std::string name = line.substr(0, colon);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    std::string value = line.substr(colon + 2);
    if (!value.empty() && value.back() == '\r') {
      value.pop_back();
    }
    request.headers[name] = value;
  }
  const auto range = request.headers.find("range");
  if (range != request.headers.end() && ranges_) {
    const std::string bytes = range->second.substr(6);
    request.begin = std::stoll(bytes);
    request.end = std::stoll(bytes.substr(bytes.find('-') + 1)) + 1;
  }
  File file;
  bool found = false;
  {
    std::lock_guard lock(mutex_);
    request.number = static_cast<int>(requests_.size());
    requests_.push_back(request);
    most_open_ = std::max(most_open_, ++open_);
    const auto it = files_.find(request.target);
    found = it != files_.end();
    file = found ? it->second : File();
  }
  const Fault fault = faults_ ? faults_(request) : Fault();
  {
    std::lock_guard lock(mutex_);
    --open_;
  }
  if (fault.drop) {
    return false;
  }
  if (handler_ && fault.status == 0) {
    if (const auto reply = handler_(request)) {
      std::string out = "HTTP/1.1 " + std::to_string(reply->status) +
                        " X\r\nContent-Length: " + std::to_string(reply->body.size()) + "\r\n";
      for (const std::string& header : reply->headers) {
        out += header + "\r\n";
      }
      if (fault.trickle_ms > 0) {
        bool sent = Send(fd, out + "\r\n");
        for (const char& byte : reply->body) {
          std::this_thread::sleep_for(std::chrono::milliseconds(fault.trickle_ms));
          sent = sent && Send(fd, {&byte, 1});
        }
        return sent;
      }
      // With cut_after the request was heard, and the answer is lost.
      return Send(fd, out + "\r\n" + (fault.cut_after < 0 ? reply->body : "")) &&
             fault.cut_after < 0;
    }
  }
  const auto size = static_cast<std::int64_t>(file.content.size());
  int status = fault.status != 0 ? fault.status : !found ? 404 : request.end < 0 ? 200 : 206;
  if (status == 206 && request.begin >= size) {
    status = 416;
  }
  std::string body = status == 200 ? file.content : "no: " + std::to_string(status);
  std::string out;
  if (status == 206) {
    const std::int64_t begin = request.begin + fault.shift;
    std::int64_t end = std::min(request.end + fault.shift, size);
    if (fault.send_only >= 0) {
      end = std::min(end, begin + fault.send_only);
    }
    body =
        file.content.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    out = "Content-Range: bytes " + std::to_string(begin) + "-" + std::to_string(end - 1) + "/" +
          std::to_string(size) + "\r\n";
  }
  out = "HTTP/1.1 " + std::to_string(status) +
        " X\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + out;
  if (status / 100 == 2) {
    out += "ETag: " + file.etag + "\r\n";
  }
  if (!fault.header.empty()) {
    out += fault.header + "\r\n";
  }
  out += "\r\n";
  if (fault.stall) {
    Send(fd, out);
    pollfd waiting{fd, POLLRDHUP, 0};
    ::poll(&waiting, 1, 20'000);
    return false;
  }
  if (request.method != "HEAD") {
    out += fault.cut_after < 0 ? body : body.substr(0, static_cast<std::size_t>(fault.cut_after));
  }
  return Send(fd, out) && fault.cut_after < 0;
}

}  // namespace cohort::testing
