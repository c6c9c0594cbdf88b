// One end of a connection for frames, in a process of its own that a test kills.
//
//   frame_peer serve         prints the address of its unix socket, and answers what comes there
//   frame_peer call ADDRESS  sends frames there without an end, to who answers with their payload

#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "parameter_server/frames/frame_link.h"
#include "parameter_server/frames/frame_listener.h"

namespace cohort::ps {
namespace {

int Serve() {
  const auto listener = OrThrow(FrameListener::Start(
      "127.0.0.1:0",
      [](FrameMethod, const FrameHeader&, const PayloadReader&, const std::string&, FrameReply*) {},
      Log()));
  std::printf("%s\n", listener->local_address().c_str());
  std::fflush(stdout);
  for (;;) {
    std::this_thread::sleep_for(std::chrono::hours(1));  // until it is killed
  }
}

int Call(const std::string& address) {
  const auto link = FrameLink::Make(
      {"ps:0"}, [&](int, bool) { return Result(address); }, std::chrono::seconds(10),
      std::chrono::seconds(10));
  const std::vector<float> payload(100'000, 1);
  std::vector<float> answer(payload.size());
  for (;;) {
    const std::vector<FrameRequest> requests(8, {0, FrameMethod::kPush, {}, {payload}});
    OrThrow(link->Run(requests, {.place = [&](int, const FrameHeader&) { return Places{answer}; },
                                 .done = [](int, const FrameHeader&) { return Status(); }}));
  }
}

}  // namespace
}  // namespace cohort::ps

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  return mode == "call" && argc > 2 ? cohort::ps::Call(argv[2]) : cohort::ps::Serve();
}
