#include "testing/far_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

#include "testing/late_stream.h"

namespace cohort::testing {
namespace {

constexpr std::size_t kPage = 4096;
// Of addresses, for all devices of a machine; pages cost nothing until they are used. Addresses are
// never given twice.
constexpr std::size_t kSpace = std::size_t{1} << 34;

// Two equal ranges of addresses: the far one, which nobody may touch, and the one with the bytes.
class FarMemory {
 public:
  FarMemory() {
    void* space =
        ::mmap(nullptr, 2 * kSpace, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED) {
      throw StatusError(ResourceExhausted("a far device: no addresses for its memory"));
    }
    near_ = static_cast<std::byte*>(space);
    far_ = near_ + kSpace;
  }
  ~FarMemory() { ::munmap(near_, 2 * kSpace); }
  FarMemory(const FarMemory&) = delete;
  FarMemory& operator=(const FarMemory&) = delete;

  std::byte* Take(const void* owner, std::size_t bytes, std::string_view what) {
    const std::size_t size = std::max(kPage, (bytes + kPage - 1) / kPage * kPage);
    const std::lock_guard lock(mutex_);
    // A page that stays out of reach stands between two blocks.
    if (next_ + size + kPage > kSpace ||
        ::mprotect(near_ + next_, size, PROT_READ | PROT_WRITE) != 0) {
      throw StatusError(ResourceExhausted(std::string(what) + ": no " + std::to_string(bytes) +
                                          " bytes on a far device, " + std::to_string(next_) +
                                          " of " + std::to_string(kSpace) + " were given"));
    }
    std::memset(near_ + next_, 0xFF, size);
    blocks_[next_] = {.bytes = size, .owner = owner};
    std::byte* const address = far_ + next_;
    next_ += size + kPage;
    return address;
  }

  void Give(std::byte* address) {
    const std::lock_guard lock(mutex_);
    const auto block = blocks_.find(static_cast<std::size_t>(address - far_));
    ::madvise(near_ + block->first, block->second.bytes, MADV_DONTNEED);
    ::mprotect(near_ + block->first, block->second.bytes, PROT_NONE);
    blocks_.erase(block);
  }

  // Memory of the host that copies need not wait for.
  std::shared_ptr<std::byte> TakeHost(std::size_t bytes, std::string_view what,
                                      const std::shared_ptr<FarMemory>& self) {
    std::shared_ptr<std::byte> block = CpuDevice()->AllocateHost(bytes, what);
    std::byte* const address = block.get();
    const std::lock_guard lock(mutex_);
    host_[address] = bytes;
    return {address, [self, block = std::move(block)](std::byte* gone) {
              const std::lock_guard held(self->mutex_);
              self->host_.erase(gone);
            }};
  }

  bool IsHost(const std::byte* address) const {
    const std::lock_guard lock(mutex_);
    auto block = host_.upper_bound(address);
    return block != host_.begin() && address < (--block)->first + block->second;
  }

  bool IsFar(const void* address) const {
    const auto* at = static_cast<const std::byte*>(address);
    return at >= far_ && at < far_ + kSpace;
  }

  // Where `bytes` bytes of `owner` (nullptr: of any device) at a far address really are.
  std::byte* Near(const void* owner, const void* address, std::size_t bytes,
                  const char* what) const {
    const std::lock_guard lock(mutex_);
    Require(IsFar(address), std::string(what) + " is given memory of the far device");
    const auto at = static_cast<std::size_t>(static_cast<const std::byte*>(address) - far_);
    auto block = blocks_.upper_bound(at);
    Require(block != blocks_.begin(), std::string(what) + " is given memory that was allocated");
    --block;
    Require(at + bytes <= block->first + block->second.bytes,
            std::string(what) + " is given memory within one allocation that was not freed");
    Require(owner == nullptr || owner == block->second.owner,
            std::string(what) + " is given memory of its own device");
    return near_ + at;
  }

 private:
  struct Block {
    std::size_t bytes = 0;
    const void* owner = nullptr;
  };
  std::byte* near_ = nullptr;
  std::byte* far_ = nullptr;
  mutable std::mutex mutex_;
  std::size_t next_ = 0;
  std::map<std::size_t, Block> blocks_;           // by offset; those that were not freed
  std::map<const std::byte*, std::size_t> host_;  // bytes at each of TakeHost's
};

// One device's view of the machine's memory.
struct View {
  std::shared_ptr<FarMemory> memory;  // owners: every device, table and block of the machine
  const void* owner = nullptr;
  bool reach = false;  // kernels read the others' too

  template <typename T>
  T* operator()(T* address, std::int64_t elements) const {
    if (address == nullptr || elements == 0) {
      return nullptr;
    }
    const std::size_t size = static_cast<std::size_t>(elements) * sizeof(T);
    const void* const whose = reach && std::is_const_v<T> ? nullptr : owner;
    return reinterpret_cast<T*>(memory->Near(whose, address, size, "a kernel"));
  }
  template <typename T>
  std::span<T> operator()(std::span<T> span) const {
    return {(*this)(span.data(), static_cast<std::int64_t>(span.size())), span.size()};
  }
  Elements operator()(const Elements& e) const {
    return {(*this)(static_cast<std::byte*>(e.raw()), static_cast<std::int64_t>(e.bytes())),
            e.size(), e.dtype()};
  }
  ConstElements operator()(const ConstElements& e) const {
    return {(*this)(static_cast<const std::byte*>(e.raw()), static_cast<std::int64_t>(e.bytes())),
            e.size(), e.dtype()};
  }
  // Of a plan's operand.
  const void* operator()(const void* address, std::int64_t elements, DType type) const {
    return (*this)(static_cast<const std::byte*>(address), Bytes(elements, type));
  }
  void* operator()(void* address, std::int64_t elements, DType type) const {
    return (*this)(static_cast<std::byte*>(address), Bytes(elements, type));
  }
  static std::int64_t Bytes(std::int64_t elements, DType type) {
    return elements * static_cast<std::int64_t>(SizeOf(type));
  }
  Indices operator()(const Indices& ids) const {
    const std::int64_t width = ids.wide ? 8 : 4;
    return {(*this)(static_cast<const std::byte*>(ids.data), ids.size * width), ids.size, ids.wide};
  }
  NormArguments operator()(NormArguments n) const {
    for (std::span<const float>* in : {&n.scale, &n.offset}) {
      *in = (*this)(*in);
    }
    for (std::span<float>* out : {&n.mean, &n.inverse_deviation}) {
      *out = (*this)(*out);
    }
    n.x = (*this)(n.x);
    n.added = (*this)(n.added);
    n.y = (*this)(n.y);
    return n;
  }
  NormBackwardArguments operator()(NormBackwardArguments n) const {
    for (std::span<const float>* in : {&n.scale, &n.mean, &n.inverse_deviation, &n.offset}) {
      *in = (*this)(*in);
    }
    for (ConstElements* in : {&n.x, &n.y}) {
      *in = (*this)(*in);
    }
    for (Elements* out : {&n.dy, &n.dx}) {
      *out = (*this)(*out);
    }
    for (std::span<float>* out : {&n.dscale, &n.doffset}) {
      *out = (*this)(*out);
    }
    return n;
  }
  MomentsArguments operator()(MomentsArguments m) const {
    for (std::span<const float>* in : {&m.mean, &m.square_sums, &m.count}) {
      *in = (*this)(*in);
    }
    for (std::span<float>* out : {&m.inverse_deviation, &m.running_mean, &m.running_variance}) {
      *out = (*this)(*out);
    }
    return m;
  }
  LossArguments operator()(LossArguments l) const {
    for (std::span<const float>* in : {&l.targets, &l.weights}) {
      *in = (*this)(*in);
    }
    l.x = (*this)(l.x);
    const std::int64_t width = l.wide_classes ? 8 : 4;
    l.classes = (*this)(static_cast<const std::byte*>(l.classes), l.rows * width);
    return l;
  }
};

class FarMatMul final : public MatMulPlan {
 public:
  FarMatMul(const View& view, const MatMulSpec& spec, MatMulPlan& plan)
      : view_(view), spec_(spec), plan_(plan) {}
  void Run(Stream& stream, const void* a, const void* b, const void* bias, void* c,
           void* before) override {
    plan_.Run(stream, view_(a, spec_.m * spec_.k, spec_.type),
              view_(b, spec_.k * spec_.n, spec_.type), view_(bias, spec_.n, spec_.out),
              view_(c, spec_.m * spec_.n, spec_.out), view_(before, spec_.m * spec_.n, spec_.out));
  }

 private:
  const View view_;
  const MatMulSpec spec_;
  MatMulPlan& plan_;
};

class FarConv final : public ConvPlan {
 public:
  FarConv(const View& view, const ConvSpec& spec, ConvPlan& plan)
      : view_(view), spec_(spec), plan_(plan) {}
  void Forward(Stream& stream, const void* x, const void* kernel, const void* bias,
               void* y) override {
    plan_.Forward(stream, view_(x, inputs(), spec_.type), view_(kernel, weights(), spec_.type),
                  view_(bias, spec_.out, spec_.type), view_(y, outputs(), spec_.type));
  }
  void BackwardKernel(Stream& stream, const void* x, const void* dy, float* dkernel) override {
    plan_.BackwardKernel(stream, view_(x, inputs(), spec_.type), view_(dy, outputs(), spec_.type),
                         view_(dkernel, weights()));
  }
  void BackwardInput(Stream& stream, const void* kernel, const void* dy, void* dx) override {
    plan_.BackwardInput(stream, view_(kernel, weights(), spec_.type),
                        view_(dy, outputs(), spec_.type), view_(dx, inputs(), spec_.type));
  }

 private:
  std::int64_t inputs() const { return spec_.batch * spec_.height * spec_.width * spec_.in; }
  std::int64_t outputs() const {
    return spec_.batch * spec_.out_height() * spec_.out_width() * spec_.out;
  }
  std::int64_t weights() const {
    return spec_.kernel_h * spec_.kernel_w * (spec_.in / spec_.groups) * spec_.out;
  }

  const View view_;
  const ConvSpec spec_;
  ConvPlan& plan_;
};

class FarPool final : public PoolPlan {
 public:
  FarPool(const View& view, const PoolSpec& spec, PoolPlan& plan)
      : view_(view), spec_(spec), plan_(plan) {}
  std::int64_t workspace_bytes() const override { return plan_.workspace_bytes(); }
  void Forward(Stream& stream, const void* x, void* y, std::byte* workspace) override {
    plan_.Forward(stream, view_(x, inputs(), spec_.type), view_(y, outputs(), spec_.type),
                  view_(workspace, workspace_bytes()));
  }
  void Backward(Stream& stream, const void* dy, const std::byte* workspace, void* dx) override {
    plan_.Backward(stream, view_(dy, outputs(), spec_.type), view_(workspace, workspace_bytes()),
                   view_(dx, inputs(), spec_.type));
  }

 private:
  std::int64_t inputs() const { return spec_.batch * spec_.height * spec_.width * spec_.channels; }
  std::int64_t outputs() const {
    return spec_.batch * spec_.out_height() * spec_.out_width() * spec_.channels;
  }

  const View view_;
  const PoolSpec spec_;
  PoolPlan& plan_;
};

class FarAttention final : public AttentionPlan {
 public:
  FarAttention(const View& view, const AttentionSpec& spec, AttentionPlan& plan)
      : view_(view), spec_(spec), plan_(plan) {}
  std::int64_t saved_elements() const override { return plan_.saved_elements(); }
  void Forward(Stream& stream, const void* qkv, void* y, float* saved) override {
    plan_.Forward(stream, view_(qkv, 3 * places(), spec_.type), view_(y, places(), spec_.type),
                  view_(saved, saved_elements()));
  }
  void Backward(Stream& stream, const void* qkv, const void* y, const float* saved, const void* dy,
                void* dqkv) override {
    plan_.Backward(stream, view_(qkv, 3 * places(), spec_.type), view_(y, places(), spec_.type),
                   view_(saved, saved_elements()), view_(dy, places(), spec_.type),
                   view_(dqkv, 3 * places(), spec_.type));
  }

 private:
  std::int64_t places() const { return spec_.batch * spec_.length * spec_.heads * spec_.head_size; }

  const View view_;
  const AttentionSpec spec_;
  AttentionPlan& plan_;
};

// The CPU's table with every address translated.
class FarKernels final : public Kernels {
 public:
  FarKernels(View view, int threads) : view_(std::move(view)), cpu_(MakeCpuKernels(threads)) {}

  int threads() const override { return cpu_->threads(); }
  MatMulPlan& MatMul(const MatMulSpec& spec) override {
    return FarPlan(matmuls_, spec, cpu_->MatMul(spec));
  }
  ConvPlan& Conv(const ConvSpec& spec) override { return FarPlan(convs_, spec, cpu_->Conv(spec)); }
  PoolPlan& Pool(const PoolSpec& spec) override { return FarPlan(pools_, spec, cpu_->Pool(spec)); }
  AttentionPlan& Attention(const AttentionSpec& spec) override {
    return FarPlan(attentions_, spec, cpu_->Attention(spec));
  }

  void Fill(Stream& stream, FloatSpan y, float value) override {
    cpu_->Fill(stream, view_(y), value);
  }
  void Copy(Stream& stream, ConstElements x, Elements y) override {
    cpu_->Copy(stream, view_(x), view_(y));
  }
  void Add(Stream& stream, ConstElements a, ConstElements b, Elements y) override {
    cpu_->Add(stream, view_(a), view_(b), view_(y));
  }
  void Multiply(Stream& stream, ConstFloatSpan a, ConstFloatSpan b, FloatSpan y) override {
    cpu_->Multiply(stream, view_(a), view_(b), view_(y));
  }
  void Activate(Stream& stream, Activation f, ConstElements x, Elements y) override {
    cpu_->Activate(stream, f, view_(x), view_(y));
  }
  void ActivateBackward(Stream& stream, Activation f, ConstElements x, ConstElements y,
                        ConstElements dy, Elements dx) override {
    cpu_->ActivateBackward(stream, f, view_(x), view_(y), view_(dy), view_(dx));
  }
  void Dropout(Stream& stream, const DropoutSpec& spec, ConstElements x, Elements y) override {
    cpu_->Dropout(stream, spec, view_(x), view_(y));
  }
  void Compress(Stream& stream, ConstFloatSpan x, double weight, FloatSpan residual,
                Elements y) override {
    cpu_->Compress(stream, view_(x), weight, view_(residual), view_(y));
  }

  void CopyRows(Stream& stream, RowsOf size, Strided from, Strided to) override {
    cpu_->CopyRows(stream, size, View2(size, from), View2(size, to));
  }
  void SumRows(Stream& stream, RowsOf size, ConstElements x, FloatSpan sums) override {
    cpu_->SumRows(stream, size, view_(x), view_(sums));
  }
  void ReluBackwardSumRows(Stream& stream, RowsOf size, ConstElements y, Elements dy,
                           FloatSpan sums) override {
    cpu_->ReluBackwardSumRows(stream, size, view_(y), view_(dy), view_(sums));
  }
  void SumMiddle(Stream& stream, const MiddleOf& size, float scale, ConstElements x,
                 FloatSpan y) override {
    cpu_->SumMiddle(stream, size, scale, view_(x), view_(y));
  }
  void SumMiddleBackward(Stream& stream, const MiddleOf& size, float scale, ConstFloatSpan dy,
                         Elements dx) override {
    cpu_->SumMiddleBackward(stream, size, scale, view_(dy), view_(dx));
  }
  void Softmax(Stream& stream, RowsOf size, ConstFloatSpan x, FloatSpan y) override {
    cpu_->Softmax(stream, size, view_(x), view_(y));
  }
  void SoftmaxBackward(Stream& stream, RowsOf size, ConstFloatSpan y, ConstFloatSpan dy,
                       FloatSpan dx) override {
    cpu_->SoftmaxBackward(stream, size, view_(y), view_(dy), view_(dx));
  }
  void Gather(Stream& stream, Indices ids, RowsOf table_size, ConstFloatSpan table,
              FloatSpan y) override {
    cpu_->Gather(stream, view_(ids), table_size, view_(table), view_(y));
  }
  void ScatterAdd(Stream& stream, Indices ids, RowsOf table_size, ConstFloatSpan dy,
                  FloatSpan dtable) override {
    cpu_->ScatterAdd(stream, view_(ids), table_size, view_(dy), view_(dtable));
  }
  void Interaction(Stream& stream, std::int64_t batch, RowsOf size, ConstFloatSpan first,
                   ConstFloatSpan rest, FloatSpan y) override {
    cpu_->Interaction(stream, batch, size, view_(first), view_(rest), view_(y));
  }
  void InteractionBackward(Stream& stream, std::int64_t batch, RowsOf size, ConstFloatSpan first,
                           ConstFloatSpan rest, ConstFloatSpan dy, FloatSpan dfirst,
                           FloatSpan drest) override {
    cpu_->InteractionBackward(stream, batch, size, view_(first), view_(rest), view_(dy),
                              view_(dfirst), view_(drest));
  }

  void LayerNorm(Stream& stream, const NormArguments& n) override {
    cpu_->LayerNorm(stream, view_(n));
  }
  void LayerNormBackward(Stream& stream, const NormBackwardArguments& n) override {
    cpu_->LayerNormBackward(stream, view_(n));
  }
  void SumSquaresRows(Stream& stream, RowsOf size, ConstElements x, ConstFloatSpan center,
                      FloatSpan sums) override {
    cpu_->SumSquaresRows(stream, size, view_(x), view_(center), view_(sums));
  }
  void Moments(Stream& stream, RowsOf size, ConstElements x, FloatSpan mean,
               FloatSpan square_sums) override {
    cpu_->Moments(stream, size, view_(x), view_(mean), view_(square_sums));
  }
  void DivideByCount(Stream& stream, ConstFloatSpan sums, ConstFloatSpan count,
                     FloatSpan y) override {
    cpu_->DivideByCount(stream, view_(sums), view_(count), view_(y));
  }
  void FinishMoments(Stream& stream, const MomentsArguments& m) override {
    cpu_->FinishMoments(stream, view_(m));
  }
  void BatchNorm(Stream& stream, const NormArguments& n) override {
    cpu_->BatchNorm(stream, view_(n));
  }
  void BatchNormBackwardSums(Stream& stream, const NormBackwardArguments& n,
                             FloatSpan sums) override {
    cpu_->BatchNormBackwardSums(stream, view_(n), view_(sums));
  }
  void BatchNormBackward(Stream& stream, const NormBackwardArguments& n, ConstFloatSpan sums,
                         ConstFloatSpan count) override {
    cpu_->BatchNormBackward(stream, view_(n), view_(sums), view_(count));
  }

  void SoftmaxCrossEntropy(Stream& stream, const LossArguments& l, FloatSpan loss) override {
    cpu_->SoftmaxCrossEntropy(stream, view_(l), view_(loss));
  }
  void SigmoidCrossEntropy(Stream& stream, const LossArguments& l, FloatSpan loss) override {
    cpu_->SigmoidCrossEntropy(stream, view_(l), view_(loss));
  }
  void MeanSquaredError(Stream& stream, const LossArguments& l, FloatSpan loss) override {
    cpu_->MeanSquaredError(stream, view_(l), view_(loss));
  }
  void SoftmaxCrossEntropyBackward(Stream& stream, const LossArguments& l, ConstFloatSpan loss,
                                   ConstFloatSpan dloss, Elements dx) override {
    cpu_->SoftmaxCrossEntropyBackward(stream, view_(l), view_(loss), view_(dloss), view_(dx));
  }
  void SigmoidCrossEntropyBackward(Stream& stream, const LossArguments& l, ConstFloatSpan loss,
                                   ConstFloatSpan dloss, FloatSpan dx) override {
    cpu_->SigmoidCrossEntropyBackward(stream, view_(l), view_(loss), view_(dloss), view_(dx));
  }
  void MeanSquaredErrorBackward(Stream& stream, const LossArguments& l, ConstFloatSpan loss,
                                ConstFloatSpan dloss, FloatSpan dx) override {
    cpu_->MeanSquaredErrorBackward(stream, view_(l), view_(loss), view_(dloss), view_(dx));
  }

  void Update(Stream& stream, const UpdateRule& rule, std::span<const UpdatePart> parts) override {
    std::vector<UpdatePart> near(parts.begin(), parts.end());
    for (UpdatePart& part : near) {
      part.value = view_(part.value);
      part.gradient = view_(part.gradient);
      for (std::span<float>& slot : part.slots) {
        slot = view_(slot);
      }
    }
    cpu_->Update(stream, rule, near);
  }
  void SumSquares(Stream& stream, ConstFloatSpan x, std::span<double> sum) override {
    cpu_->SumSquares(stream, view_(x), view_(sum));
  }

 private:
  template <typename Far, typename Spec, typename Plan>
  Far& FarPlan(std::map<Spec, std::unique_ptr<Far>>& plans, const Spec& spec, Plan& plan) {
    std::unique_ptr<Far>& far = plans[spec];
    if (far == nullptr) {
      far = std::make_unique<Far>(view_, spec, plan);
    }
    return *far;
  }

  Strided View2(RowsOf size, Strided matrix) const {
    const std::int64_t elements =
        size.rows == 0 ? 0 : (size.rows - 1) * matrix.stride + size.columns;
    return {view_(matrix.data, elements), matrix.stride};
  }

  const View view_;
  const std::unique_ptr<Kernels> cpu_;
  std::map<MatMulSpec, std::unique_ptr<FarMatMul>> matmuls_;
  std::map<ConvSpec, std::unique_ptr<FarConv>> convs_;
  std::map<PoolSpec, std::unique_ptr<FarPool>> pools_;
  std::map<AttentionSpec, std::unique_ptr<FarAttention>> attentions_;
};

// A stream whose work can be recorded instead of run.
class FarStream final : public Stream {
 public:
  using Work = std::function<Status()>;

  explicit FarStream(std::unique_ptr<Stream> stream) : stream_(std::move(stream)) {}

  void Enqueue(Work work) override {
    if (recording_ != nullptr) {
      recording_->push_back(std::move(work));
    } else {
      stream_->Enqueue(std::move(work));
    }
  }
  std::shared_ptr<Event> Record() override {
    Require(recording_ == nullptr, "no event of a stream while its work is captured");
    return stream_->Record();
  }
  void WaitFor(std::shared_ptr<Event> event) override {
    Require(recording_ == nullptr, "no stream waits while its work is captured");
    stream_->WaitFor(std::move(event));
  }
  Status Synchronize(Deadline deadline) override {
    Require(recording_ == nullptr, "nobody waits for a stream while its work is captured");
    return stream_->Synchronize(deadline);
  }

  std::vector<std::vector<Work>> Recorded(const std::function<void(const Device::Cut&)>& feed) {
    std::vector<std::vector<Work>> parts;
    std::vector<Work> works;
    recording_ = &works;
    try {
      feed([&] { parts.push_back(std::exchange(works, {})); });
    } catch (...) {
      recording_ = nullptr;
      throw;
    }
    recording_ = nullptr;
    parts.push_back(std::move(works));
    return parts;
  }

 private:
  const std::unique_ptr<Stream> stream_;
  std::vector<Work>* recording_ = nullptr;
};

class FarGraph final : public Graph {
 public:
  explicit FarGraph(std::vector<FarStream::Work> works) : works_(std::move(works)) {}
  void Replay(Stream& stream) override {
    for (const FarStream::Work& work : works_) {
      stream.Enqueue(work);
    }
  }

 private:
  const std::vector<FarStream::Work> works_;
};

class FarDevice final : public Device, public std::enable_shared_from_this<FarDevice> {
 public:
  FarDevice(std::string name, std::shared_ptr<FarMemory> memory, FarStreams make_stream,
            bool reach = false)
      : name_(std::move(name)),
        view_{.memory = std::move(memory), .owner = this, .reach = reach},
        make_stream_(std::move(make_stream)) {}

  const std::string& name() const override { return name_; }
  MemorySpace memory_space() const override { return MemorySpace::kDevice; }
  std::unique_ptr<Stream> MakeStream() override {
    return std::make_unique<FarStream>(make_stream_());
  }
  std::unique_ptr<Kernels> MakeKernels(int threads) override {
    return std::make_unique<FarKernels>(view_, threads);
  }

  std::shared_ptr<std::byte> Allocate(std::size_t bytes, std::string_view what) override {
    return {view_.memory->Take(this, bytes, what),
            [device = shared_from_this(), memory = view_.memory](std::byte* address) {
              memory->Give(address);
            }};
  }
  std::shared_ptr<std::byte> AllocateHost(std::size_t bytes, std::string_view what) override {
    return view_.memory->TakeHost(bytes, what, view_.memory);
  }
  bool PageLocked(const std::byte* address) const override { return view_.memory->IsHost(address); }
  bool Reaches(const Device& other) const override {
    const auto* const far = dynamic_cast<const FarDevice*>(&other);
    return far != nullptr && view_.reach && far->view_.memory == view_.memory;
  }
  std::byte* Bytes(std::byte* address, std::size_t bytes) const {
    return view_.memory->Near(this, address, bytes, "NCCL");
  }
  void Copy(Stream& stream, const std::byte* from, std::byte* to, std::size_t bytes) override {
    if (bytes == 0) {
      return;
    }
    if (view_.memory->IsFar(from) != view_.memory->IsFar(to)) {
      (view_.memory->IsFar(to) ? to_device_ : to_host_) += static_cast<std::int64_t>(bytes);
    }
    const std::byte* source = Side(from, bytes);
    std::byte* target = Side(to, bytes);
    stream.Enqueue([=]() -> Status {
      std::memcpy(target, source, bytes);
      return {};
    });
  }
  FarTraffic traffic() const { return {.to_device = to_device_, .to_host = to_host_}; }
  std::unique_ptr<Graph> Capture(Stream& stream, const std::function<void()>& feed) override {
    return std::move(CaptureParts(stream, [&](const Cut& /*cut*/) { feed(); }).front());
  }
  std::vector<std::unique_ptr<Graph>> CaptureParts(
      Stream& stream, const std::function<void(const Cut& cut)>& feed) override {
    auto* const mine = dynamic_cast<FarStream*>(&stream);
    Require(mine != nullptr, "Capture with a stream of the device");
    std::vector<std::unique_ptr<Graph>> parts;
    for (std::vector<FarStream::Work>& works : mine->Recorded(feed)) {
      parts.push_back(std::make_unique<FarGraph>(std::move(works)));
    }
    return parts;
  }

 private:
  template <typename T>
  T* Side(T* address, std::size_t bytes) const {
    return view_.memory->IsFar(address)
               ? reinterpret_cast<T*>(view_.memory->Near(nullptr, address, bytes, "Copy"))
               : address;
  }

  const std::string name_;
  const View view_;
  const FarStreams make_stream_;
  std::atomic<std::int64_t> to_device_ = 0;
  std::atomic<std::int64_t> to_host_ = 0;
};

}  // namespace

std::vector<std::shared_ptr<Device>> MakeFarDevices(int count, FarStreams make_stream, bool reach) {
  if (!make_stream) {
    make_stream = LateStreams(1, std::chrono::microseconds(20));
  }
  const auto memory = std::make_shared<FarMemory>();
  std::vector<std::shared_ptr<Device>> devices;
  for (int i = 0; i < count; ++i) {
    devices.push_back(
        std::make_shared<FarDevice>("far:" + std::to_string(i), memory, make_stream, reach));
  }
  return devices;
}

FarTraffic TrafficOf(const Device& far) {
  const auto* const device = dynamic_cast<const FarDevice*>(&far);
  Require(device != nullptr, "TrafficOf a far device");
  return device->traffic();
}

std::byte* BytesOf(const Device& far, std::byte* address, std::size_t bytes) {
  const auto* const device = dynamic_cast<const FarDevice*>(&far);
  Require(device != nullptr, "BytesOf memory of a far device");
  return device->Bytes(address, bytes);
}

std::shared_ptr<Device> MakeFarDevice(std::string name, FarStreams make_stream) {
  if (!make_stream) {
    make_stream = LateStreams(1, std::chrono::microseconds(20));
  }
  return std::make_shared<FarDevice>(std::move(name), std::make_shared<FarMemory>(),
                                     std::move(make_stream));
}

}  // namespace cohort::testing
