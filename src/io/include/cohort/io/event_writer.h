// EventWriter: scalars for TensorBoard.
//
// Writes an event file that TensorBoard, or anything that reads its files, shows as curves. One
// writer to a folder at a time, as TensorBoard follows one file of a folder: the chief's, with
// <folder>/train and <folder>/eval apart.
//
// What is written is seen by a reader after Flush. Errors name the file. Thread rules: one thread
// at a time.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>

namespace cohort::io {

struct Scalar {
  std::string_view tag;  // "loss"; "a/b" stands in section a
  float value = 0;
};

struct EventWriterOptions {
  // Seconds since 1970. Default: the machine's clock.
  std::function<double()> wall_time;
};

class EventWriter {
 public:
  // Makes `folder` and in it a new file, events.out.tfevents.<seconds>.<host>.<pid>.<number>, never
  // one that is there already.
  static Result<std::unique_ptr<EventWriter>> Create(FileSystem& files, const std::string& folder,
                                                     EventWriterOptions options = {});
  virtual ~EventWriter() = default;  // closes, dropping any error

  virtual const std::string& path() const = 0;
  virtual Status Write(std::int64_t step, std::span<const Scalar> scalars) = 0;
  // The first call of a resumed run, whose scalars will be of `step` and later: a reader drops what
  // earlier files of the folder hold of those steps.
  virtual Status Resume(std::int64_t step) = 0;
  virtual Status Flush() = 0;
  virtual Status Close() = 0;
};

}  // namespace cohort::io
