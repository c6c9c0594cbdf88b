// BucketPlaces: which buckets of a table this server has, and where the others are as far as it
// knows.
//
// At first every server has its range (table_spec.h). A server that gives a bucket away remembers
// to whom, so whoever follows what servers say, from any server that ever had the bucket, finds it:
// each one says who got it later. One that never had it names the bucket's first server.
//
// Thread rules: Enter, here and server from any thread; Give and Take from one at a time.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

namespace cohort::ps {

class BucketPlaces {
 public:
  BucketPlaces(int self, int servers, std::uint32_t buckets);

  bool here(std::uint32_t bucket) const { return server(bucket) == self_; }
  int server(std::uint32_t bucket) const {
    return static_cast<int>(places_[bucket].load(std::memory_order_acquire));
  }
  // Is all of the table here?
  bool has_all() const { return elsewhere_.load(std::memory_order_acquire) == 0; }
  std::uint32_t buckets() const { return buckets_; }

  // While one lives, a bucket that is found here does not leave. Short: Give waits for those that
  // began before it.
  class Visit {
   public:
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;
    ~Visit() { count_.fetch_sub(1, std::memory_order_release); }

   private:
    friend class BucketPlaces;
    explicit Visit(std::atomic<int>& count) : count_(count) {}
    std::atomic<int>& count_;
  };
  Visit Enter() const;

  // From its return on nobody finds the bucket here.
  void Give(std::uint32_t bucket, int server);
  void Take(std::uint32_t bucket);

 private:
  const int self_;
  const std::uint32_t buckets_;
  std::unique_ptr<std::atomic<std::uint32_t>[]> places_;
  std::atomic<std::uint32_t> elsewhere_{0};
  // Visits count under the number that is even or odd; Give raises it, and waits for the other one.
  mutable std::atomic<std::uint32_t> phase_{0};
  mutable std::array<std::atomic<int>, 2> visits_{};
};

}  // namespace cohort::ps
