#include <cohort/core/metrics.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include <cohort/core/status.h>

namespace cohort {
namespace {

constexpr std::size_t kMaxSeries = 256;

bool IsName(std::string_view text, std::string_view besides) {
  const auto letter = [&](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || besides.find(c) != besides.npos;
  };
  return !text.empty() && letter(text.front()) &&
         std::ranges::all_of(text, [&](char c) { return letter(c) || (c >= '0' && c <= '9'); });
}

void CheckName(std::string_view name, std::string_view type) {
  const std::string who = "metric '" + std::string(name) + "': ";
  Require(IsName(name, "_:"), who + "a name is letters, digits, _ and :, no digit first");
  Require((type == "counter") == name.ends_with("_total"),
          who + "names of counters, and no others, end with _total");
  for (const std::string_view suffix : {"_bucket", "_sum", "_count"}) {
    Require(!name.ends_with(suffix), who + "a histogram's samples have names like this");
  }
}

void CheckLabels(const Metrics::Labels& labels, std::string_view type) {
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const std::string& name = labels[i].first;
    const std::string who = "label '" + name + "': ";
    Require(IsName(name, "_") && !name.starts_with("__"),
            who + "a name is letters, digits and _, no digit first, nor two _");
    Require(type != "histogram" || name != "le", who + "is that of a histogram's buckets");
    for (std::size_t j = 0; j < i; ++j) {
      Require(labels[j].first != name, who + "twice");
    }
  }
}

std::string Escaped(std::string_view text, bool quotes) {
  std::string escaped;
  for (const char c : text) {
    if (c == '\n') {
      escaped += "\\n";
      continue;
    }
    if (c == '\\' || (quotes && c == '"')) {
      escaped += '\\';
    }
    escaped += c;
  }
  return escaped;
}

// a="1",b="2"
std::string TextOf(const Metrics::Labels& labels) {
  std::string text;
  for (const auto& [name, value] : labels) {
    text += (text.empty() ? "" : ",") + name + "=\"" + Escaped(value, true) + "\"";
  }
  return text;
}

std::string TextOf(double value) {
  if (std::isnan(value)) {
    return "NaN";
  }
  if (std::isinf(value)) {
    return value > 0 ? "+Inf" : "-Inf";
  }
  constexpr double kExact = 1LL << 53;
  if (std::abs(value) < kExact && value == std::trunc(value)) {
    return std::to_string(static_cast<std::int64_t>(value));
  }
  std::array<char, 32> text = {};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
  return {text.data(), end};
}

void AppendSample(std::string& page, std::string_view name, const std::string& labels,
                  const std::string& value) {
  page += name;
  if (!labels.empty()) {
    page += '{';
    page += labels;
    page += '}';
  }
  page += ' ';
  page += value;
  page += '\n';
}

void AppendHistogram(std::string& page, const std::string& name, const std::string& labels,
                     const Histogram& histogram) {
  const std::vector<std::uint64_t> counts = histogram.counts();
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    count += counts[i];
    const double bound = i < histogram.bounds().size() ? histogram.bounds()[i]
                                                       : std::numeric_limits<double>::infinity();
    AppendSample(page, name + "_bucket",
                 labels + (labels.empty() ? "" : ",") + "le=\"" + TextOf(bound) + "\"",
                 std::to_string(count));
  }
  AppendSample(page, name + "_sum", labels, TextOf(histogram.sum()));
  AppendSample(page, name + "_count", labels, std::to_string(count));
}

}  // namespace

void Counter::Add(double amount) {
  Require(amount >= 0, "a counter only grows");
  value_.fetch_add(amount, std::memory_order_relaxed);
}

Histogram::Histogram(std::span<const double> bounds)
    : bounds_(bounds.begin(), bounds.end()),
      counts_(std::make_unique<std::atomic<std::uint64_t>[]>(bounds.size() + 1)) {
  Require(std::ranges::all_of(bounds, [](double bound) { return std::isfinite(bound); }) &&
              std::ranges::is_sorted(bounds, std::ranges::less_equal()),
          "the bounds of a histogram grow");
}

void Histogram::Observe(double value) {
  // A NaN is not below any bound.
  const auto bucket = std::ranges::find_if(bounds_, [&](double bound) { return value <= bound; });
  counts_[static_cast<std::size_t>(bucket - bounds_.begin())].fetch_add(1,
                                                                        std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

std::vector<std::uint64_t> Histogram::counts() const {
  std::vector<std::uint64_t> counts;
  for (std::size_t i = 0; i <= bounds_.size(); ++i) {
    counts.push_back(counts_[i].load(std::memory_order_relaxed));
  }
  return counts;
}

struct Metrics::Series {
  std::string labels;  // as they are printed
  Counter counter;
  Gauge gauge;
  std::unique_ptr<Histogram> histogram;
  std::function<double()> value;
};

std::unique_ptr<Metrics::Series> Metrics::SeriesOf(std::function<double()> value) {
  auto series = std::make_unique<Series>();
  series->value = std::move(value);
  return series;
}

struct Metrics::Family {
  std::string name;
  std::string help;
  std::string type;
  std::vector<std::string> labels;  // their names
  std::vector<std::unique_ptr<Series>> series;
};

Metrics::Metrics() = default;
Metrics::~Metrics() = default;

Metrics::Series& Metrics::Add(std::string_view name, std::string_view help, std::string_view type,
                              const Labels& labels,
                              const std::function<std::unique_ptr<Series>()>& make) {
  CheckName(name, type);
  CheckLabels(labels, type);
  std::vector<std::string> names;
  for (const auto& label : labels) {
    names.push_back(label.first);
  }
  const std::lock_guard lock(mutex_);
  auto found =
      std::ranges::find_if(families_, [&](const auto& family) { return family->name == name; });
  if (found == families_.end()) {
    found = families_.insert(
        found, std::make_unique<Family>(
                   Family{std::string(name), std::string(help), std::string(type), names, {}}));
  }
  Family& family = **found;
  Require(family.help == help && family.type == type && family.labels == names,
          "metric '" + family.name + "' was added with another help, type or labels before");
  const std::string text = TextOf(labels);
  for (const auto& series : family.series) {
    if (series->labels == text) {
      return *series;
    }
  }
  Require(family.series.size() < kMaxSeries, "metric '" + family.name + "' has too many series");
  family.series.push_back(make());
  family.series.back()->labels = text;
  return *family.series.back();
}

Counter& Metrics::AddCounter(std::string_view name, std::string_view help, const Labels& labels) {
  return Add(name, help, "counter", labels, [] { return SeriesOf({}); }).counter;
}

Gauge& Metrics::AddGauge(std::string_view name, std::string_view help, const Labels& labels) {
  return Add(name, help, "gauge", labels, [] { return SeriesOf({}); }).gauge;
}

Histogram& Metrics::AddHistogram(std::string_view name, std::string_view help,
                                 std::span<const double> bounds, const Labels& labels) {
  Histogram& histogram = *Add(name, help, "histogram", labels, [&] {
                            auto series = SeriesOf({});
                            series->histogram = std::make_unique<Histogram>(bounds);
                            return series;
                          }).histogram;
  Require(std::ranges::equal(histogram.bounds(), bounds),
          "metric '" + std::string(name) + "' was added with other bounds before");
  return histogram;
}

void Metrics::AddCounter(std::string_view name, std::string_view help,
                         std::function<double()> value) {
  Add(name, help, "counter", {}, [&] { return SeriesOf(std::move(value)); });
}

void Metrics::AddGauge(std::string_view name, std::string_view help,
                       std::function<double()> value) {
  Add(name, help, "gauge", {}, [&] { return SeriesOf(std::move(value)); });
}

std::string Metrics::ToText() const {
  const std::lock_guard lock(mutex_);
  std::string page;
  for (const auto& family : families_) {
    page += "# HELP " + family->name + " " + Escaped(family->help, false) + "\n";
    page += "# TYPE " + family->name + " " + family->type + "\n";
    for (const auto& series : family->series) {
      if (series->histogram != nullptr) {
        AppendHistogram(page, family->name, series->labels, *series->histogram);
        continue;
      }
      const double value = series->value               ? series->value()
                           : family->type == "counter" ? series->counter.value()
                                                       : series->gauge.value();
      AppendSample(page, family->name, series->labels, TextOf(value));
    }
  }
  return page;
}

}  // namespace cohort
