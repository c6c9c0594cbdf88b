// Objects of S3 written, listed and removed, and data sets on them, at a server on a real socket.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include <cohort/core/environment.h>
#include <cohort/data/arrays.h>
#include <cohort/data/glob.h>
#include <cohort/data/memory.h>
#include <cohort/data/remote.h>
#include <cohort/data/tf_example.h>
#include <cohort/data/tf_record.h>
#include <cohort/io/record_file.h>

#include "collect.h"
#include "s3_server.h"
#include "sources/atomic_file.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::HttpServer;
using ::testing::IsEmpty;
using testing::S3Server;

RemoteOptions At(const S3Server& server) {
  RemoteOptions options;
  options.first_wait = milliseconds(1);
  options.attempt_timeout = milliseconds(5000);
  options.deadline = milliseconds(30'000);
  options.s3 = {
      .access_key = "AK", .secret_key = "SK", .region = "eu-north-1", .endpoint = server.origin()};
  return options;
}

Status Write(FileSystem& files, const std::string& path, std::string_view content) {
  COHORT_ASSIGN_OR_RETURN(const auto file, files.OpenForWrite(path));
  COHORT_RETURN_IF_ERROR(file->Append(AsBytes(content)));
  return file->Close();
}

TEST(S3, AnObjectIsThereWhenItIsClosed) {
  S3Server server;
  const auto files = MakeRemoteFileSystem(At(server));
  {
    const auto file = OrThrow(files->OpenForWrite("s3://bucket/a b/c+d"));
    OrThrow(file->Append(AsBytes("one ")));
    OrThrow(file->Append(AsBytes("two")));
    OrThrow(file->Sync());
    EXPECT_FALSE(files->Exists("s3://bucket/a b/c+d"));
    OrThrow(file->Close());
  }
  EXPECT_EQ(OrThrow(ReadFile(*files, "s3://bucket/a b/c+d")), "one two");
  static_cast<void>(OrThrow(files->OpenForWrite("s3://bucket/never"))->Append(AsBytes("x")));
  OrThrow(Write(*files, "s3://bucket/empty", ""));
  EXPECT_EQ(server.objects(),
            (std::map<std::string, std::string>{{"a b/c+d", "one two"}, {"empty", ""}}));
  EXPECT_EQ(OrThrow(files->OpenForRead("s3://bucket/empty"))->size(), 0U);
}

TEST(S3, LargeObjectsAreSentInParts) {
  std::string content((std::size_t{8} << 20) + 12345, 'x');
  for (std::size_t i = 0; i < content.size(); i += 1000) {
    content[i] = static_cast<char>('a' + i / 1000 % 26);
  }
  // Every third request is lost, or its answer is.
  S3Server server([](const HttpServer::Request& request) {
    return HttpServer::Fault{
        .status = request.number % 3 == 1 ? 503 : 0,
        .cut_after = request.method == "PUT" && request.number % 3 == 2 ? 0 : -1};
  });
  const auto files = MakeRemoteFileSystem(At(server));
  {
    const auto file = OrThrow(files->OpenForWrite("s3://bucket/large"));
    for (std::size_t at = 0; at < content.size(); at += 5'000'000) {
      OrThrow(file->Append(AsBytes(std::string_view(content).substr(at, 5'000'000))));
    }
    EXPECT_THAT(server.objects(), IsEmpty());
    EXPECT_EQ(server.open_uploads(), 1);
    OrThrow(file->Close());
  }
  EXPECT_EQ(server.open_uploads(), 0);
  EXPECT_TRUE(server.objects()["large"] == content);
  // Given up: nothing stays.
  OrThrow(OrThrow(files->OpenForWrite("s3://bucket/given up"))->Append(AsBytes(content)));
  EXPECT_EQ(server.open_uploads(), 0);
  EXPECT_EQ(server.objects().size(), 1U);
}

TEST(S3, NewObjectsReplaceNone) {
  S3Server server;
  const auto files = MakeRemoteFileSystem(At(server));
  OrThrow(OrThrow(files->CreateNew("s3://bucket/k"))->Close());
  const Status taken = OrThrow(files->CreateNew("s3://bucket/k"))->Close();
  EXPECT_EQ(taken.code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(taken.message(), "s3://bucket/k exists");
}

// The writer asks again, and is told that there is such an object: its own.
TEST(S3, AWriterWhoseAnswerWasLostKnowsItsObject) {
  const std::string large(std::size_t{9} << 20, 'x');
  for (const std::string& content : {std::string("x"), large}) {
    std::atomic<bool> lost = false;
    S3Server server([&](const HttpServer::Request& request) {
      const bool makes =
          request.target == "/bucket/k"
              ? request.method == "PUT"
              : request.method == "POST" && request.target.find("uploadId") != std::string::npos;
      return HttpServer::Fault{.cut_after = makes && !lost.exchange(true) ? 0 : -1};
    });
    const auto files = MakeRemoteFileSystem(At(server));
    const auto first = OrThrow(files->CreateNew("s3://bucket/k"));
    OrThrow(first->Append(AsBytes(content)));
    EXPECT_EQ(first->Close(), OkStatus());
    EXPECT_TRUE(lost);
    EXPECT_EQ(server.objects()["k"].size(), content.size());
    lost = false;
    const auto second = OrThrow(files->CreateNew("s3://bucket/k"));
    OrThrow(second->Append(AsBytes(content)));
    EXPECT_EQ(second->Close().code(), StatusCode::kAlreadyExists) << "the same bytes, another's";
  }
}

// As where a store joins parts, and sends a blank now and then.
TEST(S3, AWriteWhoseBytesMoveMayTakeLongerThanAnAttempt) {
  S3Server server([](const HttpServer::Request&) { return HttpServer::Fault{.trickle_ms = 20}; });
  RemoteOptions options = At(server);
  options.attempt_timeout = milliseconds(1000);
  EXPECT_EQ(Write(*MakeRemoteFileSystem(options), "s3://bucket/k", "x"), OkStatus());
  EXPECT_EQ(server.requests().size(), 1U) << "in one attempt, though the answer took longer";
}

TEST(S3, AWriteThatStandsStillIsTriedAgain) {
  std::atomic<int> silent = 1;
  S3Server server([&](const HttpServer::Request&) {
    if (silent.fetch_sub(1) > 0) {
      std::this_thread::sleep_for(milliseconds(400));  // the server's silence
    }
    return HttpServer::Fault();
  });
  RemoteOptions options = At(server);
  options.attempt_timeout = milliseconds(150);
  options.attempts = 2;
  const auto files = MakeRemoteFileSystem(options);
  EXPECT_EQ(Write(*files, "s3://bucket/k", "x"), OkStatus());
  silent = 2;
  const Status gone = Write(*files, "s3://bucket/k", "y");
  EXPECT_EQ(gone.code(), StatusCode::kUnavailable);
  EXPECT_THAT(gone.message(), HasSubstr("not a byte was sent or received for 150 ms"));
}

TEST(S3, ErrorsSayWhat) {
  S3Server server;
  RemoteOptions options = At(server);
  options.s3.secret_key = "wrong";
  const auto files = MakeRemoteFileSystem(options);
  const Status denied = Write(*files, "s3://bucket/k", "x");
  EXPECT_EQ(denied.code(), StatusCode::kPermissionDenied);
  EXPECT_EQ(denied.message(), "s3://bucket/k: the server says 403: SignatureDoesNotMatch");
  S3Server broken([](const HttpServer::Request&) { return HttpServer::Fault{.status = 503}; });
  const Status lost = Write(*MakeRemoteFileSystem(At(broken)), "s3://bucket/k", "x");
  EXPECT_EQ(lost.code(), StatusCode::kUnavailable);
  EXPECT_THAT(lost.message(), HasSubstr("s3://bucket/k: 5 attempts in a row failed"));
  const auto http = MakeRemoteFileSystem();
  EXPECT_EQ(http->List("http://x/f").status().code(), StatusCode::kUnimplemented);
  EXPECT_THAT(http->RemoveAll("s3://bucket/").message(), HasSubstr("a whole bucket"));
  EXPECT_THAT(http->List("s3://").status().message(), HasSubstr("s3://BUCKET/KEY is expected"));
}

TEST(S3, ListsPagesAndFindsByPattern) {
  S3Server server;
  const auto files = MakeRemoteFileSystem(At(server));
  for (const char* const key :
       {"train/part-0.tfrecord", "train/part-1.tfrecord", "train/part-2.tfrecord", "train/other",
        "train/deep/part-9.tfrecord", "train2/part-7.tfrecord", "a&b <c>"}) {
    OrThrow(Write(*files, std::string("s3://bucket/") + key, key));
  }
  EXPECT_THAT(OrThrow(files->List("s3://bucket")), ElementsAre("a&b <c>", "train", "train2"));
  EXPECT_THAT(
      OrThrow(files->List("s3://bucket/train/")),
      ElementsAre("deep", "other", "part-0.tfrecord", "part-1.tfrecord", "part-2.tfrecord"));
  EXPECT_EQ(files->List("s3://bucket/nothing").status().code(), StatusCode::kNotFound);
  EXPECT_THAT(
      OrThrow(Glob(*files, "s3://bucket/train/part-[02]*")),
      ElementsAre("s3://bucket/train/part-0.tfrecord", "s3://bucket/train/part-2.tfrecord"));
  for (const HttpServer::Request& request : server.requests()) {
    if (request.target.find("part-") != std::string::npos && request.method == "GET" &&
        request.target.find("list-type") != std::string::npos) {
      EXPECT_THAT(request.target, HasSubstr("prefix=train%2Fpart-")) << "only these are listed";
    }
  }
  EXPECT_THAT(
      OrThrow(Glob(*files, "s3://bucket/train*/part-?.tfrecord")),
      ElementsAre("s3://bucket/train/part-0.tfrecord", "s3://bucket/train/part-1.tfrecord",
                  "s3://bucket/train/part-2.tfrecord", "s3://bucket/train2/part-7.tfrecord"));
  EXPECT_THAT(OrThrow(Glob(*files, "s3://bucket/*/deep/part-9.tfrecord")),
              ElementsAre("s3://bucket/train/deep/part-9.tfrecord"));
  EXPECT_EQ(Glob(*files, "s3://bucket/tests/*").status().message(),
            "no file matches s3://bucket/tests/*");
  EXPECT_THAT(Glob(*files, "s3://b*/k").status().message(), HasSubstr("not for buckets"));
  EXPECT_THAT(OrThrow(Glob(*files, "http://host/f?a=*")), ElementsAre("http://host/f?a=*"));
  OrThrow(files->Rename("s3://bucket/a&b <c>", "s3://bucket/train/renamed"));
  OrThrow(files->RemoveAll("s3://bucket/train/deep"));
  EXPECT_THAT(
      OrThrow(files->List("s3://bucket/train")),
      ElementsAre("other", "part-0.tfrecord", "part-1.tfrecord", "part-2.tfrecord", "renamed"));
  EXPECT_EQ(OrThrow(ReadFile(*files, "s3://bucket/train/renamed")), "a&b <c>");
  OrThrow(Write(*files, "s3://bucket/train2", "an object with a folder's name"));
  OrThrow(files->Rename("s3://bucket/train2", "s3://bucket/moved"));
  EXPECT_THAT(OrThrow(files->List("s3://bucket/train2")), ElementsAre("part-7.tfrecord"));
}

TEST(Glob, FindsLocalFiles) {
  const testing::TempDir folder;
  for (const char* const name : {"b1", "b2", "c", ".b3"}) {
    OrThrow(WriteFileAtomically(FileSystem::Local(), folder / name, "x"));
  }
  OrThrow(FileSystem::Local().CreateDirectories(folder / "d"));
  OrThrow(WriteFileAtomically(FileSystem::Local(), folder / "d/b1", "x"));
  FileSystem& files = FileSystem::Local();
  EXPECT_THAT(OrThrow(Glob(files, folder / "b*")), ElementsAre(folder / "b1", folder / "b2"));
  EXPECT_THAT(OrThrow(Glob(files, folder / "*/b1")), ElementsAre(folder / "d/b1"));
  EXPECT_THAT(OrThrow(Glob(files, folder / "absent")), ElementsAre(folder / "absent"));
  EXPECT_THAT(Glob(files, "no-such-*").status().message(),
              HasSubstr("no file matches no-such-* in /"));
}

TEST(S3, DataSetsAreWrittenAndReadThere) {
  S3Server server;
  const auto files = MakeRemoteFileSystem(At(server));
  const Tensor x = Tensor::Of<float>({3}, std::vector<float>{1, 2, 3});
  OrThrow(WriteNpy(*files, "s3://bucket/x.npy", x));
  const Dataset arrays =
      OrThrow(Arrays({{.name = "x", .path = "s3://bucket/x.npy"}}, {.files = files.get()}));
  EXPECT_EQ(OrThrow(arrays.source().Read(2)).at("x").data<float>()[0], 3);
  for (const auto& [key, content] : server.objects()) {
    EXPECT_EQ(key, "x.npy") << "no temporary object is left";
  }
  const std::size_t before = server.requests().size();
  const std::uint64_t digest = arrays.Fingerprint();
  EXPECT_EQ(server.requests().size(), before) << "size and ETag are known";
  Tensor other = Tensor::Of<float>({3}, std::vector<float>{1, 2, 4});
  OrThrow(WriteNpy(*files, "s3://bucket/x.npy", other));
  const auto again = [&] {
    return OrThrow(Arrays({{.name = "x", .path = "s3://bucket/x.npy"}}, {.files = files.get()}));
  };
  EXPECT_NE(again().Fingerprint(), digest);
  OrThrow(WriteNpy(*files, "s3://bucket/x.npy", x));
  EXPECT_EQ(again().Fingerprint(), digest);
}

TEST(S3, AnUnfinishedFileLeavesTheObjectThatWasThere) {
  S3Server server;
  const auto files = MakeRemoteFileSystem(At(server));
  OrThrow(Write(*files, "s3://bucket/k", "old"));
  {
    const auto file = OrThrow(AtomicFile::Create(*files, "s3://bucket/k"));
    OrThrow(file->Append(AsBytes("new")));
  }
  EXPECT_EQ(server.objects()["k"], "old");
  const auto file = OrThrow(AtomicFile::Create(*files, "s3://bucket/k"));
  OrThrow(file->Append(AsBytes("new")));
  OrThrow(file->Close());
  EXPECT_EQ(server.objects()["k"], "new");
}

TEST(S3, ARecordFileThatIsGivenUpIsNone) {
  S3Server server;
  const auto files = MakeRemoteFileSystem(At(server));
  {
    const auto writer = OrThrow(io::RecordWriter::Create(*files, "s3://bucket/r"));
    OrThrow(writer->Write("of many"));
  }
  EXPECT_THAT(server.objects(), IsEmpty());
}

TEST(S3, WhatIsCalledAmzIsSigned) {
  S3Server server;
  RemoteOptions options = At(server);
  options.headers = {{"X-Amz-Request-Payer", "requester"}, {"Authorization", "Bearer secret"}};
  const auto files = MakeRemoteFileSystem(options);
  OrThrow(Write(*files, "s3://bucket/k", "x"));
  EXPECT_EQ(OrThrow(ReadFile(*files, "s3://bucket/k")), "x");
  const HttpServer::Request last = server.requests().back();
  EXPECT_EQ(last.headers.at("x-amz-request-payer"), "requester");
  EXPECT_THAT(last.headers.at("authorization"), HasSubstr("x-amz-request-payer,"));
}

TEST(S3, OptionsAreThoseOfAwsVariables) {
  const S3Options none = S3OptionsFrom(Environment());
  EXPECT_EQ(none.access_key + none.endpoint, "");
  EXPECT_EQ(none.region, "us-east-1");
  const S3Options some = S3OptionsFrom(Environment({{"AWS_ACCESS_KEY_ID", "a"},
                                                    {"AWS_SECRET_ACCESS_KEY", "s"},
                                                    {"AWS_SESSION_TOKEN", "t"},
                                                    {"AWS_DEFAULT_REGION", "d"},
                                                    {"AWS_ENDPOINT_URL", "http://e"}}));
  EXPECT_EQ(some.access_key + some.secret_key + some.session_token + some.region + some.endpoint,
            "astdhttp://e");
}

}  // namespace
}  // namespace cohort::data
