#include "tcp/rendezvous.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "transport.h"

namespace cohort {
namespace {

using std::chrono::seconds;

constexpr std::uint64_t kMagic = 0x33504d4f43524f43U;  // "CORCOMP3"
constexpr seconds kRollCall{10};      // how often the missing are listed in the log
constexpr seconds kHelloTimeout{10};  // a connection that does not say who it is goes
constexpr std::size_t kMaxStrangers = 256;

struct Hello {
  std::uint64_t magic;
  std::uint64_t group;  // digest of name and size
  std::uint64_t generation;
  std::uint32_t rank;
  std::uint32_t channel;
  std::uint64_t channels;
  std::uint64_t stripe_bytes;
  cpu_set_t cores;
};

enum class Verdict : std::uint32_t {
  kWelcome = 0,
  kOtherGroup = 1,
  kOtherGeneration = 2,
  kNotAwaited = 3,
  kOtherRails = 4
};

struct Answer {
  std::uint64_t magic;
  std::uint64_t generation;  // of the one who answers
  std::uint32_t rank;
  Verdict verdict;
  std::uint64_t channels;
  std::uint64_t stripe_bytes;
  cpu_set_t cores;
};

cpu_set_t CoresOfThisProcess() {
  cpu_set_t cores;
  if (::sched_getaffinity(0, sizeof(cores), &cores) != 0) {  // more than the set has room for
    std::memset(&cores, 0xff, sizeof(cores));
  }
  return cores;
}

std::uint64_t Digest(const GroupIdentity& group) {
  std::uint64_t digest = 0xcbf29ce484222325U;
  const auto add = [&digest](unsigned char c) { digest = (digest ^ c) * 0x100000001b3U; };
  std::for_each(group.name.begin(), group.name.end(), add);
  for (int shift = 0; shift < 32; shift += 8) {
    add(static_cast<unsigned char>(group.size >> shift));
  }
  return digest;
}

std::string RailsText(std::uint64_t channels, std::uint64_t stripe_bytes) {
  return std::to_string(channels - 1) + " rail(s) of " + std::to_string(stripe_bytes) + " bytes";
}

// Waits for what ranks publish. Who is missing is listed in the log now and then, and in the error
// at the deadline.
class RollCall {
 public:
  RollCall(int rank, int size, const Directory& directory, const Log& log, Deadline deadline)
      : rank_(rank),
        size_(size),
        directory_(directory),
        log_(log),
        deadline_(deadline),
        started_(std::chrono::steady_clock::now()),
        next_(started_ + kRollCall) {}

  // Those without whom the caller does not go on.
  using Absent = std::function<std::vector<int>()>;

  Result<std::string> Await(int rank, const Absent& absent) {
    for (;;) {
      Result<std::string> published = directory_.wait(rank, wake());
      if (published.ok()) {
        return published;
      }
      if (published.status().code() != StatusCode::kDeadlineExceeded) {
        return published.status().Annotate("looking for " + directory_.name(rank));
      }
      COHORT_RETURN_IF_ERROR(Check(absent()));
    }
  }
  // The latest time of the next Check.
  Deadline wake() const { return std::min(deadline_, next_); }
  Status Check(const std::vector<int>& absent) {
    const Deadline now = std::chrono::steady_clock::now();
    if (now >= deadline_) {
      return Missing(absent, "");
    }
    if (now >= next_) {
      next_ = now + kRollCall;
      log_.Info(directory_.name(rank_) + " waits for " + std::to_string(absent.size()) + "/" +
                std::to_string(size_) + ": " + Names(absent));
    }
    return {};
  }
  Status Missing(const std::vector<int>& absent, const std::string& detail) const {
    const auto waited =
        std::chrono::duration_cast<seconds>(std::chrono::steady_clock::now() - started_);
    return DeadlineExceeded(directory_.name(rank_) + " did not meet all " + std::to_string(size_) +
                            " ranks within " + std::to_string(waited.count()) + " s: missing " +
                            Names(absent) + (detail.empty() ? "" : "; " + detail) +
                            " [start the missing processes; check that they reach each other]");
  }

 private:
  std::string Names(const std::vector<int>& absent) const {
    std::string text;
    for (const int peer : absent) {
      const std::string word = directory_.look(peer);
      text += (text.empty() ? "" : ", ") + directory_.name(peer) + " (" +
              (word.empty() ? "has not published " + directory_.what : "published " + word) + ")";
    }
    return text;
  }

  const int rank_;
  const int size_;
  const Directory& directory_;
  const Log& log_;
  const Deadline deadline_;
  const Deadline started_;
  Deadline next_;
};

class Meeting {
 public:
  Meeting(const GroupIdentity& group, const Listener& listener, const Directory& directory,
          const Log& log, Deadline deadline)
      : group_(group),
        listener_(listener),
        directory_(directory),
        log_(log),
        deadline_(deadline),
        roll_call_(group.rank, group.size, directory, log, deadline),
        connections_{
            std::vector<Socket>(static_cast<std::size_t>(group.size * group.channels)),
            std::vector<cpu_set_t>(static_cast<std::size_t>(group.size), CoresOfThisProcess())} {}

  Result<Connections> Run() {
    for (int peer = 0; peer < group_.rank; ++peer) {
      COHORT_RETURN_IF_ERROR(ConnectTo(peer));
    }
    COHORT_RETURN_IF_ERROR(AcceptOthers());
    return std::move(connections_);
  }

 private:
  struct Stranger {
    Socket socket;
    Deadline leave;
    Hello hello = {};
    std::size_t heard = 0;
  };

  Status ConnectTo(int peer) {
    COHORT_ASSIGN_OR_RETURN(const std::string address,
                            roll_call_.Await(peer, [this] { return Absent(); }));
    for (int channel = 0; channel < group_.channels; ++channel) {
      COHORT_RETURN_IF_ERROR(ConnectTo(peer, channel, address));
    }
    return {};
  }

  Status ConnectTo(int peer, int channel, const std::string& address) {
    const std::string who = directory_.name(peer) + " at " + address;
    Result<Socket> connected = Connect(address, deadline_);
    if (!connected.ok()) {
      return connected.status().code() == StatusCode::kDeadlineExceeded
                 ? Missing(directory_.name(peer) + ": " + connected.status().message())
                 : connected.status().Annotate(who);
    }
    Socket socket = std::move(connected).value();
    COHORT_RETURN_IF_ERROR(Prepare(socket).Annotate(who));
    const Hello hello = {kMagic,
                         Digest(group_),
                         group_.generation,
                         static_cast<std::uint32_t>(group_.rank),
                         static_cast<std::uint32_t>(channel),
                         static_cast<std::uint64_t>(group_.channels),
                         group_.stripe_bytes,
                         CoresOf(group_.rank)};
    Answer answer = {};
    Status status = WriteAll(socket, &hello, sizeof(hello), deadline_);
    if (status.ok()) {
      status = ReadAll(socket, &answer, sizeof(answer), deadline_);
    }
    if (status.code() == StatusCode::kDeadlineExceeded) {
      return Missing(who + " does not answer");
    }
    COHORT_RETURN_IF_ERROR(status.Annotate(who));
    COHORT_RETURN_IF_ERROR(Admitted(answer, peer, who));
    At(peer, channel) = std::move(socket);
    CoresOf(peer) = answer.cores;
    return {};
  }

  Status Admitted(const Answer& answer, int peer, const std::string& who) const {
    if (answer.magic != kMagic) {
      return FailedPrecondition(who +
                                " is no cohort communicator [is the port in use by another "
                                "program?]");
    }
    switch (answer.verdict) {
      case Verdict::kWelcome:
        break;
      case Verdict::kOtherGeneration:
        return FailedPrecondition(who + " is in generation " + std::to_string(answer.generation) +
                                  ", this rank in " + std::to_string(group_.generation));
      case Verdict::kOtherRails:
        return FailedPrecondition(
            who + " has " + RailsText(answer.channels, answer.stripe_bytes) + ", this rank " +
            RailsText(static_cast<std::uint64_t>(group_.channels), group_.stripe_bytes) +
            " [give every process the same rails]");
      case Verdict::kOtherGroup:
        return FailedPrecondition(who + " belongs to another group than '" + group_.name + "' of " +
                                  std::to_string(group_.size) + " ranks");
      default:
        return FailedPrecondition(who + " does not await " + directory_.name(group_.rank) +
                                  " [do two processes have this rank?]");
    }
    if (answer.rank != static_cast<std::uint32_t>(peer)) {
      return FailedPrecondition(who + " says that it is rank " + std::to_string(answer.rank));
    }
    return {};
  }

  Status AcceptOthers() {
    while (!Absent().empty()) {
      COHORT_RETURN_IF_ERROR(roll_call_.Check(Absent()));
      const Deadline now = std::chrono::steady_clock::now();
      std::erase_if(strangers_, [&](const Stranger& s) { return s.leave <= now; });
      std::vector<pollfd> events = {{listener_.socket.fd(), POLLIN, 0}};
      Deadline wake = roll_call_.wake();
      for (const Stranger& stranger : strangers_) {
        events.push_back({stranger.socket.fd(), POLLIN, 0});
        wake = std::min(wake, stranger.leave);
      }
      ::poll(events.data(), events.size(), PollTimeout(wake));
      for (std::size_t i = strangers_.size(); i > 0; --i) {
        if (events[i].revents != 0 && !Listen(strangers_[i - 1])) {
          strangers_.erase(strangers_.begin() + static_cast<std::ptrdiff_t>(i - 1));
        }
      }
      if (events[0].revents != 0 && strangers_.size() < kMaxStrangers) {
        Socket socket(
            ::accept4(listener_.socket.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (socket.open() && Prepare(socket).ok()) {
          strangers_.push_back({std::move(socket), now + kHelloTimeout});
        }
      }
    }
    return {};
  }

  // False: done with it, for good or bad.
  bool Listen(Stranger& stranger) {
    auto* into = reinterpret_cast<char*>(&stranger.hello);
    const ssize_t n =
        ::recv(stranger.socket.fd(), into + stranger.heard, sizeof(Hello) - stranger.heard, 0);
    if (n <= 0) {
      return n < 0 && (errno == EAGAIN || errno == EINTR);
    }
    stranger.heard += static_cast<std::size_t>(n);
    const Hello& hello = stranger.hello;
    if (stranger.heard >= sizeof(hello.magic) && hello.magic != kMagic) {
      return false;
    }
    if (stranger.heard < sizeof(Hello)) {
      return true;
    }
    Verdict verdict = Verdict::kWelcome;
    if (hello.group != Digest(group_)) {
      verdict = Verdict::kOtherGroup;
    } else if (hello.generation != group_.generation) {
      verdict = Verdict::kOtherGeneration;
    } else if (hello.channels != static_cast<std::uint64_t>(group_.channels) ||
               hello.stripe_bytes != group_.stripe_bytes) {
      verdict = Verdict::kOtherRails;
    } else if (hello.rank <= static_cast<std::uint32_t>(group_.rank) ||
               hello.rank >= static_cast<std::uint32_t>(group_.size) ||
               hello.channel >= static_cast<std::uint32_t>(group_.channels) ||
               At(static_cast<int>(hello.rank), static_cast<int>(hello.channel)).open()) {
      verdict = Verdict::kNotAwaited;
    }
    const Answer answer = {kMagic,
                           group_.generation,
                           static_cast<std::uint32_t>(group_.rank),
                           verdict,
                           static_cast<std::uint64_t>(group_.channels),
                           group_.stripe_bytes,
                           CoresOf(group_.rank)};
    const bool told =
        WriteAll(stranger.socket, &answer, sizeof(answer), DeadlineAfter(seconds(1))).ok();
    if (verdict != Verdict::kWelcome) {
      log_.Warning("refused a connection from rank " + std::to_string(hello.rank) +
                   " of generation " + std::to_string(hello.generation) + " to " +
                   directory_.name(group_.rank) + " of generation " +
                   std::to_string(group_.generation));
    } else if (told) {
      At(static_cast<int>(hello.rank), static_cast<int>(hello.channel)) =
          std::move(stranger.socket);
      CoresOf(static_cast<int>(hello.rank)) = hello.cores;
    }
    return false;
  }

  cpu_set_t& CoresOf(int rank) { return connections_.cores[static_cast<std::size_t>(rank)]; }
  Socket& At(int peer, int channel) {
    return connections_.sockets[static_cast<std::size_t>(peer * group_.channels + channel)];
  }
  const Socket& At(int peer, int channel) const {
    return connections_.sockets[static_cast<std::size_t>(peer * group_.channels + channel)];
  }

  std::vector<int> Absent() const {
    std::vector<int> absent;
    for (int peer = 0; peer < group_.size; ++peer) {
      bool here = true;
      for (int channel = 0; channel < group_.channels; ++channel) {
        here &= At(peer, channel).open();
      }
      if (peer != group_.rank && !here) {
        absent.push_back(peer);
      }
    }
    return absent;
  }

  Status Missing(const std::string& detail) const { return roll_call_.Missing(Absent(), detail); }

  const GroupIdentity& group_;
  const Listener& listener_;
  const Directory& directory_;
  const Log& log_;
  const Deadline deadline_;
  RollCall roll_call_;
  Connections connections_;
  std::vector<Stranger> strangers_;
};

std::string Key(const std::string& folder, int rank) { return folder + "/" + std::to_string(rank); }

// What a rank publishes is a line; the next one says which process it is.
std::string ThisProcess() {
  std::array<char, 256> host = {};
  ::gethostname(host.data(), host.size() - 1);
  return "process " + std::to_string(::getpid()) + " on " + host.data();
}
std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

Status Publish(int rank, const std::string& word, KeyValueStore& store, const std::string& folder,
               const Directory& directory, const CommunicatorOptions& options) {
  const std::string key = Key(folder, rank);
  Status status = store.Insert(key, word + "\n" + ThisProcess());
  if (status.code() == StatusCode::kAlreadyExists) {
    const Result<std::string> first = store.Get(key);
    const std::size_t line = first.ok() ? first.value().find('\n') : std::string::npos;
    status = AlreadyExists(
        (line == std::string::npos ? "another process" : first.value().substr(line + 1)) +
        " has done so [give each process a rank of its own; a process that is started again needs "
        "a higher generation]");
  }
  return status.Annotate(directory.name(rank) + " of generation " +
                         std::to_string(options.generation) + " publishing " + directory.what);
}

Directory DirectoryIn(KeyValueStore& store, const std::string& folder, const std::string& what,
                      const CommunicatorOptions& options) {
  return {[&store, folder](int r, Deadline until) -> Result<std::string> {
            COHORT_ASSIGN_OR_RETURN(const std::string text, store.Wait(Key(folder, r), until));
            return FirstLine(text);
          },
          [&store, folder](int r) {
            const Result<std::string> text = store.Get(Key(folder, r));
            return text.ok() ? FirstLine(text.value()) : std::string();
          },
          [&options](int r) { return NameOf(options, r); }, what};
}

}  // namespace

bool AreCrowded(const std::vector<cpu_set_t>& cores) {
  cpu_set_t all;
  CPU_ZERO(&all);
  for (const cpu_set_t& some : cores) {
    CPU_OR(&all, &all, &some);
  }
  return cores.size() > static_cast<std::size_t>(CPU_COUNT(&all));
}

Result<Connections> ConnectGroup(const GroupIdentity& group, const Listener& listener,
                                 const Directory& directory, const Log& log, Deadline deadline) {
  return Meeting(group, listener, directory, log, deadline).Run();
}

Result<Connections> MeetInStore(const GroupIdentity& group, const Listener& listener,
                                KeyValueStore& store, const std::string& folder,
                                const CommunicatorOptions& options, Deadline deadline) {
  const Directory directory = DirectoryIn(store, folder, "an address", options);
  COHORT_RETURN_IF_ERROR(Publish(group.rank, listener.address, store, folder, directory, options));
  return ConnectGroup(group, listener, directory, options.log, deadline);
}

Result<std::vector<std::string>> WordsOfAll(int rank, int size, const std::string& word,
                                            KeyValueStore& store, const std::string& folder,
                                            const std::string& what,
                                            const CommunicatorOptions& options, Deadline deadline) {
  const Directory directory = DirectoryIn(store, folder, what, options);
  COHORT_RETURN_IF_ERROR(Publish(rank, word, store, folder, directory, options));
  const auto absent = [&] {
    std::vector<int> ranks;
    for (int r = 0; r < size; ++r) {
      if (directory.look(r).empty()) {
        ranks.push_back(r);
      }
    }
    return ranks;
  };
  RollCall roll_call(rank, size, directory, options.log, deadline);
  std::vector<std::string> words;
  for (int r = 0; r < size; ++r) {
    COHORT_ASSIGN_OR_RETURN(std::string theirs, roll_call.Await(r, absent));
    words.push_back(std::move(theirs));
  }
  return words;
}

}  // namespace cohort
