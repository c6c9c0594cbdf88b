#include "remote/s3.h"

#include <algorithm>
#include <random>
#include <set>
#include <utility>

namespace cohort::data {
namespace {

const std::atomic<bool> kOpen = false;

constexpr std::size_t kPart = std::size_t{8} << 20;  // S3's least is 5 MiB

// Of &lt; and the like; and of what "encoding-type=url" encodes.
std::string Decode(std::string_view text, bool url) {
  static constexpr std::pair<std::string_view, char> kEntities[] = {
      {"&lt;", '<'}, {"&gt;", '>'}, {"&amp;", '&'}, {"&quot;", '"'}, {"&apos;", '\''}};
  std::string plain;
  while (!text.empty()) {
    const auto* const entity =
        std::find_if(std::begin(kEntities), std::end(kEntities),
                     [&text](const auto& candidate) { return text.starts_with(candidate.first); });
    if (entity != std::end(kEntities)) {
      plain += entity->second;
      text.remove_prefix(entity->first.size());
    } else {
      plain += text.front();
      text.remove_prefix(1);
    }
  }
  if (!url) {
    return plain;
  }
  const auto digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
  };
  std::string decoded;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    if (plain[i] == '+') {
      decoded += ' ';
    } else if (plain[i] == '%' && i + 2 < plain.size() && digit(plain[i + 1]) >= 0 &&
               digit(plain[i + 2]) >= 0) {
      decoded += static_cast<char>(digit(plain[i + 1]) * 16 + digit(plain[i + 2]));
      i += 2;
    } else {
      decoded += plain[i];
    }
  }
  return decoded;
}

// What stands between <name> and </name>, from `at` on, which goes behind it; null: not there.
std::optional<std::string_view> Element(std::string_view xml, std::string_view name,
                                        std::size_t& at) {
  const std::string open = "<" + std::string(name) + ">";
  const std::string close = "</" + std::string(name) + ">";
  const std::size_t begin = xml.find(open, at);
  if (begin == std::string_view::npos) {
    return std::nullopt;
  }
  const std::size_t end = xml.find(close, begin);
  if (end == std::string_view::npos) {
    return std::nullopt;
  }
  at = end + close.size();
  return xml.substr(begin + open.size(), end - begin - open.size());
}

std::optional<std::string_view> First(std::string_view xml, std::string_view name) {
  std::size_t at = 0;
  return Element(xml, name, at);
}

// All keys that begin with `prefix`, and, with a delimiter, what they have in common up to it.
Result<std::vector<std::string>> Keys(Shared& shared, const std::string& bucket,
                                      const std::string& prefix, bool folders) {
  COHORT_ASSIGN_OR_RETURN(const Target target, BucketTarget(bucket, shared.options.s3));
  const Requests requests(shared, target, kOpen);
  std::vector<std::string> keys;
  std::set<std::string> tokens;
  std::string token;
  const RemoteClock::time_point deadline = shared.Deadline();
  for (;;) {
    Wanted wanted{.query = {{"list-type", "2"}, {"prefix", prefix}, {"encoding-type", "url"}}};
    if (folders) {
      wanted.query["delimiter"] = "/";
    }
    if (!token.empty()) {
      wanted.query["continuation-token"] = token;
    }
    COHORT_ASSIGN_OR_RETURN(const Requests::Reply reply, requests.Send(wanted, deadline));
    const std::string_view xml = reply.body;
    if (!First(xml, "IsTruncated").has_value()) {
      return FailedPrecondition(target.name + ": the server's answer is no list of objects: " +
                                reply.body.substr(0, 200));
    }
    const bool url = First(xml, "EncodingType") == "url";
    std::size_t at = 0;
    while (const auto contents = Element(xml, "Contents", at)) {
      if (const auto key = First(*contents, "Key")) {
        keys.push_back(Decode(*key, url));
      }
    }
    at = 0;
    while (const auto common = Element(xml, "CommonPrefixes", at)) {
      if (const auto folder = First(*common, "Prefix")) {
        keys.push_back(Decode(*folder, url));
      }
    }
    if (First(xml, "IsTruncated") != "true") {
      return keys;
    }
    token = Decode(First(xml, "NextContinuationToken").value_or(""), false);
    if (token.empty() || !tokens.insert(token).second) {
      return FailedPrecondition(target.name +
                                ": the server says that the list goes on, and not where");
    }
  }
}

std::string NewMark() {
  constexpr char kDigits[] = "0123456789abcdef";
  std::random_device random;
  std::string mark(32, '0');
  for (char& digit : mark) {
    digit = kDigits[random() % 16];
  }
  return mark;
}

class S3Object final : public WritableFile {
 public:
  S3Object(std::shared_ptr<Shared> shared, Target target, bool only_new)
      : shared_(std::move(shared)), target_(std::move(target)), only_new_(only_new) {}

  ~S3Object() override {
    if (!closed_ && !upload_.empty()) {
      // What was sent would stay, unseen, and cost.
      static_cast<void>(
          Send({.method = "DELETE", .query = {{"uploadId", upload_}}}, shared_->Deadline()));
    }
  }

  Status Append(std::span<const std::byte> bytes) override {
    Require(!closed_, "nothing is written after Close");
    COHORT_RETURN_IF_ERROR(broken_);
    const RemoteClock::time_point deadline = shared_->Deadline();
    while (!bytes.empty()) {
      // What S3 takes is 10,000 parts: later ones are larger.
      const std::size_t part = kPart << (etags_.size() / 1000);
      if (buffer_.size() == part) {
        broken_ = SendPart(deadline);
        COHORT_RETURN_IF_ERROR(broken_);
        continue;
      }
      const std::size_t n = std::min(bytes.size(), part - buffer_.size());
      buffer_.append(reinterpret_cast<const char*>(bytes.data()), n);
      bytes = bytes.subspan(n);
    }
    return {};
  }
  // There is no half of an object: Close writes it.
  Status Flush() override { return broken_; }
  Status Sync() override { return broken_; }

  Status Close() override {
    Require(!closed_, "Close is called once");
    COHORT_RETURN_IF_ERROR(broken_);
    const RemoteClock::time_point deadline = shared_->Deadline();
    Status status = upload_.empty() ? PutWhole(deadline) : Complete(deadline);
    closed_ = status.ok();
    broken_ = status;
    return status;
  }

 private:
  Result<Requests::Reply> Send(const Wanted& wanted, RemoteClock::time_point deadline) const {
    return Requests(*shared_, target_, kOpen).Send(wanted, deadline);
  }
  // Headers of the request that makes the object.
  std::map<std::string, std::string> Headers() const {
    return only_new_ ? std::map<std::string, std::string>{{"if-none-match", "*"}}
                     : std::map<std::string, std::string>{};
  }
  // An attempt before may have been heard, and its answer lost: then it is this writer's.
  Result<bool> IsMine(RemoteClock::time_point deadline) const {
    const Result<Requests::Reply> there = Send({.method = "HEAD"}, deadline);
    if (there.status().code() == StatusCode::kNotFound) {
      return false;
    }
    COHORT_RETURN_IF_ERROR(there.status());
    return there->answer.mark == mark_;
  }
  Status Judge(const Status& status, RemoteClock::time_point deadline) const {
    const bool taken = only_new_ && status.code() == StatusCode::kFailedPrecondition;
    if (!taken && status.code() != StatusCode::kNotFound) {
      return status;
    }
    COHORT_ASSIGN_OR_RETURN(const bool mine, IsMine(deadline));
    return mine ? OkStatus() : taken ? AlreadyExists(target_.name + " exists") : status;
  }

  Status PutWhole(RemoteClock::time_point deadline) const {
    std::map<std::string, std::string> headers = Headers();
    headers[kMarkHeader] = mark_;
    return Judge(Send({.method = "PUT", .headers = headers, .body = buffer_}, deadline).status(),
                 deadline);
  }

  Status SendPart(RemoteClock::time_point deadline) {
    if (upload_.empty()) {
      COHORT_ASSIGN_OR_RETURN(
          const Requests::Reply reply,
          Send({.method = "POST", .query = {{"uploads", ""}}, .headers = {{kMarkHeader, mark_}}},
               deadline));
      upload_ = Decode(First(reply.body, "UploadId").value_or(""), false);
      if (upload_.empty()) {
        return FailedPrecondition(
            target_.name + ": the server begins no upload in parts: " + reply.body.substr(0, 200));
      }
    }
    const std::string number = std::to_string(etags_.size() + 1);
    COHORT_ASSIGN_OR_RETURN(const Requests::Reply reply,
                            Send({.method = "PUT",
                                  .query = {{"partNumber", number}, {"uploadId", upload_}},
                                  .body = buffer_},
                                 deadline));
    if (reply.answer.etag.empty()) {
      return FailedPrecondition(target_.name + ": the server gave part " + number + " no ETag");
    }
    etags_.push_back(reply.answer.etag);
    buffer_.clear();
    return {};
  }

  Status Complete(RemoteClock::time_point deadline) {
    if (!buffer_.empty()) {
      COHORT_RETURN_IF_ERROR(SendPart(deadline));
    }
    std::string xml = "<CompleteMultipartUpload>";
    for (std::size_t i = 0; i < etags_.size(); ++i) {
      xml += "<Part><PartNumber>" + std::to_string(i + 1) + "</PartNumber><ETag>" + etags_[i] +
             "</ETag></Part>";
    }
    xml += "</CompleteMultipartUpload>";
    const Result<Requests::Reply> reply = Send(
        {.method = "POST", .query = {{"uploadId", upload_}}, .headers = Headers(), .body = xml},
        deadline);
    if (!reply.ok()) {
      return Judge(reply.status(), deadline);
    }
    // 200 is said before the parts are joined.
    if (First(reply->body, "ETag").has_value()) {
      return {};
    }
    return Unavailable(target_.name +
                       ": the server did not join the parts: " + reply->body.substr(0, 300));
  }

  std::shared_ptr<Shared> shared_;  // owners: the file system and its files
  const Target target_;
  const bool only_new_;
  const std::string mark_ = NewMark();
  std::string buffer_;              // the part that is being filled
  std::string upload_;              // of the upload in parts; empty: none was begun
  std::vector<std::string> etags_;  // of the parts that were sent
  bool closed_ = false;
  Status broken_;
};

}  // namespace

Result<std::unique_ptr<WritableFile>> CreateS3Object(std::shared_ptr<Shared> shared,
                                                     const std::string& path, bool only_new) {
  COHORT_ASSIGN_OR_RETURN(Target target, TargetOf(path, shared->options.s3));
  return std::make_unique<S3Object>(std::move(shared), std::move(target), only_new);
}

Result<std::vector<std::string>> ListS3(Shared& shared, const std::string& path,
                                        const std::string& prefix) {
  COHORT_ASSIGN_OR_RETURN(S3Path split, SplitS3(path));
  if (!split.key.empty() && !split.key.ends_with('/')) {
    split.key += '/';
  }
  COHORT_ASSIGN_OR_RETURN(const std::vector<std::string> keys,
                          Keys(shared, split.bucket, split.key + prefix, /*folders=*/true));
  std::set<std::string> names;
  for (const std::string& key : keys) {
    if (key.size() > split.key.size() && key.starts_with(split.key)) {
      names.insert(key.substr(split.key.size(),
                              key.size() - split.key.size() - (key.ends_with('/') ? 1 : 0)));
    }
  }
  if (keys.empty()) {
    return NotFound(path + ": there is no object" +
                    (prefix.empty() ? "" : " whose name begins with '" + prefix + "'"));
  }
  return std::vector<std::string>(names.begin(), names.end());
}

Status CopyS3Object(Shared& shared, const std::string& from, const std::string& to) {
  COHORT_ASSIGN_OR_RETURN(const S3Path source, SplitS3(from));
  COHORT_ASSIGN_OR_RETURN(const Target target, TargetOf(to, shared.options.s3));
  const std::string copied = "/" + source.bucket + "/" + UriEncode(source.key, /*keep_slash=*/true);
  COHORT_ASSIGN_OR_RETURN(
      const Requests::Reply reply,
      Requests(shared, target, kOpen)
          .Send({.method = "PUT", .headers = {{"x-amz-copy-source", copied}}}, shared.Deadline()));
  return First(reply.body, "ETag").has_value()
             ? Status()
             : Unavailable(target.name + ": the server did not copy " + from + ": " +
                           reply.body.substr(0, 300));
}

Status RemoveS3Object(Shared& shared, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const Target target, TargetOf(path, shared.options.s3));
  const Status status =
      Requests(shared, target, kOpen).Send({.method = "DELETE"}, shared.Deadline()).status();
  return status.code() == StatusCode::kNotFound ? Status() : status;
}

Status RemoveS3(Shared& shared, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(S3Path split, SplitS3(path));
  if (split.key.empty()) {
    return InvalidArgument(path + ": a whole bucket is not removed");
  }
  while (split.key.ends_with('/')) {
    split.key.pop_back();
  }
  COHORT_ASSIGN_OR_RETURN(std::vector<std::string> keys,
                          Keys(shared, split.bucket, split.key + "/", /*folders=*/false));
  keys.push_back(split.key);
  for (const std::string& key : keys) {
    COHORT_RETURN_IF_ERROR(RemoveS3Object(shared, "s3://" + split.bucket + "/" + key));
  }
  return {};
}

}  // namespace cohort::data
