// StrategyOptions: what a program may say about how it is trained, before a strategy is made.
//
// Every option has a default. Its comment says where it is for some kinds of strategy only, and
// where all processes must give the same.
//
// Thread rules: plain values, of which a strategy takes a copy.

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/dtype.h>
#include <cohort/core/environment.h>
#include <cohort/core/log.h>
#include <cohort/device/device.h>
#include <cohort/strategies/bucket_hook.h>
#include <cohort/strategies/consistency.h>
#include <cohort/strategies/grad_scaler.h>
#include <cohort/strategies/partitioner.h>
#include <cohort/strategies/start_policy.h>

namespace cohort {

class Metrics;  // cohort/core/metrics.h
class NcclApi;  // comm/nccl/nccl_api.h

// How replicas' gradients become one.
enum class LossScale {
  kGlobalMean,   // the mean over the examples of the global batch, exactly (default)
  kReplicaMean,  // the mean over replicas of each one's mean: DistributedDataParallel's rule
  kSum,          // the sum; the loss is already divided by the global batch: tf.distribute's rule
};

// How the processes of a job reach each other, and add gradients. `implementation`,
// `bytes_per_pack` and `timeout` are what they are in tf.distribute's CommunicationOptions (NCCL,
// which is an implementation there, is StrategyOptions::cross_device_ops).
struct CommunicationOptions {
  // How processes add gradients: "auto", or one of Communicator::algorithms, "ring" for example.
  // "one_bucket", of two processes that share memory: all at once after the backward pass. Not with
  // virtual_shards, which say how.
  std::string implementation = "auto";
  // Gradients travel in buckets of about this size, but for the first
  // (StrategyOptions::first_bucket_bytes). 0: 25 MiB at first, then what the measured latency and
  // bandwidth ask for. Of no account under a parameter server, where they travel by chunk
  // (`partitioner`).
  std::int64_t bytes_per_pack = 0;
  // Of one collective operation, one bucket for instance; more than 0. Parameter servers and their
  // workers wait as long for a process that lives and does nothing.
  std::chrono::milliseconds timeout{120'000};
  // "auto": shared memory among those on one host, TCP between hosts (comm/hierarchical.h); TCP
  // alone where a host's processes cannot share memory; under mpirun, MPI messages. "shm" (all on
  // one host) or "tcp": that, or an error. So it is between workers and parameter servers.
  std::string transport = "auto";
  // Host or address of this process, without a port, at which it listens for the others of a
  // synchronous job over TCP, and which they are told: "10.0.0.3", "::1". Empty: the interface that
  // routes to the chief. Each process's own; not under mpirun.
  std::string bind_host;
};

// What becomes of a job that loses a parameter server, when another process takes its place.
enum class ServerLoss {
  kRollBack,  // all servers, and the place in the data or in the calls, go back to the last save
  // The one that was lost gets its part of the last save, the others go on as they are: what it had
  // been sent since is lost, and counted. With asynchronous application only.
  kPartial,
  // Every server's part is on its successor, too, and a push counts when both have it. The one that
  // was lost gets its part from there: nothing rolls back, and no update is lost, or applied twice.
  // Where both are lost, as kPartial with asynchronous application, else as kRollBack. Pushes
  // travel twice, and servers hold twice as much. With two servers or more.
  kReplica,
};
std::string_view ServerLossName(ServerLoss loss);  // "kRollBack"

// How parameters travel between workers and servers, which hold float32: kFloat32, kFloat16,
// kBFloat16 or kUInt8 (256 values a scale). What a gradient loses is added to the worker's next.
struct ServerWire {
  DType push = DType::kFloat32;
  DType pull = DType::kFloat32;
};

struct StrategyOptions {
  int num_devices = 1;  // local replicas: logical CPU devices of this process
  // Instead: the device of each local replica (OpenDevices); one under a parameter server. One that
  // stands here several times is shared by as many replicas, and holds one copy of the model. In a
  // synchronous job of several processes the devices of all share the host's memory, or none do.
  std::vector<std::shared_ptr<Device>> devices;
  LossScale loss_scale = LossScale::kGlobalMean;
  // For models that compute in float16: gradients are scaled, and a step whose gradients overflow
  // is skipped, by all replicas together. The decision is each process's own, from the sums that
  // all have; so the update begins when all of them are there. Not with make_bucket_hook, nor for
  // models whose sparse tables are on servers.
  std::optional<GradScalerOptions> grad_scaler;
  // The first bucket of gradients is small, so that communication starts early; the others are of
  // communication.bytes_per_pack. Of no account under a parameter server.
  std::int64_t first_bucket_bytes = std::int64_t{1} << 20;
  // What becomes of a bucket instead of an all-reduce: see bucket_hook.h. Equal on all processes.
  std::function<std::unique_ptr<BucketHook>()> make_bucket_hook;
  // Not 0: results are the same bits for every number of processes and devices that divides it. The
  // global batch is cut into this many shards, each of which is a replica to the step function,
  // whoever runs it; their gradients are added in one tree. A power of two. See README.md for the
  // cost.
  int virtual_shards = 0;
  // Gradients of processes are added in the canonical order of comm/README.md, which depends on the
  // ranks alone: the same world gives the same bits in every run, whatever the buckets, the
  // implementation, the transport and the layout of hosts. What has an order of its own is
  // InvalidArgument, with both names: implementation "ring", mpi_implementation "mpi",
  // cross_device_ops "nccl", examples that come as they are ready (Dataset::Deterministic(false));
  // "auto" does without it. Of a parameter server only consistency sync is. A replica's own part
  // repeats where its step function does, on as many threads (`intra_op_threads`). Equal on all
  // processes.
  bool deterministic = false;
  // A step's update begins when all of its gradients are there, so that a failure leaves each
  // process with the whole step or nothing of it. Otherwise buckets are applied as they arrive,
  // while others are on their way. Recover trains so. Of no account under a parameter server: its
  // `consistency` says when what is applied.
  bool whole_updates = false;
  std::chrono::milliseconds join_timeout{300'000};
  std::chrono::milliseconds heartbeat_timeout{10'000};
  // How long a job waits for another process in the place of a parameter server that was lost, to
  // go on from the last save with it; also of one with the tables of workers in step, see
  // Strategy::BeginTraining. 0: the job ends.
  std::chrono::milliseconds rejoin_grace{60'000};
  // The same for a worker in step whose tables are on servers, but for worker:0: how long the
  // others wait for another process in its place. Then they go on without it, where min_workers are
  // left; else the job ends. worker:0's count. With rejoin_grace 0 the job ends at once.
  std::chrono::milliseconds worker_patience{10'000};
  int min_workers = 1;
  ServerLoss server_loss = ServerLoss::kRollBack;
  // How often the chief looks whether some servers get more gradients of rows than others, and
  // moves buckets of the sparse tables from the busiest to the idlest while training goes on; 0:
  // never. With asynchronous or boundedly stale application, and kRollBack, only.
  std::chrono::milliseconds balance_interval{0};
  // Sparse tables on servers: of so many batches behind the one that is trained on a worker pulls
  // the rows beforehand, while it computes; 0: of none, to kMaxLookahead. With asynchronous and
  // boundedly stale application what a step finds of a row is then what it was up to so many steps
  // of the worker before, but for the worker's own updates, all of which are in it. Where steps are
  // rounds, which a row must have all of, more than 1 is 1. The worker's memory has the batches and
  // their rows.
  int lookahead = 1;
  static constexpr int kMaxLookahead = 16;
  // Where the chief task of a parameter-server job keeps its journal, the checkpoint folder: when
  // it is lost, the others wait as long for another process in its place, and the job goes on from
  // the last save. Set on every process. Empty, or where worker:0 is the chief: the job ends. Of no
  // account for other kinds, which have no chief task: a program may set it whatever its kind.
  std::string journal_folder;
  ServerWire server_wire;
  // How parameters are cut among parameter servers, and which workers such a job waits for before
  // it begins. Equal on all processes.
  Partitioner partitioner;
  StartPolicy start;
  // (Written so for GCC 12, which takes its strings for uninitialized where a program names other
  // members only.)
  CommunicationOptions communication = CommunicationOptions();
  // How gradients in the memory of several GPUs become one sum; the names are those of
  // tf.distribute's CrossDeviceOps. "nccl": by NCCL, among the GPUs of all processes, each of which
  // belongs to one of them; Bind is FailedPrecondition, and says why, where that cannot be. Within
  // a process, "hierarchical_copy": in a tree of pairs, and back the same way;
  // "reduction_to_one_device": all to the first replica's, and from there to all, not with
  // virtual_shards. "auto": nccl where it can be and nothing else has a say in the order of sums,
  // else hierarchical_copy; the chief logs which. Equal on all processes. Of no account where
  // gradients are in the host's memory, but for nccl, which is refused.
  std::string cross_device_ops = "auto";
  // Connections between two processes, over TCP: see TcpOptions. Equal on all.
  int rails = 1;
  // Where flight records go (see comm/README.md) when a collective fails, and on DumpFlightRecord;
  // empty: nowhere.
  std::string flight_folder;
  std::string mpi_implementation = "cohort";  // see comm/mpi.h
  // Of a parameter server. kAuto: hybrid where FromEnv is given a model with sparse tables and no
  // kind, and the cluster has ps tasks and no chief task; else asynchronous. Equal on all
  // processes.
  Consistency consistency{.mode = Consistency::Mode::kAuto};
  int intra_op_threads = 0;  // per replica; 0: the cores, shared among the local replicas
  std::function<std::unique_ptr<Stream>()> make_stream;  // test seam; default: MakeInlineStream
  // Test seam: NCCL as a device's rank calls it; default: its library.
  std::function<std::shared_ptr<NcclApi>(const Device& device)> make_nccl;
  std::optional<Environment> environment;  // where FromEnv looks; none: this process's
  // Who takes part, where the program has resolved it itself (from flags); else FromEnv does, from
  // the environment.
  std::optional<ClusterConfig> cluster;
  // Counts the collectives of synchronous strategies (CommunicatorOptions::metrics); outlives the
  // strategy. nullptr: nobody counts.
  Metrics* metrics = nullptr;
  Log log;
};

// Where FromEnv looks.
Environment EnvironmentOf(const StrategyOptions& options);

}  // namespace cohort
