#include "remote/http.h"

#include <curl/curl.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

namespace cohort::data {
namespace {

struct Transfer {
  CURL* handle = nullptr;
  const HttpRequest* request = nullptr;
  HttpAnswer* answer = nullptr;
  curl_off_t moved = 0;  // bytes, both ways
  std::chrono::steady_clock::time_point moved_at = std::chrono::steady_clock::now();
  bool idle = false;  // for too long
};

std::int64_t IntegerIn(std::string_view text) {
  std::int64_t value = -1;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  return result.ec == std::errc() ? value : -1;
}

std::string_view Trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r\n";
  text.remove_prefix(std::min(text.find_first_not_of(kBlank), text.size()));
  return text.substr(0, text.find_last_not_of(kBlank) + 1);
}

std::size_t TakeHeader(char* data, std::size_t size, std::size_t count, void* user) {
  HttpAnswer& answer = *static_cast<Transfer*>(user)->answer;
  const std::string_view line(data, size * count);
  if (line.starts_with("HTTP/")) {
    const std::size_t space = line.find(' ');
    answer = {};  // an answer before it was a redirection
    answer.status =
        space == std::string_view::npos ? 0 : static_cast<long>(IntegerIn(line.substr(space + 1)));
    return size * count;
  }
  const std::size_t colon = line.find(':');
  if (colon == std::string_view::npos) {
    return size * count;
  }
  std::string name(line.substr(0, colon));
  std::transform(name.begin(), name.end(), name.begin(), [](char c) {
    return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  });
  const std::string_view value = Trimmed(line.substr(colon + 1));
  if (name == "etag") {
    answer.etag = value;
  } else if (name == kMarkHeader) {
    answer.mark = value;
  } else if (name == "content-length") {
    answer.length = IntegerIn(value);
  } else if (name == "retry-after") {
    answer.wait_seconds = IntegerIn(value);
  } else if (name == "content-range" && value.starts_with("bytes ")) {
    const std::size_t slash = value.find('/');
    answer.begin = IntegerIn(value.substr(6));
    answer.total = slash == std::string_view::npos ? -1 : IntegerIn(value.substr(slash + 1));
  }
  return size * count;
}

std::size_t TakeBody(char* data, std::size_t size, std::size_t count, void* user) {
  const Transfer& transfer = *static_cast<Transfer*>(user);
  const std::size_t bytes = size * count;
  if (transfer.answer->status / 100 == 2) {
    const bool more =
        transfer.request->take(*transfer.answer, {reinterpret_cast<const std::byte*>(data), bytes});
    transfer.answer->received += bytes;
    return more ? bytes : 0;
  }
  constexpr std::size_t kKept = 300;
  std::string& body = transfer.answer->body;
  body.append(data, std::min(bytes, kKept - std::min(kKept, body.size())));
  return bytes;
}

int IsStopped(void* user, curl_off_t, curl_off_t down, curl_off_t, curl_off_t up) {
  Transfer& transfer = *static_cast<Transfer*>(user);
  const auto now = std::chrono::steady_clock::now();
  if (down + up != transfer.moved) {
    transfer.moved = down + up;
    transfer.moved_at = now;
  }
  const std::chrono::milliseconds limit = transfer.request->idle_timeout;
  transfer.idle = limit.count() > 0 && now - transfer.moved_at > limit;
  return transfer.idle || transfer.request->stopped() ? 1 : 0;
}

// As curl_easy_perform, which would see that it is stopped only about once a second.
template <typename Connection>
CURLcode Drive(const Connection& connection, const HttpRequest& request) {
  constexpr int kPollMilliseconds = 100;
  if (curl_multi_add_handle(connection.multi, connection.easy) != CURLM_OK) {
    return CURLE_OUT_OF_MEMORY;
  }
  CURLcode code = CURLE_ABORTED_BY_CALLBACK;
  int running = 1;
  while (running > 0 && !request.stopped()) {
    if (curl_multi_perform(connection.multi, &running) != CURLM_OK ||
        (running > 0 &&
         curl_multi_poll(connection.multi, nullptr, 0, kPollMilliseconds, nullptr) != CURLM_OK)) {
      code = CURLE_OUT_OF_MEMORY;
      break;
    }
  }
  int left = 0;
  while (const CURLMsg* const message = curl_multi_info_read(connection.multi, &left)) {
    if (message->msg == CURLMSG_DONE) {
      code = message->data.result;
    }
  }
  curl_multi_remove_handle(connection.multi, connection.easy);
  return code;
}

}  // namespace

HttpClient::HttpClient() {
  static const CURLcode once = curl_global_init(CURL_GLOBAL_DEFAULT);
  Require(once == CURLE_OK, "libcurl begins");
}

HttpClient::~HttpClient() {
  for (const Connection& connection : idle_) {
    curl_easy_cleanup(connection.easy);
    curl_multi_cleanup(connection.multi);
  }
}

Status HttpClient::Perform(const HttpRequest& request, HttpAnswer& answer) {
  Connection connection;
  {
    std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      connection = idle_.back();
      idle_.pop_back();
    }
  }
  if (connection.easy == nullptr) {
    connection = {curl_easy_init(), curl_multi_init()};
    if (connection.easy == nullptr || connection.multi == nullptr) {
      curl_easy_cleanup(connection.easy);
      curl_multi_cleanup(connection.multi);
      return ResourceExhausted("memory for a request");
    }
  }
  CURL* const handle = connection.easy;
  answer = {};
  Transfer transfer{.handle = handle, .request = &request, .answer = &answer};
  std::array<char, CURL_ERROR_SIZE> text{};
  curl_slist* headers = nullptr;
  for (const auto& [name, value] : request.headers) {
    headers = curl_slist_append(headers, (name + ": " + value).c_str());
  }
  curl_easy_reset(handle);
  curl_easy_setopt(handle, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(handle, CURLOPT_PATH_AS_IS, 1L);  // "/../" may be a key's
  curl_easy_setopt(handle, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(handle, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(handle, CURLOPT_FOLLOWLOCATION, request.follow ? 1L : 0L);
  curl_easy_setopt(handle, CURLOPT_MAXREDIRS, 5L);
  curl_easy_setopt(handle, CURLOPT_NOSIGNAL, 1L);
  if (request.method == "HEAD") {
    curl_easy_setopt(handle, CURLOPT_NOBODY, 1L);
  } else if (request.method == "PUT" || request.method == "POST") {
    curl_easy_setopt(handle, CURLOPT_POSTFIELDSIZE_LARGE,
                     static_cast<curl_off_t>(request.body.size()));
    curl_easy_setopt(handle, CURLOPT_POSTFIELDS, request.body.data());  // stays the caller's
    // Not a form's, and without a question to the server whether it may come.
    headers = curl_slist_append(headers, "Content-Type: application/octet-stream");
    headers = curl_slist_append(headers, "Expect:");
  }
  if (request.method != "HEAD" && request.method != "GET") {
    curl_easy_setopt(handle, CURLOPT_CUSTOMREQUEST, request.method.c_str());
  }
  curl_easy_setopt(handle, CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(handle, CURLOPT_CONNECTTIMEOUT_MS,
                   static_cast<long>(request.connect_timeout.count()));
  curl_easy_setopt(handle, CURLOPT_TIMEOUT_MS, static_cast<long>(request.timeout.count()));
  curl_easy_setopt(handle, CURLOPT_ERRORBUFFER, text.data());
  curl_easy_setopt(handle, CURLOPT_HEADERFUNCTION, TakeHeader);
  curl_easy_setopt(handle, CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, TakeBody);
  curl_easy_setopt(handle, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(handle, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(handle, CURLOPT_XFERINFOFUNCTION, IsStopped);
  curl_easy_setopt(handle, CURLOPT_XFERINFODATA, &transfer);
  if (!request.ca_file.empty()) {
    curl_easy_setopt(handle, CURLOPT_CAINFO, request.ca_file.c_str());
  }
  const CURLcode code = Drive(connection, request);
  curl_slist_free_all(headers);
  {
    std::lock_guard lock(mutex_);
    idle_.push_back(connection);
  }
  if (transfer.idle) {
    return Unavailable("not a byte was sent or received for " +
                       std::to_string(request.idle_timeout.count()) + " ms");
  }
  const std::string what = text[0] != '\0' ? text.data() : curl_easy_strerror(code);
  switch (code) {
    case CURLE_OK:
      return {};
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
      return InvalidArgument(what);
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
      return PermissionDenied(what);
    default:
      return Unavailable(what);
  }
}

}  // namespace cohort::data
