// The data service: examples made by other processes, on other hosts, for trainers whose own cores
// are not enough.
//
//   auto server = Serve({{"train", dataset}}, {.listen = "0.0.0.0:5050"});            // a process
//   auto more = Serve({{"train", dataset}}, {.dispatcher = "10.0.0.1:5050"});         // others
//
//   auto train = OrThrow(FromService("10.0.0.1:5050", "train"));                      // a trainer
//   auto batches = train.Shuffle(seed).Batch(256).Prefetch(8, 4).Iterate(...);
//
// An input worker is a process that serves pipelines: data sets before Batch, with their costly
// maps. One process, the dispatcher, knows where the others are; it may serve as well. What a
// trainer gets is a data set like any other whose examples are read from whichever worker has the
// least to do, in pieces. Its order, its shuffle, its batches and its place stay the trainer's own,
// so all that data sets promise holds: every example of an epoch once, the same order whoever
// serves it, resuming at the exact example. A piece that a lost worker was making is read from
// another; the service remembers nothing of a trainer.
//
// Thread rules: free functions, any thread.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

struct ServedPipeline {
  std::string name;
  Dataset dataset;  // before Batch
  // What a fingerprint cannot tell, such as the sizes in a Map: equal on all input workers.
  std::string version = {};
};

struct ServeOptions {
  std::string listen = "0.0.0.0:0";
  std::string dispatcher = {};  // "host:port"; empty: this process is it
  // Where trainers reach this process, "host" or "host:port". Empty: the host of `listen` where it
  // is one, else the address from which the dispatcher sees this process come; of one on its own
  // host, the host by which trainers know the dispatcher.
  std::string advertise = {};
  int threads = 0;  // that make examples; 0: one a core
  // Replies that are being made or sent; beyond it reads wait here, and hold no memory.
  std::int64_t max_bytes = std::int64_t{256} << 20;
  std::chrono::milliseconds join_timeout{300'000};  // until the dispatcher has answered
  std::chrono::milliseconds roll_call_interval{10'000};
  std::chrono::milliseconds heartbeat_interval{1'000};
  std::chrono::milliseconds heartbeat_timeout{
      10'000};  // at the dispatcher: silent for longer, gone
  Log log = {};
};

struct DataServerStats {
  std::int64_t reads = 0;  // answered
  std::int64_t examples = 0;
  std::int64_t bytes = 0;
};

// Thread rules: all methods from any thread. The destructor leaves the dispatcher, gives up what is
// being made at the next example, and takes at most two seconds beside that.
class DataServer {
 public:
  virtual ~DataServer() = default;
  virtual int port() const = 0;
  // OK, or why trainers are not sent here any more: the dispatcher has pipelines of these names
  // that are others.
  virtual Status failure() const = 0;
  virtual DataServerStats stats() const = 0;
};

// Serves until the result is destroyed. Takes the fingerprint of each data set first, which may be
// a pass over it. No pipelines: a dispatcher only. InvalidArgument: a data set with batches, a name
// twice; AlreadyExists: the port is in use; FailedPrecondition: another input worker's pipeline of
// the same name differs, and in what; DeadlineExceeded: no answer of the dispatcher.
Result<std::unique_ptr<DataServer>> Serve(const std::vector<ServedPipeline>& pipelines,
                                          const ServeOptions& options = {});

struct FromServiceOptions {
  // What the pipeline's examples must consist of; empty: anything.
  std::vector<FeatureSpec> features = {};
  std::vector<RaggedSpec> ragged = {};
  // How long nothing may come: of the pipeline at first, of any piece of a batch later. A batch
  // that waits for those before it is not late while they come.
  std::chrono::milliseconds timeout{120'000};
  // One piece by one worker; then by another, in halves. At most a third of `timeout`.
  std::chrono::milliseconds read_timeout{60'000};
  std::chrono::milliseconds refresh_interval{1'000};  // the dispatcher is asked who is there
  std::chrono::milliseconds roll_call_interval{10'000};
  // Of a batch, at most about: what one worker is asked. Less where its threads would have nothing.
  std::int64_t piece_bytes = std::int64_t{1} << 20;
  std::int64_t max_bytes = std::int64_t{256} << 20;  // asked for and not there yet
  Log log = {};
};

// The pipeline of that name, of the dispatcher at "host:port", before Batch: waits until an input
// worker serves it. Reads of a batch go to all workers at once; Prefetch keeps them busy. Data sets
// are put together (combine.h) in the pipeline: of a part that is read here, each example is a
// call. FailedPrecondition: its features are not the ones expected, the first that differs named,
// or that is no dispatcher; DeadlineExceeded: nothing for `timeout`, and why. Reading is
// DeadlineExceeded when no worker has given a piece for `timeout`; an error of the pipeline is that
// error, with its file and record.
Result<Dataset> FromService(const std::string& dispatcher, const std::string& pipeline,
                            const FromServiceOptions& options = {});

}  // namespace cohort::data
