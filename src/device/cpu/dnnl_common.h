// What the oneDNN plans share: the engine, calling without exceptions on the stream, scratch
// memory.

#pragma once

#include <cohort/core/status.h>
#include <cohort/core/tensor.h>

#include <algorithm>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>

#include "cpu/dnnl_plans.h"
#include "cpu/parallel.h"
#include "cpu/signals_blocked.h"

namespace cohort::cpu {

struct DnnlEngine::State {
  int threads;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
};

using DnnlArguments = std::unordered_map<int, dnnl::memory>;

// Every primitive takes its scratch memory from its plan: oneDNN's own is bound to the thread that
// made the primitive, and a stream may run elsewhere.
inline dnnl::primitive_attr Attributes(Activation activation = Activation::kNone) {
  Require(activation == Activation::kNone || activation == Activation::kRelu,
          "a fused activation is none or relu");
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (activation == Activation::kRelu) {
    dnnl::post_ops after;
    after.append_eltwise(1.0F, dnnl::algorithm::eltwise_relu, 0.0F, 0.0F);
    attributes.set_post_ops(after);
  }
  return attributes;
}

inline dnnl::memory::desc Desc(const dnnl::memory::dims& dims, dnnl::memory::format_tag tag) {
  return {dims, dnnl::memory::data_type::f32, tag};
}

// A primitive with its arguments, to be given memory and run.
class DnnlCall {
 public:
  DnnlCall() = default;
  template <typename PrimitiveDesc>
  DnnlCall(const DnnlEngine& engine, const dnnl::primitive& primitive, const PrimitiveDesc& desc)
      : engine_(&engine.state()), primitive_(primitive) {
    Bind(DNNL_ARG_SCRATCHPAD, desc.scratchpad_desc());
  }

  // Declares an argument; its memory is the plan's until Set.
  void Bind(int argument, const dnnl::memory::desc& desc) {
    const auto floats = static_cast<std::int64_t>((desc.get_size() + 3) / 4);
    const Tensor memory(DType::kFloat32, Shape{floats});
    own_.push_back(memory);
    arguments_.insert_or_assign(argument, dnnl::memory(desc, engine_->engine, memory.raw()));
  }
  // Declares an argument whose memory Set gives before each run.
  void Declare(int argument, const dnnl::memory::desc& desc) {
    arguments_.insert_or_assign(argument, dnnl::memory(desc, engine_->engine, nullptr));
  }
  void Share(int argument, const dnnl::memory& memory) {
    arguments_.insert_or_assign(argument, memory);
  }
  void Set(int argument, const void* data) {
    arguments_.at(argument).set_data_handle(const_cast<void*>(data));
  }
  dnnl::memory& operator[](int argument) { return arguments_.at(argument); }

  void Run() { primitive_.execute(engine_->stream, arguments_); }
  explicit operator bool() const { return engine_ != nullptr; }

 private:
  DnnlEngine::State* engine_ = nullptr;
  dnnl::primitive primitive_;
  DnnlArguments arguments_;
  std::vector<Tensor> own_;
};

// Runs `make` with the engine's threads, as oneDNN divides work when a primitive is made.
template <typename Make>
auto MakeDnnl(const DnnlEngine& engine, const std::string& what, const Make& make) {
  const OmpThreads scope(engine.state().threads);
  try {
    return make();
  } catch (const dnnl::error& error) {
    throw ContractError("oneDNN cannot make " + what + ": " + error.what());
  }
}

// Puts `work`, which calls oneDNN, on the stream.
template <typename Work>
void PutDnnl(Stream& stream, const DnnlEngine& engine, Work work) {
  stream.Enqueue([&engine, work]() -> Status {
    const OmpThreads scope(engine.state().threads);
    const SignalsBlocked quiet;
    try {
      work();
    } catch (const dnnl::error& error) {
      return Internal(std::string("oneDNN: ") + error.what());
    }
    return {};
  });
}

}  // namespace cohort::cpu
