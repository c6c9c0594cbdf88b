#include <cohort/event.pb.h>
#include <cohort/io/event_writer.h>
#include <cohort/io/record_file.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <utility>

namespace cohort::io {
namespace {

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
    tensorboard::Event event;
    event.set_file_version("brain.Event:2");
    COHORT_RETURN_IF_ERROR(Append(event));
    return Flush();
  }

  Status Write(std::int64_t step, std::span<const Scalar> scalars) override {
    tensorboard::Event event;
    event.set_step(step);
    for (const Scalar& scalar : scalars) {
      auto* const value = event.mutable_summary()->add_value();
      value->set_tag(std::string(scalar.tag));
      value->set_simple_value(scalar.value);
    }
    return Append(event);
  }

  Status Resume(std::int64_t step) override {
    tensorboard::Event event;
    event.set_step(step);
    event.mutable_session_log()->set_status(tensorboard::SessionLog::START);
    COHORT_RETURN_IF_ERROR(Append(event));
    return Flush();
  }

  Status Flush() override { return records_->Flush().Annotate(path_); }
  Status Close() override { return records_->Close().Annotate(path_); }

 private:
  Status Append(tensorboard::Event& event) {
    event.set_wall_time(wall_time_());
    return records_->Write(event.SerializeAsString()).Annotate(path_);
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
