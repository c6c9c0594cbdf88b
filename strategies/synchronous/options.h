// What synchronous strategies read in StrategyOptions, beside a communicator: which words name a
// way to add gradients. The checks of options, SynchronousStrategy::CheckOptions and
// CheckAlgorithm, are in options.cc.
//
// Thread rules: pure functions.

#pragma once

#include <string>
#include <string_view>

#include <cohort/comm/communicator.h>
#include <cohort/core/status.h>
#include <cohort/strategies/strategy_options.h>

namespace cohort {

// One all-reduce after the backward pass, of two processes that share memory.
inline constexpr std::string_view kOneBucket = "one_bucket";

// Is this an algorithm of AllReduce there?
bool Offers(const Communicator& communicator, std::string_view algorithm);
bool OffersOneBucket(const Communicator& communicator);

// What communication.implementation may have meant that is no algorithm: another option, some of
// which are implementations in tf.distribute. "; ...", or nothing.
std::string HintAt(std::string_view implementation);

Status CheckTimeout(const CommunicationOptions& options);

int LocalReplicas(const StrategyOptions& options);

}  // namespace cohort
