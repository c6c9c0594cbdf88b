#include <cohort/core/thread_pool.h>
#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace cohort {
namespace {

TEST(ThreadPool, ParallelForCoversEveryIndexOnce) {
  ThreadPool pool(3, "test");
  for (std::int64_t count : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> hits(static_cast<std::size_t>(count));
    pool.ParallelFor(count, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        ++hits[static_cast<std::size_t>(i)];
      }
    });
    for (const auto& hit : hits) {
      EXPECT_EQ(hit.load(), 1);
    }
  }
}

TEST(ThreadPool, DestructorRunsWhatIsQueued) {
  std::atomic<int> ran = 0;
  {
    ThreadPool pool(1, "test");
    for (int i = 0; i < 100; ++i) {
      pool.Submit([&] { ++ran; });
    }
  }
  EXPECT_EQ(ran.load(), 100);
}

}  // namespace
}  // namespace cohort
