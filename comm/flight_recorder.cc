#include "flight_recorder.h"

#include <cohort/core/file_system.h>
#include <cohort/core/json_text.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "algorithms/choose.h"

namespace cohort {
namespace {

// The words of a slot; the name follows.
enum Word {
  kIndex,
  kSequence,
  kPair,
  kCount,
  kGeneration,
  kPacked,
  kQueuedAt,
  kStartedAt,
  kEndedAt
};

std::uint64_t Pack(const OperationRecord& record, FlightState state) {
  return static_cast<std::uint64_t>(state) | static_cast<std::uint64_t>(record.kind) << 8U |
         static_cast<std::uint64_t>(record.dtype) << 16U |
         static_cast<std::uint64_t>(record.algorithm) << 24U |
         static_cast<std::uint64_t>(static_cast<std::uint32_t>(record.root)) << 32U;
}

std::uint64_t Ticks(Deadline at) {
  return static_cast<std::uint64_t>(at.time_since_epoch().count());
}
Deadline TimeOf(std::uint64_t ticks) {
  return Deadline(Duration(static_cast<Duration::rep>(ticks)));
}

// Takes the slot for writing; false if another writer has it.
bool Take(std::atomic<std::uint64_t>& version) {
  std::uint64_t seen = version.load(std::memory_order_relaxed);
  return seen % 2 == 0 &&
         version.compare_exchange_strong(seen, seen + 1, std::memory_order_acq_rel);
}
void Give(std::atomic<std::uint64_t>& version) {
  version.store(version.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

template <typename T>
void Set(std::atomic<std::uint64_t>& word, T value) {
  word.store(static_cast<std::uint64_t>(value), std::memory_order_relaxed);
}

template <typename Words>
void SetName(Words& slot_words, const std::string& name) {
  const std::size_t length = std::min(name.size(), FlightRecorder::kNameBytes);
  const std::size_t words =
      std::min((length + 8) / 8, FlightRecorder::kNameBytes / 8);  // and a zero behind
  for (std::size_t w = 0; w < words; ++w) {
    std::uint64_t word = 0;
    std::memcpy(&word, name.data() + w * 8, std::min<std::size_t>(8, length - w * 8));
    Set(slot_words[kEndedAt + 1 + w], word);
  }
}

}  // namespace

std::string_view FlightStateName(FlightState state) {
  switch (state) {
    case FlightState::kQueued:
      return "queued";
    case FlightState::kStarted:
      return "started";
    case FlightState::kDone:
      return "done";
    case FlightState::kFailed:
      return "failed";
  }
  return "unknown";
}

std::uint64_t FlightRecorder::Queued(const OperationRecord& record, Deadline at) {
  const std::uint64_t index = queued_.fetch_add(1, std::memory_order_relaxed) + 1;
  Slot& s = slot(index);
  if (!Take(s.version)) {
    return index;
  }
  Set(s.words[kIndex], index);
  Set(s.words[kSequence], 0);
  Set(s.words[kPair], 0);
  Set(s.words[kCount], record.count);
  Set(s.words[kGeneration], record.generation);
  Set(s.words[kPacked], Pack(record, FlightState::kQueued));
  Set(s.words[kQueuedAt], Ticks(at));
  Set(s.words[kStartedAt], 0);
  Set(s.words[kEndedAt], 0);
  SetName(s.words, record.name);
  Give(s.version);
  return index;
}

void FlightRecorder::Started(std::uint64_t index, const OperationRecord& record, Deadline at) {
  last_started_.store(index, std::memory_order_release);
  Slot& s = slot(index);
  if (!Take(s.version)) {
    return;
  }
  if (s.words[kIndex].load(std::memory_order_relaxed) == index) {
    Set(s.words[kSequence], record.sequence);
    Set(s.words[kPair], record.pair_sequence);
    Set(s.words[kGeneration], record.generation);
    Set(s.words[kPacked], Pack(record, FlightState::kStarted));
    Set(s.words[kStartedAt], Ticks(at));
  }
  Give(s.version);
}

void FlightRecorder::Ended(std::uint64_t index, bool ok, Deadline at) {
  Slot& s = slot(index);
  if (!Take(s.version)) {
    return;
  }
  if (s.words[kIndex].load(std::memory_order_relaxed) == index) {
    const std::uint64_t packed = s.words[kPacked].load(std::memory_order_relaxed);
    Set(s.words[kPacked],
        (packed & ~std::uint64_t{0xff}) |
            static_cast<std::uint64_t>(ok ? FlightState::kDone : FlightState::kFailed));
    Set(s.words[kEndedAt], Ticks(at));
  }
  Give(s.version);
}

std::uint64_t FlightRecorder::Begun(const OperationRecord& record, Deadline at) {
  const std::uint64_t index = queued_.fetch_add(1, std::memory_order_relaxed) + 1;
  Slot& s = slot(index);
  if (!Take(s.version)) {
    return index;
  }
  Set(s.words[kIndex], index);
  SetName(s.words, record.name);
  Set(s.words[kCount], record.count);
  Set(s.words[kSequence], record.sequence);
  Set(s.words[kPair], record.pair_sequence);
  Set(s.words[kGeneration], record.generation);
  Set(s.words[kPacked], Pack(record, FlightState::kStarted));
  Set(s.words[kQueuedAt], Ticks(at));
  Set(s.words[kStartedAt], Ticks(at));
  Set(s.words[kEndedAt], 0);
  Give(s.version);
  last_started_.store(index, std::memory_order_release);
  return index;
}

std::optional<FlightEntry> FlightRecorder::Read(std::uint64_t index) const {
  const Slot& s = slots_[index % kOperations];
  std::array<std::uint64_t, kWords> words;
  for (int attempt = 0; attempt < 100; ++attempt) {
    const std::uint64_t before = s.version.load(std::memory_order_acquire);
    for (std::size_t w = 0; w < kWords; ++w) {
      words[w] = s.words[w].load(std::memory_order_acquire);
    }
    if (before % 2 != 0 || s.version.load(std::memory_order_relaxed) != before) {
      continue;
    }
    if (words[kIndex] != index) {
      return std::nullopt;
    }
    FlightEntry entry;
    entry.index = index;
    const std::uint64_t packed = words[kPacked];
    entry.state = static_cast<FlightState>(packed & 0xffU);
    entry.record.kind = static_cast<OperationKind>(packed >> 8U & 0xffU);
    entry.record.dtype = static_cast<DType>(packed >> 16U & 0xffU);
    entry.record.algorithm = static_cast<std::uint8_t>(packed >> 24U);
    entry.record.root = static_cast<std::int32_t>(packed >> 32U);
    entry.record.count = static_cast<std::int64_t>(words[kCount]);
    entry.record.generation = words[kGeneration];
    entry.record.sequence = words[kSequence];
    entry.record.pair_sequence = words[kPair];
    std::array<char, kNameBytes + 1> name = {};
    std::memcpy(name.data(), &words[kEndedAt + 1], kNameBytes);
    entry.record.name = name.data();
    entry.queued = TimeOf(words[kQueuedAt]);
    entry.started = TimeOf(words[kStartedAt]);
    entry.ended = TimeOf(words[kEndedAt]);
    return entry;
  }
  return std::nullopt;
}

std::optional<FlightEntry> FlightRecorder::Last() const {
  const std::uint64_t index = last_started_.load(std::memory_order_acquire);
  return index == 0 ? std::nullopt : Read(index);
}

std::vector<FlightEntry> FlightRecorder::Entries() const {
  std::vector<FlightEntry> entries;
  const std::uint64_t last = operations();
  for (std::uint64_t index = last > kOperations ? last - kOperations + 1 : 1; index <= last;
       ++index) {
    if (std::optional<FlightEntry> entry = Read(index)) {
      entries.push_back(std::move(*entry));
    }
  }
  return entries;
}

std::string FlightDump(const FlightHeader& header, const FlightRecorder& recorder) {
  using std::chrono::duration_cast;
  using std::chrono::microseconds;
  const auto wall = std::chrono::system_clock::now().time_since_epoch();
  const Deadline now = std::chrono::steady_clock::now();
  const auto unix_us = [&](Deadline at) {
    return duration_cast<microseconds>(wall - (now - at)).count();
  };
  std::array<char, 256> host = {};
  ::gethostname(host.data(), host.size() - 1);
  std::string text = JsonObject()
                         .Number("cohort_flight_record", 1)
                         .Text("group", header.group)
                         .Number("generation", header.generation)
                         .Number("rank", header.rank)
                         .Number("size", header.size)
                         .Text("task", header.task)
                         .Text("backend", header.backend)
                         .Text("host", host.data())
                         .Number("pid", ::getpid())
                         .Number("dumped_us", unix_us(now))
                         .Text("reason", header.reason)
                         .Text("status", header.status.ToString())
                         .Number("operations", recorder.operations())
                         .End() +
                     "\n";
  const std::vector<FlightEntry> entries = recorder.Entries();
  for (const FlightEntry& entry : entries) {
    const OperationRecord& record = entry.record;
    JsonObject line;
    line.Number("index", entry.index)
        .Text("op", OperationKindName(record.kind))
        .Text("name", record.name)
        .Text("dtype", DTypeName(record.dtype))
        .Number("count", record.count)
        .Number("bytes", static_cast<std::uint64_t>(record.count) * SizeOf(record.dtype))
        .Text("algorithm", AlgorithmName(static_cast<Algorithm>(record.algorithm)))
        .Text("state", FlightStateName(entry.state))
        .Number("queued_us", unix_us(entry.queued));
    if (entry.started != Deadline()) {
      line.Number("sequence", record.sequence).Number("started_us", unix_us(entry.started));
      if (record.point_to_point()) {
        line.Number("peer", record.root).Number("pair_sequence", record.pair_sequence);
      }
    }
    if (entry.ended != Deadline()) {
      line.Number("ended_us", unix_us(entry.ended));
    }
    text += line.End() + "\n";
  }
  return text + JsonObject().Number("end", entries.size()).End() + "\n";
}

std::string FlightFileName(const FlightHeader& header) {
  std::string name = header.group;
  std::replace_if(
      name.begin(), name.end(),
      [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '-';
      },
      '_');
  return name + ".g" + std::to_string(header.generation) + ".rank" + std::to_string(header.rank) +
         ".jsonl";
}

Result<std::string> WriteFlightRecord(const std::string& folder, const FlightHeader& header,
                                      const FlightRecorder& recorder) {
  if (folder.empty()) {
    return FailedPrecondition(
        "this communicator has no folder for flight records [set CommunicatorOptions, or "
        "StrategyOptions, flight_folder]");
  }
  FileSystem& files = FileSystem::Local();
  COHORT_RETURN_IF_ERROR(files.CreateDirectories(folder));
  std::string path = folder + "/" + FlightFileName(header);
  const std::string draft =  // of this thread's own
      path + "." + std::to_string(std::hash<std::thread::id>()(std::this_thread::get_id()));
  COHORT_ASSIGN_OR_RETURN(const auto file, files.OpenForWrite(draft));
  COHORT_RETURN_IF_ERROR(file->Append(AsBytes(FlightDump(header, recorder))));
  COHORT_RETURN_IF_ERROR(file->Close());
  COHORT_RETURN_IF_ERROR(files.Rename(draft, path));
  return path;
}

}  // namespace cohort
