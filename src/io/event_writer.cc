#include <cohort/io/event_writer.h>
#include <cohort/io/record_file.h>
#include <cohort/io/wire.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <utility>

namespace cohort::io {
namespace {

// tensorflow.Event and what it holds, as far as it is written here.
enum EventField { kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7 };
enum SummaryField { kValue = 1 };
enum ValueField { kTag = 1, kSimpleValue = 2 };
enum SessionLogField { kStatus = 1 };
constexpr std::uint64_t kStart = 1;  // SessionLog.Status

// `what`: the fields behind wall_time and step.
std::string Event(double wall_time, std::int64_t step, std::string_view what) {
  std::string event;
  wire::AppendFixedField(event, kWallTime, wall_time);
  if (step != 0) {
    wire::AppendVarintField(event, kStep, static_cast<std::uint64_t>(step));
  }
  event += what;
  return event;
}

double MachineTime() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string HostName() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "localhost";
}

class FileEventWriter final : public EventWriter {
 public:
  FileEventWriter(std::unique_ptr<RecordWriter> records, std::string path,
                  std::function<double()> wall_time)
      : records_(std::move(records)), path_(std::move(path)), wall_time_(std::move(wall_time)) {}

  const std::string& path() const override { return path_; }

  Status Begin() {
    std::string version;
    wire::AppendField(version, kFileVersion, "brain.Event:2");
    COHORT_RETURN_IF_ERROR(Append(0, version));
    return Flush();
  }

  Status Write(std::int64_t step, std::span<const Scalar> scalars) override {
    std::string summary;
    for (const Scalar& scalar : scalars) {
      std::string value;
      wire::AppendField(value, kTag, scalar.tag);
      wire::AppendFixedField(value, kSimpleValue, scalar.value);
      wire::AppendField(summary, kValue, value);
    }
    std::string what;
    wire::AppendField(what, kSummary, summary);
    return Append(step, what);
  }

  Status Resume(std::int64_t step) override {
    std::string log;
    wire::AppendVarintField(log, kStatus, kStart);
    std::string what;
    wire::AppendField(what, kSessionLog, log);
    COHORT_RETURN_IF_ERROR(Append(step, what));
    return Flush();
  }

  Status Flush() override { return records_->Flush().Annotate(path_); }
  Status Close() override { return records_->Close().Annotate(path_); }

 private:
  Status Append(std::int64_t step, std::string_view what) {
    return records_->Write(Event(wall_time_(), step, what)).Annotate(path_);
  }

  std::unique_ptr<RecordWriter> records_;
  std::string path_;
  std::function<double()> wall_time_;
};

}  // namespace

Result<std::unique_ptr<EventWriter>> EventWriter::Create(FileSystem& files,
                                                         const std::string& folder,
                                                         EventWriterOptions options) {
  COHORT_RETURN_IF_ERROR(files.CreateDirectories(folder));
  std::function<double()> wall_time =
      options.wall_time ? std::move(options.wall_time) : std::function<double()>(MachineTime);
  // Readers take files in the order of their names, so the time comes first, in ten digits.
  std::array<char, 32> seconds{};
  std::snprintf(seconds.data(), seconds.size(), "%010lld", static_cast<long long>(wall_time()));
  const std::string start = folder + "/events.out.tfevents." + seconds.data() + "." + HostName() +
                            "." + std::to_string(::getpid()) + ".";
  constexpr int kAttempts = 1000;
  for (int number = 0; number < kAttempts; ++number) {
    std::string path = start + std::to_string(number);
    auto file = files.CreateNew(path);
    if (file.status().code() == StatusCode::kAlreadyExists) {
      continue;
    }
    if (!file.ok()) {
      return file.status();
    }
    auto writer = std::make_unique<FileEventWriter>(RecordWriter::To(std::move(file).value()),
                                                    std::move(path), std::move(wall_time));
    COHORT_RETURN_IF_ERROR(writer->Begin());
    return writer;
  }
  return AlreadyExists(start + "*: all names are taken");
}

}  // namespace cohort::io
