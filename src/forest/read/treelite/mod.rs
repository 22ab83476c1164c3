//! Treelite's checkpoints in, forests out: version 4, and 3.9 as Treelite 4 reads it. They score as Treelite's own
//! `gtil.predict` does: rows, sums and results in the model's float type, the base scores added last.
//!
//! What `gtil` does in a way that has no meaning (a link for one class of several, an average over no trees) is refused.

use std::num::NonZeroU32;

use super::{FeatureNames, ModelFile, ReadError, checked, owned};
use crate::forest::{Body, Float, ForestParts, LIMITS, Link, Tree};

mod bytes;
mod tree;

use bytes::{File, View, error_at};
use tree::{V3_BYTES_MIN, V4_BYTES_MIN, Walk};

/// How many times the leaf values of a file may grow where a tree adds to some of the outputs only.
const GROWTH_MAX: usize = 3;

/// By number.
const TASKS: [&str; 5] = ["binary classifier", "regressor", "multi-class classifier", "ranking", "isolation forest"];

pub(super) fn read(bytes: &[u8]) -> Result<ModelFile, ReadError> {
    let mut file = File::new(bytes);
    let header = Header::read(&mut file)?;
    let trees = header.read_trees(&mut file)?;
    if file.left() > 0 {
        return Err(file.error("more bytes than the model has"));
    }
    header.model(trees)
}

/// Whether a file starts as a checkpoint does: its version, then its two number types.
pub(super) fn is_checkpoint(head: &[u8]) -> bool {
    let small = |bytes: &[u8]| bytes[2..] == [0, 0];
    head.len() >= 14
        && matches!(head[0], 1..=9)
        && head[1..4] == [0; 3]
        && small(&head[4..8])
        && small(&head[8..12])
        && head[12..14].iter().all(|number| (1..=3).contains(number))
}

/// The type of thresholds, leaves, rows and results.
#[derive(Clone, Copy, PartialEq)]
enum Numbers {
    F32,
    F64,
}

impl Numbers {
    fn read(file: &mut File<'_>) -> Result<Self, ReadError> {
        let start = file.at();
        match (file.u8()?, file.u8()?) {
            (2, 2) => Ok(Self::F32),
            (3, 3) => Ok(Self::F64),
            (2 | 3, 1) => Err(error_at(start, "integer leaves, which Treelite 4 does not read either; train it anew")),
            (thresholds, leaves) => {
                Err(error_at(start, format!("thresholds and leaves of types {thresholds} and {leaves}, not 2 or 3")))
            }
        }
    }

    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    fn at(self, view: View<'_>, index: usize) -> f64 {
        match self {
            Self::F32 => f64::from(view.f32(index)),
            Self::F64 => view.f64(index),
        }
    }
}

/// What stands before the trees.
struct Header<'a> {
    version: [i32; 3],
    numbers: Numbers,
    trees: usize,
    features: u32,
    task: &'static str,
    average: bool,
    shape: Shape,
    /// Rows and columns of a leaf.
    leaf_shape: [i32; 2],
    /// Each tree's, or -1 for all; none for version 3.
    target_ids: Option<View<'a>>,
    class_ids: ClassIds<'a>,
    postprocessor: &'a str,
    sigmoid_alpha: f32,
    ratio_c: f32,
    base: Vec<f64>,
}

/// A row's outputs: for each target as many as the one with the most classes has.
struct Shape {
    /// Classes of each target.
    classes: Vec<u32>,
    classes_max: u32,
}

/// Which class a tree adds to.
enum ClassIds<'a> {
    Stated(View<'a>),
    /// Version 3: one tree a class, again and again.
    InTurn,
    /// Version 3: the leaf has one value a class.
    All,
}

impl Shape {
    fn new(classes: Vec<u32>) -> Self {
        let classes_max = classes.iter().copied().max().unwrap_or(0);
        Self { classes, classes_max }
    }

    fn outputs(&self) -> usize {
        self.classes.len() * self.classes_max as usize
    }

    fn is_ragged(&self) -> bool {
        self.classes.iter().any(|&classes| classes != self.classes_max)
    }

    /// Whether the target has the output's class.
    fn holds(&self, output: usize) -> bool {
        let classes_max = self.classes_max as usize;
        output % classes_max < self.classes[output / classes_max] as usize
    }
}

/// What a tree's leaf adds to.
struct Leaf {
    /// Values that the file has for a leaf.
    stored: usize,
    /// Values that it takes here: 1, or as many as outputs.
    width: usize,
    /// The output of the first.
    first: u32,
    /// The output of a stored value: first + place * step, or the shape's own order.
    step: usize,
    /// Outputs that a target does not have.
    absent: Vec<bool>,
}

impl Leaf {
    fn is_vector(&self) -> bool {
        self.stored > 1 || self.width > 1
    }

    fn output(&self, place: usize) -> Option<usize> {
        if self.width == 1 {
            return Some(0);
        }
        let output = self.first as usize + place * self.step;
        (!self.absent.get(output).copied().unwrap_or(false)).then_some(output)
    }
}

impl<'a> Header<'a> {
    fn read(file: &mut File<'a>) -> Result<Self, ReadError> {
        let version = [file.i32()?, file.i32()?, file.i32()?];
        let header = match version {
            [4, ..] => Self::read_v4(file, version),
            [3, 9, _] => Self::read_v3(file, version),
            [major, minor, patch] => Err(error_at(
                0,
                format!("a checkpoint of Treelite {major}.{minor}.{patch}; 3.9 and 4.x are known: save it with 4.x"),
            )),
        }?;
        if header.trees == 0 {
            return Err(ReadError::whole("the model has no trees"));
        }
        Ok(header)
    }

    fn read_v4(file: &mut File<'a>, version: [i32; 3]) -> Result<Self, ReadError> {
        let numbers = Numbers::read(file)?;
        let trees = read_tree_count(file, V4_BYTES_MIN)?;
        let features = read_features(file)?;
        let start = file.at();
        let task = usize::from(file.u8()?);
        let task = TASKS.get(task).ok_or_else(|| error_at(start, format!("the task {task} is none of 0 to 4")))?;
        let average = file.u8()? != 0;
        let start = file.at();
        let targets = file.i32()?;
        let targets = usize::try_from(targets).ok().filter(|&targets| targets > 0);
        let targets = targets.ok_or_else(|| error_at(start, "a model of no targets"))?;
        let classes = file.array_of("num_class", 4, targets)?;
        let classes = classes.i32s().map(|count| u32::try_from(count).ok().filter(|&count| count > 0));
        let classes: Option<Vec<u32>> = classes.collect();
        let classes = classes.ok_or_else(|| error_at(start, "a target of no classes"))?;
        let shape = Shape::new(classes);
        let leaf_shape = file.array_of("leaf_vector_shape", 4, 2)?;
        let leaf_shape = [leaf_shape.i32(0), leaf_shape.i32(1)];
        let target_ids = Some(file.array_of("target_id", 4, trees)?);
        let class_ids = ClassIds::Stated(file.array_of("class_id", 4, trees)?);
        let postprocessor = file.text()?;
        let (sigmoid_alpha, ratio_c) = (file.f32()?, file.f32()?);
        let base = file.array_of("base_scores", 8, shape.outputs())?.f64s().collect();
        let _attributes = file.text()?;
        file.skip_optional("model")?;
        Ok(Self {
            version,
            numbers,
            trees,
            features,
            task,
            average,
            shape,
            leaf_shape,
            target_ids,
            class_ids,
            postprocessor,
            sigmoid_alpha,
            ratio_c,
            base,
        })
    }

    /// Version 3 has one target, and one bias for all classes.
    fn read_v3(file: &mut File<'a>, version: [i32; 3]) -> Result<Self, ReadError> {
        let numbers = Numbers::read(file)?;
        let trees = read_tree_count(file, V3_BYTES_MIN)?;
        let features = read_features(file)?;
        let start = file.at();
        let task = file.u8()?;
        let average = file.u8()? != 0;
        // A C structure: two bytes, two of padding, two words.
        let parameters = file.take(12)?;
        let words = View::of(&parameters[4..], 4);
        let (classes, leaf_size) = (words.u32(0), words.u32(1));
        let (task, class_ids, leaf_shape) = match (task, parameters[1] != 0) {
            _ if parameters[0] != 0 => return Err(error_at(start, "integer outputs, which Treelite 4 does not read")),
            (0, false) => ("regressor or binary classifier", ClassIds::Stated(View::of(&[], 4)), [1, 1]),
            (1, true) => ("multi-class classifier", ClassIds::InTurn, [1, 1]),
            (2, false) => ("multi-class classifier", ClassIds::All, [1, classes.cast_signed()]),
            (task, _) => {
                return Err(error_at(start, format!("the task {task} of version 3, which Treelite 4 does not read")));
            }
        };
        let wanted = leaf_shape[0].checked_mul(leaf_shape[1]);
        let few = matches!(class_ids, ClassIds::InTurn) && classes as usize > trees;
        let one = matches!(class_ids, ClassIds::Stated(_)) && classes > 1;
        if classes == 0 || few || one || wanted != i32::try_from(leaf_size).ok() {
            let reason = format!("{classes} classes, leaves of {leaf_size} and {trees} trees do not fit each other");
            return Err(error_at(start, reason));
        }
        let postprocessor = file.take(256)?;
        let length = postprocessor.iter().position(|&byte| byte == 0).unwrap_or(postprocessor.len());
        let postprocessor = std::str::from_utf8(&postprocessor[..length]);
        let postprocessor = match postprocessor.map_err(|_| error_at(start, "a postprocessor that is not UTF-8"))? {
            // As Treelite 4 reads it.
            "max_index" => "softmax",
            other => other,
        };
        let (sigmoid_alpha, ratio_c, bias) = (file.f32()?, file.f32()?, file.f32()?);
        if file.i32()? != 0 {
            return Err(file.error("optional fields of a model, which version 3 does not have"));
        }
        let shape = Shape::new(vec![classes]);
        // Trees and leaf vectors must bear it out before room is made for it.
        let base = vec![f64::from(bias)];
        let target_ids = None;
        Ok(Self {
            version,
            numbers,
            trees,
            features,
            task,
            average,
            shape,
            leaf_shape,
            target_ids,
            class_ids,
            postprocessor,
            sigmoid_alpha,
            ratio_c,
            base,
        })
    }

    fn read_trees(&self, file: &mut File<'a>) -> Result<Vec<Tree>, ReadError> {
        let outputs = self.shape.outputs();
        if outputs > LIMITS.outputs as usize {
            return Err(ReadError::whole(format!("{outputs} outputs, must be at most {}", LIMITS.outputs)));
        }
        let absent = if self.shape.is_ragged() {
            (0..outputs).map(|output| !self.shape.holds(output)).collect()
        } else {
            Vec::new()
        };
        let mut leaf = Leaf { stored: 1, width: 1, first: 0, step: 1, absent };
        let mut trees = Vec::with_capacity(self.trees);
        let mut walk = Walk::default();
        for place in 0..self.trees {
            self.aim(place, &mut leaf).map_err(|reason| file.error(format!("tree {place}: {reason}")))?;
            let nodes = match self.version[0] {
                3 => tree::read_v3(file, self.numbers)?,
                _ => tree::read_v4(file, self.numbers)?,
            };
            trees.push(nodes.tree(&leaf, &mut walk)?);
        }
        Ok(trees)
    }

    /// The tree's target and class, where it has one of each.
    fn ids(&self, place: usize) -> Result<(Option<u32>, Option<u32>), String> {
        let id = |id: i32, what: &str| match id {
            -1 => Ok(None),
            id => u32::try_from(id).map(Some).map_err(|_| format!("the {what} {id}")),
        };
        let target = self.target_ids.map_or(Ok(Some(0)), |ids| id(ids.i32(place), "target"))?;
        #[expect(clippy::cast_possible_truncation, reason = "below the classes, a u32")]
        let class = match &self.class_ids {
            ClassIds::Stated(ids) if ids.count == 0 => Some(0),
            ClassIds::Stated(ids) => id(ids.i32(place), "class")?,
            ClassIds::InTurn => Some((place % self.shape.classes_max as usize) as u32),
            ClassIds::All => None,
        };
        Ok((target, class))
    }

    /// Sets what the leaves of a tree add to.
    fn aim(&self, place: usize, leaf: &mut Leaf) -> Result<(), String> {
        let (targets, classes) = (self.shape.classes.len(), self.shape.classes_max);
        let (target, class) = self.ids(place)?;
        let known = target.is_none_or(|target| (target as usize) < targets)
            && class.is_none_or(|class| match target {
                Some(target) => class < self.shape.classes[target as usize],
                None => self.shape.classes.iter().all(|&classes| class < classes),
            });
        if !known {
            return Err(format!("target {target:?} and class {class:?}, of {targets} targets and {classes} classes"));
        }
        let rows = if target.is_none() { targets } else { 1 };
        let columns = if class.is_none() { classes as usize } else { 1 };
        let held = self.leaf_shape.map(|size| usize::try_from(size).unwrap_or(0));
        if held != [rows, columns] {
            return Err(format!("its leaves must be {rows} x {columns}, the model's are {} x {}", held[0], held[1]));
        }
        leaf.stored = rows * columns;
        leaf.first = target.unwrap_or(0) * classes + class.unwrap_or(0);
        leaf.step = if class.is_some() { classes as usize } else { 1 };
        let outputs = self.shape.outputs();
        leaf.width = if leaf.stored == 1 { 1 } else { outputs };
        if leaf.width > GROWTH_MAX * leaf.stored {
            return Err(format!("leaves of {} values for {outputs} outputs; scored as several models", leaf.stored));
        }
        Ok(())
    }

    fn model(self, mut trees: Vec<Tree>) -> Result<ModelFile, ReadError> {
        let outputs = self.shape.outputs();
        let divisors = if self.average { self.divisors()? } else { Vec::new() };
        let link = self.link()?;
        let details = self.details();
        let mut base = self.base;
        if self.version[0] == 3 {
            base = base.repeat(outputs);
        }
        base.iter_mut().enumerate().filter(|(output, _)| !self.shape.holds(*output)).for_each(|(_, base)| *base = 0.0);
        // Vector leaves name all outputs.
        for tree in &mut trees {
            if matches!(tree.leaves, crate::forest::Leaves::Vector(_)) {
                tree.output = 0;
            }
        }
        let float = match self.numbers {
            Numbers::F32 => Float::F32,
            Numbers::F64 => Float::F64,
        };
        #[expect(clippy::cast_possible_truncation, reason = "at most LIMITS.outputs")]
        let parts = ForestParts {
            features: self.features,
            outputs: outputs as u32,
            row_type: float,
            sum_type: float,
            flush_tiny: false,
            body: Body::Trees(trees),
            base,
            base_last: true,
            divisors,
            link,
            after: Vec::new(),
        };
        let (feature_names, best_iteration) = (FeatureNames::default(), None);
        Ok(ModelFile {
            forest: checked(parts)?,
            feature_names,
            best_iteration,
            takes_f64: false,
            details: owned(details),
        })
    }

    /// How many trees add to each output. One that its target does not have counts 1.
    fn divisors(&self) -> Result<Vec<NonZeroU32>, ReadError> {
        let (targets, classes) = (self.shape.classes.len(), self.shape.classes_max as usize);
        let mut counts = vec![0_u32; self.shape.outputs()];
        for place in 0..self.trees {
            let (target, class) = self.ids(place).map_err(ReadError::whole)?;
            let range = |id: Option<u32>, all: usize| id.map_or(0..all, |id| id as usize..id as usize + 1);
            for target in range(target, targets) {
                for class in range(class, classes) {
                    counts[target * classes + class] += 1;
                }
            }
        }
        let divisor = |(output, &count): (usize, &u32)| match NonZeroU32::new(count) {
            _ if !self.shape.holds(output) => Ok(NonZeroU32::MIN),
            Some(count) => Ok(count),
            None => Err(ReadError::whole(format!("output {output} is the average of no trees"))),
        };
        counts.iter().enumerate().map(divisor).collect()
    }

    fn link(&self) -> Result<Link, ReadError> {
        let slope = f64::from(self.sigmoid_alpha);
        let (link, classes_max) = match self.postprocessor {
            "identity" | "identity_multiclass" => return Ok(Link::Identity),
            "sigmoid" => (Link::Logistic { slope }, 1),
            "exponential" => (Link::Exp, 1),
            "exponential_standard_ratio" => (Link::Exp2Ratio { ratio: f64::from(self.ratio_c) }, 1),
            "logarithm_one_plus_exp" => (Link::Log1pExp, 1),
            "hinge" => (Link::Hinge, 1),
            "signed_square" => (Link::SignedSquare, 1),
            "softmax" => (Link::SoftmaxSingle { group: self.shape.classes_max }, u32::MAX),
            "multiclass_ova" => (Link::Logistic { slope }, u32::MAX),
            other => {
                let shown: String = other.chars().take(40).collect();
                return Err(ReadError::whole(format!("the postprocessor {shown:?} is none of Treelite's")));
            }
        };
        if self.shape.classes_max > classes_max {
            // `gtil` would apply it to the first class of each target alone.
            let reason = format!("the postprocessor {:?} is one of a single class", self.postprocessor);
            return Err(ReadError::whole(format!("{reason}, the model has {}", self.shape.classes_max)));
        }
        if self.shape.is_ragged() {
            let reason = format!("the postprocessor {:?} for targets of different classes", self.postprocessor);
            return Err(ReadError::whole(format!("{reason} is not supported")));
        }
        Ok(link)
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let [major, minor, patch] = self.version;
        let numbers = if self.numbers == Numbers::F32 { "f32" } else { "f64" };
        let mut details = vec![
            ("version", format!("{major}.{minor}.{patch}")),
            ("task", self.task.to_owned()),
            ("numbers", numbers.to_owned()),
            ("postprocessor", self.postprocessor.to_owned()),
        ];
        if self.shape.classes.len() > 1 {
            details.push(("targets", self.shape.classes.len().to_string()));
        }
        if self.shape.classes_max > 1 {
            details.push(("classes", self.shape.classes_max.to_string()));
        }
        if self.average {
            details.push(("trees are", "averaged".to_owned()));
        }
        details
    }
}

fn read_tree_count(file: &mut File<'_>, bytes_min: usize) -> Result<usize, ReadError> {
    let start = file.at();
    let stated = file.u64()?;
    let fits = |count: &usize| *count <= LIMITS.trees && count.saturating_mul(bytes_min) <= file.left();
    let count = usize::try_from(stated).ok().filter(fits);
    count.ok_or_else(|| error_at(start, format!("{stated} trees do not fit in the file")))
}

fn read_features(file: &mut File<'_>) -> Result<u32, ReadError> {
    let start = file.at();
    let stated = file.i32()?;
    let features = u32::try_from(stated).ok().filter(|&features| (1..=LIMITS.features).contains(&features));
    features.ok_or_else(|| error_at(start, format!("`num_feature` is {stated}, must be 1 to {}", LIMITS.features)))
}
