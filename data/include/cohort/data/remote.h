// Files behind HTTP, HTTPS and S3, as a FileSystem to read data sets from and, in S3, to write to.
//
//   const auto files = data::MakeRemoteFileSystem({.s3 = {.access_key = ..., .secret_key = ...}});
//   auto train = OrThrow(data::TfRecords({"s3://bucket/train-0.tfrecord"},
//                                        {.features = ..., .index = true, .files = files.get()}));
//
// Paths: http://, https://, s3://BUCKET/KEY; any other path is a local file. A server must answer
// ranges (RFC 9110, section 14), or hold files small enough to be sent whole.
//
// In S3, List gives what is in a folder (names up to the next '/'), glob.h finds keys by a pattern,
// and an object that is written is there when its file is closed, and not before; Sync and Flush
// have nothing to do. Above 8 MiB it is sent in parts while it is written. Rename copies within S3
// and deletes; RemoveAll deletes the object and what is in the folder of that name. CreateNew
// relies on If-None-Match, which the store must know. Files behind HTTP are read only.
//
// Reads that follow one another take `block` bytes at once and the next block is fetched meanwhile;
// single small reads take their own bytes; large ones are cut into parts that are fetched at once.
// What fails on the way (no connection, silence, 429, 5xx, an answer that is cut off) is tried
// again and goes on behind the bytes that have come. A file that changes after it was opened (its
// size or ETag) is FailedPrecondition. A file with an ETag (a strong one) is known by it and its
// size: fingerprints of data sets take these for its content, and read nothing. Errors name the
// URL, without its query.
//
// Thread rules: as FileSystem. Blocks for the network, never longer than `deadline` for one call.

#pragma once

#include <chrono>
#include <cstddef>
#include <map>
#include <memory>
#include <string>

#include <cohort/core/environment.h>
#include <cohort/core/file_system.h>

namespace cohort::data {

struct S3Options {
  std::string access_key;  // empty: requests are not signed
  std::string secret_key;
  std::string session_token;
  std::string region = "us-east-1";
  // Of a store that speaks S3: "http://minio:9000", buckets as the first part of the path. Empty:
  // Amazon's, https://BUCKET.s3.REGION.amazonaws.com.
  std::string endpoint;
};

// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION or AWS_DEFAULT_REGION,
// AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL.
S3Options S3OptionsFrom(const Environment& environment);

struct RemoteOptions {
  std::chrono::milliseconds connect_timeout{10'000};
  // Of one request that reads; bytes that came are kept. One that writes may take longer, as long
  // as bytes move: so much without one.
  std::chrono::milliseconds attempt_timeout{30'000};
  std::chrono::milliseconds deadline{300'000};  // one call, with all parts and attempts
  int attempts = 5;                             // in a row without a byte
  std::chrono::milliseconds first_wait{100};    // before the second; doubles, to 5 s
  std::size_t block = std::size_t{1} << 20;
  std::size_t part = std::size_t{8} << 20;
  // Requests at once, of all files, where one thread reads: its own and those ahead of it or beside
  // it. Each further thread that reads has one more. 1: nothing is read ahead.
  int parallel = 8;
  // Sent with every request: {"Authorization", ...}; to S3, those called x-amz-* are signed. With
  // these, and to S3, redirections are not followed.
  std::map<std::string, std::string> headers;
  std::string ca_file;  // certificates to trust; empty: the system's
  S3Options s3;
};

// It outlives the data sets that read through it: afterwards their reads are Cancelled.
std::unique_ptr<FileSystem> MakeRemoteFileSystem(const RemoteOptions& options = {});

}  // namespace cohort::data
