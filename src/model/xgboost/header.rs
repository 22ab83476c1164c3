//! A model file's parts in; out, what XGBoost 1.6.2 must be told to score it as its own version did, or why it is not
//! to be scored. The library checks neither: it keeps 0.5 for a base score that it cannot read, takes a set of
//! categories for a threshold, and follows the indices of a damaged tree out of its arrays.
#![allow(clippy::float_cmp, reason = "numbers of a file that must be whole, and are compared as such")]

use std::borrow::Cow;
use std::collections::HashSet;

use super::document::{Node, replace_texts};

/// What a model that is refused here can still hope for.
const MORE: &str = "the compiled forest (`compile_model = true`) reads more";
/// More features, or outputs, than any model that is fed whole rows. Stated sizes are reserved, so they are bounded.
const FEATURES_MAX: usize = 1_000_000;
const OUTPUTS_MAX: usize = 10_000;
/// The version numbers whose files were looked at: a newer one may mean something else by the same keys, as 3.1 did.
const MINOR_MAX: [(u32, u32); 3] = [(1, 7), (2, 1), (3, 2)];

/// How a base score and a sum of leaves become a score: all that scoring asks of an objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// The library's own objective of this name has the same.
    Own,
    /// 1.6.2 knows the objective in another form or not at all, and this one of the same link, which has no parameters.
    As(&'static str),
    /// A probability for each class: a sum for each, and each may start from its own base score.
    Softprob,
    /// As [`Link::Softprob`], but the one output is the number of the likeliest class.
    Softmax,
}

/// The score is the sum itself.
const IDENTITY: Link = Link::As("reg:pseudohubererror");
/// The score is the exponential of the sum.
const EXPONENTIAL: Link = Link::As("reg:gamma");

/// The objectives whose scores the tests hold against Python's.
const OBJECTIVES: [(&str, Link); 20] = [
    ("reg:squarederror", Link::Own),
    ("reg:squaredlogerror", IDENTITY),
    ("reg:logistic", Link::Own),
    ("reg:pseudohubererror", Link::Own),
    ("reg:absoluteerror", IDENTITY),
    ("reg:quantileerror", IDENTITY),
    ("reg:gamma", Link::Own),
    ("reg:tweedie", Link::Own),
    ("binary:logistic", Link::Own),
    ("binary:logitraw", Link::Own),
    ("binary:hinge", Link::Own),
    ("count:poisson", Link::Own),
    ("survival:cox", Link::Own),
    ("survival:aft", EXPONENTIAL),
    ("rank:pairwise", IDENTITY),
    ("rank:ndcg", IDENTITY),
    ("rank:map", IDENTITY),
    ("multi:softprob", Link::Softprob),
    ("reg:linear", Link::Own),
    ("multi:softmax", Link::Softmax),
];

/// What the file says of itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    pub(super) feature_names: Vec<String>,
    pub(super) outputs: usize,
    /// What the library must have read from `bytes`.
    pub(super) base_score: f32,
    /// What each class's sum of a row starts from, where 1.6.2 has no one base score for it; else empty.
    pub(super) margins: Vec<f32>,
    pub(super) details: Vec<(String, String)>,
    /// The file, as 1.6.2 is to read it.
    pub(super) bytes: Vec<u8>,
}

impl Header {
    /// Reads and checks a whole JSON or UBJSON file.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let file = Node::read(bytes)?;
        let version = version(&file)?;
        let learner = part(&file, "learner")?;
        let sizes = part(learner, "learner_model_param")?;
        let objective = part(part(learner, "objective")?, "name")?;
        let (objective, link) = link(objective)?;
        let features = count(sizes, "num_feature")?;
        if features == 0 || features > FEATURES_MAX {
            return Err(format!("{features} features: between 1 and {FEATURES_MAX} can be scored"));
        }
        let groups = groups(sizes, link)?;
        let base_score_text = borrowed(part(sizes, "base_score")?, "base_score")?;
        let mut base_scores = base_scores(base_score_text, groups)?;
        refuse_categorical(learner)?;
        if matches!(link, Link::Softprob | Link::Softmax) {
            // The library's softmax goes by this one.
            let classes = count(part(part(learner, "objective")?, "softmax_multiclass_param")?, "num_class")?;
            if classes != groups {
                return Err(format!("`num_class` is {groups} and {classes}: the file is damaged"));
            }
        }
        let booster = part(learner, "gradient_booster")?;
        let (kind, trees) = check_booster(booster, features, groups)?;
        if kind == "gblinear" {
            // As the versions with several do: the first counts for every class.
            base_scores.truncate(1);
        }
        // Classes with base scores of their own start from margins instead, and this one is not used.
        let base_score = base_scores.first().copied().unwrap_or(0.5);
        let scalar = format!("{base_score:E}");

        let mut replacements = vec![(base_score_text, scalar.as_str())];
        if let Link::As(known) = link {
            replacements.push((objective, known));
        }
        let mut details = vec![
            ("version".to_owned(), version),
            ("booster".to_owned(), kind.to_owned()),
            ("objective".to_owned(), objective.to_owned()),
            ("base score".to_owned(), base_score_text.to_owned()),
        ];
        details.extend(trees.map(|trees| ("trees".to_owned(), trees.to_string())));
        Ok(Self {
            feature_names: feature_names(learner, features)?,
            outputs: if link == Link::Softmax { 1 } else { groups },
            base_score,
            margins: if base_scores.len() > 1 { base_scores } else { Vec::new() },
            details,
            bytes: replace_texts(bytes, &replacements),
        })
    }
}

fn version(file: &Node<'_>) -> Result<String, String> {
    let numbers = part(file, "version")?.numbers().unwrap_or_default();
    let numbers: Option<Vec<u32>> = numbers.iter().map(|&number| index(number)).collect();
    let Some([major, minor, patch]) = numbers.as_deref() else {
        return Err("`version` is not three numbers: the file is damaged".to_owned());
    };
    if !MINOR_MAX.iter().any(|(known, minor_max)| known == major && minor <= minor_max) {
        return Err(format!(
            "written by XGBoost {major}.{minor}.{patch}, whose files this version was not tested with"
        ));
    }
    Ok(format!("{major}.{minor}.{patch}"))
}

fn link<'a>(name: &'a Node<'_>) -> Result<(&'a str, Link), String> {
    let name = borrowed(name, "objective")?;
    let known = OBJECTIVES.iter().find(|(known, _)| *known == name);
    let (_, link) =
        known.ok_or_else(|| format!("the objective {name:?} is not one that this version scores; {MORE}"))?;
    Ok((name, *link))
}

/// Sums a row: one for each class, else one.
fn groups(sizes: &Node<'_>, link: Link) -> Result<usize, String> {
    let classes = count(sizes, "num_class")?;
    let targets = if sizes.get("num_target").is_some() { count(sizes, "num_target")? } else { 1 };
    if targets > 1 {
        return Err(format!("{targets} targets: more than one is not scored; {MORE}"));
    }
    match link {
        Link::Softprob | Link::Softmax if (2..=OUTPUTS_MAX).contains(&classes) => Ok(classes),
        Link::Own | Link::As(_) if classes <= 1 => Ok(1),
        _ => Err(format!("`num_class` of {classes} does not go with the objective: the file is damaged")),
    }
}

/// One for all sums, or one for each. Since 3.1 it is a list in a text, `[5.0E0]`, which 1.6.2 takes for 0.5.
fn base_scores(text: &str, groups: usize) -> Result<Vec<f32>, String> {
    let list = text.trim().strip_prefix('[').map_or(Some(text), |rest| rest.strip_suffix(']'));
    let scores = list.map(|list| list.split(',').map(|one| one.trim().parse::<f32>()).collect::<Result<Vec<_>, _>>());
    let mut scores = match scores {
        Some(Ok(scores)) if scores.iter().all(|score| score.is_finite()) => scores,
        _ => return Err(format!("`base_score` {text:?} is not a number, nor a list of numbers: the file is damaged")),
    };
    if scores.len() != 1 && scores.len() != groups {
        return Err(format!("`base_score` has {} numbers for {groups} outputs: the file is damaged", scores.len()));
    }
    if scores.iter().all(|score| score.to_bits() == scores[0].to_bits()) {
        scores.truncate(1);
    }
    Ok(scores)
}

fn refuse_categorical(learner: &Node<'_>) -> Result<(), String> {
    let types = learner.get("feature_types").and_then(Node::list).unwrap_or_default();
    if types.iter().any(|kind| kind.text().is_some_and(|kind| kind == "c")) {
        return Err(categorical());
    }
    Ok(())
}

fn categorical() -> String {
    format!("categorical features, which XGBoost 1.6 reads otherwise; encode them as numbers; {MORE}")
}

/// `f0` to `fN` where the file has none.
fn feature_names(learner: &Node<'_>, features: usize) -> Result<Vec<String>, String> {
    let names = learner.get("feature_names").map_or(Some(&[][..]), Node::list);
    let names = names.ok_or("`feature_names` is not a list of names: the file is damaged")?;
    if names.is_empty() {
        return Ok((0..features).map(|place| format!("f{place}")).collect());
    }
    let names: Option<Vec<String>> = names.iter().map(|name| name.text().map(ToString::to_string)).collect();
    let names = names.ok_or("`feature_names` is not a list of names: the file is damaged")?;
    let distinct: HashSet<&str> = names.iter().map(String::as_str).collect();
    if names.len() != features || distinct.len() != features {
        let (named, distinct) = (names.len(), distinct.len());
        return Err(format!(
            "{features} features with {named} names, {distinct} of them different: the file is damaged"
        ));
    }
    Ok(names)
}

/// The booster's kind, and how many trees it has.
fn check_booster<'a>(
    booster: &'a Node<'_>,
    features: usize,
    groups: usize,
) -> Result<(&'a str, Option<usize>), String> {
    let kind = part(booster, "name")?.text().map(Cow::as_ref).unwrap_or_default();
    match kind {
        "gbtree" => Ok((kind, Some(check_trees(part(booster, "model")?, features, groups)?))),
        "dart" => {
            let trees = check_trees(part(part(booster, "gbtree")?, "model")?, features, groups)?;
            let weights = numbers(booster, "weight_drop", trees)?;
            if weights.iter().all(|weight| weight.is_finite()) {
                Ok((kind, Some(trees)))
            } else {
                Err("a weight in `weight_drop` is not finite: the file is damaged".to_owned())
            }
        }
        "gblinear" => numbers(part(booster, "model")?, "weights", (features + 1) * groups).map(|_| (kind, None)),
        other => Err(format!("the booster {other:?} is not one of gbtree, dart and gblinear")),
    }
}

fn check_trees(model: &Node<'_>, features: usize, groups: usize) -> Result<usize, String> {
    let sizes = part(model, "gbtree_model_param")?;
    let trees = part(model, "trees")?.list().ok_or("`trees` is not a list of trees: the file is damaged")?;
    // A round is a tree, or a small forest, for each group.
    let forest = if sizes.get("num_parallel_tree").is_some() { count(sizes, "num_parallel_tree")? } else { 1 };
    let round = forest.max(1).saturating_mul(groups);
    if count(sizes, "num_trees")? != trees.len() || !trees.len().is_multiple_of(round) {
        return Err(format!("{} trees, in rounds of {round}: the file is damaged", trees.len()));
    }
    let infos = numbers(model, "tree_info", trees.len())?;
    if !infos.iter().all(|&group| index(group).is_some_and(|group| (group as usize) < groups)) {
        return Err("a tree in `tree_info` belongs to no output: the file is damaged".to_owned());
    }
    for (place, tree) in trees.iter().enumerate() {
        let checked = check_tree(tree, place, features);
        checked.map_err(|reason| format!("tree {place}: {reason}"))?;
    }
    Ok(trees.len())
}

/// That it is a tree, and one of numeric splits with one number a leaf.
fn check_tree(tree: &Node<'_>, place: usize, features: usize) -> Result<(), String> {
    let sizes = part(tree, "tree_param")?;
    let nodes = count(sizes, "num_nodes")?;
    let leaf_size = if sizes.get("size_leaf_vector").is_some() { count(sizes, "size_leaf_vector")? } else { 0 };
    if leaf_size > 1 || tree.get("leaf_weights").is_some() {
        return Err(format!("leaves of {leaf_size} numbers (`multi_output_tree`), unknown to XGBoost 1.6; {MORE}"));
    }
    if tree.get("split_type").is_some() && numbers(tree, "split_type", nodes)?.iter().any(|&kind| kind != 0.0) {
        return Err(categorical());
    }
    if !matches!(tree.get("id"), Some(Node::Number(id)) if index(*id).is_some_and(|id| id as usize == place)) {
        return Err("its `id` is not its place: the file is damaged".to_owned());
    }
    for key in ["loss_changes", "sum_hessian", "base_weights", "split_conditions", "default_left"] {
        numbers(tree, key, nodes)?;
    }
    let (left, right) = (numbers(tree, "left_children", nodes)?, numbers(tree, "right_children", nodes)?);
    let (parents, splits) = (numbers(tree, "parents", nodes)?, numbers(tree, "split_indices", nodes)?);
    if nodes == 0 || !parents[1..].iter().all(|&parent| index(parent).is_some_and(|at| (at as usize) < nodes)) {
        return Err("a node has no parent: the file is damaged".to_owned());
    }
    // Each node below the root is the child of its one parent, so no way from the root comes back on itself.
    let is_child = |child: f64, of: usize| {
        index(child).is_some_and(|child| child > 0 && index_at(parents, child).is_some_and(|at| at as usize == of))
    };
    for node in 0..nodes {
        let leaf = left[node] == -1.0 && right[node] == -1.0;
        let split = index(splits[node]);
        let sound = if leaf {
            split.is_some()
        } else {
            split.is_some_and(|feature| (feature as usize) < features)
                && is_child(left[node], node)
                && is_child(right[node], node)
        };
        if !sound {
            return Err(format!("node {node} has wrong children or splits on no feature: the file is damaged"));
        }
    }
    Ok(())
}

fn part<'a, 'b>(node: &'a Node<'b>, key: &str) -> Result<&'a Node<'b>, String> {
    node.get(key).ok_or_else(|| format!("`{key}` is missing: the file is damaged, or not one of an XGBoost model"))
}

/// XGBoost writes counts as texts.
fn count(node: &Node<'_>, key: &str) -> Result<usize, String> {
    let count = part(node, key)?.text().and_then(|text| text.parse::<u32>().ok());
    count.map(|count| count as usize).ok_or_else(|| format!("`{key}` is not a count: the file is damaged"))
}

fn numbers<'a>(node: &'a Node<'_>, key: &str, wanted: usize) -> Result<&'a [f64], String> {
    let numbers = part(node, key)?.numbers();
    let right = numbers.filter(|numbers| numbers.len() == wanted);
    right.ok_or_else(|| format!("`{key}` is not a list of {wanted} numbers: the file is damaged"))
}

/// A text that stands in the file as it is, so that it can be replaced there.
fn borrowed<'a>(node: &'a Node<'_>, key: &str) -> Result<&'a str, String> {
    match node {
        Node::Text(Cow::Borrowed(text)) => Ok(text),
        _ => Err(format!("`{key}` is not a plain text: the file is damaged")),
    }
}

/// A number that counts something, as far as the library's own 31 bits go.
fn index(number: f64) -> Option<u32> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and in the range of the type")]
    let whole = (0.0..=f64::from(i32::MAX)).contains(&number).then_some(number as u32);
    whole.filter(|&whole| f64::from(whole) == number)
}

fn index_at(numbers: &[f64], place: u32) -> Option<u32> {
    numbers.get(place as usize).and_then(|&number| index(number))
}

#[cfg(test)]
mod tests;
