#include "s3_server.h"

#include <algorithm>
#include <set>

#include "remote/sigv4.h"

namespace cohort::testing {
namespace {

using data::Sha256Hex;
using data::UriEncode;

std::string Decoded(const std::string& text) {
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%') {
      plain += static_cast<char>(std::stoi(text.substr(i + 1, 2), nullptr, 16));
      i += 2;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

std::map<std::string, std::string> QueryOf(const std::string& target) {
  std::map<std::string, std::string> query;
  std::size_t at = target.find('?');
  while (at != std::string::npos) {
    const std::size_t end = target.find('&', at + 1);
    const std::string pair = target.substr(at + 1, end == std::string::npos ? end : end - at - 1);
    const std::size_t equals = pair.find('=');
    query[Decoded(pair.substr(0, equals))] =
        equals == std::string::npos ? "" : Decoded(pair.substr(equals + 1));
    at = end;
  }
  return query;
}

std::string EtagOf(const std::string& content) {
  return "\"" + Sha256Hex(content).substr(0, 32) + "\"";
}

// All headers called x-amz-* must be signed, and the body must be the one that was.
bool IsSigned(const HttpServer::Request& request) {
  data::SigningRequest signing = {.method = request.method,
                                  .path = request.target.substr(0, request.target.find('?')),
                                  .query = QueryOf(request.target),
                                  .headers = {{"host", request.headers.at("host")}},
                                  .body = request.body};
  for (const auto& [name, value] : request.headers) {
    if (name.starts_with("x-amz-") && name != "x-amz-date" && name != "x-amz-content-sha256") {
      signing.headers[name] = value;
    }
  }
  if (!request.headers.contains("x-amz-date")) {
    return false;
  }
  const auto expected =
      SignRequest(signing, {.access_key = "AK", .secret_key = "SK", .region = "eu-north-1"},
                  request.headers.at("x-amz-date"));
  return request.headers.contains("authorization") &&
         request.headers.at("authorization") == expected.at("authorization");
}

}  // namespace

S3Server::S3Server(HttpServer::Faults faults) : server_(std::move(faults)) {
  server_.Handle([this](const HttpServer::Request& request) { return Answer(request); });
}

std::map<std::string, std::string> S3Server::objects() {
  std::map<std::string, std::string> objects;
  for (const auto& [target, content] : server_.files()) {
    objects[Decoded(target).substr(std::string("/bucket/").size())] = content;
  }
  return objects;
}

int S3Server::open_uploads() {
  std::lock_guard lock(mutex_);
  return static_cast<int>(uploads_.size());
}

HttpServer::Reply S3Server::List(const std::map<std::string, std::string>& query) {
  const std::string prefix = query.at("prefix");
  const std::string delimiter = query.contains("delimiter") ? query.at("delimiter") : "";
  std::set<std::string> entries;  // objects, and folders with their '/'
  for (const auto& [key, content] : objects()) {
    if (key.starts_with(prefix)) {
      const std::size_t slash =
          delimiter.empty() ? std::string::npos : key.find(delimiter, prefix.size());
      entries.insert(slash == std::string::npos ? key : key.substr(0, slash + 1));
    }
  }
  const std::size_t begin = query.contains("continuation-token")
                                ? std::stoul(query.at("continuation-token").substr(5))
                                : 0;
  std::string contents;
  std::string folders;
  std::size_t at = 0;
  for (const std::string& entry : entries) {
    if (at >= begin && at < begin + 2) {
      const std::string encoded = UriEncode(entry, /*keep_slash=*/true);
      (entry.ends_with('/') ? folders : contents) +=
          entry.ends_with('/') ? "<CommonPrefixes><Prefix>" + encoded + "</Prefix></CommonPrefixes>"
                               : "<Contents><Key>" + encoded + "</Key><Size>1</Size></Contents>";
    }
    ++at;
  }
  const bool more = begin + 2 < entries.size();
  return {.body =
              "<?xml version=\"1.0\"?><ListBucketResult><Name>bucket</Name><EncodingType>url"
              "</EncodingType><IsTruncated>" +
              std::string(more ? "true" : "false") + "</IsTruncated>" +
              (more ? "<NextContinuationToken>to+/=" + std::to_string(begin + 2) +
                          "</NextContinuationToken>"
                    : "") +
              contents + folders + "</ListBucketResult>"};
}

std::optional<HttpServer::Reply> S3Server::Answer(const HttpServer::Request& request) {
  if (!IsSigned(request)) {
    return HttpServer::Reply{.status = 403, .body = "SignatureDoesNotMatch"};
  }
  const std::string target = request.target.substr(0, request.target.find('?'));
  const auto query = QueryOf(request.target);
  if (query.contains("list-type")) {
    return target == "/bucket" ? List(query) : HttpServer::Reply{.status = 404};
  }
  const auto found = request.headers.find("x-amz-meta-cohort-mark");
  const std::string mark = found == request.headers.end() ? "" : found->second;
  const auto store = [&](const std::string& content,
                         const std::string& its_mark) -> HttpServer::Reply {
    if (request.headers.contains("if-none-match") && server_.files().contains(target)) {
      return {.status = 412};
    }
    server_.Put(target, content, EtagOf(content));
    marks_[target] = its_mark;
    return {.headers = {"ETag: " + EtagOf(content)},
            .body = "<Result><ETag>" + EtagOf(content) + "</ETag></Result>"};
  };
  std::lock_guard lock(mutex_);
  const auto upload =
      query.contains("uploadId") ? uploads_.find(query.at("uploadId")) : uploads_.end();
  if (query.contains("uploadId") && (upload == uploads_.end() || upload->second.target != target)) {
    return HttpServer::Reply{.status = 404, .body = "NoSuchUpload"};
  }
  if (request.method == "POST" && query.contains("uploads")) {
    const std::string id = "id&" + std::to_string(next_upload_++);
    uploads_[id] = {.target = target, .mark = mark, .parts = {}};
    return HttpServer::Reply{.body = "<R><UploadId>id&amp;" + id.substr(3) + "</UploadId></R>"};
  }
  if (request.method == "PUT" && query.contains("partNumber")) {
    upload->second.parts[std::stoi(query.at("partNumber"))] = request.body;
    return HttpServer::Reply{.headers = {"ETag: " + EtagOf(request.body)}};
  }
  if (request.method == "POST" && query.contains("uploadId")) {
    std::string content;
    std::string expected;
    for (const auto& [number, part] : upload->second.parts) {
      content += part;
      expected += "<Part><PartNumber>" + std::to_string(number) + "</PartNumber><ETag>" +
                  EtagOf(part) + "</ETag></Part>";
    }
    if (request.body != "<CompleteMultipartUpload>" + expected + "</CompleteMultipartUpload>") {
      return HttpServer::Reply{.status = 400, .body = "InvalidPart"};
    }
    const std::string of_upload = upload->second.mark;
    uploads_.erase(upload);
    return store(content, of_upload);
  }
  if (request.method == "DELETE") {
    if (upload != uploads_.end()) {
      uploads_.erase(upload);
    } else {
      server_.Remove(target);
    }
    return HttpServer::Reply{.status = 204};
  }
  if (request.method == "PUT") {
    if (request.headers.contains("x-amz-copy-source")) {
      const auto files = server_.files();
      const auto from = files.find(request.headers.at("x-amz-copy-source"));
      return from == files.end() ? HttpServer::Reply{.status = 404} : store(from->second, "");
    }
    return store(request.body, mark);
  }
  if (request.method == "HEAD" && marks_.contains(target)) {
    return HttpServer::Reply{.headers = {"x-amz-meta-cohort-mark: " + marks_[target]}};
  }
  return std::nullopt;  // GET of an object
}

}  // namespace cohort::testing
