// StripedSocket: one stream of bytes over one connection or several (rails), which a network that
// gives each connection its share takes more from; and sends that copy nothing.
//
// Rails take turns: `stripe_bytes` go on the first, as many on the second, and so on around. Both
// ends count, so nothing is marked, and bytes come in the order in which they were sent.
//
// Large sends leave the bytes where they are, for the network to fetch (MSG_ZEROCOPY, Linux 4.14):
// such a send has a MARK, and its bytes must stay as they are until that is RELEASED, when the peer
// has acknowledged them. Where the kernel says that it has copied them all the same (loopback,
// interfaces between namespaces), the socket goes back to plain sends, which cost less then.
//
// Thread rules: one thread at a time. Nothing blocks but Reset.

#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "tcp/socket.h"

namespace cohort {

// The kernel's word that it reads the bytes of sends [first, last] of a connection no more. It
// numbers those without a copy from 0; numbers wrap.
struct SendRelease {
  std::uint32_t first = 0;
  std::uint32_t last = 0;
  bool copied = false;  // all the same
};
// The next one of the connection; nullopt: no more have come.
std::optional<SendRelease> ReadSendRelease(int fd);
using SendReleases = std::function<std::optional<SendRelease>(int fd)>;

class StripedSocket {
 public:
  static constexpr std::size_t kStripeBytes = std::size_t{256} << 10;
  // Sends of less are copied: to keep track of them costs more.
  static constexpr std::size_t kZeroCopyBytes = std::size_t{64} << 10;

  StripedSocket() = default;
  // Rails in order; at least one. `zero_copy`: where the kernel has it. `releases`: a test seam,
  // instead of the kernel's.
  StripedSocket(std::vector<Socket> rails, std::size_t stripe_bytes, bool zero_copy,
                SendReleases releases = ReadSendRelease);

  bool open() const { return !rails_.empty() && rails_.front().socket.open(); }
  int rails() const { return static_cast<int>(rails_.size()); }
  int fd(int rail) const { return rails_[static_cast<std::size_t>(rail)].socket.fd(); }
  // Where the next byte goes, and comes from.
  int writing() const { return writing_; }
  int reading() const { return reading_; }
  // The rail has ended, and that was seen: what had come before may still be read.
  void HangUp(int rail) { rails_[static_cast<std::size_t>(rail)].hung_up = true; }
  bool hung_up(int rail) const { return rails_[static_cast<std::size_t>(rail)].hung_up; }

  // As sendmsg and recv, of at most what is left of a stripe: bytes, or -1 and errno. 0 of Receive:
  // the stream has ended. `in_place`: without a copy, where that is possible; more: others follow
  // at once. Send changes `pieces`.
  ssize_t Send(std::span<iovec> pieces, bool in_place, bool more);
  ssize_t Receive(void* to, std::size_t bytes);
  // The rail took less than the last Send had for it.
  bool full() const { return full_; }

  // Whether sends in place are of use on the rail whose turn it is.
  bool zero_copy() const { return rails_[static_cast<std::size_t>(writing_)].zero_copy; }
  // Of the last Send; 0: it copied.
  std::uint64_t mark() const { return mark_; }
  bool released(std::uint64_t mark) const { return mark <= released_; }
  bool awaits_release() const { return !pending_.empty(); }
  // Hears which sends are released. False: nothing new.
  bool HearReleases();

  // Nothing more will be sent; what is on its way arrives.
  void ShutDown();
  void Close();
  // Closes so that nothing arrives any more of what has not: bytes of sends that are not released
  // are the caller's again. Waits for a network card that is sending some, at most until then.
  void Reset(Deadline until);

 private:
  struct Rail {
    Socket socket;
    std::uint32_t sends = 0;  // without a copy: the kernel's numbers, from 0
    bool zero_copy = false;
    bool hung_up = false;
  };
  struct Pending {  // a send without a copy, by mark
    int rail;
    std::uint32_t number;  // the kernel's
    bool released = false;
  };

  void Release(int rail, std::uint32_t first, std::uint32_t last);

  std::vector<Rail> rails_;
  std::size_t stripe_bytes_ = kStripeBytes;
  int writing_ = 0;
  std::size_t written_ = 0;  // of the stripe
  int reading_ = 0;
  std::size_t read_ = 0;
  bool full_ = false;
  std::uint64_t mark_ = 0;
  std::uint64_t next_mark_ = 1;
  std::uint64_t released_ = 0;
  std::deque<Pending> pending_;  // the first has the mark released_ + 1
  SendReleases releases_;
};

}  // namespace cohort
