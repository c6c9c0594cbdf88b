// `cohort bench ps`: a parameter server and a worker, a process each, over loopback TCP and through
// shared memory: pushes that are applied, and pulls. Beside them, in turns: a single TCP stream
// with the same buffers, which is TCP's limit, and the same service written with protobuf's `bytes`
// and gRPC's ordinary calls.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <grpcpp/grpcpp.h>

#include <cohort/comm/memory.h>
#include <cohort/core/status.h>
#include <cohort/optim/optimizers.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "bench_children.h"
#include "bench_ps_modes.h"
#include "command.h"
#include "core/commands/processes.h"
#include "core/commands/run_command.h"
#include "grpc_util.h"
#include "parameter_server/frames/frame_address.h"
#include "parameter_server/frames/frame_link.h"
#include "parameter_server/frames/frame_memory.h"
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"
#include "parameter_server/variables/parameter_store.h"
#include "tcp/socket.h"

namespace cohort {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::vector<std::int64_t> bytes = {4 << 10, 1 << 20, 4 << 20, 10 << 20};
  std::vector<std::string> transports = {"tcp", "shm"};
  double seconds = 0.2;  // of one measurement
  int rounds = 5;
  bool json = false;
};

ps::ModelSpec SpecOf(std::int64_t bytes) {
  ps::ModelSpec spec;
  spec.parameters = {{.name = "w", .shape = {bytes / 4}, .trainable = true, .offset = 0}};
  spec.optimizer = Sgd({.learning_rate = 0.001})->config();
  return spec;
}

// ---- The server's process -----------------------------------------------------------------------

// The store behind ordinary gRPC: messages with a `bytes` field, which protobuf copies.
class BytesService final : public ps::Baseline::Service {
 public:
  explicit BytesService(std::int64_t bytes) : bytes_(static_cast<std::size_t>(bytes)), store_(0) {
    const ps::ModelSpec spec = SpecOf(bytes);
    OrThrow(store_.Declare(spec, "ps:0"));
    ps::FrameHeader header = HeaderOf(spec, bytes);
    const std::string zeros(bytes_, '\0');
    if (const ps::Error error = store_.Assign(header, Reader(zeros)); error.kind() != 0) {
      throw StatusError(Internal(error.message()));
    }
  }
  static ps::FrameHeader HeaderOf(const ps::ModelSpec& spec, std::int64_t bytes) {
    ps::FrameHeader header;
    header.set_client(1);
    header.set_layout(spec.Fingerprint());
    header.set_weight(1);
    for (std::int64_t c = 0; c * 4 * ps::kMaxChunkElements < bytes; ++c) {
      header.add_chunks(static_cast<std::uint32_t>(c));
      header.add_versions(0);
    }
    return header;
  }

  grpc::Status Push(grpc::ServerContext* /*context*/, const ps::Frame* request,
                    ps::Frame* reply) override {
    ps::ParameterStore::Pushed pushed;
    ps::Error error = store_.Push(request->header(), Reader(request->payload()), &pushed);
    if (error.kind() != ps::Error::NONE) {
      *reply->mutable_header()->mutable_error() = std::move(error);
    }
    return grpc::Status::OK;
  }
  grpc::Status Pull(grpc::ServerContext* /*context*/, const ps::Frame* request,
                    ps::Frame* reply) override {
    std::vector<ps::ParameterStore::Reading> readings;
    ps::Error error = store_.Plan(request->header(), &readings);
    if (error.kind() != ps::Error::NONE) {
      *reply->mutable_header()->mutable_error() = std::move(error);
    }
    std::string* payload = reply->mutable_payload();
    payload->resize(bytes_);
    auto* at = reinterpret_cast<float*>(payload->data());
    for (ps::ParameterStore::Reading& reading : readings) {
      store_.Copy(reading, false, {at, reading.floats});
      at += reading.floats;
    }
    return grpc::Status::OK;
  }

 private:
  static ps::PayloadReader Reader(const std::string& payload) {
    return ps::PayloadReader(ps::Segments{std::as_bytes(std::span(payload))});
  }
  const std::size_t bytes_;
  ps::ParameterStore store_;
};

// One stream: the sender says how large its buffer is and how often it comes.
struct StreamHeader {
  std::int64_t bytes = 0;
  std::int64_t times = 0;
};
void ServeStream(int listener) {
  const int fd = ::accept(listener, nullptr, nullptr);
  StreamHeader header;
  std::vector<char> buffer;
  while (ReceiveAll(fd, &header, sizeof(header)).ok()) {
    buffer.resize(static_cast<std::size_t>(header.bytes));
    for (std::int64_t i = 0; i < header.times; ++i) {
      if (!ReceiveAll(fd, buffer.data(), buffer.size()).ok()) {
        return;
      }
    }
    if (!SendAll(fd, "", 1).ok()) {
      return;
    }
  }
}

Result<int> ListenOnLoopback(int* port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* at = reinterpret_cast<sockaddr*>(&address);
  if (fd < 0 || ::bind(fd, at, size) != 0 || ::listen(fd, 1) != 0 ||
      ::getsockname(fd, at, &size) != 0) {
    return SystemError("a socket on the loopback interface");
  }
  *port = ntohs(address.sin_port);
  return fd;
}

// Tells `socket` the ports: of the stream, and of both services for each size. Ends with it.
Status Serve(const Options& options, int socket) {
  std::vector<std::unique_ptr<ps::Server>> servers;
  std::vector<std::unique_ptr<BytesService>> services;
  std::vector<std::unique_ptr<grpc::Server>> ordinary;
  std::vector<int> ports(1);
  COHORT_ASSIGN_OR_RETURN(const int listener, ListenOnLoopback(ports.data()));
  for (const std::int64_t bytes : options.bytes) {
    COHORT_ASSIGN_OR_RETURN(auto server, ps::Server::Start("127.0.0.1:0", 0, Log()));
    ports.push_back(server->port());
    servers.push_back(std::move(server));
    services.push_back(std::make_unique<BytesService>(bytes));
    grpc::ServerBuilder builder;
    builder.RegisterService(services.back().get());
    COHORT_ASSIGN_OR_RETURN(auto one, StartServer(builder, "127.0.0.1:0", &ports.emplace_back(),
                                                  {.max_message_bytes = -1}));
    ordinary.push_back(std::move(one));
  }
  std::thread stream(ServeStream, listener);
  Status status = SendAll(socket, ports.data(), ports.size() * sizeof(int));
  char end = 0;
  if (status.ok()) {
    (void)ReceiveAll(socket, &end, 1);
  }
  ::shutdown(listener, SHUT_RDWR);
  stream.join();
  return status;
}

// ---- The worker's process -----------------------------------------------------------------------

class Stream {
 public:
  static Result<std::unique_ptr<Stream>> Connect(int port) {
    auto stream = std::make_unique<Stream>();
    stream->socket_ = Socket(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int one = 1;
    const int fd = stream->socket_.fd();
    if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
        ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0) {
      return SystemError("connect");
    }
    SendUnpaced(stream->socket_);  // as the frames are
    return stream;
  }
  Status Send(std::span<const float> buffer, std::int64_t times) {
    const std::size_t bytes = buffer.size_bytes();
    const StreamHeader header{.bytes = static_cast<std::int64_t>(bytes), .times = times};
    COHORT_RETURN_IF_ERROR(SendAll(socket_.fd(), &header, sizeof(header)));
    for (std::int64_t i = 0; i < times; ++i) {
      COHORT_RETURN_IF_ERROR(SendAll(socket_.fd(), buffer.data(), bytes));
    }
    char done = 0;
    return ReceiveAll(socket_.fd(), &done, 1);
  }

 private:
  Socket socket_;
};

// Everything that is measured with messages of one size.
struct Subject {
  std::int64_t bytes = 0;
  ps::ModelSpec spec;
  std::shared_ptr<ps::FrameMemory> memory;  // as a worker's gradients lie
  std::unique_ptr<Memory> gradient_memory;
  std::span<float> gradient;
  std::vector<float> values;
  std::map<std::string, std::unique_ptr<ps::Client>> clients;  // by transport
  std::map<DType, std::unique_ptr<ps::Client>> rounding;       // what travels is of that type
  std::map<std::string, std::unique_ptr<ps::FrameLink>>
      links;  // frames of one's own, many under way
  std::unique_ptr<ps::Baseline::Stub> ordinary;
  ps::FrameHeader header;  // of ordinary calls
  std::uint64_t sequence = 0;

  Status Connect(const std::vector<std::string>& transports, int port, int ordinary_port) {
    spec = SpecOf(bytes);
    memory = ps::FrameMemory::Make();
    COHORT_ASSIGN_OR_RETURN(gradient_memory, memory->Allocate(static_cast<std::size_t>(bytes)));
    gradient = {reinterpret_cast<float*>(gradient_memory->bytes().data()),
                static_cast<std::size_t>(bytes / 4)};
    std::ranges::fill(gradient, 1.0F);
    values.resize(gradient.size());
    const std::string address = "127.0.0.1:" + std::to_string(port);
    std::uint64_t number = 10;
    for (const std::string& name : transports) {
      const ps::FrameTransport transport =
          name == "shm" ? ps::FrameTransport::kShared : ps::FrameTransport::kTcp;
      auto& client = clients[name] = ps::Client::Make(
          spec, {address},
          {.client = ++number, .task = "worker:0", .transport = transport, .memory = memory});
      COHORT_RETURN_IF_ERROR(client->Declare());
      COHORT_RETURN_IF_ERROR(client->Assign(values, {}, 0));
      links[name] = ps::FrameLink::Make(
          {"ps:0"},
          [=](int, bool may_share) -> Result<std::string> {
            const auto stub = ps::Servers::NewStub(NewChannel(address));
            return ps::LocateFrames(*stub, address, transport, may_share,
                                    std::chrono::milliseconds(10'000));
          },
          std::chrono::milliseconds(10'000), std::chrono::milliseconds(10'000), memory);
    }
    for (const DType wire : {DType::kFloat16, DType::kBFloat16, DType::kUInt8}) {
      rounding[wire] = ps::Client::Make(spec, {address},
                                        {.client = ++number,
                                         .task = "worker:0",
                                         .wire = {.push = wire, .pull = wire},
                                         .transport = ps::FrameTransport::kTcp});
    }
    ordinary = ps::Baseline::NewStub(
        NewChannel("127.0.0.1:" + std::to_string(ordinary_port), {.max_message_bytes = -1}));
    header = BytesService::HeaderOf(spec, bytes);
    return {};
  }
  Status Push(const std::string& transport) {
    return clients.at(transport)->Push({.arena = gradient}, {});
  }
  Status Pull(const std::string& transport) {
    return clients.at(transport)->Pull(values, /*everything=*/true);
  }
  Status PushRounded(DType wire) { return rounding.at(wire)->Push({.arena = gradient}, {}); }
  Status PullRounded(DType wire) { return rounding.at(wire)->Pull(values, /*everything=*/true); }
  // `count` pushes of a frame each, as many under way as the exchange allows.
  Status PushMany(const std::string& transport, int count) {
    std::vector<ps::FrameRequest> requests;
    for (int i = 0; i < count; ++i) {
      requests.push_back({0, ps::FrameMethod::kPush, header, {std::span<const float>(gradient)}});
      requests.back().header.set_client(2);
      requests.back().header.set_sequence(++sequence);
    }
    return links.at(transport)->Run(
        requests, {.place = [](int, const ps::FrameHeader&) { return ps::Places(); },
                   .done = [](int, const ps::FrameHeader&) { return Status(); }});
  }
  Status Ordinary(bool push) {
    grpc::ClientContext context;
    context.set_deadline(GrpcTimeout(std::chrono::seconds(10)));
    ps::Frame request;
    ps::Frame reply;
    *request.mutable_header() = header;
    grpc::Status status;
    if (push) {
      request.mutable_header()->set_sequence(++sequence);
      request.mutable_payload()->assign(reinterpret_cast<const char*>(gradient.data()),
                                        static_cast<std::size_t>(bytes));
      status = ordinary->Push(&context, request, &reply);
    } else {
      status = ordinary->Pull(&context, request, &reply);
      if (reply.payload().size() == static_cast<std::size_t>(bytes)) {
        std::memcpy(values.data(), reply.payload().data(), reply.payload().size());
      } else if (status.ok()) {
        return Internal("a reply of " + std::to_string(reply.payload().size()) + " bytes");
      }
    }
    COHORT_RETURN_IF_ERROR(FromGrpc(status));
    return reply.header().has_error() ? Internal(reply.header().error().message()) : OkStatus();
  }
};

// One measurement of one contender: seconds for each operation.
struct Case {
  std::string name;
  std::int64_t bytes = 0;
  int batch = 1;  // operations of a call
  std::function<Status()> call;
  std::vector<double> seconds;  // by operation: the mean of each round, or of each call
  bool each_call = false;
};

Status Measure(Case& c, double seconds) {
  const Clock::time_point start = Clock::now();
  const auto end =
      start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  std::int64_t calls = 0;
  Clock::time_point now = start;
  do {
    const Clock::time_point before = now;
    COHORT_RETURN_IF_ERROR(c.call());
    now = Clock::now();
    ++calls;
    if (c.each_call) {
      c.seconds.push_back(std::chrono::duration<double>(now - before).count());
    }
  } while (now < end);
  if (!c.each_call) {
    c.seconds.push_back(std::chrono::duration<double>(now - start).count() /
                        static_cast<double>(calls * c.batch));
  }
  return {};
}

Status Work(const Options& options, int socket) {
  std::vector<int> ports(1 + 2 * options.bytes.size());
  COHORT_RETURN_IF_ERROR(ReceiveAll(socket, ports.data(), ports.size() * sizeof(int)));
  COHORT_ASSIGN_OR_RETURN(const auto stream, Stream::Connect(ports[0]));
  std::vector<std::unique_ptr<Subject>> subjects;
  std::vector<Case> cases;
  constexpr int kMany = 1000;
  for (std::size_t i = 0; i < options.bytes.size(); ++i) {
    auto subject = std::make_unique<Subject>();
    subject->bytes = options.bytes[i];
    COHORT_RETURN_IF_ERROR(
        subject->Connect(options.transports, ports[1 + 2 * i], ports[2 + 2 * i]));
    Subject* s = subject.get();
    const bool small = s->bytes < (64 << 10);
    const std::int64_t times = std::max<std::int64_t>(1, (32 << 20) / s->bytes);
    cases.push_back({"stream", s->bytes, static_cast<int>(times),
                     [s, times, &stream] { return stream->Send(s->gradient, times); }});
    for (const std::string& transport : options.transports) {
      const std::string suffix = transport == "tcp" ? "" : "_" + transport;
      cases.push_back(
          {"push" + suffix, s->bytes, 1, [=] { return s->Push(transport); }, {}, small});
      cases.push_back(
          {"pull" + suffix, s->bytes, 1, [=] { return s->Pull(transport); }, {}, small});
      if (small) {
        cases.push_back({"push_pipelined" + suffix, s->bytes, kMany,
                         [=] { return s->PushMany(transport, kMany); }});
      }
    }
    for (const auto& [wire, client] : s->rounding) {
      const std::string name(DTypeName(wire));
      const DType type = wire;
      cases.push_back(
          {"push_" + name, s->bytes, 1, [s, type] { return s->PushRounded(type); }, {}, small});
      cases.push_back(
          {"pull_" + name, s->bytes, 1, [s, type] { return s->PullRounded(type); }, {}, small});
    }
    cases.push_back(
        {"push_bytes", s->bytes, 1, [s] { return s->Ordinary(/*push=*/true); }, {}, small});
    cases.push_back(
        {"pull_bytes", s->bytes, 1, [s] { return s->Ordinary(/*push=*/false); }, {}, small});
    subjects.push_back(std::move(subject));
  }
  for (Case& c : cases) {
    COHORT_RETURN_IF_ERROR(c.call());  // warm
  }
  for (Case& c : cases) {
    c.seconds.clear();
  }
  for (int round = 0; round < options.rounds; ++round) {
    for (Case& c : cases) {
      COHORT_RETURN_IF_ERROR(Measure(c, options.seconds));
    }
  }
  nlohmann::ordered_json report = {{"rounds", options.rounds},
                                   {"sizes", nlohmann::ordered_json::array()}};
  if (!options.json) {
    std::printf("%10s %-16s %12s %12s %12s\n", "bytes", "", "us", "GB/s", "of stream");
  }
  std::map<std::int64_t, nlohmann::ordered_json> sizes;
  std::map<std::int64_t, double> limit;
  for (const Case& c : cases) {
    const double seconds = Median(c.seconds);
    const double rate = static_cast<double>(c.bytes) / seconds / 1e9;
    if (c.name == "stream") {
      limit[c.bytes] = rate;
    }
    sizes[c.bytes][c.name] = {
        {"us", seconds * 1e6}, {"gb_per_second", rate}, {"of_stream", rate / limit[c.bytes]}};
    if (!options.json) {
      std::printf("%10lld %-16s %12.1f %12.2f %12.2f\n", static_cast<long long>(c.bytes),
                  c.name.c_str(), seconds * 1e6, rate, rate / limit[c.bytes]);
    }
  }
  for (auto& [bytes, results] : sizes) {
    nlohmann::ordered_json entry = {{"bytes", bytes}};
    entry.update(results);
    const auto ratio = [&results](const std::string& of, const std::string& to) {
      return results[of]["gb_per_second"].get<double>() /
             results[to]["gb_per_second"].get<double>();
    };
    for (const std::string what : {"push", "pull"}) {
      if (results.contains(what)) {
        entry[what + "_of_bytes_service"] = ratio(what, what + "_bytes");
      }
      if (results.contains(what) && results.contains(what + "_shm")) {
        entry[what + "_shm_of_tcp"] = ratio(what + "_shm", what);
      }
    }
    report["sizes"].push_back(std::move(entry));
  }
  if (options.json) {
    std::printf("%s\n", report.dump().c_str());
  }
  return {};
}

// Two processes; gRPC has no part in either before the fork.
Status Run(const Options& options) {
  Children children;
  COHORT_ASSIGN_OR_RETURN(const auto server,
                          ConnectedProcess::Start(children, "server", [&](int socket) {
                            return Serve(options, socket);
                          }));
  COHORT_RETURN_IF_ERROR(Work(options, server->socket()));
  server->End();
  return children.Wait();
}

}  // namespace

int BenchPsCommand(int argc, char** argv) {
  const std::string_view mode = argc > 1 ? argv[1] : "";
  using Mode = std::pair<const char*, int (*)(int, char**)>;
  for (const auto& [name, command] :
       {Mode("hot", BenchPsHotCommand), Mode("resume", BenchPsResumeCommand),
        Mode("snapshot", BenchPsSnapshotCommand), Mode("workers", BenchPsWorkersCommand)}) {
    if (mode == name) {
      std::string full = std::string(argv[0]) + " " + name;
      argv[1] = full.data();
      return command(argc - 1, argv + 1);
    }
  }
  Options options;
  CLI::App app(
      "Measures a parameter server and a worker, over loopback TCP and through shared memory "
      "(..._shm): pushes that are applied, and pulls, beside one TCP stream and the same service "
      "with protobuf's `bytes`. GB/s are of the "
      "values, also where they travel as float16, bfloat16 or uint8. `bench ps resume`: a server "
      "that "
      "is killed; `bench ps snapshot`: one that is saved while it is trained on; `bench ps "
      "workers`: several workers, in rounds and not; `bench ps hot`: buckets that move.",
      argv[0]);
  app.add_option("--bytes", options.bytes, "of the variable")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::int64_t{4}, std::int64_t{1} << 30))
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--transport", options.transports, "of frames: tcp, shm, or both in turns")
      ->check(CLI::IsMember({"tcp", "shm"}))
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "of each measurement")
      ->check(CLI::Range(0.001, 60.0))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "the median of so many, all taken in turns")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--json", options.json, "machine-readable output");
  return ParseAndRun(app, argc, argv, [&] {
    for (std::int64_t& bytes : options.bytes) {
      bytes -= bytes % 4;  // floats
    }
    return Run(options);
  });
}

}  // namespace cohort
