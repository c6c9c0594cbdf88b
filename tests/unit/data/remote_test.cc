// Files behind HTTP and S3, from a server on a real socket.

#include <cohort/data/remote.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <random>
#include <thread>

#include <cohort/data/tf_example.h>
#include <cohort/data/tf_record.h>
#include <cohort/io/record_file.h>

#include "collect.h"
#include "http_server.h"
#include "remote/sigv4.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::HttpServer;
using ::testing::Not;

// Small blocks and parts, so that little data takes every way.
RemoteOptions Quick() {
  RemoteOptions options;
  options.first_wait = milliseconds(1);
  options.attempt_timeout = milliseconds(2000);
  options.deadline = milliseconds(20'000);
  options.block = 1000;
  options.part = 3000;
  options.parallel = 4;
  return options;
}

std::string Noise(std::size_t size) {
  std::mt19937 random(7);
  std::string bytes(size, '\0');
  for (char& byte : bytes) {
    byte = static_cast<char>(random());
  }
  return bytes;
}

Result<std::string> ReadAt(const RandomAccessFile& file, std::uint64_t offset, std::size_t size) {
  std::string bytes(size, '\0');
  COHORT_ASSIGN_OR_RETURN(const std::size_t n,
                          file.Read(offset, std::as_writable_bytes(std::span(bytes))));
  bytes.resize(n);
  return bytes;
}

TEST(Remote, EveryReadGivesTheBytesOfTheFile) {
  HttpServer server;
  const std::string content = Noise(25'500);
  server.Put("/f?key=secret", content);
  const auto files = MakeRemoteFileSystem(Quick());
  const auto file = OrThrow(files->OpenForRead(server.origin() + "/f?key=secret"));
  ASSERT_EQ(file->size(), content.size());
  // Whole, in sequence, at random, over the end; from several threads.
  EXPECT_EQ(OrThrow(ReadAt(*file, 0, content.size() + 10)), content);
  std::string joined;
  for (std::size_t at = 0; at < content.size(); at += 333) {
    joined += OrThrow(ReadAt(*file, at, 333));
  }
  EXPECT_EQ(joined, content);
  EXPECT_EQ(OrThrow(ReadAt(*file, content.size(), 5)), "");
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 50; ++i) {
        const std::size_t at = random() % content.size();
        const std::size_t size = random() % (i % 5 == 0 ? 9000 : 700);
        ASSERT_EQ(OrThrow(ReadAt(*file, at, size)), content.substr(at, size));
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

TEST(Remote, SequencesAreReadAheadInBlocksAndSingleReadsTakeTheirBytes) {
  HttpServer server;
  const std::string content = Noise(100'000);
  server.Put("/f", content);
  const auto files = MakeRemoteFileSystem(Quick());
  {
    const auto file = OrThrow(files->OpenForRead(server.origin() + "/f"));
    for (std::size_t at = 0; at < 20'000; at += 10) {
      ASSERT_EQ(OrThrow(ReadAt(*file, at, 10)), content.substr(at, 10));
    }
  }
  EXPECT_LE(server.requests().size(), 1U + 20 + 1) << "2,000 reads, 20 blocks, and the one ahead";
  const auto file = OrThrow(files->OpenForRead(server.origin() + "/f"));
  EXPECT_EQ(OrThrow(ReadAt(*file, 50'000, 10)), content.substr(50'000, 10));
  // The block that was read ahead may still be on its way to the server.
  std::vector<HttpServer::Request> single = server.requests();
  std::erase_if(single, [](const HttpServer::Request& request) { return request.begin < 40'000; });
  ASSERT_EQ(single.size(), 1U);
  EXPECT_EQ(single.back().begin, 50'000);
  EXPECT_EQ(single.back().end, 50'010);
}

// No part is answered before as many are asked for as there may be at once.
TEST(Remote, PartsOfALargeReadAreFetchedAtOnce) {
  const RemoteOptions options = Quick();
  std::atomic<HttpServer*> self = nullptr;
  HttpServer server([&](const HttpServer::Request& request) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    while (request.number > 0 && self.load()->most_open() < options.parallel &&
           std::chrono::steady_clock::now() < limit) {
      std::this_thread::yield();
    }
    return HttpServer::Fault();
  });
  self = &server;
  const std::string content = Noise(12 * options.part);
  server.Put("/f", content);
  const auto files = MakeRemoteFileSystem(options);
  const auto file = OrThrow(files->OpenForRead(server.origin() + "/f"));
  EXPECT_EQ(server.most_open(), 1);
  EXPECT_EQ(OrThrow(ReadAt(*file, 0, content.size())), content);
  EXPECT_EQ(server.requests().size(), 1U + 12);
  EXPECT_EQ(server.most_open(), options.parallel) << "with that of who reads";
}

TEST(Remote, OneRequestAtOnceIsOne) {
  RemoteOptions options = Quick();
  options.parallel = 1;
  HttpServer server([&](const HttpServer::Request&) {
    std::this_thread::sleep_for(milliseconds(2));  // time for another one
    return HttpServer::Fault();
  });
  const std::string content = Noise(4 * options.part);
  server.Put("/f", content);
  const auto files = MakeRemoteFileSystem(options);
  const auto file = OrThrow(files->OpenForRead(server.origin() + "/f"));
  EXPECT_EQ(OrThrow(ReadAt(*file, 0, content.size())), content);
  for (std::size_t at = 0; at + 100 <= content.size(); at += 100) {
    EXPECT_EQ(OrThrow(ReadAt(*file, at, 100)), content.substr(at, 100));
  }
  EXPECT_EQ(server.most_open(), 1);
}

// A tenth of a block is read, and the server has been asked for the next one.
TEST(Remote, TheNextBlockIsAskedForBeforeThisOneIsConsumed) {
  HttpServer server;
  const std::string content = Noise(6'500);
  server.Put("/f", content);
  const RemoteOptions options = Quick();
  const auto files = MakeRemoteFileSystem(options);
  const auto file = OrThrow(files->OpenForRead(server.origin() + "/f"));
  const auto asked = [&](std::uint64_t begin) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < limit) {
      for (const HttpServer::Request& request : server.requests()) {
        if (request.number > 0 && request.begin == static_cast<std::int64_t>(begin)) {
          return true;
        }
      }
      std::this_thread::yield();
    }
    return false;
  };
  for (std::uint64_t at = 0; at + options.block < content.size(); at += options.block) {
    ASSERT_EQ(OrThrow(ReadAt(*file, at, 100)), content.substr(at, 100));
    ASSERT_TRUE(asked(at + options.block)) << at;
    ASSERT_EQ(OrThrow(ReadAt(*file, at + 100, options.block - 100)),
              content.substr(at + 100, options.block - 100));
  }
  EXPECT_EQ(server.requests().size(), 1U + 7) << "each block once";
}

// Every kind of trouble that passes, at every request in turn.
TEST(Remote, GoesOnAfterTroubleWithoutReadingAnythingTwice) {
  const std::string content = Noise(12'000);
  const std::vector<HttpServer::Fault> faults = {
      {.status = 500},    {.status = 503, .header = "Retry-After: 0"},
      {.status = 429},    {.drop = true},
      {.cut_after = 0},   {.cut_after = 700},
      {.send_only = 400},
  };
  for (const HttpServer::Fault& fault : faults) {
    HttpServer server([&fault](const HttpServer::Request& request) {
      return request.number % 2 == 1 ? HttpServer::Fault() : fault;
    });
    server.Put("/f", content);
    const auto files = MakeRemoteFileSystem(Quick());
    const auto file = OrThrow(files->OpenForRead(server.origin() + "/f"));
    EXPECT_EQ(OrThrow(ReadAt(*file, 0, 12'000)), content) << fault.status << fault.cut_after;
    if (fault.cut_after == 700) {
      for (const auto& request : server.requests()) {
        EXPECT_EQ(request.begin % 3000 % 700, 0) << request.begin;
      }
    }
  }
}

TEST(Remote, AStalledAnswerIsAskedForAgain) {
  const std::string content = Noise(500);
  HttpServer server([](const HttpServer::Request& request) {
    return HttpServer::Fault{.stall = request.number == 1};
  });
  server.Put("/f", content);
  RemoteOptions options = Quick();
  options.attempt_timeout = milliseconds(200);
  const auto files = MakeRemoteFileSystem(options);
  const auto file = OrThrow(files->OpenForRead(server.origin() + "/f"));
  EXPECT_EQ(OrThrow(ReadAt(*file, 0, 500)), content);
}

TEST(Remote, TroubleThatStaysIsAnErrorThatSaysWhat) {
  std::atomic<int> status = 503;
  HttpServer server([&status](const HttpServer::Request& request) {
    return HttpServer::Fault{.status = request.number == 0 ? 0 : status.load()};
  });
  server.Put("/f?key=secret", Noise(5000));
  const auto files = MakeRemoteFileSystem(Quick());
  const auto file = OrThrow(files->OpenForRead(server.origin() + "/f?key=secret"));
  const auto read = [&] { return ReadAt(*file, 1000, 4000).status(); };
  const Status gone = read();
  EXPECT_EQ(gone.code(), StatusCode::kUnavailable);
  EXPECT_THAT(gone.message(), AllOf(HasSubstr(server.origin() + "/f: 5 attempts in a row failed"),
                                    HasSubstr("the server says 503: no: 503"),
                                    HasSubstr("at byte 1000"), Not(HasSubstr("secret"))));
  status = 403;
  EXPECT_EQ(read().code(), StatusCode::kPermissionDenied);
  status = 404;
  EXPECT_EQ(read().code(), StatusCode::kNotFound);
  status = 400;
  EXPECT_EQ(read().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(files->OpenForRead(server.origin() + "/none").status().code(),
            StatusCode::kInvalidArgument)
      << "400 still";
  EXPECT_FALSE(files->Exists(server.origin() + "/none"));

  RemoteOptions hurried = Quick();
  hurried.deadline = milliseconds(150);
  hurried.first_wait = milliseconds(60);
  hurried.attempts = 100;
  status = 500;
  const auto late = MakeRemoteFileSystem(hurried)->OpenForRead(server.origin() + "/f?key=secret");
  EXPECT_EQ(late.status().code(), StatusCode::kDeadlineExceeded);
  // Nobody listens there.
  const auto nobody = files->OpenForRead("http://127.0.0.1:1/f");
  EXPECT_EQ(nobody.status().code(), StatusCode::kUnavailable);
}

TEST(Remote, AServerThatDiesMidwayIsAnErrorOfTheRead) {
  const std::string content = Noise(9000);
  auto server = std::make_unique<HttpServer>();
  server->Put("/f", content);
  const auto files = MakeRemoteFileSystem(Quick());
  const auto file = OrThrow(files->OpenForRead(server->origin() + "/f"));
  EXPECT_EQ(OrThrow(ReadAt(*file, 0, 1000)), content.substr(0, 1000));
  server.reset();
  EXPECT_EQ(ReadAt(*file, 4000, 5000).status().code(), StatusCode::kUnavailable);
}

// Each answer comes in time, and brings one byte: hours, if each had the time of a read.
TEST(Remote, OneDeadlineForAWholeRead) {
  HttpServer server([](const HttpServer::Request& request) {
    return HttpServer::Fault{.send_only = request.number == 0 ? -1 : 1};
  });
  const std::string content = Noise(4'000'000);
  server.Put("/f", content);
  RemoteOptions options = Quick();
  options.deadline = milliseconds(1000);
  options.part = 2'000'000;
  const auto files = MakeRemoteFileSystem(options);
  const auto file = OrThrow(files->OpenForRead(server.origin() + "/f"));
  const Status large = ReadAt(*file, 0, content.size()).status();
  EXPECT_EQ(large.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(large.message(), HasSubstr("/f: not read within 1000 ms"));
}

// A server that has fallen silent, in the middle of a batch.
TEST(Remote, AnIteratorIsDestroyedWithoutWaitingForTheServer) {
  const testing::TempDir folder;
  auto writer = OrThrow(io::RecordWriter::Create(FileSystem::Local(), folder / "r"));
  for (std::int64_t i = 0; i < 500; ++i) {
    TfFeatures features;
    features["id"] = {.kind = TfFeature::Kind::kInt64, .ints = {i}};
    OrThrow(writer->Write(EncodeTfExample(features)));
  }
  OrThrow(writer->Close());
  std::atomic<bool> silent = false;
  std::atomic<int> stalled = 0;
  HttpServer server([&](const HttpServer::Request&) {
    stalled += silent ? 1 : 0;
    return HttpServer::Fault{.stall = silent};
  });
  server.Put("/r", OrThrow(ReadFile(FileSystem::Local(), folder / "r")));
  RemoteOptions options = Quick();
  options.attempt_timeout = milliseconds(120'000);
  options.deadline = milliseconds(120'000);
  const auto files = MakeRemoteFileSystem(options);
  for (const int threads : {1, 3}) {
    // Opened anew: nothing of it is here yet.
    const Dataset data = OrThrow(
        TfRecords({server.origin() + "/r"},
                  {.features = {{.name = "id", .type = TfType::kInt64}}, .files = files.get()}));
    silent = true;
    stalled = 0;
    auto iterator = OrThrow(data.Shuffle(1).Batch(200).Prefetch(4, threads).Iterate());
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (stalled == 0 && std::chrono::steady_clock::now() < limit) {
      std::this_thread::yield();
    }
    ASSERT_GT(stalled, 0);
    const auto start = std::chrono::steady_clock::now();
    iterator.reset();
    // A second at most, where the machine has time for it; the attempts would take two minutes.
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
    silent = false;
    EXPECT_EQ(Flatten(Collect(data.Batch(200).Prefetch(2))).size(), 500U) << "others read on";
  }
}

// Its read ahead has the only thread for such.
TEST(Remote, ASilentServerHoldsUpNoOtherFile) {
  const std::string content = Noise(9000);
  std::atomic<bool> silent = false;
  std::atomic<int> stalled = 0;
  HttpServer server([&](const HttpServer::Request& request) {
    const bool stall = silent && request.target == "/silent";
    stalled += stall ? 1 : 0;
    return HttpServer::Fault{.stall = stall};
  });
  server.Put("/silent", content);
  server.Put("/f", content);
  RemoteOptions options = Quick();
  options.attempt_timeout = milliseconds(120'000);
  options.deadline = milliseconds(120'000);
  options.parallel = 2;
  const auto files = MakeRemoteFileSystem(options);
  const auto held = OrThrow(files->OpenForRead(server.origin() + "/silent"));
  silent = true;
  auto reading = std::async(std::launch::async, [&] { return ReadAt(*held, 0, 500); });
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (stalled < 2 && std::chrono::steady_clock::now() < limit) {
    std::this_thread::yield();
  }
  ASSERT_EQ(stalled, 2) << "the read, and the one ahead of it";
  const auto start = std::chrono::steady_clock::now();
  {
    const auto file = OrThrow(files->OpenForRead(server.origin() + "/f"));
    for (std::size_t at = 0; at < 9000; at += 500) {
      EXPECT_EQ(OrThrow(ReadAt(*file, at, 500)), content.substr(at, 500));
    }
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
  EXPECT_EQ(reading.wait_for(milliseconds(0)), std::future_status::timeout);
  silent = false;
  server.Disconnect();
  EXPECT_EQ(OrThrow(reading.get()), content.substr(0, 500)) << "asked for again";
}

TEST(Remote, AFileThatChangesIsNeverReadAsData) {
  HttpServer server;
  server.Put("/f", Noise(5000));
  const auto files = MakeRemoteFileSystem(Quick());
  const std::string url = server.origin() + "/f";
  const auto file = OrThrow(files->OpenForRead(url));
  server.Put("/f", Noise(5000), "\"2\"");
  const Status other = ReadAt(*file, 0, 5000).status();
  EXPECT_EQ(other.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(other.message(), AllOf(HasSubstr("its ETag is \"2\", and was \"1\""),
                                     HasSubstr("changed after it was opened")));
  server.Put("/f", Noise(4000));
  EXPECT_THAT(ReadAt(*file, 0, 1500).status().message(), HasSubstr("has 4000 bytes, and had 5000"));
  server.Put("/f", Noise(100));
  EXPECT_EQ(ReadAt(*file, 2000, 1500).status().code(), StatusCode::kFailedPrecondition) << "416";
  HttpServer shifted([](const HttpServer::Request& request) {
    return HttpServer::Fault{.shift = request.number == 0 ? 0 : 10};
  });
  shifted.Put("/f", Noise(5000));
  const auto wrong = OrThrow(files->OpenForRead(shifted.origin() + "/f"));
  EXPECT_THAT(ReadAt(*wrong, 0, 1500).status().message(),
              HasSubstr("sent other bytes than those asked for"));
}

TEST(Remote, ServersWithoutRangesSendSmallFilesWhole) {
  HttpServer server([](const HttpServer::Request& request) {
    return HttpServer::Fault{.cut_after = request.number == 1 ? 500 : -1};
  });
  server.IgnoreRanges();
  const std::string content = Noise(7000);
  server.Put("/f", content);
  server.Put("/empty", "");
  const auto files = MakeRemoteFileSystem(Quick());
  const auto file = OrThrow(files->OpenForRead(server.origin() + "/f"));
  EXPECT_EQ(OrThrow(ReadAt(*file, 0, 7000)), content);
  EXPECT_EQ(OrThrow(ReadAt(*file, 6500, 100)), content.substr(6500, 100));
  EXPECT_EQ(OrThrow(files->OpenForRead(server.origin() + "/empty"))->size(), 0U);
  HttpServer ranges;
  ranges.Put("/empty", "");
  EXPECT_EQ(OrThrow(files->OpenForRead(ranges.origin() + "/empty"))->size(), 0U);
}

TEST(Remote, RedirectionsAreFollowedUnlessThereIsASecret) {
  HttpServer target;
  target.Put("/there", "content");
  HttpServer server([&target](const HttpServer::Request&) {
    return HttpServer::Fault{.status = 302, .header = "Location: " + target.origin() + "/there"};
  });
  const auto files = MakeRemoteFileSystem(Quick());
  EXPECT_EQ(OrThrow(ReadFile(*files, server.origin() + "/here")), "content");
  RemoteOptions secret = Quick();
  secret.headers["X-Token"] = "secret";
  const std::size_t before = target.requests().size();
  EXPECT_THAT(
      MakeRemoteFileSystem(secret)->OpenForRead(server.origin() + "/here").status().message(),
      HasSubstr("the server says 302"));
  EXPECT_EQ(target.requests().size(), before);
}

TEST(Remote, WhatIsLocalIsLocalAndNothingIsWrittenOverHttp) {
  const testing::TempDir folder;
  const auto files = MakeRemoteFileSystem();
  OrThrow(WriteFileAtomically(*files, folder / "f", "here"));
  EXPECT_EQ(OrThrow(ReadFile(*files, folder / "f")), "here");
  EXPECT_EQ(files->OpenForWrite("http://x/f").status().code(), StatusCode::kUnimplemented);
  EXPECT_EQ(files->RemoveAll("https://x/f").code(), StatusCode::kUnimplemented);
  EXPECT_THAT(files->OpenForRead("s3://bucket").status().message(),
              HasSubstr("s3://BUCKET/KEY is expected"));
}

TEST(Remote, ADataSetIsReadThroughTroubleAsIfItWereLocal) {
  const testing::TempDir folder;
  auto writer = OrThrow(io::RecordWriter::Create(FileSystem::Local(), folder / "r"));
  for (std::int64_t i = 0; i < 200; ++i) {
    TfFeatures features;
    features["id"] = {.kind = TfFeature::Kind::kInt64, .ints = {i}};
    OrThrow(writer->Write(EncodeTfExample(features)));
  }
  OrThrow(writer->Close());
  OrThrow(WriteTfIndex(FileSystem::Local(), folder / "r"));
  HttpServer server([](const HttpServer::Request& request) {
    return HttpServer::Fault{.drop = request.number % 7 == 3,
                             .cut_after = request.number % 5 == 4 ? 9 : -1};
  });
  server.Put("/r", OrThrow(ReadFile(FileSystem::Local(), folder / "r")));
  server.Put("/r.idx", OrThrow(ReadFile(FileSystem::Local(), folder / "r.idx")));
  RemoteOptions quick = Quick();
  quick.attempts = 10;
  const auto files = MakeRemoteFileSystem(quick);
  for (const bool index : {true, false}) {
    const std::vector<TfFeatureSpec> features = {{.name = "id", .type = TfType::kInt64}};
    const Dataset local = OrThrow(TfRecords({folder / "r"}, {.features = features}));
    const Dataset remote = OrThrow(TfRecords(
        {server.origin() + "/r"}, {.features = features, .index = index, .files = files.get()}));
    const std::size_t before = server.requests().size();
    const std::uint64_t digest = remote.Fingerprint();
    EXPECT_EQ(server.requests().size(), before) << "size and ETag are known";
    EXPECT_EQ(digest,
              OrThrow(TfRecords({server.origin() + "/r"},
                                {.features = features, .index = index, .files = files.get()}))
                  .Fingerprint());
    EXPECT_EQ(Collect(remote.Shuffle(1).Batch(16).Prefetch(4, 3)),
              Collect(local.Shuffle(1).Batch(16)));
  }
}

TEST(Remote, S3IsSignedAndAddressedByBucketAndKey) {
  HttpServer server;
  server.Put("/bucket/a%20folder/f.tfrecord", "content");
  RemoteOptions options = Quick();
  options.s3 = {.access_key = "AK",
                .secret_key = "SK",
                .session_token = "TOKEN",
                .region = "eu-north-1",
                .endpoint = server.origin() + "/"};
  const auto files = MakeRemoteFileSystem(options);
  EXPECT_EQ(OrThrow(ReadFile(*files, "s3://bucket/a folder/f.tfrecord")), "content");
  // What came over the wire is what signing it again gives.
  const HttpServer::Request request = server.requests().back();
  const SigningRequest signing = {.path = request.target,
                                  .headers = {{"host", request.headers.at("host")}}};
  const auto expected =
      SignRequest(signing, {"AK", "SK", "TOKEN", "eu-north-1"}, request.headers.at("x-amz-date"));
  for (const auto& [name, value] : expected) {
    EXPECT_EQ(request.headers.at(name), value);
  }
  EXPECT_EQ(request.headers.at("x-amz-security-token"), "TOKEN");
}

TEST(Sha256, KnownAnswers) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Sha256Hex(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

std::string SignatureOf(const SigningRequest& request, const SigningKey& key,
                        const std::string& time) {
  const std::string header = SignRequest(request, key, time).at("authorization");
  return header.substr(header.find("Signature=") + 10);
}

// The suite that AWS publishes (aws-sig-v4-test-suite).
TEST(SigV4, TheTestSuitesVectors) {
  const SigningKey key = {.access_key = "AKIDEXAMPLE",
                          .secret_key = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
                          .region = "us-east-1",
                          .service = "service"};
  const std::string time = "20150830T123600Z";
  SigningRequest vanilla = {.headers = {{"host", "example.amazonaws.com"}}};
  EXPECT_EQ(SignatureOf(vanilla, key, time),
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
  EXPECT_EQ(SignRequest(vanilla, key, time).at("authorization"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
            "SignedHeaders=host;x-amz-date, "
            "Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
  vanilla.query = {{"Param2", "value2"}, {"Param1", "value1"}};
  EXPECT_EQ(SignatureOf(vanilla, key, time),
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500");
}

// The examples in "Signature calculations for the Authorization header", Amazon S3's documentation.
TEST(SigV4, S3sExamples) {
  const SigningKey key = {.access_key = "AKIAIOSFODNN7EXAMPLE",
                          .secret_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
                          .region = "us-east-1"};
  const std::string time = "20130524T000000Z";
  const std::string host = "examplebucket.s3.amazonaws.com";
  EXPECT_EQ(SignatureOf({.path = "/test.txt", .headers = {{"host", host}, {"range", "bytes=0-9"}}},
                        key, time),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
  EXPECT_EQ(SignatureOf({.query = {{"lifecycle", ""}}, .headers = {{"host", host}}}, key, time),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
  EXPECT_EQ(SignatureOf({.method = "PUT",
                         .path = "/test%24file.text",
                         .headers = {{"host", host},
                                     {"date", "Fri, 24 May 2013 00:00:00 GMT"},
                                     {"x-amz-storage-class", "REDUCED_REDUNDANCY"}},
                         .body = "Welcome to Amazon S3."},
                        key, time),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
  EXPECT_EQ(
      SignatureOf({.query = {{"max-keys", "2"}, {"prefix", "J"}}, .headers = {{"host", host}}}, key,
                  time),
      "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

}  // namespace
}  // namespace cohort::data
