#include "remote/remote_file.h"

#include <algorithm>
#include <condition_variable>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include <cohort/data/stop_scope.h>

#include "sources/content.h"

namespace cohort::data {
namespace {

class RemoteFile final : public RandomAccessFile, public VersionedContent {
 public:
  static Result<std::unique_ptr<RandomAccessFile>> Open(std::shared_ptr<Shared> shared,
                                                        Target target) {
    auto state = std::make_unique<State>(std::move(shared), std::move(target));
    COHORT_RETURN_IF_ERROR(state->Ask(state->shared->Deadline()));
    return std::unique_ptr<RandomAccessFile>(new RemoteFile(std::move(state)));
  }

  // Ends and awaits the reads ahead that have begun; the others find it closed.
  ~RemoteFile() override {
    state_->closed = true;
    std::unique_lock lock(*state_->mutex);
    state_->arrived.wait(lock, [this] { return state_->ahead == 0; });
    *state_->gone = true;
  }

  std::uint64_t size() const override { return state_->size; }

  // A weak ETag may stay when bytes change.
  std::string version() const override {
    if (!state_->etag.starts_with('"')) {
      return "";
    }
    // Outside of S3 it tells versions of one file apart, not files.
    return (IsS3(state_->target.name) ? "" : state_->target.name + "/") +
           std::to_string(state_->size) + "/" + state_->etag;
  }

  Result<std::size_t> Read(std::uint64_t offset, std::span<std::byte> out) const override {
    if (offset >= state_->size || out.empty()) {
      return std::size_t{0};
    }
    out = out.first(std::min<std::uint64_t>(out.size(), state_->size - offset));
    if (state_->whole) {
      std::copy_n(state_->content.begin() + static_cast<std::ptrdiff_t>(offset), out.size(),
                  out.begin());
      return out.size();
    }
    const RemoteClock::time_point deadline = state_->shared->Deadline();  // of all of it
    const std::uint64_t block = state_->shared->options.block;
    // Goes on near where a read ended, or where the file begins.
    const std::uint64_t next = state_->next.exchange(offset + out.size());
    const bool in_sequence = offset <= next + block && next <= offset + block;
    if (out.size() < block) {
      COHORT_ASSIGN_OR_RETURN(const bool served,
                              state_->ReadBlocks(offset, out, in_sequence, deadline));
      if (served) {
        return out.size();
      }
    }
    COHORT_RETURN_IF_ERROR(FetchParts(offset, out, deadline));
    return out.size();
  }

 private:
  // A block, on its way or here. Guarded by State::mutex.
  struct Block {
    bool begun = false;  // somebody fetches it
    bool done = false;
    Status status;
    std::vector<std::byte> bytes;
  };

  struct State {
    State(std::shared_ptr<Shared> of, Target at) : shared(std::move(of)), target(std::move(at)) {}

    std::shared_ptr<Shared> shared;  // owners: the file system and its files
    Target target;
    std::uint64_t size = 0;
    std::string etag;
    bool whole = false;              // the server sends only whole files
    std::vector<std::byte> content;  // then
    std::atomic<bool> closed = false;
    std::atomic<std::uint64_t> next = 0;  // where the last read ended
    // Owners of these two: this, and reads ahead that have not begun.
    const std::shared_ptr<std::mutex> mutex = std::make_shared<std::mutex>();
    const std::shared_ptr<bool> gone = std::make_shared<bool>(false);  // guarded by mutex
    std::condition_variable arrived;
    std::map<std::uint64_t, std::shared_ptr<Block>> blocks;  // guarded by mutex
    std::list<std::uint64_t> recent;  // blocks, the last used first; guarded by mutex
    int ahead = 0;                    // reads ahead under way; guarded by mutex

    // Size and ETag. A range of one byte is what every server of ranges answers; HEAD is not.
    Status Ask(RemoteClock::time_point deadline) {
      const Requests requests(*shared, target, closed);
      const std::uint64_t progress = 0;
      HttpAnswer found;
      const Status status = requests.Run(
          {.begin = 0, .end = 1}, deadline, progress,
          [](const HttpAnswer& answer, std::span<const std::byte>) { return answer.status == 206; },
          [&](const HttpAnswer& answer) -> Status {
            found = answer;
            return Cancelled("known");  // ends the attempts
          });
      if (found.status == 0) {
        // An empty file has no byte to send.
        if (status.code() != StatusCode::kFailedPrecondition) {
          return status;
        }
        COHORT_RETURN_IF_ERROR(requests.Run(
            {.method = "HEAD"}, deadline, progress,
            [](const HttpAnswer&, std::span<const std::byte>) { return true; },
            [&](const HttpAnswer& answer) -> Status {
              found = answer;
              return {};
            }));
        return found.length == 0 ? Status() : status;
      }
      const std::int64_t total = found.status == 206 ? found.total : found.length;
      if (total < 0) {
        return InvalidArgument(target.name + ": the server does not say how long the file is");
      }
      size = static_cast<std::uint64_t>(total);
      etag = found.etag;
      whole = found.status != 206;
      constexpr std::uint64_t kMaxWhole = std::uint64_t{64} << 20;
      if (whole && size > kMaxWhole) {
        return InvalidArgument(target.name +
                               ": the server does not send parts of files (ranges), "
                               "and " +
                               std::to_string(size) +
                               " bytes are too many to read whole "
                               "[serve it by another server, or copy it]");
      }
      if (whole) {
        content.resize(size);
        return size == 0 ? Status() : Fetch(0, content, deadline);
      }
      return {};
    }

    Status Changed(const std::string& what) const {
      return FailedPrecondition(target.name + ": " + what +
                                " [the file was changed after it was opened: open it again]");
    }

    // Bytes [offset, offset + out.size()), which are there.
    Status Fetch(std::uint64_t offset, std::span<std::byte> out,
                 RemoteClock::time_point deadline) const {
      std::uint64_t progress = 0;
      bool misplaced = false;
      std::uint64_t at = 0;  // of the file, for answers that are whole
      std::optional<std::int64_t> attempt_begin;
      const auto take = [&](const HttpAnswer& answer, std::span<const std::byte> bytes) {
        if (answer.status == 206) {
          if (attempt_begin != answer.begin) {
            misplaced = answer.begin != static_cast<std::int64_t>(offset + progress);
            attempt_begin = answer.begin;
          }
          if (misplaced || bytes.size() > out.size() - progress) {
            misplaced = true;
            return false;
          }
          std::copy(bytes.begin(), bytes.end(),
                    out.begin() + static_cast<std::ptrdiff_t>(progress));
          progress += bytes.size();
          return true;
        }
        // The whole file: what is before is passed over.
        if (answer.length >= 0 && static_cast<std::uint64_t>(answer.length) != size) {
          return false;
        }
        const std::uint64_t want = offset + progress;
        if (at + bytes.size() > want && progress < out.size()) {
          const std::size_t skip = want > at ? static_cast<std::size_t>(want - at) : 0;
          const auto n = std::min<std::size_t>(bytes.size() - skip, out.size() - progress);
          std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(skip), n,
                      out.begin() + static_cast<std::ptrdiff_t>(progress));
          progress += n;
        }
        at += bytes.size();
        return progress < out.size();
      };
      const auto judge = [&](const HttpAnswer& answer) -> Status {
        at = 0;
        attempt_begin.reset();
        const std::int64_t total = answer.status == 206 ? answer.total : answer.length;
        if (total >= 0 && static_cast<std::uint64_t>(total) != size) {
          return Changed("has " + std::to_string(total) + " bytes, and had " +
                         std::to_string(size));
        }
        if (!etag.empty() && !answer.etag.empty() && answer.etag != etag) {
          return Changed("its ETag is " + answer.etag + ", and was " + etag);
        }
        if (misplaced) {
          return FailedPrecondition(target.name +
                                    ": the server sent other bytes than those asked for");
        }
        return {};
      };
      const Requests requests(*shared, target, closed);
      for (;;) {
        const std::uint64_t before = progress;
        const Status status = requests.Run({.begin = offset, .end = offset + out.size()}, deadline,
                                           progress, take, judge);
        COHORT_RETURN_IF_ERROR(status);
        if (progress == out.size()) {
          return {};
        }
        // A server may send less of a range than was asked for.
        if (progress == before) {
          return Unavailable(target.name + ": the server's answer has " + std::to_string(progress) +
                             " of " + std::to_string(out.size()) + " bytes from byte " +
                             std::to_string(offset));
        }
      }
    }

    // Block `number`; what is not here is fetched, by this thread or by one that began before.
    Result<std::shared_ptr<Block>> Get(std::uint64_t number, RemoteClock::time_point deadline) {
      std::unique_lock lock(*mutex);
      for (;;) {
        std::shared_ptr<Block> block;
        const auto it = blocks.find(number);
        block = it == blocks.end() ? Add(number) : it->second;
        const bool mine = !std::exchange(block->begun, true);
        if (mine) {
          lock.unlock();
          Load(number, block, deadline);
          lock.lock();
        } else {
          recent.remove(number);
          recent.push_front(number);
          const std::atomic<bool>* const stop = StopScope::Current();
          while (!block->done && RemoteClock::now() < deadline) {
            if (stop != nullptr && *stop) {
              return Cancelled(target.name + ": the iterator is being destroyed");
            }
            constexpr std::chrono::milliseconds kPoll{100};  // for the flag
            arrived.wait_until(lock, std::min(deadline, RemoteClock::now() + kPoll));
          }
          if (!block->done) {
            return DeadlineExceeded(target.name + ": not read within " +
                                    std::to_string(shared->options.deadline.count()) +
                                    " ms, at byte " +
                                    std::to_string(number * shared->options.block));
          }
        }
        // Another reader's time may have ended before this one's, or it was stopped.
        if (!mine && (block->status.code() == StatusCode::kDeadlineExceeded ||
                      block->status.code() == StatusCode::kCancelled)) {
          continue;
        }
        COHORT_RETURN_IF_ERROR(block->status);
        return block;
      }
    }

    // Under the lock.
    std::shared_ptr<Block> Add(std::uint64_t number) {
      constexpr std::size_t kKept = 16;
      auto block = std::make_shared<Block>();
      blocks[number] = block;
      recent.push_front(number);
      while (recent.size() > kKept) {
        blocks.erase(recent.back());
        recent.pop_back();
      }
      return block;
    }

    void Load(std::uint64_t number, const std::shared_ptr<Block>& block,
              RemoteClock::time_point deadline) {
      const std::uint64_t begin = number * shared->options.block;
      std::vector<std::byte> bytes(std::min<std::uint64_t>(shared->options.block, size - begin));
      Status status = Fetch(begin, bytes, deadline);
      {
        std::lock_guard lock(*mutex);
        if (!status.ok()) {
          // The next read asks anew.
          const auto it = blocks.find(number);
          if (it != blocks.end() && it->second == block) {
            blocks.erase(it);
            recent.remove(number);
          }
        }
        block->bytes = std::move(bytes);
        block->status = std::move(status);
        block->done = true;
      }
      arrived.notify_all();
    }

    void ReadAhead(std::uint64_t number) {
      if (shared->options.parallel == 1 || number * shared->options.block >= size) {
        return;
      }
      std::shared_ptr<Block> block;
      {
        std::lock_guard lock(*mutex);
        if (blocks.contains(number)) {
          return;
        }
        block = Add(number);
      }
      // All threads of the pool may be busy with servers that are silent: meanwhile a reader may
      // begin the block itself, or the file be closed.
      shared->pool.Submit(
          [this, number, block, deadline = shared->Deadline(), mutex = mutex, gone = gone] {
            {
              const std::lock_guard lock(*mutex);
              if (*gone || closed || std::exchange(block->begun, true)) {
                return;
              }
              ++ahead;
            }
            Load(number, block, deadline);
            const std::lock_guard lock(*mutex);
            --ahead;
            arrived.notify_all();
          });
    }

    // Serves a small read from blocks, if they are here or the read is one of a sequence.
    Result<bool> ReadBlocks(std::uint64_t offset, std::span<std::byte> out, bool in_sequence,
                            RemoteClock::time_point deadline) {
      const std::uint64_t block_bytes = shared->options.block;
      const std::uint64_t first = offset / block_bytes;
      const std::uint64_t last = (offset + out.size() - 1) / block_bytes;
      if (!in_sequence) {
        const std::lock_guard lock(*mutex);
        for (std::uint64_t b = first; b <= last; ++b) {
          if (!blocks.contains(b)) {
            return false;
          }
        }
      }
      if (in_sequence) {
        ReadAhead(last + 1);
      }
      for (std::uint64_t b = first; b <= last; ++b) {
        COHORT_ASSIGN_OR_RETURN(const std::shared_ptr<Block> block, Get(b, deadline));
        const std::uint64_t begin = std::max(offset, b * block_bytes);
        const std::uint64_t end = std::min(offset + out.size(), (b + 1) * block_bytes);
        std::copy_n(block->bytes.begin() + static_cast<std::ptrdiff_t>(begin - b * block_bytes),
                    end - begin, out.begin() + static_cast<std::ptrdiff_t>(begin - offset));
      }
      return true;
    }
  };

  explicit RemoteFile(std::unique_ptr<State> state) : state_(std::move(state)) {}

  Status FetchParts(std::uint64_t offset, std::span<std::byte> out,
                    RemoteClock::time_point deadline) const {
    const std::size_t part = state_->shared->options.part;
    const std::size_t parts = state_->whole ? 1 : (out.size() + part - 1) / part;
    if (parts == 1) {
      return state_->Fetch(offset, out, deadline);
    }
    if (state_->shared->options.parallel == 1) {
      for (std::size_t at = 0; at < out.size(); at += part) {
        COHORT_RETURN_IF_ERROR(
            state_->Fetch(offset + at, out.subspan(at, std::min(part, out.size() - at)), deadline));
      }
      return {};
    }
    const std::atomic<bool>* const stop = StopScope::Current();
    std::mutex mutex;
    Status first_error;  // of the part that comes first
    std::int64_t first_place = static_cast<std::int64_t>(parts);
    state_->shared->pool.ParallelFor(
        static_cast<std::int64_t>(parts), 1, [&](std::int64_t begin, std::int64_t end) {
          std::optional<StopScope> scope;  // this may be another thread
          if (stop != nullptr) {
            scope.emplace(*stop);
          }
          for (std::int64_t i = begin; i < end; ++i) {
            const std::size_t at = static_cast<std::size_t>(i) * part;
            const Status status = state_->Fetch(
                offset + at, out.subspan(at, std::min(part, out.size() - at)), deadline);
            if (!status.ok()) {
              std::lock_guard lock(mutex);
              if (i < first_place) {
                first_place = i;
                first_error = status;
              }
              return;
            }
          }
        });
    return first_error;
  }

  std::unique_ptr<State> state_;
};

}  // namespace

Result<std::unique_ptr<RandomAccessFile>> OpenRemote(std::shared_ptr<Shared> shared,
                                                     Target target) {
  return RemoteFile::Open(std::move(shared), std::move(target));
}

}  // namespace cohort::data
