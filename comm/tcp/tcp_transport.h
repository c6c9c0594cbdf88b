// TcpTransport: two connections for each pair of ranks, or more rails for data, all served by the
// communicator's own thread.
//
// A frame is a header of 16 bytes and its body. Payload goes from the sender's buffer to the socket
// and from the socket to the receiver's buffer, or through a small scratch into the reduction.
// A data frame that comes before its receive is kept if it is small, up to 1 MiB of a peer's; a
// large one, or one more, waits in the socket, and with it the frames behind, until the receive is
// posted, or those before it are: the sender's socket fills, and it waits. Aborts and signs of life
// therefore go over the second connection, which is always read.
//
// In four files: tcp_transport.cc is waiting, the end and groups within the group, tcp_sending.cc
// and tcp_receiving.cc the two ways, tcp_endings.cc what becomes of a connection that ends.
//
// A peer's goodbye comes over both. The one behind its data counts; where a reset has taken that
// one, the other does, as soon as nothing more can come.

#pragma once

#include <cohort/core/log.h>

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tcp/pace.h"
#include "tcp/rendezvous.h"
#include "tcp/socket.h"
#include "tcp/stream.h"
#include "transport.h"

namespace cohort {

struct TcpGroup {
  int rank = 0;
  std::vector<Socket> sockets;  // as ConnectGroup gives them
  bool crowded = false;         // the ranks of this host have less than a core each
  int channels = 2;             // of a pair
  std::size_t stripe_bytes = 0;
  bool zero_copy = false;
  SendReleases releases = ReadSendRelease;  // test seam
  std::string name;                         // of the group; groups within it take names below
  std::uint64_t generation = 1;
  std::string bind_address;  // where a Split listens, port 0
  std::string rendezvous_host;
  std::function<std::string(int rank)> peer_name;
  Log log;
};

// Gives the group its connections.
void Take(TcpGroup& group, Connections connections);

namespace tcp {

class TcpTransport final : public Transport {
 public:
  TcpTransport(TcpGroup group, Socket wake, Socket watch);

  std::string_view backend() const override { return "tcp"; }
  void Attach(TransportListener* listener) override { listener_ = listener; }

  void Wake() override;
  void Watch(Deadline until) override;
  Ticket Send(int to, Bytes data) override;
  Ticket Receive(int from, MutableBytes data, const CombineWith& combine) override;
  void Control(int to, FrameKind kind, Bytes body) override;
  std::optional<Doubt> DoubtOf(int peer, Duration long_enough) const override;
  void Progress(Deadline until) override;
  bool Abandon() override;
  void Forget() override;
  void Close(Deadline deadline) override;
  Result<std::string> Offer() override;
  Result<std::unique_ptr<Transport>> Join(const std::string& id, const std::vector<int>& members,
                                          int my_index, const std::vector<std::string>& offers,
                                          Deadline deadline) override;

 private:
  // Of each peer, one for data, over all its rails, and one for control frames.
  int Data(int rank) const { return rank * kChannels + kDataChannel; }
  int PeerOf(int s) const { return s / kChannels; }
  bool IsControl(int s) const { return s % kChannels == kControlChannel; }
  Stream& stream(int s) { return streams_[static_cast<std::size_t>(s)]; }
  Stream& data_stream(int rank) { return stream(Data(rank)); }
  int count() const { return static_cast<int>(streams_.size()); }
  bool farewell(int s) const { return farewell_[static_cast<std::size_t>(PeerOf(s))]; }
  bool InUse(int s) const {  // after a failure only control frames count
    return streams_[static_cast<std::size_t>(s)].socket.open() && !(forgotten_ && !IsControl(s));
  }

  void PutControl(int s, FrameKind kind, Bytes body);
  void Flush(int s);
  bool IsHeld(int s);
  void FinishReleased(int s);
  void Sent(int s, std::size_t bytes);
  void Fetch(int s, bool all = true);
  ssize_t FetchOnce(int s);
  void Parse(int s);
  void StartBody(int s);
  void TakeBody(int s, Bytes bytes);
  void Give(int from, Bytes body, const Posted& posted);
  static void CombineArriving(Stream& p, const Posted& posted, Bytes bytes);
  void FinishBody(int s);
  void EndOfStream(int s, int error);
  void EndOfRail(int s, int rail, int error);
  void Lose(int s, const Status& why);
  void LoseIfSilent(int rank);
  void PartIfCut(int rank);
  Deadline CheckLastWords(Deadline until);
  void AddToWatch(const Socket& socket);
  bool FetchAwaited();
  void Poll(int timeout_ms);

  TcpGroup group_;
  const Socket wake_;
  const Socket watch_;  // epoll: edges of wake_ and all connections
  std::atomic<bool> woken_ = false;
  TransportListener* listener_ = nullptr;
  std::vector<Stream> streams_;
  // By rank: it said bye or abort, or is lost; that its streams end is no loss.
  std::vector<bool> farewell_;
  std::vector<bool> parted_;  // and the listener knows that nothing more comes of it
  std::vector<std::byte> scratch_;
  Pace pace_;               // over all peers
  Listener offered_;        // between Offer and Join
  bool forgotten_ = false;  // the communicator failed
  bool moved_ = false;      // something happened in this Progress
  unsigned looks_ = 0;      // while spinning; each kLooksToAPoll-th is at everything
  bool drained_ = false;    // the last recv took all that there was
  bool holds_ = false;      // something waits that may be sent in a moment
  bool stop_ = false;       // the listener wants no more in this Progress
};

}  // namespace tcp

Result<std::unique_ptr<Transport>> MakeTcpTransport(TcpGroup group);

}  // namespace cohort
