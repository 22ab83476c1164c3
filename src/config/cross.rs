//! What routes and models must agree on with each other: names are unique, models name one ONNX Runtime, a topic has one
//! reader, and no reply becomes an input again.

use std::collections::BTreeMap;

use super::error::Problem;
use super::onnx::other_libraries;
use super::places::Places;
use super::wants::listed;
use super::{Model, Route, SubjectFilter, System};

/// All disagreements.
pub(super) fn check(routes: &[Route], models: &[Model], places: &Places) -> Vec<Problem> {
    let mut problems = doubled_names(models, places);
    problems.extend(other_libraries(models, places));
    problems.extend(doubled_topics(routes, places));
    problems.extend(circles(routes, places));
    problems
}

fn doubled_names(models: &[Model], places: &Places) -> Vec<Problem> {
    let mut owners: BTreeMap<&str, usize> = BTreeMap::new();
    let mut problems = Vec::new();
    // A model without a name has been reported.
    for (at, model) in models.iter().enumerate().filter(|(_, model)| !model.name.is_empty()) {
        let first = *owners.entry(&model.name).or_insert(at);
        if first != at {
            let key = format!("model[{at}].name");
            let got = places.quoted(&key, &model.name);
            let message = format!("{got} is also the name of model[{first}]; give each model its own");
            problems.push(places.problem(&key, message));
        }
    }
    problems
}

fn doubled_topics(routes: &[Route], places: &Places) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut read: Vec<(usize, &Input)> = Vec::new();
    let inputs: Vec<(usize, usize, Input)> = routes
        .iter()
        .enumerate()
        .flat_map(|(at, route)| {
            route.input.iter().enumerate().map(move |(place, name)| (at, place, Input::new(route, name)))
        })
        .collect();
    for (at, place, input) in &inputs {
        let same = read.iter().find(|(_, other)| input.overlaps(other)).copied();
        read.push((*at, input));
        let Some((reader, other)) = same else {
            continue;
        };
        let key = format!("route[{at}].input[{place}]");
        let got = places.quoted(&key, input.name);
        let message = if input.name != other.name {
            format!(
                "{got} has subjects that \"{}\" of route[{reader}] has too; a subject belongs to one route",
                other.name
            )
        } else if reader == *at {
            format!("{got} is in this list twice; name it once")
        } else {
            format!("{got} is also an input of route[{reader}]; a topic belongs to one route")
        };
        problems.push(places.problem(&key, message));
    }
    problems
}

/// A topic, or a filter of subjects.
struct Input<'a> {
    name: &'a str,
    filter: Option<SubjectFilter>,
}

impl<'a> Input<'a> {
    fn new(route: &Route, name: &'a str) -> Self {
        let filter = (route.source == System::Nats).then(|| SubjectFilter::new(name)).flatten();
        Self { name, filter }
    }

    fn overlaps(&self, other: &Self) -> bool {
        match (&self.filter, &other.filter) {
            (Some(this), Some(that)) => this.overlaps(that),
            _ => self.name == other.name,
        }
    }

    fn has(&self, name: &str) -> bool {
        self.filter.as_ref().map_or(self.name == name, |filter| filter.matches(name))
    }
}

/// Follows each route's replies: where they become its input again, one record would be scored for ever. All routes have
/// the same source and sink, or that has been reported.
fn circles(routes: &[Route], places: &Places) -> Vec<Problem> {
    if routes.iter().any(|route| route.source != route.sink) {
        return Vec::new();
    }
    let reader_of = |topic: &str| {
        let mut readers = routes.iter();
        readers.position(|route| route.input.iter().any(|input| Input::new(route, input).has(topic)))
    };
    let mut problems = Vec::new();
    for (at, route) in routes.iter().enumerate().filter(|(_, route)| !route.reply_topic.is_empty()) {
        let mut path = vec![at];
        let mut next = reader_of(&route.reply_topic);
        // A circle is told once, at its lowest route; a path that meets itself elsewhere is another route's circle.
        while let Some(reader) = next.filter(|&reader| reader > at && !path.contains(&reader)) {
            path.push(reader);
            next = reader_of(&routes[reader].reply_topic);
        }
        if next == Some(at) {
            let key = format!("route[{at}].reply_topic");
            let got = places.quoted(&key, &route.reply_topic);
            let through: Vec<String> = path[1..].iter().map(|reader| format!("route[{reader}]")).collect();
            let how = match through.as_slice() {
                [] => "is also an input of this route".to_owned(),
                through => format!("leads back to an input of this route through {}", listed(through, "and")),
            };
            let end = "so that replies would be scored again without end; choose another topic";
            problems.push(places.problem(&key, format!("{got} {how}, {end}")));
        }
    }
    problems
}
