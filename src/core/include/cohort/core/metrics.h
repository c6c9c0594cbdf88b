// Metrics: what a process counts, for Prometheus to scrape.
//
// A registry of families (name, help, type), each of some series: one for every set of label values
// that was asked for. Labels are of what there is little of (a method, a result), never a step, a
// tensor or an address; a family has at most 256 series. There is no registry of the process: a
// program makes one, hands it down in options, and to the MetricsServer (cohort/obs) that shows it.
//
// Names are Prometheus' and checked when a series is added, as its type, help and label names are
// with those of its family: ContractError, the program's mistake. A series that is there already is
// returned, so that parts that count the same thing share it.
//
// Thread rules: all methods from any thread. Adding and printing take a lock; counting takes none
// (relaxed atomics), so that a page is not one moment in time. Series live as long as the registry.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cohort {

class Counter {
 public:
  // Not less than 0.
  void Add(double amount = 1);
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_ = 0;
};

class Gauge {
 public:
  void Set(double value) { value_.store(value, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_ = 0;
};

class Histogram {
 public:
  // The upper bounds of its buckets, which grow; one without a bound is behind them.
  explicit Histogram(std::span<const double> bounds);

  void Observe(double value);
  std::span<const double> bounds() const { return bounds_; }
  // Of each bucket by itself, that without a bound included.
  std::vector<std::uint64_t> counts() const;
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  const std::vector<double> bounds_;
  const std::unique_ptr<std::atomic<std::uint64_t>[]> counts_;
  std::atomic<double> sum_ = 0;
};

class Metrics {
 public:
  using Labels = std::vector<std::pair<std::string, std::string>>;  // name and value

  Metrics();
  ~Metrics();

  Counter& AddCounter(std::string_view name, std::string_view help, const Labels& labels = {});
  Gauge& AddGauge(std::string_view name, std::string_view help, const Labels& labels = {});
  Histogram& AddHistogram(std::string_view name, std::string_view help,
                          std::span<const double> bounds, const Labels& labels = {});
  // A counter, or a gauge, whose value is asked for with each page. `value` adds nothing itself.
  void AddCounter(std::string_view name, std::string_view help, std::function<double()> value);
  void AddGauge(std::string_view name, std::string_view help, std::function<double()> value);

  // The process has begun to do its part: what /readyz tells.
  void SetReady() { ready_.store(true, std::memory_order_relaxed); }
  bool ready() const { return ready_.load(std::memory_order_relaxed); }

  // A page in Prometheus' text format, version 0.0.4.
  std::string ToText() const;

 private:
  struct Series;
  struct Family;

  static std::unique_ptr<Series> SeriesOf(std::function<double()> value);
  Series& Add(std::string_view name, std::string_view help, std::string_view type,
              const Labels& labels, const std::function<std::unique_ptr<Series>()>& make);

  std::atomic<bool> ready_ = false;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Family>> families_;  // in the order in which they were added
};

}  // namespace cohort
