#include <cohort/core/log.h>

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

namespace cohort {

Log StderrLog(const std::string& who, LogLevel least) {
  // Owners: every copy of the sink's closure.
  auto logger =
      std::make_shared<spdlog::logger>(who, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern(who.empty() ? "%Y-%m-%d %H:%M:%S.%e %L %v"
                                  : "%Y-%m-%d %H:%M:%S.%e %L [%n] %v");
  logger->set_level(spdlog::level::trace);
  logger->flush_on(spdlog::level::trace);
  return Log([logger, least](LogLevel level, std::string_view message) {
    if (level < least) {
      return;
    }
    static constexpr spdlog::level::level_enum kLevels[] = {
        spdlog::level::debug, spdlog::level::info, spdlog::level::warn, spdlog::level::err};
    logger->log(kLevels[static_cast<int>(level)], "{}", message);
  });
}

}  // namespace cohort
