//! `LightGBM`'s text in, a forest out: a header of `key=value` lines, then trees, each a block of such lines that ends
//! with an empty one, then `end of trees`. What comes after (importances, parameters, `pandas_categorical`) does not
//! change a score and is not read, as in the library's own C functions: a model that was trained on a pandas frame is
//! fed the numbers of its categories.

use super::{FeatureNames, ModelFile, Place, ReadError, checked, owned};
use crate::forest::{Body, Float, ForestParts, LIMITS};

mod lines;
mod objective;
mod tree;

use lines::{Fields, Lines};

pub(super) fn read(bytes: &[u8]) -> Result<ModelFile, ReadError> {
    let mut lines = Lines::new(bytes);
    if lines.next_line() != Some(b"tree") {
        return Err(lines.error("the first line is not `tree`: no LightGBM model"));
    }
    let mut header = Header::read(&mut lines)?;
    header.check_tree_sizes(bytes, &lines)?;
    let trees = tree::read_all(&mut lines, header.features)?;
    let outputs = header.outputs as usize;
    if trees.is_empty() || !trees.len().is_multiple_of(outputs) {
        let count = trees.len();
        return Err(lines.error(format!("{count} trees for {outputs} outputs: no whole number of iterations")));
    }
    let iterations = u32::try_from(trees.len() / outputs).ok().and_then(std::num::NonZeroU32::new);
    header.details.push(("trees", trees.len().to_string()));
    // Trees of an iteration follow each other, one an output.
    let trees = trees.into_iter().enumerate().map(|(place, mut tree)| {
        #[allow(clippy::cast_possible_truncation, reason = "below the outputs, a u32")]
        let output = (place % outputs) as u32;
        tree.output = output;
        tree
    });
    let parts = ForestParts {
        features: header.features,
        outputs: header.outputs,
        row_type: Float::F64,
        sum_type: Float::F64,
        flush_tiny: true,
        body: Body::Trees(trees.collect()),
        base: vec![0.0; outputs],
        base_last: false,
        divisors: iterations.filter(|_| header.average).map_or(Vec::new(), |count| vec![count; outputs]),
        link: header.link,
        after: Vec::new(),
    };
    let forest = checked(parts)?;
    Ok(ModelFile {
        forest,
        feature_names: header.feature_names,
        best_iteration: None,
        takes_f64: false,
        details: owned(header.details),
    })
}

struct Header<'a> {
    features: u32,
    /// `num_tree_per_iteration`: trees of an iteration, each of which is a margin.
    outputs: u32,
    average: bool,
    link: crate::forest::Link,
    feature_names: FeatureNames,
    tree_sizes: Option<&'a [u8]>,
    details: Vec<(&'static str, String)>,
}

/// The keys that matter here.
const KEYS: [&str; 9] = [
    "version",
    "num_class",
    "num_tree_per_iteration",
    "label_index",
    "max_feature_idx",
    "objective",
    "average_output",
    "feature_names",
    "tree_sizes",
];
const VERSIONS: [&str; 3] = ["v2", "v3", "v4"];

impl<'a> Header<'a> {
    /// Reads up to the first tree.
    fn read(lines: &mut Lines<'a>) -> Result<Self, ReadError> {
        let mut fields = Fields::new(&KEYS);
        while let Some(line) = lines.peek_line() {
            if line.starts_with(b"Tree=") || line == b"end of trees" {
                break;
            }
            lines.next_line();
            if !line.is_empty() {
                fields.add(line, lines)?;
            }
        }
        let text = |key| fields.text(key, lines);
        let number = |key| fields.number::<u32>(key, lines);
        let version = text("version")?;
        if !VERSIONS.contains(&version) {
            let shown = lines::clip(version);
            return Err(lines.error(format!("the version {shown:?} is not v2, v3 or v4")));
        }
        let classes = number("num_class")?;
        let outputs = if fields.has("num_tree_per_iteration") { number("num_tree_per_iteration")? } else { classes };
        let features = number("max_feature_idx")?.saturating_add(1);
        for (what, value, most) in [("outputs", outputs, LIMITS.outputs), ("features", features, LIMITS.features)] {
            if value == 0 || value > most {
                return Err(lines.error(format!("{value} {what}, must be 1 to {most}")));
            }
        }
        let mut feature_names = FeatureNames::default();
        text("feature_names")?
            .split(' ')
            .filter(|name| !name.is_empty())
            .try_for_each(|name| feature_names.push(name))?;
        feature_names.check(features)?;
        let objective = if fields.has("objective") { Some(text("objective")?) } else { None };
        let link = objective::link(objective, outputs).map_err(|reason| lines.error(reason))?;
        let mut details = vec![("format", version.to_owned()), ("classes", classes.to_string())];
        details.extend(objective.map(|objective| ("objective", lines::clip(objective))));
        Ok(Self {
            features,
            outputs,
            average: fields.has("average_output"),
            link,
            feature_names,
            tree_sizes: fields.bytes("tree_sizes"),
            details,
        })
    }

    /// The library finds its trees by these, so they must lead to the trees that follow.
    fn check_tree_sizes(&self, bytes: &[u8], lines: &Lines<'_>) -> Result<(), ReadError> {
        let mut place = lines.at();
        for size in self.tree_sizes.into_iter().flat_map(lines::words) {
            let size = std::str::from_utf8(size).ok().and_then(|size| size.parse::<usize>().ok());
            let starts = bytes.get(place..).is_some_and(|rest| rest.starts_with(b"Tree="));
            let (true, Some(end)) = (starts, size.and_then(|size| place.checked_add(size))) else {
                let reason = "`tree_sizes` does not lead to this tree: the file is cut short or damaged, or its line ends were changed; \
                     save it again";
                return Err(ReadError { place: Place::Byte(place), reason: reason.to_owned() });
            };
            place = end;
        }
        let rest = bytes.get(place..).unwrap_or_default().trim_ascii_start();
        if self.tree_sizes.is_some() && !rest.starts_with(b"end of trees") {
            let reason = "`tree_sizes` does not cover the trees: the file is cut short or damaged; save it again";
            return Err(ReadError { place: Place::Byte(place), reason: reason.to_owned() });
        }
        Ok(())
    }
}
