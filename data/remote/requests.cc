#include "remote/requests.h"

#include <strings.h>

#include <algorithm>
#include <ctime>
#include <thread>

#include <cohort/data/stop_scope.h>

namespace cohort::data {
namespace {

using std::chrono::milliseconds;

std::string TimeNow() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[20];
  std::strftime(text, sizeof(text), "%Y%m%dT%H%M%SZ", &parts);
  return text;
}

std::string LowerCase(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](char c) {
    return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  });
  return text;
}

// `key` is encoded; empty: the bucket itself.
Result<Target> S3Target(const std::string& bucket, const std::string& key, const S3Options& s3) {
  Target target;
  SigningRequest signing;
  std::string origin;
  if (s3.endpoint.empty()) {
    origin = "https://" + bucket + ".s3." + s3.region + ".amazonaws.com";
    signing.path = "/" + key;
  } else {
    origin = s3.endpoint;
    while (origin.ends_with('/')) {
      origin.pop_back();
    }
    if (!origin.starts_with("http://") && !origin.starts_with("https://")) {
      return InvalidArgument("S3 endpoint '" + s3.endpoint + "': http:// or https:// is expected");
    }
    if (origin.find('/', origin.find("://") + 3) != std::string::npos) {
      return InvalidArgument("S3 endpoint '" + s3.endpoint +
                             "': a host and a port, without a path, are expected");
    }
    // As it is sent: without the port that goes without saying.
    const std::string usual = origin.starts_with("https://") ? ":443" : ":80";
    if (origin.ends_with(usual)) {
      origin.resize(origin.size() - usual.size());
    }
    signing.path = "/" + bucket + (key.empty() ? "" : "/" + key);
  }
  signing.headers["host"] = origin.substr(origin.find("://") + 3);
  target.url = origin + signing.path;
  if (!s3.access_key.empty()) {
    target.signing = std::move(signing);
  }
  return target;
}

Status OfAnswer(const HttpAnswer& answer) {
  std::string what = "the server says " + std::to_string(answer.status);
  if (!answer.body.empty()) {
    what += ": " + answer.body;
  }
  switch (answer.status) {
    case 401:
    case 403:
      return PermissionDenied(what);
    case 404:
    case 410:
      return NotFound(what);
    case 412:
    case 416:  // no damage that a reader may skip
      return FailedPrecondition(what + " [was the file changed after it was opened?]");
    case 408:
    case 409:  // of a conditional write that met another
    case 425:
    case 429:
      return Unavailable(what);
    default:
      return answer.status >= 500 ? Unavailable(what) : InvalidArgument(what);
  }
}

}  // namespace

bool IsRemote(std::string_view path) {
  return path.starts_with("http://") || path.starts_with("https://") || IsS3(path);
}

Result<S3Path> SplitS3(const std::string& path) {
  const std::string rest = path.substr(5);
  const std::size_t slash = rest.find('/');
  S3Path split{rest.substr(0, slash), slash == std::string::npos ? "" : rest.substr(slash + 1)};
  if (split.bucket.empty()) {
    return InvalidArgument(path + ": s3://BUCKET/KEY is expected");
  }
  return split;
}

Result<Target> TargetOf(const std::string& path, const S3Options& s3) {
  if (!IsS3(path)) {
    std::string name = path.substr(0, path.find_first_of("?#"));
    const std::size_t host = name.find("://") + 3;
    const std::size_t at = name.substr(0, name.find('/', host)).rfind('@');
    if (at != std::string::npos) {
      name.erase(host, at + 1 - host);
    }
    return Target{path, std::move(name), std::nullopt};
  }
  COHORT_ASSIGN_OR_RETURN(const S3Path split, SplitS3(path));
  if (split.key.empty()) {
    return InvalidArgument(path + ": s3://BUCKET/KEY is expected");
  }
  COHORT_ASSIGN_OR_RETURN(Target target,
                          S3Target(split.bucket, UriEncode(split.key, /*keep_slash=*/true), s3));
  target.name = path;
  return target;
}

Result<Target> BucketTarget(const std::string& bucket, const S3Options& s3) {
  COHORT_ASSIGN_OR_RETURN(Target target, S3Target(bucket, "", s3));
  target.name = "s3://" + bucket;
  return target;
}

HttpRequest Requests::Make(const Wanted& wanted, std::uint64_t progress, const Take& take,
                           RemoteClock::time_point deadline) const {
  constexpr milliseconds kLeast{1};
  const RemoteOptions& options = shared_.options;
  const auto left = std::chrono::duration_cast<milliseconds>(deadline - RemoteClock::now());
  // What was read is kept, so an attempt may be cut short; what is written begins anew.
  const bool reads = wanted.method == "GET" || wanted.method == "HEAD";
  HttpRequest request{
      .url = target_.url,
      .method = wanted.method,
      .body = wanted.body,
      .headers = options.headers,
      .connect_timeout = std::max(kLeast, std::min(left, options.connect_timeout)),
      .timeout = std::max(kLeast, reads ? std::min(left, options.attempt_timeout) : left),
      .idle_timeout = reads ? milliseconds(0) : options.attempt_timeout,
      .ca_file = options.ca_file,
      .follow = options.headers.empty() && !target_.signing.has_value(),
      .take = take,
      .stopped = [this] { return stopped(); }};
  for (const auto& [name, value] : wanted.query) {
    request.url += request.url.find('?') == std::string::npos ? '?' : '&';
    request.url += UriEncode(name, false) + "=" + UriEncode(value, false);
  }
  for (const auto& [name, value] : wanted.headers) {
    request.headers[name] = value;
  }
  if (wanted.end > 0) {
    request.headers["Range"] =
        "bytes=" + std::to_string(wanted.begin + progress) + "-" + std::to_string(wanted.end - 1);
  }
  if (target_.signing.has_value()) {
    SigningRequest signing = *target_.signing;
    signing.method = wanted.method;
    signing.query = wanted.query;
    signing.body = wanted.body;
    // A user's credentials for another service stay here; what speaks to S3 is signed.
    std::erase_if(request.headers, [](const auto& header) {
      return ::strcasecmp(header.first.c_str(), "authorization") == 0;
    });
    for (const auto& [name, value] : request.headers) {
      if (const std::string lower = LowerCase(name); lower.starts_with("x-amz-")) {
        signing.headers[lower] = value;
      }
    }
    for (const auto& [name, value] : SignRequest(signing,
                                                 {options.s3.access_key, options.s3.secret_key,
                                                  options.s3.session_token, options.s3.region},
                                                 TimeNow())) {
      request.headers[name] = value;
    }
  }
  return request;
}

Status Requests::Run(const Wanted& wanted, RemoteClock::time_point deadline,
                     const std::uint64_t& progress, const Take& take,
                     const std::function<Status(const HttpAnswer&)>& judge) const {
  const RemoteOptions& options = shared_.options;
  const auto too_late = [&](const std::string& at_last) {
    return DeadlineExceeded(target_.name + ": not " + (wanted.body.empty() ? "read" : "written") +
                            " within " + std::to_string(options.deadline.count()) + " ms" +
                            at_last);
  };
  const bool ranged = wanted.end > 0;
  milliseconds wait = options.first_wait;
  int failures = 0;
  std::uint64_t before = progress;
  for (;;) {
    if (RemoteClock::now() >= deadline) {
      return too_late("");
    }
    HttpAnswer answer;
    Status status = shared_.client.Perform(Make(wanted, progress, take, deadline), answer);
    if (stopped()) {
      return Cancelled(target_.name + ": the file, its file system or an iterator is being closed");
    }
    // What an answer says counts also where it was ended because of that.
    if (answer.status / 100 == 2) {
      COHORT_RETURN_IF_ERROR(judge(answer));
      if (status.ok() || (ranged && progress == wanted.end - wanted.begin)) {
        return {};
      }
    } else if (status.ok()) {
      status = OfAnswer(answer);
      if (status.code() != StatusCode::kUnavailable) {
        return status.Annotate(target_.name);
      }
    } else if (status.code() != StatusCode::kUnavailable) {
      return status.Annotate(target_.name);
    }
    failures = progress > before ? 1 : failures + 1;
    if (progress > before) {
      wait = options.first_wait;
    }
    before = progress;
    if (failures >= options.attempts) {
      return Unavailable(target_.name + ": " + std::to_string(failures) +
                         " attempts in a row failed, the last: " + status.message() +
                         (ranged ? ", at byte " + std::to_string(wanted.begin + progress) : ""));
    }
    milliseconds pause = wait;
    if (answer.wait_seconds > 0) {
      pause = std::max(pause, milliseconds(std::min<std::int64_t>(answer.wait_seconds, 30) * 1000));
    }
    if (RemoteClock::now() + pause >= deadline) {
      return too_late(", at last: " + status.message());
    }
    Sleep(pause);
    wait = std::min(wait * 2, milliseconds(5000));
  }
}

Result<Requests::Reply> Requests::Send(const Wanted& wanted,
                                       RemoteClock::time_point deadline) const {
  constexpr std::size_t kMost = std::size_t{16} << 20;
  Reply reply;
  const std::uint64_t no_progress = 0;
  bool too_large = false;
  COHORT_RETURN_IF_ERROR(Run(
      wanted, deadline, no_progress,
      [&](const HttpAnswer& answer, std::span<const std::byte> bytes) {
        if (answer.received == 0) {
          reply.body.clear();  // of an attempt before
        }
        reply.body.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        too_large = reply.body.size() > kMost;
        return !too_large;
      },
      [&](const HttpAnswer& answer) -> Status {
        reply.answer = answer;
        if (answer.received == 0) {
          reply.body.clear();
        }
        return too_large ? InvalidArgument(target_.name + ": the server's answer is over 16 MiB")
                         : Status();
      }));
  return reply;
}

bool Requests::stopped() const {
  const std::atomic<bool>* const stop = StopScope::Current();
  return shared_.stop || closed_ || (stop != nullptr && *stop);
}

void Requests::Sleep(milliseconds pause) const {
  const RemoteClock::time_point end = RemoteClock::now() + pause;
  while (!stopped() && RemoteClock::now() < end) {
    std::this_thread::sleep_for(
        std::min<RemoteClock::duration>(milliseconds(50), end - RemoteClock::now()));
  }
}

}  // namespace cohort::data
