//! Metric families that are made when somebody asks, from what is known then: a series whose thing is gone is gone too.

use prometheus::proto::{self, Metric, MetricFamily, MetricType};

use super::Histogram;

/// A family on its way: a name, its help, and one series a label set.
pub(super) struct Family(MetricFamily);

impl Family {
    pub(super) fn counter(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    pub(super) fn gauge(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    pub(super) fn histogram(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::HISTOGRAM)
    }

    fn new(name: &str, help: &str, kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self(family)
    }

    /// Adds a series of a counter or a gauge.
    pub(super) fn put(&mut self, labels: &[(&str, &str)], value: f64) {
        let mut metric = labelled(labels);
        if self.0.get_field_type() == MetricType::COUNTER {
            let mut counter = proto::Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.0.mut_metric().push(metric);
    }

    /// Adds a series of a histogram.
    pub(super) fn put_histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut metric = labelled(labels);
        metric.set_histogram(histogram.to_proto());
        self.0.mut_metric().push(metric);
    }

    /// The family, with one series that has no labels.
    pub(super) fn with(mut self, value: f64) -> Self {
        self.put(&[], value);
        self
    }

    /// The family, with one histogram that has no labels.
    pub(super) fn with_histogram(mut self, histogram: &Histogram) -> Self {
        self.put_histogram(&[], histogram);
        self
    }

    /// The family for the encoder, which takes none without a series.
    pub(super) fn done(self) -> Option<MetricFamily> {
        Some(self.0).filter(|family| !family.get_metric().is_empty())
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = proto::LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}
