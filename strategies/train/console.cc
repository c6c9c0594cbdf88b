#include <cohort/train/console.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cohort/core/environment.h>
#include <algorithm>
#include <memory>
#include <string>

namespace cohort {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr int kErrorOutput = 2;

void WriteAll(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(kErrorOutput, text.data(), text.size());
    if (n <= 0) {
      return;  // nobody is listening
    }
    text.remove_prefix(static_cast<std::size_t>(n));
  }
}

std::size_t Columns() {
  winsize size = {};
  return ::ioctl(kErrorOutput, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string Line(const Progress& progress, double seconds_left) {
  std::string line = fmt::format("epoch {}/{}  batch {}/{}  loss {:.4f}  {:.0f} examples/s",
                                 progress.epoch + 1, progress.epochs, progress.batch,
                                 progress.batches, progress.loss, progress.examples_per_second);
  if (progress.exposed_communication >= 0.001) {
    line += fmt::format("  waiting for others {:.1f}%", 100 * progress.exposed_communication);
  }
  if (progress.input_wait >= 0.001) {
    line += fmt::format("  waiting for input {:.1f}%", 100 * progress.input_wait);
  }
  if (seconds_left > 0) {
    const auto s = static_cast<std::int64_t>(seconds_left + 0.5);
    line += fmt::format("  {}:{:02} left", s / 60, s % 60);
  }
  return line;
}

class Console {
 public:
  explicit Console(std::chrono::milliseconds interval)
      : terminal_(::isatty(kErrorOutput) != 0 &&
                  Environment::OfProcess().Get("TERM").value_or("dumb") != "dumb"),
        interval_(terminal_ ? std::chrono::milliseconds(100) : interval) {}

  void Show(const Progress& progress) {
    const SteadyClock::time_point now = SteadyClock::now();
    if (progress.batch <= 1) {
      epoch_start_ = now;
    }
    if (!progress.epoch_finished && now - last_ < interval_) {
      return;
    }
    last_ = now;
    const double elapsed = std::chrono::duration<double>(now - epoch_start_).count();
    const auto left = static_cast<double>(progress.batches - progress.batch);
    std::string line = Line(progress, progress.epoch_finished || progress.batch == 0
                                          ? 0
                                          : elapsed / static_cast<double>(progress.batch) * left);
    if (terminal_) {
      line = line.substr(0, Columns() - 1);
      WriteAll("\r\x1b[K" + line + (progress.epoch_finished ? "\n" : ""));
    } else {
      WriteAll(line + "\n");
    }
  }

 private:
  bool terminal_;
  std::chrono::milliseconds interval_;
  SteadyClock::time_point last_;
  SteadyClock::time_point epoch_start_ = SteadyClock::now();
};

}  // namespace

std::function<void(const Progress&)> ConsoleProgress(std::chrono::milliseconds interval) {
  // Owners: copies of the function.
  return [console = std::make_shared<Console>(interval)](const Progress& progress) {
    console->Show(progress);
  };
}

}  // namespace cohort
