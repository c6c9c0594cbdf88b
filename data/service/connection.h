// Connection: a trainer's end of the data service: finds a pipeline's input workers, and reads from
// those that have the least to do.
//
// A read is cut into pieces of neighbouring examples, each of which one worker is asked for. As
// many are under way as max_bytes allows, and at each worker twice as many as it has threads; the
// rest go to whoever is done first, so a slow worker makes fewer. A piece counts when all of it is
// there: whatever fails before (the worker is killed, falls silent, has no room) is asked of
// another worker, from the first example of the piece. So a caller gets each of its examples once,
// and gets them or an error.
//
// A thread asks the dispatcher for the workers now and then. One that the dispatcher does not know
// any more is used until a call fails; so the dispatcher may end, or start anew, while reading goes
// on.

#pragma once

#include <condition_variable>
#include <deque>
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

  Connection(std::string dispatcher, std::string pipeline, const FromServiceOptions& options);

  Status FindFirst();
  Result<wire::FindReply> Find(std::chrono::milliseconds timeout);
  // Takes over who is there; an error if the pipeline is another one now.
  Status Learn(const wire::FindReply& reply);
  void KeepLearning();
  bool Pause(Duration pause);

  std::vector<Piece> Cut(std::span<const std::int64_t> indexes) const;
  Status Run(Reading& reading);
  // The worker that has the least to do, of several whose turn it is; null: none may be asked now.
  // With mutex_ held, as Assign.
  std::shared_ptr<Peer> Choose(const Piece& piece) const;
  void Assign(Reading& reading, Piece& piece, std::shared_ptr<Peer> peer);
  void Send(Reading& reading, Piece& piece);
  // True: the piece is there.
  Result<bool> Land(Reading& reading, Piece& piece);
  void Blame(Piece& piece, const std::string& why, bool busy);
  static Status Gather(Reading& reading);
  // Of whom nothing comes, and why.
  std::string WhyNothing();

  const std::string dispatcher_;
  const FromServiceOptions options_;
  PipelineInfo info_;  // constant after Open
  std::unique_ptr<wire::DataService::Stub> stub_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // a call has landed
  std::condition_variable stopped_;
  bool stop_ = false;                                   // guarded by mutex_, as all below
  bool found_ = false;                                  // info_ is known
  grpc::ClientContext* find_ = nullptr;                 // while under way
  std::map<std::string, std::shared_ptr<Peer>> peers_;  // by address
  std::string find_error_;                              // of the last Find; empty: it was answered
  std::uint64_t turn_;
  std::int64_t under_way_bytes_ = 0;
  std::int64_t list_bytes_ = 0;  // of the lists of an example, at most so far

  std::thread learner_;
};

}  // namespace cohort::data
