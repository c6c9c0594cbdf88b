// FrameLink: a process's connections for frames, one to each server: many requests under way, and
// repeated where a connection fails.

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/status.h>

#include "parameter_server/frames/frame_stream.h"

namespace cohort::ps {

class FrameMemory;  // frame_memory.h

struct FrameRequest {
  int server = 0;
  FrameMethod method = FrameMethod::kPull;
  FrameHeader header;
  std::vector<std::span<const float>> payload;  // borrowed until Run returns
};

// Beside each of `requests` but pulls the same to the copy of the server's part (layout.h), without
// an answer that anybody reads; under the same number.
void AddCopies(int servers, std::vector<FrameRequest>* requests);

// Where a reply's payload goes, in order; borrowed until it is there.
using Places = std::vector<std::span<float>>;
struct ReplyHandler {
  // A reply begins whose payload is to be put somewhere; of exactly its size.
  std::function<Result<Places>(int server, const FrameHeader& header)> place;
  // And is there.
  std::function<Status(int server, const FrameHeader& header)> done;
};

// Thread rules: Run from one thread at a time; Abort and aborted from any.
class FrameLink {
 public:
  // Where a server listens for frames: a TCP address, or that of a unix socket ("unix:..."), behind
  // which the server shares memory; not that unless it `may_share`, which it
  // may until that fails.
  // Asked before each connection. May block for a second or so.
  using Locate = std::function<Result<std::string>(int server, bool may_share)>;

  virtual ~FrameLink() = default;
  // Sends every request, those to one server in their order, and hands out the replies on this
  // thread. Ends when all are answered, or when one has failed for good: an error that a server
  // answers, or Unavailable for a server that has been silent for peer_timeout, on a second
  // connection as well, which takes the place of the first after half of that. Requests that find
  // no answer yet are repeated, until DeadlineExceeded after answer_timeout. What a handler throws,
  // or the end of memory, comes out; the next Run makes its connections anew.
  virtual Status Run(std::span<const FrameRequest> requests, const ReplyHandler& handler) = 0;
  // Makes the running Run and every later one fail with `why`.
  virtual void Abort(const Status& why) = 0;
  virtual Status aborted() const = 0;

  // `names`: of the servers, for messages. `memory`: what is sent from there is not copied on the
  // way to servers of this host.
  static std::unique_ptr<FrameLink> Make(std::vector<std::string> names, Locate locate,
                                         std::chrono::milliseconds peer_timeout,
                                         std::chrono::milliseconds answer_timeout,
                                         std::shared_ptr<FrameMemory> memory = nullptr);
};

}  // namespace cohort::ps
