#include "snapshot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <locale>
#include <optional>
#include <sstream>
#include <type_traits>
#include <utility>
#include <vector>

namespace cohort {
namespace {

// What the chief did, in a form that travels: the same bytes on every process after Broadcast.
struct Outcome {
  std::int32_t code = 0;
  std::int64_t step = 0;
  std::int64_t epoch = 0;
  std::int64_t batch = 0;
  std::uint64_t dataset_fingerprint = 0;
  GradScaler::State scaler;
  std::uint64_t data_position_bytes = 0;  // which follow
  std::array<char, 960> text = {};        // of the error, or where the checkpoint is

  void Set(const Status& status) {
    code = static_cast<std::int32_t>(status.code());
    SetText(status.message());
  }
  void SetText(const std::string& what) {
    const std::size_t n = std::min(what.size(), text.size() - 1);
    std::memcpy(text.data(), what.data(), n);
    text[n] = '\0';
  }
  Status status() const {
    return code == 0 ? Status() : Status(static_cast<StatusCode>(code), std::string(text.data()));
  }
};

Status ShareOutcome(Strategy& strategy, Outcome& outcome) {
  return strategy.Broadcast(std::as_writable_bytes(std::span(&outcome, 1)));
}

// What `call` returns; Internal with what it throws.
template <typename Call>
std::invoke_result_t<Call> Guarded(Call call) {
  try {
    return call();
  } catch (const std::exception& error) {
    return Internal(error.what());
  }
}

std::string SlotName(const Strategy& strategy, const ParameterSet& parameters, int parameter,
                     std::size_t slot) {
  return parameters[parameter].name + "/" +
         std::string(strategy.optimizer()->slot_name(static_cast<int>(slot)));
}

// The slots of the trainable parameters, as `Entry{name, shape, span}`. `slots`: the strategy's, or
// laid out as they are.
template <typename Entry, typename Slots>
std::vector<Entry> SlotEntries(const Strategy& strategy, const ParameterSet& parameters,
                               const Slots& slots) {
  std::vector<Entry> entries;
  for (int p = 0; p < parameters.size(); ++p) {
    if (!parameters[p].trainable) {
      continue;
    }
    for (std::size_t s = 0; s < slots.size(); ++s) {
      entries.push_back(
          {SlotName(strategy, parameters, p, s), parameters[p].shape,
           std::span(slots[s]).subspan(static_cast<std::size_t>(parameters[p].offset),
                                       static_cast<std::size_t>(parameters[p].shape.elements()))});
    }
  }
  return entries;
}

// `values`: the arena, or laid out as it is.
template <typename Entry>
std::vector<Entry> ValueEntries(const ParameterSet& parameters, std::span<float> values) {
  std::vector<Entry> entries;
  for (int p = 0; p < parameters.size(); ++p) {
    entries.push_back({parameters[p].name, parameters[p].shape,
                       values.subspan(static_cast<std::size_t>(parameters[p].offset),
                                      static_cast<std::size_t>(parameters[p].shape.elements()))});
  }
  return entries;
}

// Under this name among what a checkpoint says for its user.
constexpr const char* kScaler = "grad_scaler";

std::string ScalerText(const GradScaler::State& state) {
  return fmt::format("{} {} {}", state.scale, state.good_steps, state.skipped);
}

// What a checkpoint says of how gradients are scaled. One of a run that did not scale them says
// nothing: then the strategy's own stays.
Result<GradScaler::State> ParseScaler(const io::CheckpointState& state, const std::string& path,
                                      const GradScaler& otherwise) {
  const auto found = state.user.find(kScaler);
  if (found == state.user.end()) {
    return otherwise.state();
  }
  GradScaler::State parsed;
  std::istringstream text(found->second);
  text.imbue(std::locale::classic());
  text >> parsed.scale >> parsed.good_steps >> parsed.skipped;
  if (text.fail() || !text.eof()) {
    return DataLoss(fmt::format("{}: {} is \"{}\", not a scale and two counts of steps", path,
                                kScaler, found->second));
  }
  return parsed;
}

std::string TableFile(std::size_t table) { return "table-" + std::to_string(table) + ".rows"; }

// Of the files beside the tensors `extra` too, where it is wanted.
Result<io::CheckpointState> ReadFrom(const io::Checkpoint& checkpoint, Strategy& strategy,
                                     ParameterSet& parameters, const io::CheckpointStore& store,
                                     std::uint64_t expected_seed, ExtraFile* extra) {
  const io::CheckpointState& state = checkpoint.state();
  if (state.seed != expected_seed) {
    return FailedPrecondition(
        fmt::format("{} is of seed {}, this run's seed is {} [give the same seed, or another "
                    "checkpoint folder]",
                    checkpoint.path(), state.seed, expected_seed));
  }
  if (state.optimizer != strategy.optimizer()->config()) {
    return FailedPrecondition(
        fmt::format("{} was written with the optimizer {}, this run's is {} [give the same "
                    "optimizer, or another checkpoint folder]",
                    checkpoint.path(), state.optimizer, strategy.optimizer()->config()));
  }
  if (extra != nullptr) {
    const Result<std::string> file = checkpoint.File(extra->name);
    if (!file.ok()) {
      return FailedPrecondition(
          fmt::format("{} has no file {}: it is not of a job whose chief calls functions [give "
                      "another checkpoint folder]",
                      checkpoint.path(), extra->name));
    }
    COHORT_ASSIGN_OR_RETURN(extra->content, ReadFile(store.files(), *file));
  }
  COHORT_RETURN_IF_ERROR(
      checkpoint.Read(io::CheckpointPart::kModel,
                      ValueEntries<io::CheckpointTarget>(parameters, parameters.all())));
  COHORT_RETURN_IF_ERROR(
      checkpoint.Read(io::CheckpointPart::kOptimizer,
                      SlotEntries<io::CheckpointTarget>(strategy, parameters, strategy.slots())));
  for (std::size_t t = 0; t < parameters.tables().size(); ++t) {
    COHORT_ASSIGN_OR_RETURN(const std::vector<std::string> chain, checkpoint.Chain(TableFile(t)));
    COHORT_RETURN_IF_ERROR(strategy.LoadTable(static_cast<int>(t), store.files(), chain));
  }
  if (checkpoint.File(TableFile(parameters.tables().size())).ok()) {
    return FailedPrecondition(fmt::format(
        "{} has more sparse tables than the {} of this model [is this the checkpoint of "
        "another model?]",
        checkpoint.path(), parameters.tables().size()));
  }
  if (GradScaler* const scaler = strategy.grad_scaler(); scaler != nullptr) {
    COHORT_ASSIGN_OR_RETURN(const GradScaler::State read,
                            ParseScaler(state, checkpoint.path(), *scaler));
    COHORT_RETURN_IF_ERROR(scaler->SetState(read).Annotate(checkpoint.path()));
  }
  return state;
}

// The same of the newest one. NotFound: there is none, and nothing has been read.
Result<io::CheckpointState> Read(Strategy& strategy, ParameterSet& parameters,
                                 const io::CheckpointStore& store, std::uint64_t expected_seed,
                                 ExtraFile* extra = nullptr, std::string* path = nullptr) {
  COHORT_ASSIGN_OR_RETURN(const auto checkpoint, store.OpenLatest());
  if (path != nullptr) {
    *path = checkpoint->path();
  }
  Result<io::CheckpointState> state =
      ReadFrom(*checkpoint, strategy, parameters, store, expected_seed, extra);
  if (state.status().code() == StatusCode::kNotFound) {
    // It was whole a moment ago. Who takes this for the lack of a save goes on with a part of one.
    return DataLoss(checkpoint->path() + " could not be read whole: " + state.status().message());
  }
  return state;
}

// The step of the save whose rows this one adds the changes to; none: it has all rows.
std::optional<std::int64_t> BaseOf(const Strategy& strategy, const ParameterSet& parameters,
                                   const io::CheckpointStore& store,
                                   const io::CheckpointState& state, int full_save_every) {
  const std::optional<std::int64_t> base = strategy.rows_saved_at();
  if (full_save_every <= 1 || parameters.tables().empty() || !base.has_value() ||
      *base >= state.step) {
    return std::nullopt;
  }
  const auto size = store.SizeOfChain(*base);
  const bool small =
      size.ok() && size->checkpoints < full_save_every && size->change_bytes <= size->first_bytes;
  return small ? base : std::nullopt;
}

// The chief's part: all of a checkpoint. `values` and `slots` are laid out as the parameters'.
template <typename Slots>
Result<std::string> Write(Strategy& strategy, const ParameterSet& parameters,
                          io::CheckpointStore store, const io::CheckpointState& state,
                          int full_save_every, std::span<float> values, const Slots& slots,
                          const ExtraFile* extra = nullptr) {
  const std::optional<std::int64_t> base =
      BaseOf(strategy, parameters, store, state, full_save_every);
  std::vector<io::CheckpointFile> files;
  for (std::size_t t = 0; t < parameters.tables().size(); ++t) {
    files.push_back({TableFile(t), [&, t](const std::string& to) {
                       const int table = static_cast<int>(t);
                       return base.has_value() ? strategy.SaveTableChanges(table, store.files(), to)
                                               : strategy.SaveTable(table, store.files(), to);
                     }});
  }
  if (extra != nullptr) {
    files.push_back({extra->name, [&](const std::string& to) {
                       return WriteFileAtomically(store.files(), to, extra->content);
                     }});
  }
  return store.Save(state, ValueEntries<io::CheckpointSource>(parameters, values),
                    SlotEntries<io::CheckpointSource>(strategy, parameters, slots), files, base);
}

io::CheckpointState WithScaler(Strategy& strategy, io::CheckpointState state) {
  if (const GradScaler* const scaler = strategy.grad_scaler(); scaler != nullptr) {
    state.user[kScaler] = ScalerText(scaler->state());
  }
  return state;
}

// What the chief has `written`, to all.
Status ShareWritten(Strategy& strategy, const Result<std::string>& written, std::int64_t step,
                    std::string* path) {
  Outcome outcome;
  if (strategy.is_chief()) {
    outcome.Set(written.status());
    if (written.ok()) {
      *path = *written;
      outcome.SetText(*path);
    }
  }
  COHORT_RETURN_IF_ERROR(ShareOutcome(strategy, outcome));
  COHORT_RETURN_IF_ERROR(outcome.status().Annotate(fmt::format("checkpoint of step {}", step)));
  if (!strategy.is_chief()) {
    *path = outcome.text.data();
  }
  return {};
}

}  // namespace

Status SaveSnapshot(Strategy& strategy, ParameterSet& parameters, const io::CheckpointStore& store,
                    const io::CheckpointState& given, int full_save_every, std::string* path) {
  const io::CheckpointState state = WithScaler(strategy, given);
  Result<std::string> written = std::string();
  if (strategy.is_chief()) {
    const Status pulled = strategy.PullState();
    written = pulled.ok() ? Write(strategy, parameters, store, state, full_save_every,
                                  parameters.all(), strategy.slots())
                          : Result<std::string>(pulled);
  }
  return ShareWritten(strategy, written, state.step, path);
}

SnapshotBehind::~SnapshotBehind() { AwaitWriter(); }

Result<bool> SnapshotBehind::Begin(Strategy& strategy, ParameterSet& parameters,
                                   const io::CheckpointStore& store,
                                   const io::CheckpointState& state, int full_save_every) {
  Require(!begun(), "Finish or Abandon before the next Begin");
  if (parameters.tables().empty()) {
    return false;
  }
  state_ = WithScaler(strategy, state);
  Outcome outcome;
  if (strategy.is_chief()) {
    Status status = strategy.PullState();
    if (status.ok()) {
      const Result<bool> frozen = strategy.FreezeTables();
      status = frozen.status();
      if (frozen.ok() && *frozen) {
        outcome.step = 1;
        try {
          Start(strategy, parameters, store, full_save_every);
          strategy_ = &strategy;                 // begun, also if the others cannot be told
        } catch (const std::exception& error) {  // no memory, or no thread
          status = ResourceExhausted(error.what());
          (void)Guarded([&] { return strategy.ThawTables(/*saved=*/false); });
        }
      }
    }
    outcome.Set(status);
  }
  COHORT_RETURN_IF_ERROR(ShareOutcome(strategy, outcome));
  COHORT_RETURN_IF_ERROR(
      outcome.status().Annotate(fmt::format("checkpoint of step {}", state.step)));
  if (outcome.step == 0) {
    return false;
  }
  strategy_ = &strategy;
  return true;
}

void SnapshotBehind::Start(Strategy& strategy, const ParameterSet& parameters,
                           const io::CheckpointStore& store, int full_save_every) {
  Require(!writer_.joinable(), "one writer at a time");
  written_ = Internal("the save was not written");
  const std::span<const float> values = parameters.all();
  values_.assign(values.begin(), values.end());
  slots_.clear();
  for (const std::span<const float> slot : strategy.slots()) {
    slots_.emplace_back(slot.begin(), slot.end());
  }
  writer_ = std::thread([this, &strategy, &parameters, &store, full_save_every] {
    written_ = Guarded([&] {
      return Write(strategy, parameters, store, state_, full_save_every, std::span(values_),
                   slots_);
    });
    const Status thawed = Guarded([&] { return strategy.ThawTables(written_.ok()); });
    if (written_.ok() && !thawed.ok()) {
      written_ = thawed;
    }
    ended_ = std::chrono::steady_clock::now();
  });
}

void SnapshotBehind::AwaitWriter() {
  if (writer_.joinable()) {
    writer_.join();
  }
  values_ = {};
  slots_ = {};
}

Result<std::string> SnapshotBehind::Abandon() {
  Require(begun(), "Abandon after Begin");
  AwaitWriter();
  strategy_ = nullptr;
  return written_;
}

Status SnapshotBehind::Finish(std::string* path) {
  Require(begun(), "Finish after Begin");
  AwaitWriter();
  return ShareWritten(*std::exchange(strategy_, nullptr), written_, state_.step, path);
}

Result<io::CheckpointState> LoadSnapshot(Strategy& strategy, ParameterSet& parameters,
                                         const io::CheckpointStore& store,
                                         std::uint64_t expected_seed) {
  Require(strategy.optimizer() != nullptr, "a strategy is bound before state is restored");
  Outcome outcome;
  io::CheckpointState state;
  if (strategy.is_chief()) {
    Result<io::CheckpointState> read = Read(strategy, parameters, store, expected_seed);
    outcome.Set(read.status());
    if (read.ok()) {
      state = *std::move(read);
      outcome.step = state.step;
      outcome.epoch = state.epoch;
      outcome.batch = state.batch;
      outcome.dataset_fingerprint = state.dataset_fingerprint;
      if (const GradScaler* const scaler = strategy.grad_scaler(); scaler != nullptr) {
        outcome.scaler = scaler->state();
      }
      outcome.data_position_bytes = state.data_position.size();
    }
  }
  COHORT_RETURN_IF_ERROR(ShareOutcome(strategy, outcome));
  COHORT_RETURN_IF_ERROR(outcome.status());
  state.step = outcome.step;
  state.epoch = outcome.epoch;
  state.batch = outcome.batch;
  state.seed = expected_seed;
  state.dataset_fingerprint = outcome.dataset_fingerprint;
  state.data_position.resize(outcome.data_position_bytes);
  if (!state.data_position.empty()) {
    COHORT_RETURN_IF_ERROR(
        strategy.Broadcast(std::as_writable_bytes(std::span(state.data_position))));
  }
  COHORT_RETURN_IF_ERROR(strategy.Broadcast(std::as_writable_bytes(parameters.all())));
  for (const std::span<float> slot : strategy.slots()) {
    COHORT_RETURN_IF_ERROR(strategy.Broadcast(std::as_writable_bytes(slot)));
  }
  COHORT_RETURN_IF_ERROR(strategy.SetStep(state.step));
  if (GradScaler* const scaler = strategy.grad_scaler(); scaler != nullptr) {
    COHORT_RETURN_IF_ERROR(scaler->SetState(outcome.scaler));
  }
  COHORT_RETURN_IF_ERROR(strategy.PushState());
  return state;
}

Result<std::string> WriteSnapshot(Strategy& strategy, ParameterSet& parameters,
                                  const io::CheckpointStore& store,
                                  const io::CheckpointState& state, int full_save_every,
                                  const ExtraFile& extra) {
  return Write(strategy, parameters, store, WithScaler(strategy, state), full_save_every,
               parameters.all(), strategy.slots(), &extra);
}

Result<io::CheckpointState> ReadSnapshot(Strategy& strategy, ParameterSet& parameters,
                                         const io::CheckpointStore& store,
                                         std::uint64_t expected_seed, ExtraFile* extra,
                                         std::string* path) {
  Require(strategy.optimizer() != nullptr, "a strategy is bound before state is restored");
  COHORT_ASSIGN_OR_RETURN(io::CheckpointState state,
                          Read(strategy, parameters, store, expected_seed, extra, path));
  COHORT_RETURN_IF_ERROR(strategy.SetStep(state.step));
  COHORT_RETURN_IF_ERROR(strategy.PushState());
  return state;
}

Status PrepareFolder(const io::CheckpointStore& store) {
  FileSystem& files = store.files();
  Status status = files.CreateDirectories(store.folder());
  if (status.ok()) {
    const std::string probe = store.folder() + "/.writable";
    status = WriteFileAtomically(files, probe, "");
    (void)files.RemoveAll(probe);
  }
  return status.Annotate("the checkpoint folder cannot be written to");
}

Status PrepareSnapshots(Strategy& strategy, const io::CheckpointStore& store) {
  Outcome outcome;
  if (strategy.is_chief()) {
    outcome.Set(PrepareFolder(store));
  }
  COHORT_RETURN_IF_ERROR(ShareOutcome(strategy, outcome));
  return outcome.status();
}

Status RefuseSnapshots(Strategy& strategy, const io::CheckpointStore& store, bool own) {
  Outcome outcome;
  if (strategy.is_chief() && !own) {
    const Result<std::vector<std::int64_t>> steps = store.Steps();
    if (!steps.ok()) {
      outcome.Set(steps.status());
    } else if (!steps->empty()) {
      outcome.Set(FailedPrecondition(
          fmt::format("{} holds checkpoints of another run, the newest of step {} [resume, or "
                      "choose another folder]",
                      store.folder(), steps->back())));
    }
  }
  COHORT_RETURN_IF_ERROR(ShareOutcome(strategy, outcome));
  return outcome.status();
}

}  // namespace cohort
