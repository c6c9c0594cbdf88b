// Connection: a trainer's end of the data service: finds a pipeline's input workers, and reads from
// those that have the least to do.
//
// A read is cut into pieces of neighbouring examples, each of which one worker is asked for: of
// piece_bytes at most, and one for each thread of the workers at least. As many are under way as
// max_bytes allows, and at each worker twice as many as it has threads; the rest go to whoever is
// done first, so a slow worker makes fewer. The oldest read is served first. A piece counts when
// all of it is there: whatever fails before (the worker is killed, falls silent, has no room) is
// asked of another worker, from the first example of the piece. So a caller gets each of its
// examples once, and gets them or an error.
//
// A worker that has failed is asked for one piece at a time until it has given one. One that did
// not answer in time is passed over, longer each time, while another worker answers; the piece may
// have been too much, and is halved.
//
// A thread asks the dispatcher for the workers now and then. One that the dispatcher does not know
// any more is used until a call fails; so the dispatcher may end, or start anew, while reading goes
// on.

#pragma once

#include <condition_variable>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/grpcpp.h>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>
#include <cohort/data_service/data_service.h>

#include <cohort/data_service.grpc.pb.h>
#include "wire.h"

namespace cohort::data {

// Thread rules: Read from any number of threads at once.
class Connection {
 public:
  // See FromService.
  static Result<std::unique_ptr<Connection>> Open(const std::string& dispatcher,
                                                  const std::string& pipeline,
                                                  const FromServiceOptions& options);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  const PipelineInfo& pipeline() const { return info_; }
  std::string Name() const;  // "pipeline 'train' of the data service at 10.0.0.1:5050"
  // See BulkSource::ReadMany.
  Status Read(std::int64_t epoch, std::span<const std::int64_t> indexes,
              std::span<std::byte* const> rows, std::span<std::vector<std::byte>> values,
              std::span<std::vector<std::int64_t>> ends);

 private:
  struct Peer;
  struct Piece;
  struct Reading;
  class Listed;

  Connection(std::string dispatcher, std::string pipeline, const FromServiceOptions& options);

  Status FindFirst();
  Result<wire::FindReply> Find(std::chrono::milliseconds timeout);
  // Takes over who is there; an error if the pipeline is another one now.
  Status Learn(const wire::FindReply& reply);
  void KeepLearning();
  bool Pause(Duration pause);
  // What a connection to those says that are missed, while a read waits.
  void ProbeMissing();

  // The lists' bytes of an example, as far as they are known. With mutex_ held.
  std::int64_t ListBytes() const;
  void Cut(Reading& reading) const;
  // Makes the piece ready to be asked for (again).
  void Prepare(const Reading& reading, Piece& piece) const;
  // Of a piece that took too long, its second half as a piece of its own.
  void Split(Reading& reading, Piece& piece) const;
  Status Run(Reading& reading);
  // That no older read waits to ask for a piece. With mutex_ held.
  bool IsNext(const Reading& reading) const;
  // The worker that has the least to do, of several whose turn it is; null: none may be asked now.
  // With mutex_ held, as Assign.
  std::shared_ptr<Peer> Choose(const Piece& piece) const;
  // Throws nothing, and is followed by Send.
  void Assign(Piece& piece, std::shared_ptr<Peer> peer);
  void Send(Reading& reading, Piece& piece);
  // True: the piece is there.
  Result<bool> Land(Reading& reading, Piece& piece);
  void Blame(const Piece& piece, const std::string& why);
  static Status Gather(Reading& reading);
  // Of whom nothing comes, and why. Blocks for nothing.
  std::string WhyNothing() const;

  const std::string dispatcher_;
  const FromServiceOptions options_;
  PipelineInfo info_;           // constant after Open, as the next
  std::uint64_t contract_ = 0;  // of info_
  std::unique_ptr<wire::DataService::Stub> stub_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // a call has landed
  std::condition_variable stopped_;
  bool stop_ = false;                                   // guarded by mutex_, as all below
  bool found_ = false;                                  // info_ is known
  grpc::ClientContext* find_ = nullptr;                 // while under way
  std::map<std::string, std::shared_ptr<Peer>> peers_;  // by address
  std::string find_error_;                              // of the last Find; empty: it was answered
  std::string dispatcher_probe_;                        // what a connection to it said last
  std::vector<Reading*> reads_;                         // the oldest first
  Deadline last_landed_;                                // when a piece of any read was there
  std::uint64_t turn_;
  std::int64_t under_way_bytes_ = 0;
  std::int64_t list_bytes_ = -1;  // of an example, the largest average so far; -1: not known

  std::thread learner_;
};

}  // namespace cohort::data
