#include <strings.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <ctime>
#include <list>
#include <mutex>
#include <optional>
#include <thread>

#include <cohort/core/random.h>
#include <cohort/core/thread_pool.h>
#include <cohort/data/remote.h>

#include "remote/http.h"
#include "remote/sigv4.h"

namespace cohort::data {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

std::string TimeNow() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[20];
  std::strftime(text, sizeof(text), "%Y%m%dT%H%M%SZ", &parts);
  return text;
}

// Where a file is, and how it is asked for.
struct Target {
  std::string url;
  std::string name;  // for messages: without query and credentials
  std::optional<SigningRequest> signing;
};

bool IsRemote(const std::string& path) {
  return path.starts_with("http://") || path.starts_with("https://") || path.starts_with("s3://");
}

Result<Target> TargetOf(const std::string& path, const S3Options& s3) {
  if (!path.starts_with("s3://")) {
    std::string name = path.substr(0, path.find_first_of("?#"));
    const std::size_t host = name.find("://") + 3;
    const std::size_t at = name.substr(0, name.find('/', host)).rfind('@');
    if (at != std::string::npos) {
      name.erase(host, at + 1 - host);
    }
    return Target{path, std::move(name), std::nullopt};
  }
  const std::string rest = path.substr(5);
  const std::size_t slash = rest.find('/');
  if (slash == 0 || slash == std::string::npos || slash + 1 == rest.size()) {
    return InvalidArgument(path + ": s3://BUCKET/KEY is expected");
  }
  const std::string bucket = rest.substr(0, slash);
  const std::string key = UriEncode(rest.substr(slash + 1), /*keep_slash=*/true);
  Target target{.name = path};
  SigningRequest signing;
  std::string origin;
  if (s3.endpoint.empty()) {
    origin = "https://" + bucket + ".s3." + s3.region + ".amazonaws.com";
    signing.path = "/" + key;
  } else {
    origin = s3.endpoint;
    while (origin.ends_with('/')) {
      origin.pop_back();
    }
    if (!origin.starts_with("http://") && !origin.starts_with("https://")) {
      return InvalidArgument("S3 endpoint '" + s3.endpoint + "': http:// or https:// is expected");
    }
    if (origin.find('/', origin.find("://") + 3) != std::string::npos) {
      return InvalidArgument("S3 endpoint '" + s3.endpoint +
                             "': a host and a port, without a path, are expected");
    }
    // As it is sent: without the port that goes without saying.
    const std::string usual = origin.starts_with("https://") ? ":443" : ":80";
    if (origin.ends_with(usual)) {
      origin.resize(origin.size() - usual.size());
    }
    signing.path = "/" + bucket + "/" + key;
  }
  signing.headers["host"] = origin.substr(origin.find("://") + 3);
  target.url = origin + signing.path;
  if (!s3.access_key.empty()) {
    target.signing = std::move(signing);
  }
  return target;
}

// What all files of a file system share.
struct Shared {
  explicit Shared(RemoteOptions given)
      : options(std::move(given)), pool(std::max(1, options.parallel), "remote") {}

  const RemoteOptions options;
  HttpClient client;
  std::atomic<bool> stop = false;
  ThreadPool pool;  // last: its tasks use what is before it
};

// Runs requests until one has given what is wanted, or none will.
class Requests {
 public:
  // `closed`: the file is being closed.
  Requests(const Shared& shared, const Target& target, const std::atomic<bool>& closed)
      : shared_(shared), target_(target), closed_(closed) {}

  using Take = std::function<bool(const HttpAnswer&, std::span<const std::byte>)>;

  // `progress`: how many bytes have come, over all attempts; the range asked for begins behind
  // them. `judge` says what is wrong with a 2xx answer.
  Status Run(HttpClient& client, bool head, std::uint64_t begin, std::uint64_t end,
             const std::uint64_t& progress, const Take& take,
             const std::function<Status(const HttpAnswer&)>& judge) const {
    constexpr milliseconds kLeast{1};
    const RemoteOptions& options = shared_.options;
    const Clock::time_point deadline = Clock::now() + options.deadline;
    milliseconds wait = options.first_wait;
    int failures = 0;
    std::uint64_t before = progress;
    for (;;) {
      const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
      HttpRequest request{
          .url = target_.url,
          .head = head,
          .headers = options.headers,
          .connect_timeout = std::max(kLeast, std::min(left, options.connect_timeout)),
          .timeout = std::max(kLeast, std::min(left, options.attempt_timeout)),
          .ca_file = options.ca_file,
          .follow = options.headers.empty() && !target_.signing.has_value(),
          .take = take,
          .stopped = [this] { return stopped(); }};
      if (!head) {
        request.headers["Range"] =
            "bytes=" + std::to_string(begin + progress) + "-" + std::to_string(end - 1);
      }
      if (target_.signing.has_value()) {
        SigningRequest signing = *target_.signing;
        signing.method = head ? "HEAD" : "GET";
        // A user's credentials for another service stay here.
        std::erase_if(request.headers, [](const auto& header) {
          return ::strcasecmp(header.first.c_str(), "authorization") == 0;
        });
        for (const auto& [name, value] : SignRequest(signing,
                                                     {options.s3.access_key, options.s3.secret_key,
                                                      options.s3.session_token, options.s3.region},
                                                     TimeNow())) {
          request.headers[name] = value;
        }
      }
      HttpAnswer answer;
      Status status = client.Perform(request, answer);
      if (stopped()) {
        return Cancelled(target_.name + ": the file or its file system is being closed");
      }
      // What an answer says counts also where it was ended because of that.
      if (answer.status / 100 == 2) {
        COHORT_RETURN_IF_ERROR(judge(answer));
        if (status.ok() || (!head && progress == end - begin)) {
          return {};
        }
      } else if (status.ok()) {
        status = OfAnswer(answer);
        if (status.code() != StatusCode::kUnavailable) {
          return status.Annotate(target_.name);
        }
      } else if (status.code() != StatusCode::kUnavailable) {
        return status.Annotate(target_.name);
      }
      failures = progress > before ? 1 : failures + 1;
      if (progress > before) {
        wait = options.first_wait;
      }
      before = progress;
      if (failures >= options.attempts) {
        return Unavailable(target_.name + ": " + std::to_string(failures) +
                           " attempts in a row failed, the last: " + status.message() +
                           (head ? "" : ", at byte " + std::to_string(begin + progress)));
      }
      milliseconds pause = wait;
      if (answer.wait_seconds > 0) {
        pause =
            std::max(pause, milliseconds(std::min<std::int64_t>(answer.wait_seconds, 30) * 1000));
      }
      if (Clock::now() + pause >= deadline) {
        return DeadlineExceeded(target_.name + ": not read within " +
                                std::to_string(options.deadline.count()) +
                                " ms, at last: " + status.message());
      }
      Sleep(pause);
      wait = std::min(wait * 2, milliseconds(5000));
    }
  }

 private:
  void Sleep(milliseconds pause) const {
    const Clock::time_point end = Clock::now() + pause;
    while (!stopped() && Clock::now() < end) {
      std::this_thread::sleep_for(std::min<Clock::duration>(milliseconds(50), end - Clock::now()));
    }
  }

  static Status OfAnswer(const HttpAnswer& answer) {
    std::string what = "the server says " + std::to_string(answer.status);
    if (!answer.body.empty()) {
      what += ": " + answer.body;
    }
    switch (answer.status) {
      case 401:
      case 403:
        return PermissionDenied(what);
      case 404:
      case 410:
        return NotFound(what);
      case 412:
      case 416:  // no damage that a reader may skip
        return FailedPrecondition(what + " [was the file changed after it was opened?]");
      case 408:
      case 425:
      case 429:
        return Unavailable(what);
      default:
        return answer.status >= 500 ? Unavailable(what) : FailedPrecondition(what);
    }
  }

  bool stopped() const { return shared_.stop || closed_; }

  const Shared& shared_;
  const Target& target_;
  const std::atomic<bool>& closed_;
};

class RemoteFile final : public RandomAccessFile {
 public:
  static Result<std::unique_ptr<RandomAccessFile>> Open(std::shared_ptr<Shared> shared,
                                                        Target target) {
    auto state = std::make_unique<State>(std::move(shared), std::move(target));
    COHORT_RETURN_IF_ERROR(state->Ask());
    return std::unique_ptr<RandomAccessFile>(new RemoteFile(std::move(state)));
  }

  // Ends and awaits the reads ahead.
  ~RemoteFile() override {
    state_->closed = true;
    std::unique_lock lock(state_->mutex);
    state_->arrived.wait(lock, [this] { return state_->ahead == 0; });
  }

  std::uint64_t size() const override { return state_->size; }

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
    const std::uint64_t block = state_->shared->options.block;
    // Goes on near where a read ended, or where the file begins.
    const std::uint64_t next = state_->next.exchange(offset + out.size());
    const bool in_sequence = offset <= next + block && next <= offset + block;
    if (out.size() < block) {
      COHORT_ASSIGN_OR_RETURN(const bool served, state_->ReadBlocks(offset, out, in_sequence));
      if (served) {
        return out.size();
      }
    }
    COHORT_RETURN_IF_ERROR(FetchParts(offset, out));
    return out.size();
  }

 private:
  // A block, on its way or here. Guarded by State::mutex.
  struct Block {
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
    std::mutex mutex;
    std::condition_variable arrived;
    std::map<std::uint64_t, std::shared_ptr<Block>> blocks;  // guarded by mutex
    std::list<std::uint64_t> recent;  // blocks, the last used first; guarded by mutex
    int ahead = 0;                    // reads ahead that are not done; guarded by mutex

    // Size and ETag. A range of one byte is what every server of ranges answers; HEAD is not.
    Status Ask() {
      const Requests requests(*shared, target, closed);
      const std::uint64_t progress = 0;
      HttpAnswer found;
      const Status status = requests.Run(
          shared->client, /*head=*/false, 0, 1, progress,
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
            shared->client, /*head=*/true, 0, 0, progress,
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
        return size == 0 ? Status() : Fetch(0, content);
      }
      return {};
    }

    Status Changed(const std::string& what) const {
      return FailedPrecondition(target.name + ": " + what +
                                " [the file was changed after it was opened: open it again]");
    }

    // Bytes [offset, offset + out.size()), which are there.
    Status Fetch(std::uint64_t offset, std::span<std::byte> out) const {
      std::uint64_t progress = 0;
      bool misplaced = false;
      std::uint64_t at = 0;  // of the file, for answers that are whole
      std::uint64_t attempt_begin = ~std::uint64_t{0};
      const auto take = [&](const HttpAnswer& answer, std::span<const std::byte> bytes) {
        if (answer.status == 206) {
          if (attempt_begin != static_cast<std::uint64_t>(answer.begin)) {
            misplaced = answer.begin != static_cast<std::int64_t>(offset + progress);
            attempt_begin = static_cast<std::uint64_t>(answer.begin);
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
        attempt_begin = ~std::uint64_t{0};
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
        const Status status = requests.Run(shared->client, /*head=*/false, offset,
                                           offset + out.size(), progress, take, judge);
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
    Result<std::shared_ptr<Block>> Get(std::uint64_t number) {
      std::unique_lock lock(mutex);
      const auto it = blocks.find(number);
      if (it == blocks.end()) {
        const std::shared_ptr<Block> block = Begin(number);
        lock.unlock();
        Load(number, block);
        lock.lock();
        COHORT_RETURN_IF_ERROR(block->status);
        return block;
      }
      const std::shared_ptr<Block> block = it->second;
      recent.remove(number);
      recent.push_front(number);
      arrived.wait(lock, [&block] { return block->done; });  // Load ends by its deadline
      COHORT_RETURN_IF_ERROR(block->status);
      return block;
    }

    // Under the lock.
    std::shared_ptr<Block> Begin(std::uint64_t number) {
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

    void Load(std::uint64_t number, const std::shared_ptr<Block>& block) {
      const std::uint64_t begin = number * shared->options.block;
      std::vector<std::byte> bytes(std::min<std::uint64_t>(shared->options.block, size - begin));
      Status status = Fetch(begin, bytes);
      {
        std::lock_guard lock(mutex);
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
      if (number * shared->options.block >= size) {
        return;
      }
      std::shared_ptr<Block> block;
      {
        std::lock_guard lock(mutex);
        if (blocks.contains(number)) {
          return;
        }
        block = Begin(number);
        ++ahead;
      }
      shared->pool.Submit([this, number, block] {
        Load(number, block);
        std::lock_guard lock(mutex);
        --ahead;
        arrived.notify_all();
      });
    }

    // Serves a small read from blocks, if they are here or the read is one of a sequence.
    Result<bool> ReadBlocks(std::uint64_t offset, std::span<std::byte> out, bool in_sequence) {
      const std::uint64_t block_bytes = shared->options.block;
      const std::uint64_t first = offset / block_bytes;
      const std::uint64_t last = (offset + out.size() - 1) / block_bytes;
      if (!in_sequence) {
        std::lock_guard lock(mutex);
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
        COHORT_ASSIGN_OR_RETURN(const std::shared_ptr<Block> block, Get(b));
        const std::uint64_t begin = std::max(offset, b * block_bytes);
        const std::uint64_t end = std::min(offset + out.size(), (b + 1) * block_bytes);
        std::copy_n(block->bytes.begin() + static_cast<std::ptrdiff_t>(begin - b * block_bytes),
                    end - begin, out.begin() + static_cast<std::ptrdiff_t>(begin - offset));
      }
      return true;
    }
  };

  explicit RemoteFile(std::unique_ptr<State> state) : state_(std::move(state)) {}

  Status FetchParts(std::uint64_t offset, std::span<std::byte> out) const {
    const std::size_t part = state_->shared->options.part;
    const std::size_t parts = state_->whole ? 1 : (out.size() + part - 1) / part;
    if (parts == 1) {
      return state_->Fetch(offset, out);
    }
    std::mutex mutex;
    Status first_error;  // of the part that comes first
    std::int64_t first_place = static_cast<std::int64_t>(parts);
    state_->shared->pool.ParallelFor(
        static_cast<std::int64_t>(parts), 1, [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t i = begin; i < end; ++i) {
            const std::size_t at = static_cast<std::size_t>(i) * part;
            const Status status =
                state_->Fetch(offset + at, out.subspan(at, std::min(part, out.size() - at)));
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

class RemoteFileSystem final : public FileSystem {
 public:
  explicit RemoteFileSystem(const RemoteOptions& options)
      : shared_(std::make_shared<Shared>(options)) {}
  ~RemoteFileSystem() override { shared_->stop = true; }

  Result<std::unique_ptr<RandomAccessFile>> OpenForRead(const std::string& path) override {
    if (!IsRemote(path)) {
      return Local().OpenForRead(path);
    }
    COHORT_ASSIGN_OR_RETURN(Target target, TargetOf(path, shared_->options.s3));
    return RemoteFile::Open(shared_, std::move(target));
  }
  Result<std::unique_ptr<WritableFile>> OpenForWrite(const std::string& path) override {
    COHORT_RETURN_IF_ERROR(OnlyLocal(path));
    return Local().OpenForWrite(path);
  }
  Result<std::unique_ptr<WritableFile>> CreateNew(const std::string& path) override {
    COHORT_RETURN_IF_ERROR(OnlyLocal(path));
    return Local().CreateNew(path);
  }
  Status CreateDirectories(const std::string& path) override {
    COHORT_RETURN_IF_ERROR(OnlyLocal(path));
    return Local().CreateDirectories(path);
  }
  Status Rename(const std::string& from, const std::string& to) override {
    COHORT_RETURN_IF_ERROR(OnlyLocal(from));
    COHORT_RETURN_IF_ERROR(OnlyLocal(to));
    return Local().Rename(from, to);
  }
  Status SyncDirectory(const std::string& path) override {
    COHORT_RETURN_IF_ERROR(OnlyLocal(path));
    return Local().SyncDirectory(path);
  }
  Status RemoveAll(const std::string& path) override {
    COHORT_RETURN_IF_ERROR(OnlyLocal(path));
    return Local().RemoveAll(path);
  }
  bool Exists(const std::string& path) override {
    return IsRemote(path) ? OpenForRead(path).ok() : Local().Exists(path);
  }
  Result<std::vector<std::string>> List(const std::string& path) override {
    COHORT_RETURN_IF_ERROR(OnlyLocal(path));
    return Local().List(path);
  }

 private:
  static Status OnlyLocal(const std::string& path) {
    return IsRemote(path)
               ? Unimplemented(path + ": remote files are read, not written, listed or removed")
               : Status();
  }

  std::shared_ptr<Shared> shared_;  // owners: this and open files
};

}  // namespace

std::unique_ptr<FileSystem> MakeRemoteFileSystem(const RemoteOptions& options) {
  Require(options.block >= 1 && options.part >= 1 && options.parallel >= 1 && options.attempts >= 1,
          "remote files: block, part, parallel and attempts are at least 1");
  return std::make_unique<RemoteFileSystem>(options);
}

}  // namespace cohort::data
