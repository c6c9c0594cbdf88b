// The source of records behind a double of CUPTI's functions, which fills buffers with records of
// CUPTI's own.

#include <gmock/gmock.h>

#include <cstring>

#include "cuda/cupti_source.h"

namespace cohort::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Sink final : public trace::ActivitySink {
 public:
  void Add(const trace::Activity& a) override {
    text.push_back(std::string(a.name) + " " + std::to_string(a.stream) + " " +
                   std::to_string(a.bytes) + " " + std::to_string(a.begin_ns) + "-" +
                   std::to_string(a.end_ns) + " #" + std::to_string(a.correlation));
  }
  void Correlate(std::uint32_t correlation, std::uint64_t range) override {
    text.push_back("#" + std::to_string(correlation) + " in " + std::to_string(range));
  }
  void Lost(std::uint64_t records) override { lost += records; }
  void NodeMade(std::uint64_t node) override { text.push_back("node " + std::to_string(node)); }
  void NodeCloned(std::uint64_t from, std::uint64_t node) override {
    text.push_back("node " + std::to_string(from) + " as " + std::to_string(node));
  }
  std::vector<std::string> text;
  std::uint64_t lost = 0;
};

// The library's side.
struct Library {
  CUpti_BuffersCallbackRequestFunc request = nullptr;
  CUpti_BuffersCallbackCompleteFunc complete = nullptr;
  CUpti_CallbackFunc called = nullptr;
  CUpti_TimestampCallbackFunc clock = nullptr;
  std::vector<CUpti_ActivityKind> enabled;
  std::vector<std::uint64_t> pushed;
  std::function<void()> on_flush;
  std::size_t dropped = 0;
  std::uint32_t flush_flag = 99;
  CUpti_ActivityKind refused = CUPTI_ACTIVITY_KIND_INVALID;
  CUptiResult subscribe = CUPTI_SUCCESS;
  std::size_t record_bytes = 0;  // of those in the buffer
};
Library* library = nullptr;

CuptiCalls Calls() {
  CuptiCalls c;
  c.cuptiActivityEnable = [](CUpti_ActivityKind kind) {
    if (kind == library->refused) {
      return CUPTI_ERROR_INSUFFICIENT_PRIVILEGES;
    }
    library->enabled.push_back(kind);
    return CUPTI_SUCCESS;
  };
  c.cuptiActivityDisable = [](CUpti_ActivityKind kind) {
    std::erase(library->enabled, kind);
    return CUPTI_SUCCESS;
  };
  c.cuptiActivityFlushAll = [](std::uint32_t flag) {
    library->flush_flag = flag;
    if (library->on_flush) {
      library->on_flush();
    }
    return CUPTI_SUCCESS;
  };
  c.cuptiActivityGetNextRecord = [](std::uint8_t* buffer, std::size_t valid,
                                    CUpti_Activity** record) {
    std::uint8_t* next = *record == nullptr
                             ? buffer
                             : reinterpret_cast<std::uint8_t*>(*record) + library->record_bytes;
    if (next >= buffer + valid) {
      return CUPTI_ERROR_MAX_LIMIT_REACHED;
    }
    *record = reinterpret_cast<CUpti_Activity*>(next);
    return CUPTI_SUCCESS;
  };
  c.cuptiActivityGetNumDroppedRecords = [](CUcontext, std::uint32_t, std::size_t* dropped) {
    *dropped = std::exchange(library->dropped, 0);
    return CUPTI_SUCCESS;
  };
  c.cuptiActivityPushExternalCorrelationId = [](CUpti_ExternalCorrelationKind, std::uint64_t id) {
    library->pushed.push_back(id);
    return CUPTI_SUCCESS;
  };
  c.cuptiActivityPopExternalCorrelationId = [](CUpti_ExternalCorrelationKind, std::uint64_t*) {
    library->pushed.pop_back();
    return CUPTI_SUCCESS;
  };
  c.cuptiActivityRegisterCallbacks = [](CUpti_BuffersCallbackRequestFunc request,
                                        CUpti_BuffersCallbackCompleteFunc complete) {
    library->request = request;
    library->complete = complete;
    return CUPTI_SUCCESS;
  };
  c.cuptiActivityRegisterTimestampCallback = [](CUpti_TimestampCallbackFunc clock) {
    library->clock = clock;
    return CUPTI_SUCCESS;
  };
  c.cuptiEnableCallback = [](std::uint32_t, CUpti_SubscriberHandle, CUpti_CallbackDomain,
                             CUpti_CallbackId) { return CUPTI_SUCCESS; };
  c.cuptiGetGraphNodeId = [](CUgraphNode node, std::uint64_t* id) {
    *id = reinterpret_cast<std::uint64_t>(node);
    return CUPTI_SUCCESS;
  };
  c.cuptiGetResultString = [](CUptiResult result, const char** text) {
    *text = result == CUPTI_ERROR_INSUFFICIENT_PRIVILEGES ? "INSUFFICIENT_PRIVILEGES" : "OTHER";
    return CUPTI_SUCCESS;
  };
  c.cuptiSubscribe = [](CUpti_SubscriberHandle*, CUpti_CallbackFunc called, void*) {
    library->called = called;
    return library->subscribe;
  };
  c.cuptiUnsubscribe = [](CUpti_SubscriberHandle) {
    library->called = nullptr;
    return CUPTI_SUCCESS;
  };
  return c;
}

class CuptiSource : public ::testing::Test {
 protected:
  CuptiSource() { library = &library_; }

  // A buffer of these records, as CUPTI fills one; it has room.
  template <typename Record>
  std::pair<std::uint8_t*, std::size_t> Fill(const std::vector<Record>& records) {
    std::uint8_t* buffer = nullptr;
    std::size_t size = 0;
    std::size_t most = 1;
    library_.request(&buffer, &size, &most);
    EXPECT_EQ(size, kBufferBytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer) % ACTIVITY_RECORD_ALIGNMENT, 0U);
    library_.record_bytes = sizeof(Record);
    std::memcpy(buffer, records.data(), records.size() * sizeof(Record));
    return {buffer, records.size() * sizeof(Record)};
  }
  template <typename Record>
  void Deliver(const std::vector<Record>& records) {
    const auto [buffer, valid] = Fill(records);
    library_.complete(nullptr, 0, buffer, kBufferBytes, valid);
  }
  static auto Kernel(const char* name, std::uint32_t correlation) {
    CUpti_ActivityKernel9 kernel = {};
    kernel.kind = CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL;
    kernel.name = name;
    kernel.streamId = 7;
    kernel.start = 100;
    kernel.end = 250;
    kernel.correlationId = correlation;
    return kernel;
  }

  Library library_;
  Sink sink_;
  Status drained_;
  std::unique_ptr<trace::ActivitySource> source_ =
      MakeCuptiSource(Calls(), [this] { return drained_; });
};

TEST_F(CuptiSource, ReadsKernelsCopiesFillsAndCalls) {
  ASSERT_TRUE(source_->Watch(sink_).ok());
  ASSERT_TRUE(source_->Start().ok());
  EXPECT_FALSE(library_.enabled.empty());
  source_->Push(42);
  EXPECT_THAT(library_.pushed, ElementsAre(42));
  source_->Pop();
  EXPECT_THAT(library_.pushed, IsEmpty());
  Deliver(std::vector{Kernel("a", 1), Kernel("b", 2)});
  CUpti_ActivityMemcpy5 copy = {};
  copy.kind = CUPTI_ACTIVITY_KIND_MEMCPY;
  copy.srcKind = CUPTI_ACTIVITY_MEMORY_KIND_PINNED;
  copy.dstKind = CUPTI_ACTIVITY_MEMORY_KIND_DEVICE;
  copy.bytes = 4096;
  copy.start = 10;
  copy.end = 20;
  copy.correlationId = 3;
  Deliver(std::vector{copy});
  CUpti_ActivityMemset4 fill = {};
  fill.kind = CUPTI_ACTIVITY_KIND_MEMSET;
  fill.bytes = 64;
  fill.start = 30;
  fill.end = 40;
  Deliver(std::vector{fill});
  CUpti_ActivityExternalCorrelation call = {};
  call.kind = CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION;
  call.externalKind = CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0;
  call.externalId = 42;
  call.correlationId = 1;
  Deliver(std::vector{call});
  EXPECT_THAT(sink_.text,
              ElementsAre("a 7 0 100-250 #1", "b 7 0 100-250 #2", "host to device 0 4096 10-20 #3",
                          " 0 64 30-40 #0", "#1 in 42"));
  EXPECT_EQ(sink_.lost, 0U);
}

TEST_F(CuptiSource, StopsWithWhatComesDuringTheFlushAndNoLater) {
  ASSERT_TRUE(source_->Watch(sink_).ok());
  ASSERT_TRUE(source_->Start().ok());
  const auto [late, valid] = Fill(std::vector{Kernel("late", 9)});
  library_.on_flush = [&] { Deliver(std::vector{Kernel("flushed", 8)}); };
  ASSERT_TRUE(source_->Stop().ok());
  EXPECT_THAT(library_.enabled, IsEmpty());
  EXPECT_EQ(library_.flush_flag, 0U);
  library_.complete(nullptr, 0, late, kBufferBytes, valid);
  EXPECT_THAT(sink_.text, ElementsAre("flushed 7 0 100-250 #8"));
  // Also when there is nobody any more.
  const auto [later, more] = Fill(std::vector{Kernel("later", 9)});
  source_ = nullptr;
  library_.complete(nullptr, 0, later, kBufferBytes, more);
  EXPECT_EQ(sink_.text.size(), 1U);
  EXPECT_EQ(library_.called, nullptr);
}

TEST_F(CuptiSource, CountsWhatWasDroppedAndTakesNoMoreBuffersThanItMay) {
  ASSERT_TRUE(source_->Watch(sink_).ok());
  ASSERT_TRUE(source_->Start().ok());
  std::vector<std::uint8_t*> buffers;
  for (int i = 0; i < kBuffers; ++i) {
    buffers.push_back(Fill(std::vector{Kernel("a", 1)}).first);
  }
  std::uint8_t* buffer = nullptr;
  std::size_t size = 1;
  std::size_t most = 1;
  library_.request(&buffer, &size, &most);
  EXPECT_EQ(buffer, nullptr);
  EXPECT_EQ(size, 0U);
  library_.dropped = 17;
  for (std::uint8_t* full : buffers) {
    library_.complete(nullptr, 0, full, kBufferBytes, sizeof(CUpti_ActivityKernel9));
  }
  EXPECT_EQ(sink_.text.size(), static_cast<std::size_t>(kBuffers));
  EXPECT_EQ(sink_.lost, 17U);
  Deliver(std::vector{Kernel("b", 1)});  // there is room again
}

TEST_F(CuptiSource, SaysWhatIsRefusedAndTakesTheRestBack) {
  library_.refused = CUPTI_ACTIVITY_KIND_MEMSET;
  ASSERT_TRUE(source_->Watch(sink_).ok());
  EXPECT_THAT(source_->Start().message(),
              HasSubstr("CUPTI refuses a kind of record: INSUFFICIENT_PRIVILEGES"));
  EXPECT_THAT(library_.enabled, IsEmpty());
}

TEST_F(CuptiSource, ForcesTheFlushWhereGpusAreStillAtWork) {
  drained_ = DeadlineExceeded("cuda:0 was still at work");
  ASSERT_TRUE(source_->Watch(sink_).ok());
  ASSERT_TRUE(source_->Start().ok());
  EXPECT_EQ(source_->Stop(), drained_);
  EXPECT_EQ(library_.flush_flag, static_cast<std::uint32_t>(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED));
}

TEST_F(CuptiSource, TellsOfGraphsNodes) {
  ASSERT_TRUE(source_->Watch(sink_).ok());
  CUpti_GraphData graph = {};
  graph.node = reinterpret_cast<CUgraphNode>(5);
  CUpti_ResourceData data = {};
  data.resourceDescriptor = &graph;
  library_.called(nullptr, CUPTI_CB_DOMAIN_RESOURCE, CUPTI_CBID_RESOURCE_GRAPHNODE_CREATED, &data);
  graph.node = reinterpret_cast<CUgraphNode>(6);
  graph.originalNode = reinterpret_cast<CUgraphNode>(5);
  library_.called(nullptr, CUPTI_CB_DOMAIN_RESOURCE, CUPTI_CBID_RESOURCE_GRAPHNODE_CLONED, &data);
  EXPECT_THAT(sink_.text, ElementsAre("node 5", "node 5 as 6"));
}

TEST_F(CuptiSource, DoesWithoutGraphsWhereAnotherProfilerIs) {
  library_.subscribe = CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED;
  EXPECT_THAT(source_->Watch(sink_).message(), HasSubstr("CUPTI refuses to tell of graphs: OTHER"));
  EXPECT_TRUE(source_->Start().ok());
}

}  // namespace
}  // namespace cohort::cuda
