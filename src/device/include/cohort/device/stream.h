// Stream and Event: order of work on a device, separate from the order in which the host asks for
// it.
//
// Work put on one stream runs in that order. Work on two streams is ordered only by an event:
// `b.WaitFor(a.Record())` makes what b is given afterwards start after what a was given before. On
// the CPU the usual stream runs its work at once, on the calling thread; tests use one that runs it
// late on a thread of its own, so that a missing WaitFor shows.
//
// Thread rules: a stream is fed by one thread at a time; events are waited for from any thread.

#pragma once

#include <functional>
#include <memory>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

namespace cohort {

// A point in a stream's work.
class Event {
 public:
  virtual ~Event() = default;
  virtual bool done() const = 0;
  // Blocks the host until all work before the event has run; the stream's error, if it has one.
  virtual Status Wait(Deadline deadline) = 0;
};

class Stream {
 public:
  virtual ~Stream() = default;

  // Puts `work` on the stream. A status that is not OK fails the stream: later work is dropped,
  // Synchronize reports it.
  virtual void Enqueue(std::function<Status()> work) = 0;
  // Owners: the caller and every stream or operation that waits for it.
  virtual std::shared_ptr<Event> Record() = 0;
  virtual void WaitFor(std::shared_ptr<Event> event) = 0;
  // Blocks the host until everything enqueued has run; the first error since the last Synchronize.
  virtual Status Synchronize(Deadline deadline) = 0;
};

// Runs everything inside Enqueue, on the calling thread.
std::unique_ptr<Stream> MakeInlineStream();

}  // namespace cohort
