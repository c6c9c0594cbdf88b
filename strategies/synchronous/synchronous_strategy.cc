#include "synchronous/synchronous_strategy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <cohort/optim/server_side.h>

#include <cohort/strategies/synchronous.h>

#include "parameter_server/model/layout.h"
#include "synchronous/agreement.h"
#include "synchronous/cores.h"
#include "synchronous/local_rows.h"
#include "synchronous/options.h"
#include "synchronous/tensors.h"

namespace cohort {
namespace {

// How buckets are cut where the program does not say, until more is known.
constexpr BucketLimits kStartingLimits{.first_bytes = std::int64_t{1} << 20,
                                       .bytes = std::int64_t{25} << 20};

BucketLimits LimitsOf(const StrategyOptions& options) {
  return options.communication.bytes_per_pack == 0
             ? BucketLimits{.first_bytes = options.first_bucket_bytes,
                            .bytes = kStartingLimits.bytes}
             : BucketLimits{.first_bytes = options.first_bucket_bytes,
                            .bytes = options.communication.bytes_per_pack};
}

bool AnyApart(const std::vector<std::shared_ptr<Device>>& devices) {
  return std::ranges::any_of(devices, [](const std::shared_ptr<Device>& device) {
    return device->memory_space() == MemorySpace::kDevice;
  });
}

std::string ScalerText(const std::optional<GradScalerOptions>& options) {
  return !options.has_value() ? "none"
                              : "from " + std::to_string(options->init_scale) + ", by " +
                                    std::to_string(options->growth_factor) + " after " +
                                    std::to_string(options->growth_interval) + " steps, by " +
                                    std::to_string(options->backoff_factor) + " after an overflow";
}

std::vector<std::string> Lines(const ParameterSet& parameters) {
  std::vector<std::string> lines;
  lines.reserve(static_cast<std::size_t>(parameters.size()));
  for (int p = 0; p < parameters.size(); ++p) {
    lines.push_back(parameters[p].name + " " + parameters[p].shape.ToString() +
                    (parameters[p].trainable ? ""
                     : parameters[p].frozen  ? " frozen"
                                             : " not trainable"));
  }
  return lines;
}

}  // namespace

Result<std::unique_ptr<Strategy>> MakeSynchronousStrategy(SynchronousParts parts,
                                                          StrategyOptions options) {
  return SynchronousStrategy::Make(std::move(parts.kind), std::move(parts.cluster),
                                   MakeMembership(std::move(parts.communicator), parts.store),
                                   std::move(options));
}

Result<std::unique_ptr<Strategy>> SynchronousStrategy::Make(std::string kind, ClusterConfig cluster,
                                                            std::unique_ptr<Membership> membership,
                                                            StrategyOptions options) {
  const Communicator* communicator = membership->communicator();
  COHORT_RETURN_IF_ERROR(CheckOptions(options, communicator == nullptr ? 1 : communicator->size()));
  // Who comes to others that were training does as they do, whatever the world offers now.
  if (!membership->joined_in_training()) {
    COHORT_RETURN_IF_ERROR(CheckAlgorithm(options, communicator));
  }
  options.num_devices = LocalReplicas(options);
  try {
    return std::unique_ptr<Strategy>(new SynchronousStrategy(
        std::move(kind), std::move(cluster), std::move(membership), std::move(options)));
  } catch (const StatusError& error) {  // a device has no stream for it
    return error.status();
  }
}

SynchronousStrategy::SynchronousStrategy(std::string kind, ClusterConfig cluster,
                                         std::unique_ptr<Membership> membership,
                                         StrategyOptions options)
    : kind_(std::move(kind)),
      cluster_(std::move(cluster)),
      options_(std::move(options)),
      membership_(std::move(membership)),
      communicator_(membership_->communicator()),
      rank_(communicator_ != nullptr ? communicator_->rank() : 0),
      num_processes_(communicator_ != nullptr ? communicator_->size() : 1),
      gang_(options_.num_devices, "replica ", rank_ * options_.num_devices),
      turns_(std::max(1, options_.virtual_shards / (num_processes_ * options_.num_devices))),
      local_replicas_(options_.num_devices * turns_),
      // A kernel cut among more threads may add in another order.
      intra_op_threads_(options_.intra_op_threads > 0 ? options_.intra_op_threads
                        : options_.virtual_shards > 0
                            ? 1
                            : CoresPerReplica(cluster_, options_.num_devices)),
      limits_(LimitsOf(options_)),
      outcomes_(static_cast<std::size_t>(local_replicas_)) {
  if (options_.grad_scaler.has_value()) {
    scaler_.emplace(*options_.grad_scaler);
  }
  devices_ = options_.devices;
  devices_.resize(static_cast<std::size_t>(options_.num_devices), CpuDevice());
  for (const std::shared_ptr<Device>& device : devices_) {
    const bool on_host = device->memory_space() == MemorySpace::kHost;
    streams_.push_back(on_host && options_.make_stream ? options_.make_stream()
                                                       : device->MakeStream());
  }
  MakeSpanReduction();
}

void SynchronousStrategy::MakeSpanReduction() {
  if (communicator_ != nullptr) {
    span_reduction_ = std::make_unique<SpanReduction>(*communicator_, LimitsOf(options_).bytes,
                                                      options_.communication.timeout);
  }
}

// What is on the streams of the devices works on memory that goes now.
SynchronousStrategy::~SynchronousStrategy() {
  for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
    (void)copy->Drain(options_.communication.timeout);
  }
}

std::string SynchronousStrategy::NameOf(int replica) const {
  std::string name = "replica " + std::to_string(rank_ * local_replicas_ + replica);
  return communicator_ == nullptr ? name : communicator_->peer_name(rank_) + ", " + name;
}

// ---- What all processes do together ----------------------------------------------------------

Status SynchronousStrategy::Meet(Communicator::Pending pending) {
  const Status status = Await(std::move(pending));
  return status.ok() ? status : membership_->Explain(status);
}

Status SynchronousStrategy::Compare(std::string_view what, const std::vector<std::string>& lines,
                                    std::string_view hint) {
  const Status status = Agree(*communicator_, what, lines, hint);
  return status.ok() ? status : membership_->Explain(status);
}

Status SynchronousStrategy::Bind(ParameterSet& parameters, std::unique_ptr<Optimizer> optimizer) {
  Require(parameters_ == nullptr, "Bind once");
  Require(parameters.built(), "Bind with parameters that are built");
  Require(optimizer != nullptr, "Bind with an optimizer");
  COHORT_RETURN_IF_ERROR(RefuseServerSide(*optimizer, kind()));
  COHORT_RETURN_IF_ERROR(CheckRows(parameters));
  Status bound = BindTo(parameters, *optimizer);
  if (!bound.ok() && joined_in_training() && membership_->CheckLoss(bound).ok()) {
    bound = MeetAgain(parameters, *optimizer);  // one more was lost meanwhile
  }
  COHORT_RETURN_IF_ERROR(bound);
  optimizer_ = std::move(optimizer);
  return {};
}

Status SynchronousStrategy::BindTo(ParameterSet& parameters, const Optimizer& optimizer) {
  // What a Bind that failed left.
  reducer_ = nullptr;
  {
    const std::lock_guard lock(cross_device_mutex_);
    cross_device_ = {};
  }
  copies_.clear();
  copy_of_.clear();
  kernels_.clear();
  rows_ = nullptr;
  slots_.clear();
  slot_arenas_.clear();
  if (communicator_ != nullptr) {
    if (options_.make_bucket_hook) {
      hook_ = options_.make_bucket_hook();
      Require(hook_ != nullptr, "make_bucket_hook makes a hook");
    }
    const std::vector<std::string> settings{
        "replicas per process: " + std::to_string(local_replicas_),
        "virtual shards: " + std::to_string(options_.virtual_shards),
        "loss scale: " + std::to_string(static_cast<int>(options_.loss_scale)),
        "first bucket: " + std::to_string(options_.first_bucket_bytes) + " bytes",
        "buckets: " + std::to_string(options_.communication.bytes_per_pack) + " bytes",
        "implementation: " + options_.communication.implementation,
        std::string("deterministic: ") + (options_.deterministic ? "yes" : "no"),
        "cross-device ops: " + options_.cross_device_ops,
        "bucket hook: " + (hook_ == nullptr ? "none" : hook_->name()),
        "gradient scaler: " + ScalerText(options_.grad_scaler),
        std::string("gradients: in ") + (AnyApart(devices_) ? "devices'" : "the host's") +
            " memory",
        "optimizer: " + optimizer.config()};
    COHORT_RETURN_IF_ERROR(
        Compare("parameters", Lines(parameters),
                "declare the same parameters in the same order on every process"));
    COHORT_RETURN_IF_ERROR(Compare("settings", settings, "give every process the same options"));
    CollectiveOptions broadcast;
    broadcast.name = "initial values";
    COHORT_RETURN_IF_ERROR(Meet(communicator_->Broadcast(parameters.all(), 0, broadcast)));
  }

  for (int slot = 0; slot < optimizer.num_slots(); ++slot) {
    slot_arenas_.emplace_back(DType::kFloat32,
                              Shape{static_cast<std::int64_t>(parameters.all().size())});
    slots_.push_back(slot_arenas_.back().data<float>());
    std::fill(slots_.back().begin(), slots_.back().end(), optimizer.slot_initial_value(slot));
  }
  COHORT_RETURN_IF_ERROR(BindRows(parameters, optimizer));
  COHORT_RETURN_IF_ERROR(MakeCopies(parameters));
  COHORT_RETURN_IF_ERROR(ChooseCrossDevice());
  if (hook_ != nullptr && cross_device_.nccl == nullptr) {
    COHORT_RETURN_IF_ERROR(hook_->Bind(parameters, *communicator_));
  }
  COHORT_RETURN_IF_ERROR(ChooseOneBucket());
  COHORT_RETURN_IF_ERROR(MakeReducer(parameters));
  MakeParts(parameters, optimizer);
  parameters_ = &parameters;
  if (rows_ != nullptr) {
    parameters.SetRows(rows_.get());
    for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
      copy->parameters().SetRows(rows_.get());
    }
  }
  return {};
}

Status SynchronousStrategy::CheckRows(const ParameterSet& parameters) const {
  const int servers = membership_->num_row_servers();
  if (parameters.tables().empty()) {
    return servers == 0 ? OkStatus()
                        : FailedPrecondition(
                              kind_ + " with " + std::to_string(servers) +
                              " ps task(s), which hold sparse tables, and a model without any "
                              "[start without ps tasks, or use parameter_server]");
  }
  if (scaler_.has_value() && servers > 0) {
    return Unimplemented("sparse table \"" + parameters.tables()[0].name +
                         "\" with grad_scaler: servers would have to hold back its rows too [train "
                         "with bfloat16 or float32, in one process, or make it a parameter]");
  }
  const std::string table = "sparse table \"" + parameters.tables()[0].name + "\" under " + kind_;
  if (communicator_ != nullptr && servers == 0) {
    return Unimplemented(table +
                         ": its rows would be in every process [start ps tasks, which hold them: "
                         "cohort launch -n 2 --ps 2; or make it a parameter]");
  }
  if (servers > 0 && options_.virtual_shards > 0) {
    return Unimplemented(table +
                         " with virtual shards: servers add up gradients of rows by process [leave "
                         "virtual_shards 0, or train in one process]");
  }
  return {};
}

Status SynchronousStrategy::BindRows(const ParameterSet& parameters, const Optimizer& optimizer) {
  if (parameters.tables().empty()) {
    return {};
  }
  for (const TableSpec& table : parameters.tables()) {  // what Bind was given has no such options
    COHORT_RETURN_IF_ERROR(RefuseLateRows(table, kind()));
  }
  if (membership_->num_row_servers() == 0) {
    COHORT_ASSIGN_OR_RETURN(rows_,
                            LocalRows::Make(parameters.tables(), optimizer.config(), gang_.size()));
    return {};
  }
  const ps::ModelSpec model =
      ps::ModelSpec::OfTables(parameters, optimizer.config(), membership_->num_row_servers());
  for (const TableSpec& table : model.tables) {
    COHORT_RETURN_IF_ERROR(table.Check());
  }
  auto rows = membership_->ConnectRows(model, gang_.size());
  if (!rows.ok()) {
    return membership_->Explain(rows.status());
  }
  rows_ = std::move(rows).value();
  return {};
}

// One for each device, if the memory of any is apart.
Status SynchronousStrategy::MakeCopies(ParameterSet& parameters) {
  if (!AnyApart(devices_)) {
    return {};
  }
  try {
    for (const std::shared_ptr<Device>& device : devices_) {
      auto of_device = std::ranges::find_if(copies_, [&](const std::unique_ptr<DeviceCopy>& copy) {
        return copy->device() == device;
      });
      if (of_device == copies_.end()) {
        copies_.push_back(
            std::make_unique<DeviceCopy>(device, parameters, slots_, intra_op_threads_));
        of_device = copies_.end() - 1;
      }
      copy_of_.push_back(of_device->get());
      kernels_.push_back(device->MakeKernels(intra_op_threads_));
    }
  } catch (const StatusError& error) {
    return error.status();
  }
  for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
    COHORT_RETURN_IF_ERROR(copy->Drain(options_.communication.timeout));
  }
  return {};
}

Status SynchronousStrategy::ChooseCrossDevice() {
  auto chosen = ChooseCrossDeviceOps(options_, {.copies = copies_,
                                                .job = communicator_,
                                                .store = membership_->store(),
                                                .hook = hook_.get(),
                                                .binding = bindings_++});
  if (!chosen.ok()) {
    return communicator_ == nullptr ? chosen.status() : membership_->Explain(chosen.status());
  }
  const std::lock_guard lock(cross_device_mutex_);
  cross_device_ = std::move(chosen).value();
  return {};
}

// Whether buckets are hidden behind the backward pass or one follows it. Hiding them takes a core
// from the backward pass where none is left over; one of many is no loss, one of two is. Who sets
// communication.bytes_per_pack wants buckets.
Status SynchronousStrategy::ChooseOneBucket() {
  one_bucket_ = false;
  const std::string& name = options_.communication.implementation;
  const bool asked = name == kOneBucket;
  if (communicator_ != nullptr && OffersOneBucket(*communicator_) &&
      (asked || (name == "auto" && options_.communication.bytes_per_pack == 0))) {
    const bool possible = hook_ == nullptr && copies_.empty();
    constexpr int kFewThreads = 2;
    const int threads = gang_.size() * intra_op_threads_;
    const int cores = CoresPerReplica({.local_size = num_processes_}, 1);
    std::int32_t wish = possible && (asked || (threads <= kFewThreads && cores <= threads)) ? 1 : 0;
    CollectiveOptions options;
    options.name = "one bucket of gradients";
    COHORT_RETURN_IF_ERROR(
        Meet(communicator_->AllReduce(std::span<std::int32_t>(&wish, 1), ReduceOp::kMin, options)));
    one_bucket_ = wish == 1;
  }
  constexpr std::int64_t kAll = std::numeric_limits<std::int64_t>::max() / 2;
  limits_ = one_bucket_ ? BucketLimits{.first_bytes = kAll, .bytes = kAll} : LimitsOf(options_);
  return {};
}

// What sums go by whose order counts: over a power of two of processes the canonical order is the
// top of the tree of shards.
std::string SynchronousStrategy::OrderedAlgorithm() const {
  const bool any = options_.virtual_shards == 0 || communicator_ == nullptr ||
                   communicator_->size() <= 2 || communicator_->keeps_order("auto");
  return any ? "auto" : "recursive_doubling";
}

// What all-reduces of buckets go by. After a loss the processes that are left may not offer what
// all of them did.
std::string SynchronousStrategy::SumsAlgorithm() const {
  if (options_.virtual_shards > 0) {
    return OrderedAlgorithm();
  }
  const std::string& name = options_.communication.implementation;
  return communicator_ != nullptr && Offers(*communicator_, name) ? name : "auto";
}

Status SynchronousStrategy::MakeReducer(ParameterSet& parameters) {
  const std::string& asked = options_.communication.implementation;
  const std::string algorithm = SumsAlgorithm();
  if (communicator_ != nullptr && algorithm != asked && asked != kOneBucket &&
      options_.virtual_shards == 0) {
    options_.log.Warning("the processes that are left cannot add gradients by '" + asked +
                         "': they do by " + algorithm);
  }
  std::vector<Kernels*> kernels;
  for (const std::unique_ptr<Kernels>& of_thread : kernels_) {
    kernels.push_back(of_thread.get());
  }
  auto made = Reducer::Make(parameters, Reducer::Options{.replicas = gang_.size(),
                                                         .shards = turns_,
                                                         .copies = copy_of_,
                                                         .kernels = std::move(kernels),
                                                         .way = cross_device_.way,
                                                         .nccl = cross_device_.nccl.get(),
                                                         .communicator = communicator_,
                                                         .hook = hook_.get(),
                                                         .rows = rows_.get(),
                                                         .seed_with_weight = options_.loss_scale ==
                                                                             LossScale::kGlobalMean,
                                                         .limits = limits_,
                                                         .after_pass = one_bucket_,
                                                         .algorithm = algorithm,
                                                         .timeout = options_.communication.timeout,
                                                         .log = options_.log});
  COHORT_RETURN_IF_ERROR(made.status());
  reducer_ = std::move(made).value();
  return {};
}

// What a step is made of beside the reducer.
void SynchronousStrategy::MakeParts(ParameterSet& parameters, const Optimizer& optimizer) {
  DeviceCopy* const first = copy_of(0);
  untrained_.emplace(parameters, copies_, first, options_.communication.timeout);
  updater_.emplace(Updater::Parts{.reducer = *reducer_,
                                  .optimizer = optimizer,
                                  .parameters = parameters,
                                  .slots = slots_,
                                  .untrained = *untrained_,
                                  .gang = gang_,
                                  .scaler = grad_scaler(),
                                  .copies = copies_,
                                  .first_copy = first,
                                  .communicator = communicator_,
                                  .loss_scale = options_.loss_scale,
                                  .whole_updates = options_.whole_updates,
                                  .timeout = options_.communication.timeout,
                                  .log = options_.log});
  agreement_.emplace(
      parameters, *reducer_,
      BucketAgreement::Options{.communicator = communicator_,
                               .limits = limits_,
                               .adapts = options_.communication.bytes_per_pack == 0 &&
                                         communicator_ != nullptr && !one_bucket_ &&
                                         SumsAreTheSameHoweverCut()});
}

// What the clock showed must not change a result. Two summands have one order.
bool SynchronousStrategy::SumsAreTheSameHoweverCut() const {
  const NcclSums* const nccl = cross_device_.nccl.get();
  if (nccl != nullptr) {
    return nccl->size() == 2;
  }
  // Of a hook the program knows whether it is so.
  const bool hooked = hook_ != nullptr;
  return num_processes_ == 2 ? !hooked || !options_.deterministic
                             : !hooked && communicator_->keeps_order(SumsAlgorithm());
}

Status SynchronousStrategy::ReduceGradients(std::span<const std::span<float>> gradients,
                                            double weight) {
  Require(std::isfinite(weight) && weight >= 0, "a finite weight of at least 0");
  if (communicator_ != nullptr) {
    const Status status = span_reduction_->Run(gradients, weight);
    return status.ok() ? status : membership_->Explain(status);
  }
  for (const std::span<float> gradient : gradients) {
    if (weight == 0) {
      std::fill(gradient.begin(), gradient.end(), 0.0F);
    }
  }
  return {};
}

Status SynchronousStrategy::Broadcast(std::span<std::byte> bytes) {
  if (communicator_ == nullptr) {
    return {};
  }
  CollectiveOptions options;
  options.name = "broadcast";
  return Meet(communicator_->Broadcast(
      Buffer(bytes.data(), static_cast<std::int64_t>(bytes.size()), DType::kUInt8), 0, options));
}

Result<Mirrored<Tensor>> SynchronousStrategy::Reduce(ReduceOp op, const PerReplica<Tensor>& value) {
  Require(static_cast<int>(value.values.size()) == local_replicas_, "one value per local replica");
  COHORT_ASSIGN_OR_RETURN(Tensor result, CombineTensors(op, value.values));
  if (communicator_ != nullptr) {
    CollectiveOptions options;
    options.name = "Reduce";
    options.algorithm = OrderedAlgorithm();
    COHORT_RETURN_IF_ERROR(
        Meet(communicator_->AllReduce(Buffer(result.raw(), result.elements(), result.dtype()),
                                      op == ReduceOp::kMean ? ReduceOp::kSum : op, options)));
  }
  if (op == ReduceOp::kMean) {
    DivideTensor(result, num_replicas_in_sync());
  }
  return Mirrored<Tensor>{std::move(result)};
}

Result<Mirrored<Tensor>> SynchronousStrategy::Gather(const PerReplica<Tensor>& value) {
  Require(static_cast<int>(value.values.size()) == local_replicas_, "one value per local replica");
  COHORT_ASSIGN_OR_RETURN(Tensor local, ConcatenateTensors(value.values));
  if (communicator_ == nullptr) {
    return Mirrored<Tensor>{std::move(local)};
  }
  std::vector<std::int64_t> dims = local.shape().dims();
  const std::int64_t rows = std::exchange(dims[0], 1);
  const std::string row = std::string(DTypeName(local.dtype())) + Shape(dims).ToString();
  COHORT_RETURN_IF_ERROR(Compare("rows to Gather", {row}, "gather tensors of one row shape"));
  std::vector<std::int64_t> counts(static_cast<std::size_t>(num_processes_));
  CollectiveOptions options;
  options.name = "Gather";
  COHORT_RETURN_IF_ERROR(Meet(communicator_->AllGather(std::span<const std::int64_t>(&rows, 1),
                                                       std::span<std::int64_t>(counts), options)));
  const auto row_bytes = Shape(dims).elements() * static_cast<std::int64_t>(SizeOf(local.dtype()));
  dims[0] = 0;
  for (std::int64_t& count : counts) {
    dims[0] += count;
    count *= row_bytes;
  }
  Tensor result(local.dtype(), Shape(dims));
  COHORT_RETURN_IF_ERROR(Meet(communicator_->AllGatherV(
      Buffer(local.raw(), static_cast<std::int64_t>(local.bytes()), DType::kUInt8),
      Buffer(result.raw(), static_cast<std::int64_t>(result.bytes()), DType::kUInt8), counts,
      options)));
  return Mirrored<Tensor>{std::move(result)};
}

Status SynchronousStrategy::Barrier(std::string_view name) {
  if (communicator_ == nullptr) {
    return {};
  }
  CollectiveOptions options;
  options.name = name;
  return Meet(communicator_->Barrier(options));
}

Status SynchronousStrategy::Shutdown() {
  if (cross_device_.nccl != nullptr) {
    cross_device_.nccl->Close();
  }
  return membership_->Leave();
}

Result<std::string> SynchronousStrategy::DumpFlightRecord(std::string_view reason) const {
  Result<std::string> of_gpus = FailedPrecondition("no GPUs are summed by NCCL");
  const std::lock_guard lock(cross_device_mutex_);
  if (cross_device_.nccl != nullptr) {
    of_gpus = cross_device_.nccl->DumpFlightRecord(reason);
  }
  if (communicator_ == nullptr && of_gpus.ok()) {
    return of_gpus;
  }
  return communicator_ == nullptr ? Strategy::DumpFlightRecord(reason)
                                  : communicator_->DumpFlightRecord(reason);
}

}  // namespace cohort
