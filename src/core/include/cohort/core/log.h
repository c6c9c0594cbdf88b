// Log: where a part of the engine reports what happens while it works.
//
// The library itself never prints. A Log is a small value, handed down in options; a default one is
// silent. A program makes one with StderrLog, or passes a function of its own.
//
// Thread rules: copies may be used from any thread at once; the sink must allow that.

#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace cohort {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

class Log {
 public:
  using Sink = std::function<void(LogLevel, std::string_view message)>;

  Log() = default;  // silent
  explicit Log(Sink sink) : sink_(std::move(sink)) {}

  void Debug(std::string_view message) const { Write(LogLevel::kDebug, message); }
  void Info(std::string_view message) const { Write(LogLevel::kInfo, message); }
  void Warning(std::string_view message) const { Write(LogLevel::kWarning, message); }
  void Error(std::string_view message) const { Write(LogLevel::kError, message); }
  void Write(LogLevel level, std::string_view message) const {
    if (sink_) {
      sink_(level, message);
    }
  }

 private:
  Sink sink_;
};

// One line a message on standard error: `2026-11-21 09:30:00.123 I [worker:1] message`. Levels
// below `least` are dropped.
Log StderrLog(const std::string& who, LogLevel least = LogLevel::kInfo);

}  // namespace cohort
