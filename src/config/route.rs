//! `[[route]]`: its keys, checked. What a name may be depends on the system that it is in.

use std::ops::RangeInclusive;

use super::check::Check;
use super::raw::RawRoute;
use super::subject::{SubjectFilter, is_at, is_subject};
use super::topic::{TopicPattern, is_topic};
use super::wants::listed;
use super::{DeadLetter, Delivery, Model, Nats, Ordering, Route, System};

pub(super) const RECORD_BYTES: RangeInclusive<u64> = 1..=1 << 30;

/// Which systems have a table.
struct Systems<'a> {
    has_kafka: bool,
    nats: Option<&'a Nats>,
}

/// The routes.
pub(super) fn routes(
    check: &mut Check<'_>,
    raw: &[RawRoute],
    models: &[Model],
    has_kafka: bool,
    nats: Option<&Nats>,
) -> Vec<Route> {
    let systems = Systems { has_kafka, nats };
    if !has_kafka && nats.is_none() {
        check.refuse("kafka", "is missing; add a [kafka] table, or a [nats] one");
    }
    if raw.is_empty() && nats.is_none_or(|nats| nats.service.is_none()) {
        check.refuse("route", "is missing; add a [[route]] table, or [nats.service] to answer requests");
    }
    let routes: Vec<Route> =
        raw.iter().enumerate().map(|(at, route)| systems.route(check, at, route, models)).collect();
    if let Some(first) = routes.first() {
        for (at, route) in routes.iter().enumerate() {
            for (name, this, that) in [("source", route.source, first.source), ("sink", route.sink, first.sink)] {
                if this != that {
                    let (this, that) = (this.as_str(), that.as_str());
                    let message = format!(
                        "is \"{this}\", but route[0] has \"{that}\"; a worker has one source and one sink, so run \
                         another worker for this route"
                    );
                    check.refuse(&format!("route[{at}].{name}"), message);
                }
            }
        }
        systems.flow(check, first, &routes);
    }
    routes
}

impl Systems<'_> {
    fn route(&self, check: &mut Check<'_>, at: usize, raw: &RawRoute, models: &[Model]) -> Route {
        let key = |name: &str| format!("route[{at}].{name}");
        let first = if self.has_kafka || self.nats.is_none() { System::Kafka } else { System::Nats };
        let source = self.system(check, &key("source"), raw.source, first);
        let sink = self.system(check, &key("sink"), raw.sink, source);
        let mut input = Vec::new();
        for (at, name) in raw.input.iter().flatten().enumerate() {
            let key = format!("{}[{at}]", key("input"));
            match source {
                System::Kafka => topic(check, &key, name),
                System::Nats => self.filter(check, &key, name),
            }
            input.push(name.clone());
        }
        if let Some(name) = &raw.reply_topic {
            match sink {
                System::Kafka => topic(check, &key("reply_topic"), name),
                System::Nats => subject(check, &key("reply_topic"), name),
            }
        }
        let inputs = Inputs { names: &input, is_same: source == sink, sink };
        let mut reply_topics_allowed = Vec::with_capacity(raw.reply_topics_allowed.len());
        for (at, text) in raw.reply_topics_allowed.iter().enumerate() {
            let key = format!("{}[{at}]", key("reply_topics_allowed"));
            reply_topics_allowed.extend(inputs.allowed(check, &key, text));
        }
        if let (System::Nats, Some(nats)) = (sink, self.nats) {
            let letters = Some(&raw.dead_letter).filter(|letter| *letter != "off");
            let named = raw
                .reply_topic
                .iter()
                .map(|name| ("reply_topic", name))
                .chain(letters.map(|name| ("dead_letter", name)));
            for (field, name) in named {
                if is_at(name, &nats.flow.checkpoint_subject) {
                    let got = check.places.quoted(&key(field), name);
                    let message =
                        format!("{got} is among the subjects of checkpoints (nats.checkpoint_subject); take another");
                    check.refuse(&key(field), message);
                }
            }
        }
        Route {
            source,
            sink,
            model_index: model_of(check, &format!("route[{at}]"), raw.model.as_deref(), models),
            reply_topic: raw.reply_topic.clone().unwrap_or_default(),
            reply_topics_allowed,
            deadline_from: raw.deadline_from,
            reply_metadata: raw.reply_metadata,
            dead_letter: inputs.dead_letter(check, &key("dead_letter"), &raw.dead_letter),
            record_bytes_max: check.bytes(&key("record_bytes_max"), &raw.record_bytes_max, &RECORD_BYTES),
            compacted: raw.compacted,
            input,
            retries: raw.retries,
        }
    }

    /// The system that a route names, or what stands for none.
    fn system(&self, check: &mut Check<'_>, key: &str, named: Option<System>, default: System) -> System {
        let has = |system| match system {
            System::Kafka => self.has_kafka,
            System::Nats => self.nats.is_some(),
        };
        match named {
            // That there is neither table has been reported.
            Some(system) if !has(system) && has(default) => {
                let name = system.as_str();
                check.refuse(key, format!("got \"{name}\", but there is no [{name}] table; add one"));
                default
            }
            Some(system) => system,
            None => default,
        }
    }

    fn filter(&self, check: &mut Check<'_>, key: &str, text: &str) {
        let Some(filter) = SubjectFilter::new(text) else {
            let wanted = "a subject, in which \"*\" may stand for a token, \">\" for all at the end, and \"{partition}\" for \
                          the partition's number";
            check.wants(key, text, wanted);
            return;
        };
        let is_shared = self.nats.is_some_and(|nats| nats.flow.delivery == Delivery::AtLeastOnce);
        if is_shared && filter.has_partition() {
            let message = "workers share one consumer of all records with `delivery = \"at_least_once\"`; write \"*\" in the place \
                           of \"{partition}\"";
            check.refuse(key, message);
        }
        let partitions = self.nats.map_or(1, |nats| nats.flow.partitions.get());
        if partitions > 1 && !filter.has_partition() {
            let message = format!(
                "has no place for the partition's number, and nats.partitions is {partitions}; write \"{{partition}}\" \
                 where it stands"
            );
            check.refuse(key, message);
        }
    }

    /// What the tables must say for records to flow from the routes' source to their sink.
    fn flow(&self, check: &mut Check<'_>, first: &Route, routes: &[Route]) {
        let Some(nats) = self.nats else { return };
        let flow = &nats.flow;
        if first.source == System::Nats && flow.group.is_empty() {
            check.refuse("nats.group", "is missing; add group = \"…\" under [nats]");
        }
        if (first.source, first.sink) == (System::Nats, System::Kafka) && flow.delivery == Delivery::ExactlyOnce {
            let message = "got \"exactly_once\", but replies of these routes go to Kafka, which cannot keep NATS' positions \
                           with them; write \"at_least_once\"";
            check.refuse("nats.delivery", message);
        }
        if first.source == System::Kafka {
            if first.sink == System::Nats && flow.delivery == Delivery::AtLeastOnce {
                let message = "replies to records of Kafka go to NATS exactly once; remove it";
                check.refuse("nats.delivery", message);
            }
            return;
        }
        let is_shared = flow.delivery == Delivery::AtLeastOnce;
        if is_shared && flow.partitions.get() > 1 {
            let message = "workers share one consumer of all records with `delivery = \"at_least_once\"`; remove it";
            check.refuse("nats.partitions", message);
        }
        match flow.ordering {
            Ordering::Partition if is_shared => {
                let message = "workers share one consumer with `delivery = \"at_least_once\"`, and its records come to them \
                               in no order; remove it";
                check.refuse("nats.ordering", message);
            }
            Ordering::Key => {
                let message = "got \"key\", but records of NATS have no key; take \"partition\", which keeps the order of \
                               all records of a partition";
                check.refuse("nats.ordering", message);
            }
            Ordering::None | Ordering::Partition => {}
        }
        for (at, _) in routes.iter().enumerate().filter(|(_, route)| route.compacted) {
            let message = "streams of NATS have no tombstones; remove it";
            check.refuse(&format!("route[{at}].compacted"), message);
        }
    }
}

/// What a route reads, so that its replies go elsewhere.
struct Inputs<'a> {
    names: &'a [String],
    /// Whether replies go to the system that records come from.
    is_same: bool,
    sink: System,
}

impl Inputs<'_> {
    fn allowed(&self, check: &mut Check<'_>, key: &str, text: &str) -> Option<TopicPattern> {
        let (pattern, wanted) = match self.sink {
            System::Kafka => (TopicPattern::new(text), "a topic in which \"*\" may stand for any characters"),
            System::Nats => (TopicPattern::of_subjects(text), "a subject in which \"*\" may stand for any characters"),
        };
        let Some(pattern) = pattern else {
            check.wants(key, text, wanted);
            return None;
        };
        if let Some(input) = self.names.iter().find(|input| self.is_same && self.may_meet(&pattern, input)) {
            let message = format!(
                "{} matches \"{input}\", an input of this route, so that replies could be scored again without end; \
                 narrow the pattern",
                check.places.quoted(key, text)
            );
            check.refuse(key, message);
        }
        Some(pattern)
    }

    fn may_meet(&self, pattern: &TopicPattern, input: &str) -> bool {
        match self.sink {
            System::Kafka => pattern.matches(input),
            System::Nats => pattern.may_match_any_of(input),
        }
    }

    fn dead_letter(&self, check: &mut Check<'_>, key: &str, text: &str) -> Option<DeadLetter> {
        if text == "off" {
            return None;
        }
        let letter = DeadLetter { template: text.to_owned() };
        for input in self.names {
            let name = letter.topic(input);
            let (is_good, is_input) = match self.sink {
                System::Kafka => (is_topic(&name), self.is_same && self.names.contains(&name)),
                // A filter's letters go to as many subjects as it has.
                System::Nats => {
                    let filter = SubjectFilter::new(&name);
                    let inputs = self.names.iter().filter_map(|input| SubjectFilter::new(input));
                    let mut inputs = inputs.filter(|_| self.is_same);
                    (filter.is_some(), filter.is_some_and(|filter| inputs.any(|input| input.overlaps(&filter))))
                }
            };
            if !is_good {
                let wanted = match self.sink {
                    System::Kafka => "\"off\" or a topic, in which \"<input>\" stands for the record's own",
                    System::Nats => "\"off\" or a subject, in which \"<input>\" stands for the record's own",
                };
                check.wants(key, text, wanted);
                return None;
            }
            if is_input {
                let got = check.places.quoted(key, text);
                let message =
                    format!("{got} is an input of this route, so that failed records would come again without end");
                check.refuse(key, message);
                return None;
            }
        }
        Some(letter)
    }
}

fn topic(check: &mut Check<'_>, key: &str, name: &str) {
    if !is_topic(name) {
        check.wants(key, name, "a topic: 1 to 249 of the characters a-z, A-Z, 0-9, \".\", \"_\" and \"-\"");
    }
}

fn subject(check: &mut Check<'_>, key: &str, name: &str) {
    if !is_subject(name) || name.starts_with('$') {
        check.wants(key, name, "a subject: tokens joined by dots, without spaces, \"*\" and \">\"");
    }
}

fn model_of(check: &mut Check<'_>, route: &str, name: Option<&str>, models: &[Model]) -> usize {
    let names = || -> Vec<String> { models.iter().map(|model| format!("{:?}", model.name)).collect() };
    let Some(name) = name else {
        if models.len() > 1 {
            let message = format!("is missing, and there are several models; name {}", listed(&names(), "or"));
            check.refuse(&format!("{route}.model"), message);
        }
        return 0;
    };
    // A model without a name has been reported, and may be the one that is meant.
    let all_named = !models.is_empty() && models.iter().all(|model| !model.name.is_empty());
    models.iter().position(|model| model.name == name).unwrap_or_else(|| {
        if all_named {
            let key = format!("{route}.model");
            let got = check.places.quoted(&key, name);
            check.refuse(
                &key,
                format!("got {got}, but no [[model]] has that name; there is {}", listed(&names(), "and")),
            );
        }
        0
    })
}
