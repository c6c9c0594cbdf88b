// RowClient: one process's connections to the servers of the sparse tables.
//
// Ids travel once each, whatever they repeat in a call for their table: to the servers of their
// buckets, in frames (frame_link.h) of about 1 MiB, which small tables of a call share, and of
// which several are under way at a time; and again where a server says that a bucket has moved.
// Whole buckets travel over gRPC (bucket_client.h). Calls that fail for want of a connection are
// repeated, with the same sequence number, until the server has been silent for `peer_timeout`;
// then the error is Unavailable and names the server. Errors of a table name it.
//
// Thread rules: one thread calls, but see Use; Abort from any.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/optim/gradient_sink.h>

#include "parameter_server/model/table_spec.h"
#include "parameter_server/rows/bucket_client.h"
#include "parameter_server/rows/row_file.h"
#include "parameter_server/variables/client.h"

namespace cohort::ps {

class RowClient {
 public:
  virtual ~RowClient() = default;

  struct Lookup {
    int table = 0;
    std::span<const std::uint64_t> ids;
    bool training = true;   // missing rows are made where the table says so, all are marked as used
    std::span<float> rows;  // [ids, dim]: the weights
    // Where given, of each id what Use is told when gradients are computed from these rows: some
    // time, or never. Of a table that has that (LateParts); elsewhere empty.
    std::span<std::uint32_t> updates = {};
  };
  // Of several tables in one exchange with the servers. On an error nothing is said about the rows.
  virtual Status Pull(std::span<const Lookup> lookups, std::int64_t step) = 0;
  Status Pull(int table, std::span<const std::uint64_t> ids, std::int64_t step, bool training,
              std::span<float> rows) {
    const Lookup lookup{.table = table, .ids = ids, .training = training, .rows = rows};
    return Pull(std::span(&lookup, 1), step);
  }

  // Gradients will be computed from rows that were pulled before: `ids`, which may repeat, with
  // what Pull gave of them. What a push says of its rows (late_rows.h) is what they were then, or
  // at their last pull for training without `updates`, whichever came later. May be called while
  // another thread is in a Pull with `updates`, or of tables without.
  virtual void Use(int table, std::span<const std::uint64_t> ids,
                   std::span<const std::uint32_t> updates, std::span<const float> rows) = 0;

  using Gradients = RowGradients;
  // Gradients of repeated ids are added up in the order of the input. `weight`: what the sums are
  // divided by. On an error some servers may have applied their part, and what is kept of rounded
  // gradients is as before.
  virtual Status Push(std::span<const Gradients> gradients, std::int64_t step, double weight) = 0;

  // The same as part of a round (row_rounds.h): rows change when the round is applied.
  struct Part {
    std::uint64_t round = 0;
    int attempt = 0;
    int part = 0;
    int parts = 1;
  };
  virtual Status PushPart(std::span<const Gradients> gradients, std::int64_t step, double weight,
                          const Part& part) = 0;
  // What is read from now on (Pull, Dump) has every round up to this one; DeadlineExceeded where
  // that is not so for `read_timeout`.
  virtual void ReadAfter(std::uint64_t round) = 0;
  // Waits until every server has applied them.
  virtual Status AwaitRounds() = 0;
  // With backup workers: which parts the last round has. Reads and parts of the next round bring it
  // to the servers.
  virtual void Elected(const Commit& commit) = 0;

  // All buckets of a table in ascending order. Each is consistent in itself; the whole, while
  // nobody pushes.
  virtual Status Dump(
      int table, const std::function<Status(std::uint32_t bucket, std::string_view)>& take) = 0;
  // What Dump brings from now on: what Client::Freeze kept under this number, each bucket once; 0:
  // what there is. Where `since`, the number of an earlier one in this epoch, is not 0, changes
  // since that (row_changes.h) of the buckets of which the servers know them.
  virtual void ReadSnapshot(std::uint64_t snapshot, std::uint64_t since = 0) = 0;
  // Replaces all buckets, or those of `servers` only, by what `give` returns for each. It is asked
  // for all, in ascending order.
  virtual Status Restore(int table,
                         const std::function<Result<std::string>(std::uint32_t bucket)>& give,
                         const std::vector<int>* servers) = 0;

  // As Client's: rows, the numbers of pushes, which its own CopyPushes brings, and what was rounded
  // off them. A push under a number that `before` had is made of what was kept then, so that of the
  // same gradients the same bytes are sent.
  virtual Status CopyPart(int table, int server, Client::Mend which) = 0;
  virtual std::vector<std::uint64_t> pushes() const = 0;
  virtual void TakeOver(RowClient& before) = 0;

  // What is kept of rounded gradients for the next ones (TableSpec::wire_feedback), of all tables.
  struct Residuals {
    std::uint64_t rows = 0;
    std::uint64_t bytes = 0;    // of memory
    std::uint64_t dropped = 0;  // rows, so far, for want of room
  };
  virtual Residuals residuals() const = 0;

  // Has a bucket move to another server, while others pull and push: their frames for it are told
  // where it is. FailedPrecondition: there is a snapshot, or updates are rounds, or a server did
  // not answer in time. Unavailable: a server is lost, or has not answered for read_timeout, and
  // the bucket may be nowhere until the servers go back to a save. Else it stays where it is on an
  // error. The bucket's bytes pass through this process.
  virtual Status Move(int table, std::uint32_t bucket, int to) = 0;
  // Of all buckets, ascending.
  virtual Result<std::vector<BucketLoad>> Loads(int table) = 0;

  // Makes the running call and every later one fail with `why`.
  virtual void Abort(const Status& why) = 0;

  // For the model that `addresses`, of ps 0, 1, ..., were told of by Client::Declare. Does not
  // connect.
  static std::unique_ptr<RowClient> Make(const ModelSpec& model, std::vector<std::string> addresses,
                                         const ClientOptions& options);
};

// A table's rows into a file, by a thread of low priority, and back (row_file.h). `changes`: as
// ReadSnapshot has them.
Status SaveTable(RowClient& client, int table, const TableSpec& spec, FileSystem& files,
                 const std::string& path, RowFileKind kind = RowFileKind::kRows);
// `paths`: the file of all rows, and those of changes since in their order. `servers`: whose rows
// are replaced; null: all. Sets *sent when servers may have been given rows: the files are there,
// are of this table, and none ends early. After an error servers have a part of the buckets then,
// until all are loaded.
Status LoadTable(RowClient& client, int table, const TableSpec& spec, FileSystem& files,
                 std::span<const std::string> paths, const std::vector<int>* servers = nullptr,
                 bool* sent = nullptr);

}  // namespace cohort::ps
