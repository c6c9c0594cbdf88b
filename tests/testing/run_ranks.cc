#include "testing/run_ranks.h"

#include <cohort/core/thread_pool.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "testing/sanitized.h"

namespace cohort::testing {

std::vector<Status> RunRanks(int ranks, const std::function<Status(int rank)>& fn,
                             std::chrono::seconds limit) {
  limit *= kPatience;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Status> statuses(static_cast<std::size_t>(ranks));
  std::vector<bool> returned(static_cast<std::size_t>(ranks), false);
  int running = ranks;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      NameThisThread("rank-" + std::to_string(rank));
      Status status;
      try {
        status = fn(rank);
      } catch (const std::exception& error) {
        status = Internal(std::string("exception: ") + error.what());
      }
      const std::lock_guard lock(mutex);
      statuses[static_cast<std::size_t>(rank)] = std::move(status);
      returned[static_cast<std::size_t>(rank)] = true;
      --running;
      changed.notify_all();
    });
  }
  {
    std::unique_lock lock(mutex);
    if (!changed.wait_for(lock, limit, [&] { return running == 0; })) {
      std::string names;
      for (int rank = 0; rank < ranks; ++rank) {
        names += returned[static_cast<std::size_t>(rank)] ? "" : " " + std::to_string(rank);
      }
      std::fprintf(stderr, "RunRanks: not back after %d s: ranks%s\n",
                   static_cast<int>(limit.count()), names.c_str());
      std::abort();
    }
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return statuses;
}

void ExpectAllOk(const std::vector<Status>& statuses) {
  for (std::size_t rank = 0; rank < statuses.size(); ++rank) {
    EXPECT_TRUE(statuses[rank].ok()) << "rank " << rank << ": " << statuses[rank].ToString();
  }
}

}  // namespace cohort::testing
