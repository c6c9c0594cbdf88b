// In which order variables travel: as they were declared, front layers first, in what a client
// sends to each server and in what it gets.

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <mutex>
#include <thread>

#include <cohort/parameter_server.grpc.pb.h>
#include "grpc_util.h"
#include "parameter_server/frames/frame_stream.h"
#include "parameter_server/frames/wire.h"
#include "servers_test.h"
#include "tcp/socket.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

int FramePortOf(const std::string& address) {
  const auto stub = Servers::NewStub(NewChannel(address));
  grpc::ClientContext context;
  EndpointReply reply;
  EXPECT_TRUE(stub->Endpoint(&context, EndpointRequest(), &reply).ok());
  return static_cast<int>(reply.port());
}

struct SeenFrame {
  FrameMethod method = FrameMethod::kPull;
  std::vector<std::uint32_t> chunks;
};

// Stands where a client looks for a server's frames, passes them on, and notes which chunks each
// has; of one connection at a time. What it has passed to the client it has noted.
class Recorder final : public Servers::Service {
 public:
  explicit Recorder(const std::string& server)
      : target_(WithPort(server, FramePortOf(server))),
        listener_(OrThrow(Listen("127.0.0.1:0", {}))) {
    grpc::ServerBuilder builder;
    builder.RegisterService(this);
    grpc_ = OrThrow(StartServer(builder, "127.0.0.1:0", &port_));
    thread_ = std::thread([this] { Accept(); });
  }
  // The client's connection is closed by then.
  ~Recorder() override {
    stop_ = true;
    thread_.join();
    grpc_->Shutdown();
  }

  // For the client.
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  // What there was since it was asked last.
  std::vector<SeenFrame> TakeRequests() { return Take(requests_); }
  std::vector<SeenFrame> TakeReplies() { return Take(replies_); }

  grpc::Status Endpoint(grpc::ServerContext* /*context*/, const EndpointRequest* /*request*/,
                        EndpointReply* reply) override {
    const std::string& at = listener_.address;
    reply->set_port(static_cast<std::uint32_t>(std::stoi(at.substr(at.rfind(':') + 1))));
    return grpc::Status::OK;
  }

 private:
  void Accept() {
    while (!stop_) {
      pollfd event = {listener_.socket.fd(), POLLIN, 0};
      if (::poll(&event, 1, 10) <= 0) {
        continue;
      }
      const Socket client(::accept(listener_.socket.fd(), nullptr, nullptr));
      const Socket server = OrThrow(Connect(target_, DeadlineAfter(seconds(20))));
      OrThrow(Prepare(client));
      std::thread back([&] { Pass(server, client, replies_); });
      Pass(client, server, requests_);
      back.join();
    }
  }
  // Until one of the two ends.
  void Pass(const Socket& from, const Socket& to, std::vector<SeenFrame>& seen) {
    const Deadline deadline = DeadlineAfter(seconds(60));
    for (;;) {
      FramePrefix prefix;
      std::string header;
      std::string payload;
      FrameHeader frame;
      Status status = ReadAll(from, &prefix, sizeof(prefix), deadline);
      if (status.ok()) {
        header.resize(prefix.header_bytes);
        payload.resize(prefix.payload_bytes);
        status = ReadAll(from, header.data(), header.size(), deadline);
      }
      if (status.ok()) {
        status = ReadAll(from, payload.data(), payload.size(), deadline);
      }
      if (!status.ok() || !frame.ParseFromString(header)) {
        break;
      }
      {
        const std::lock_guard lock(mutex_);
        seen.push_back({static_cast<FrameMethod>(prefix.method),
                        {frame.chunks().begin(), frame.chunks().end()}});
      }
      if (!WriteAll(to, &prefix, sizeof(prefix), deadline).ok() ||
          !WriteAll(to, header.data(), header.size(), deadline).ok() ||
          !WriteAll(to, payload.data(), payload.size(), deadline).ok()) {
        break;
      }
    }
    ::shutdown(from.fd(), SHUT_RDWR);
    ::shutdown(to.fd(), SHUT_RDWR);
  }
  std::vector<SeenFrame> Take(std::vector<SeenFrame>& seen) {
    const std::lock_guard lock(mutex_);
    return std::exchange(seen, {});
  }

  const std::string target_;
  const Listener listener_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> grpc_;
  std::atomic<bool> stop_ = false;
  std::mutex mutex_;
  std::vector<SeenFrame> requests_;
  std::vector<SeenFrame> replies_;
  std::thread thread_;
};

class FrameOrder : public ServersTest {
 protected:
  static constexpr int kServers = 3;

  // Layers of all sizes: some are cut into chunks for several servers, some share a frame.
  void StartLayers() {
    Start(kServers);
    spec_.parameters.clear();
    std::int64_t offset = 0;
    for (const std::int64_t elements : {90'000, 700'000, 60'000, 300, 400'000, 50'000, 95'000,
                                        1'100'000, 70'000, 250'000, 80'000, 85'000}) {
      spec_.parameters.push_back(
          {"layer " + std::to_string(spec_.parameters.size()), {elements}, true, offset});
      offset += (elements + 15) / 16 * 16;
    }
    elements_ = static_cast<std::size_t>(offset);
    Initialise();
    for (const std::string& address : addresses_) {
      recorders_.push_back(std::make_unique<Recorder>(address));
      recorded_.push_back(recorders_.back()->address());
    }
  }
  // All of a server's chunks, each once, in the order of the declaration: layer by layer, and each
  // from its beginning to its end.
  static void ExpectInOrder(const std::vector<SeenFrame>& frames, FrameMethod method, int server,
                            const std::vector<Chunk>& chunks) {
    std::vector<std::uint32_t> seen;
    for (const SeenFrame& frame : frames) {
      EXPECT_EQ(frame.method, method);
      seen.insert(seen.end(), frame.chunks.begin(), frame.chunks.end());
    }
    std::vector<std::uint32_t> expected;
    std::pair<int, std::int64_t> last = {-1, 0};
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      if (chunks[c].server == server) {
        expected.push_back(static_cast<std::uint32_t>(c));
        const std::pair<int, std::int64_t> at = {chunks[c].parameter, chunks[c].begin};
        EXPECT_LT(last, at) << "chunk " << c << " lies before those that are sent before it";
        last = at;
      }
    }
    EXPECT_EQ(seen, expected) << "server " << server;
    EXPECT_GT(frames.size(), 1U) << "order is of several frames";
    EXPECT_LT(frames.size(), seen.size()) << "and within one";
  }
  void ExpectAllInOrder(FrameMethod method, const std::vector<Chunk>& chunks) {
    for (int s = 0; s < kServers; ++s) {
      Recorder& recorder = *recorders_[static_cast<std::size_t>(s)];
      ExpectInOrder(recorder.TakeRequests(), method, s, chunks);
      ExpectInOrder(recorder.TakeReplies(), method, s, chunks);
    }
  }

  std::vector<std::unique_ptr<Recorder>> recorders_;
  std::vector<std::string> recorded_;
};

TEST_F(FrameOrder, PullsAndPushesAndTheirRepliesHaveFrontLayersFirst) {
  StartLayers();
  const auto client = Client::Make(spec_, recorded_,
                                   {.client = 1,
                                    .task = "worker:1",
                                    .peer_timeout = milliseconds(20'000),
                                    .transport = FrameTransport::kTcp});
  std::vector<float> values(elements_, 9);
  OrThrow(client->Pull(values, /*everything=*/true));
  ExpectAllInOrder(FrameMethod::kPull, client->chunks());
  const std::vector<float> ones(elements_, 1);
  OrThrow(client->Push({.arena = ones, .weight = 1}, values));  // whose answers bring the values
  ExpectAllInOrder(FrameMethod::kPush, client->chunks());
  for (const Chunk& chunk : client->chunks()) {
    EXPECT_EQ(values[static_cast<std::size_t>(chunk.offset)], -1);
  }
}

}  // namespace
}  // namespace cohort::ps
