// AWS Signature Version 4: the headers that sign a request.
//
// Source: "Signature Version 4 signing process", docs.aws.amazon.com/IAM/latest/UserGuide; SHA-256
// is FIPS 180-4, HMAC RFC 2104.

#pragma once

#include <map>
#include <string>
#include <string_view>

namespace cohort::data {

std::string Sha256Hex(std::string_view bytes);

struct SigningRequest {
  std::string method = "GET";
  std::string path = "/";                      // encoded as it is sent
  std::map<std::string, std::string> query;    // decoded
  std::map<std::string, std::string> headers;  // lower-case names, with "host"
  std::string_view body = {};
};

struct SigningKey {
  std::string access_key;
  std::string secret_key;
  std::string session_token;
  std::string region;
  std::string service = "s3";
};

// The headers to send besides those of the request: authorization, x-amz-date,
// x-amz-content-sha256 (s3 only) and x-amz-security-token. `time` is "20150830T123600Z".
std::map<std::string, std::string> SignRequest(const SigningRequest& request, const SigningKey& key,
                                               const std::string& time);

// Percent-encodes all but unreserved characters, and '/' where `keep_slash`.
std::string UriEncode(std::string_view text, bool keep_slash);

}  // namespace cohort::data
