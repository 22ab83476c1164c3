//! A `PromQL` query in, the labels of its outcome out, or what is wrong with it: held against what a worker's `/metrics` shows.
//!
//! More than Prometheus itself asks for, which answers a misspelt name with nothing. A name and each label are the worker's; a rate is of
//! a counter, and a counter is in a rate; buckets are in a quantile, with `le`; both sides of an operator have the same labels.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::label::{MatchOp, Matchers};
use promql_parser::parser::token::{T_LAND, T_LOR, T_LUNLESS};
use promql_parser::parser::{
    AggregateExpr, BinModifier, BinaryExpr, Call, Expr, LabelModifier, VectorMatchCardinality, VectorSelector,
};

pub(crate) type Labels = BTreeSet<String>;

/// What Prometheus itself adds to each series.
const TARGET: [&str; 2] = ["instance", "job"];
/// Labels of which the worker has only certain values, all of which the metrics that are held against hold.
const CLOSED: [&str; 4] = ["code", "mode", "outcome", "reason"];
const OF_COUNTERS: [&str; 4] = ["increase", "irate", "rate", "resets"];
const OF_GAUGES: [&str; 9] = [
    "avg_over_time",
    "delta",
    "deriv",
    "idelta",
    "max_over_time",
    "min_over_time",
    "predict_linear",
    "quantile_over_time",
    "sum_over_time",
];
const OF_ANY: [&str; 4] = ["absent_over_time", "changes", "count_over_time", "present_over_time"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug)]
struct Family {
    kind: Kind,
    /// Label names, each with the values that it has.
    labels: BTreeMap<String, Labels>,
}

/// What `/metrics` shows.
#[derive(Debug)]
pub(crate) struct Shown(BTreeMap<String, Family>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Series {
    Counter,
    Gauge,
    Bucket,
}

impl Shown {
    /// Reads Prometheus' text.
    pub(crate) fn new(text: &str) -> Self {
        let mut families = BTreeMap::new();
        for line in text.lines() {
            let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) else {
                continue;
            };
            let kind = match kind {
                "counter" => Kind::Counter,
                "gauge" => Kind::Gauge,
                "histogram" => Kind::Histogram,
                other => panic!("{name}: a {other}"),
            };
            families.insert(name.to_owned(), Family { kind, labels: BTreeMap::new() });
        }
        // Prometheus' own word on whether it could ask a target.
        families.insert("up".to_owned(), Family { kind: Kind::Gauge, labels: BTreeMap::new() });
        let mut shown = Self(families);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, _value) = line.rsplit_once(' ').expect(line);
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let family = shown.family(name).map(|(name, _)| name.to_owned()).expect(line);
            let labels = labels.strip_suffix('}').expect(line).split("\",").filter(|label| !label.is_empty());
            for (label, value) in labels.map(|label| label.split_once("=\"").expect(line)) {
                let values = shown.0.get_mut(&family).unwrap().labels.entry(label.to_owned()).or_default();
                values.insert(value.trim_end_matches('"').to_owned());
            }
        }
        for family in shown.0.values_mut() {
            family.labels.remove("le");
        }
        shown
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The labels of a family, without those that Prometheus adds.
    pub(crate) fn labels(&self, family: &str) -> Labels {
        self.0[family].labels.keys().cloned().collect()
    }

    /// The family of a series, and what the series is.
    fn family(&self, name: &str) -> Option<(&str, Series)> {
        if let Some((name, family)) = self.0.get_key_value(name) {
            return match family.kind {
                Kind::Counter => Some((name, Series::Counter)),
                Kind::Gauge => Some((name, Series::Gauge)),
                Kind::Histogram => None,
            };
        }
        let suffixes = [("_bucket", Series::Bucket), ("_count", Series::Counter), ("_sum", Series::Counter)];
        suffixes.into_iter().find_map(|(suffix, series)| {
            let (name, family) = self.0.get_key_value(name.strip_suffix(suffix)?)?;
            (family.kind == Kind::Histogram).then_some((name.as_str(), series))
        })
    }

    /// The labels of what the query gives.
    pub(crate) fn check(&self, query: &str) -> Result<Labels, String> {
        let parsed = promql_parser::parser::parse(query).map_err(|error| format!("{query}: {error}"))?;
        let outcome = self.walk(&parsed, None).map_err(|error| format!("{query}: {error}"))?;
        if outcome.buckets {
            return Err(format!("{query}: buckets, and no histogram_quantile around them"));
        }
        Ok(outcome.labels)
    }

    /// `function` is the one whose range or `absent` this is.
    fn walk(&self, expr: &Expr, function: Option<&str>) -> Result<Outcome, String> {
        match expr {
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) => Ok(Outcome::scalar()),
            Expr::Paren(paren) => self.walk(&paren.expr, function),
            Expr::Unary(unary) => self.walk(&unary.expr, function),
            Expr::Subquery(subquery) => self.walk(&subquery.expr, None),
            Expr::VectorSelector(selector) => {
                let (name, series, outcome) = self.select(selector)?;
                match series {
                    Series::Counter if function != Some("absent") => {
                        Err(format!("{name} is a counter: it wants a rate"))
                    }
                    Series::Bucket => Err(format!("{name} is counted up since the start: it wants a rate")),
                    _ => Ok(outcome),
                }
            }
            Expr::MatrixSelector(range) => {
                let (name, series, outcome) = self.select(&range.vs)?;
                let function = function.ok_or_else(|| format!("{name}: a range that no function takes"))?;
                let fits = OF_ANY.contains(&function)
                    || if series == Series::Gauge {
                        OF_GAUGES.contains(&function)
                    } else {
                        OF_COUNTERS.contains(&function)
                    };
                let kind = if series == Series::Gauge { "gauge" } else { "counter" };
                if fits { Ok(outcome) } else { Err(format!("{function} of {name}, which is a {kind}")) }
            }
            Expr::Aggregate(aggregate) => self.aggregate(aggregate),
            Expr::Binary(binary) => self.binary(binary),
            Expr::Call(call) => self.call(call),
            Expr::Extension(_) => Err("an extension".to_owned()),
        }
    }

    fn select(&self, selector: &VectorSelector) -> Result<(String, Series, Outcome), String> {
        let name = selector.name.clone().ok_or("a selector without a metric's name")?;
        let (family, series) = self.family(&name).ok_or_else(|| match self.0.get(&name) {
            Some(_) => format!("{name} is a histogram: its series are {name}_bucket, _sum and _count"),
            None => format!("{name}: no worker has such a metric"),
        })?;
        let known = &self.0[family].labels;
        let Matchers { matchers, or_matchers } = &selector.matchers;
        for matcher in matchers.iter().chain(or_matchers.iter().flatten()) {
            let label = matcher.name.as_str();
            let of_target = TARGET.contains(&label) || (label == "le" && series == Series::Bucket);
            let values = known.get(label);
            if values.is_none() && !of_target {
                return Err(format!("{name} has no label {label}"));
            }
            let is_closed = CLOSED.contains(&label) && matches!(matcher.op, MatchOp::Equal | MatchOp::NotEqual);
            if is_closed && !values.is_some_and(|values| values.contains(&matcher.value)) {
                return Err(format!("{name}: {label} is never {:?}", matcher.value));
            }
        }
        let mut labels: Labels = known.keys().map(String::as_str).chain(TARGET).map(str::to_owned).collect();
        if series == Series::Bucket {
            labels.insert("le".to_owned());
        }
        Ok((name, series, Outcome { labels, buckets: series == Series::Bucket, scalar: false }))
    }

    fn aggregate(&self, aggregate: &AggregateExpr) -> Result<Outcome, String> {
        if let Some(parameter) = &aggregate.param {
            self.walk(parameter, None)?;
        }
        let mut outcome = self.walk(&aggregate.expr, None)?;
        let keeps_series = ["topk", "bottomk"].contains(&aggregate.op.to_string().as_str());
        let labels = match &aggregate.modifier {
            _ if keeps_series => outcome.labels,
            None => Labels::new(),
            Some(modifier) => {
                let named = named(modifier.labels().labels.iter(), &outcome.labels)?;
                match modifier {
                    LabelModifier::Include(_) => named,
                    LabelModifier::Exclude(_) => &outcome.labels - &named,
                }
            }
        };
        if outcome.buckets && !labels.contains("le") {
            return Err("buckets of all sizes are added up: keep le".to_owned());
        }
        outcome.labels = labels;
        Ok(outcome)
    }

    fn call(&self, call: &Call) -> Result<Outcome, String> {
        let (name, args) = (call.func.name, &call.args.args);
        if name == "histogram_quantile" {
            let Expr::NumberLiteral(quantile) = &*args[0] else { return Err(format!("{name} wants a number")) };
            if !(0.0..=1.0).contains(&quantile.val) {
                return Err(format!("{name}: {} is no quantile", quantile.val));
            }
            let mut outcome = self.walk(&args[1], None)?;
            if !outcome.buckets {
                return Err(format!("{name} of what are no buckets"));
            }
            outcome.buckets = false;
            outcome.labels.remove("le");
            return Ok(outcome);
        }
        if name.starts_with("label_") {
            return Err(format!("{name} makes labels that this check does not follow"));
        }
        let outcomes: Vec<Outcome> = args.iter().map(|arg| self.walk(arg, Some(name))).collect::<Result<_, _>>()?;
        let mut outcome = outcomes.into_iter().find(|outcome| !outcome.scalar).unwrap_or_else(Outcome::scalar);
        match (name, args.first().map(|arg| &**arg)) {
            // What is absent has only the labels that were asked for.
            ("absent", Some(Expr::VectorSelector(selector))) => {
                let asked = selector.matchers.matchers.iter().filter(|matcher| matcher.op == MatchOp::Equal);
                outcome.labels = asked.map(|matcher| matcher.name.clone()).collect();
            }
            ("scalar", _) => outcome = Outcome::scalar(),
            _ => {}
        }
        Ok(outcome)
    }

    fn binary(&self, binary: &BinaryExpr) -> Result<Outcome, String> {
        let (left, right) = (self.walk(&binary.lhs, None)?, self.walk(&binary.rhs, None)?);
        if left.scalar || right.scalar {
            return Ok(if left.scalar { right } else { left });
        }
        let buckets = left.buckets || right.buckets;
        let modifier = binary.modifier.as_ref();
        let labels = match modifier.and_then(|modifier| modifier.matching.as_ref()) {
            Some(LabelModifier::Include(on)) => {
                named(on.labels.iter(), &left.labels)?;
                named(on.labels.iter(), &right.labels)?
            }
            Some(LabelModifier::Exclude(ignored)) => {
                let ignored: Labels = ignored.labels.iter().cloned().collect();
                same(&(&left.labels - &ignored), &(&right.labels - &ignored))?
            }
            None => same(&left.labels, &right.labels)?,
        };
        let labels = match binary.op.id() {
            T_LAND | T_LUNLESS => left.labels,
            T_LOR => &left.labels & &right.labels,
            _ => match modifier {
                Some(BinModifier { card: VectorMatchCardinality::ManyToOne(taken), .. }) => {
                    &left.labels | &named(taken.labels.iter(), &right.labels)?
                }
                Some(BinModifier { card: VectorMatchCardinality::OneToMany(taken), .. }) => {
                    &right.labels | &named(taken.labels.iter(), &left.labels)?
                }
                _ => labels,
            },
        };
        Ok(Outcome { labels, buckets, scalar: false })
    }
}

/// What a part of a query gives.
struct Outcome {
    labels: Labels,
    /// Series by `le`.
    buckets: bool,
    scalar: bool,
}

impl Outcome {
    fn scalar() -> Self {
        Self { labels: Labels::new(), buckets: false, scalar: true }
    }
}

fn named<'a>(names: impl Iterator<Item = &'a String>, labels: &Labels) -> Result<Labels, String> {
    let taken = |name: &String| {
        let has = labels.contains(name).then(|| name.clone());
        has.ok_or_else(|| format!("no label {name} there, only {labels:?}"))
    };
    names.map(taken).collect()
}

fn same(left: &Labels, right: &Labels) -> Result<Labels, String> {
    let same = left == right;
    same.then(|| left.clone()).ok_or_else(|| format!("{left:?} on one side and {right:?} on the other never match"))
}

/// The labels between `before` and what ends a label's name, as `{{model}}` and `$labels.model` have them.
pub(crate) fn mentioned<'t>(text: &'t str, before: &str) -> Vec<&'t str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let after = text.split(before).skip(1);
    after.map(str::trim_start).map(|rest| &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())]).collect()
}

#[test]
fn wrong_queries_are_refused_and_say_why() {
    let shown = Shown::new(
        "# TYPE records_total counter\nrecords_total 1\n\
         # TYPE failed_total counter\nfailed_total{code=\"too_large\",model=\"m\"} 1\nfailed_total{code=\"bad\",model=\"m\"} 1\n\
         # TYPE depth gauge\ndepth{model=\"m\",priority=\"1\"} 0\n\
         # TYPE wait_seconds histogram\nwait_seconds_bucket{model=\"m\",le=\"1\"} 0\nwait_seconds_bucket{model=\"m\",le=\"+Inf\"} 0\n\
         wait_seconds_sum{model=\"m\"} 0\nwait_seconds_count{model=\"m\"} 0\n",
    );
    let wrong = [
        ("sum(rate(record_total[5m]))", "record_total: no worker has such a metric"),
        ("rate(records_total[5m]", "unclosed"),
        ("rate(depth[5m])", "rate of depth, which is a gauge"),
        ("deriv(records_total[5m])", "deriv of records_total, which is a counter"),
        ("sum(records_total)", "records_total is a counter: it wants a rate"),
        ("depth{level=\"1\"}", "depth has no label level"),
        ("rate(failed_total{code=\"to_large\"}[5m])", "code is never \"to_large\""),
        ("sum by (node) (depth)", "no label node"),
        ("wait_seconds", "is a histogram"),
        ("histogram_quantile(0.9, rate(wait_seconds_sum[5m]))", "no buckets"),
        ("histogram_quantile(0.9, sum by (model) (rate(wait_seconds_bucket[5m])))", "keep le"),
        ("histogram_quantile(0.9, sum by (le) (wait_seconds_bucket))", "it wants a rate"),
        ("histogram_quantile(99, sum by (le) (rate(wait_seconds_bucket[5m])))", "no quantile"),
        ("sum by (le) (rate(wait_seconds_bucket[5m]))", "no histogram_quantile"),
        ("sum by (model) (depth) / depth", "never match"),
        ("sum by (model) (depth) / on (priority) depth", "no label priority"),
        ("depth > 1 and records_total", "records_total is a counter"),
        ("{__name__=\"depth\"}", "without a metric's name"),
    ];
    for (query, why) in wrong {
        let refused = shown.check(query).expect_err(query);
        assert!(refused.to_lowercase().contains(&why.to_lowercase()), "{query}: said {refused}, not {why}");
    }
    let right = [
        ("sum(rate(records_total[5m]))", vec![]),
        (
            "sum by (model) (rate(failed_total{code!=\"bad\"}[5m])) / sum by (model) (rate(wait_seconds_count[5m]))",
            vec!["model"],
        ),
        ("histogram_quantile(0.9, sum by (le, model) (rate(wait_seconds_bucket[5m])))", vec!["model"]),
        ("max_over_time(depth[5m]) > 3", vec!["instance", "job", "model", "priority"]),
        ("sum without (priority) (depth)", vec!["instance", "job", "model"]),
        ("absent(up{job=\"x\"})", vec!["job"]),
        ("depth * on (model) group_left () sum by (model) (depth)", vec!["instance", "job", "model", "priority"]),
        ("sum by (instance) (depth) > 3 and sum by (instance) (deriv(depth[5m])) > 0", vec!["instance"]),
    ];
    for (query, labels) in right {
        let found = shown.check(query).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), labels, "{query}");
    }
    assert_eq!(mentioned("{{model}} level {{ priority }}", "{{"), ["model", "priority"]);
}
