//! XGBoost's old binary format in, [`Stated`] out: little-endian C structures one behind the other, as versions before
//! 3.1 wrote them. It has no categorical splits and no vector leaves.

use super::tree::Nodes;
use super::{Booster, Stated, Version};
use crate::forest::read::{FeatureNames, Place, ReadError};
use crate::forest::{LIMITS, Tree};

/// Bytes of a `TreeParam`, of a node and of its statistics.
const TREE_BYTES: usize = 37 * 4;
const NODE_BYTES: usize = 5 * 4;
const STATISTICS_BYTES: usize = 4 * 4;

pub(super) fn read(bytes: &[u8]) -> Result<Stated, ReadError> {
    if bytes.starts_with(b"bs64") {
        return Err(ReadError::whole("base64 models are of XGBoost before 0.7; save it again with 1.0 or newer"));
    }
    let mut file = File { bytes, at: if bytes.starts_with(b"binf") { 4 } else { 0 } };
    let header = Header::read(&mut file)?;
    let objective = file.text()?.to_owned();
    let booster = read_booster(&mut file)?;
    let best_iteration = if header.has_attributes { read_best_iteration(&mut file)? } else { None };
    Ok(Stated {
        version: header.version,
        objective_classes: Some(header.classes.max(1)),
        objective,
        features: header.features,
        classes: header.classes,
        targets: header.targets,
        base_scores: vec![header.base_score],
        boost_from_average: false,
        booster,
        feature_names: FeatureNames::default(),
        best_iteration,
    })
}

/// `LearnerModelParamLegacy`.
struct Header {
    base_score: f32,
    features: u32,
    classes: u32,
    has_attributes: bool,
    version: Version,
    targets: u32,
}

impl Header {
    fn read(file: &mut File<'_>) -> Result<Self, ReadError> {
        let base_score = f32::from_bits(file.word()?);
        let (features, classes) = (file.word()?, file.word()?);
        let (has_attributes, _has_metrics) = (file.word()? != 0, file.word()?);
        let (major, minor, targets) = (file.word()?, file.word()?, file.word()?);
        file.take(26 * 4)?;
        if classes > i32::MAX as u32 || major > 3 || minor > 100 {
            return Err(file.error("no XGBoost model: neither JSON, UBJSON nor the header of the old binary format"));
        }
        let version = Version { major, minor, patch: 0 };
        version.check()?;
        Ok(Self { base_score, features, classes, has_attributes, version, targets: targets.max(1) })
    }
}

fn read_booster(file: &mut File<'_>) -> Result<Booster, ReadError> {
    match file.text()? {
        "gbtree" => {
            read_trees(file).map(|(trees, groups)| Booster::Trees { trees, groups, leaf_size: 1, weights: None })
        }
        "dart" => {
            let (trees, groups) = read_trees(file)?;
            let weights = if trees.is_empty() { Vec::new() } else { file.floats()? };
            Ok(Booster::Trees { trees, groups, leaf_size: 1, weights: Some(weights) })
        }
        "gblinear" => {
            file.take(34 * 4)?;
            Ok(Booster::Linear { weights: file.floats()?, rounds: None })
        }
        other => {
            let shown: String = other.chars().take(40).collect();
            Err(file.error(format!("the booster {shown:?} is not gbtree, dart or gblinear")))
        }
    }
}

fn read_trees(file: &mut File<'_>) -> Result<(Vec<Tree>, Vec<i32>), ReadError> {
    let stated = file.word()?;
    file.take(5 * 4)?;
    // num_output_group lies between, which the header has too.
    let (_groups, leaf_vector) = (file.word()?, file.word()?);
    file.take(32 * 4)?;
    let count = usize::try_from(stated).ok().filter(|&count| count <= LIMITS.trees);
    let fits = |count: &usize| count.saturating_mul(TREE_BYTES + NODE_BYTES + STATISTICS_BYTES) <= file.left();
    let count = count.filter(fits).ok_or_else(|| file.error(format!("{stated} trees do not fit in the file")))?;
    if leaf_vector > 1 {
        return Err(file.error("vector leaves in the old binary format; save it again as JSON"));
    }
    let mut trees = Vec::with_capacity(count);
    let mut nodes = Nodes::default();
    nodes.leaf_size = 1;
    for place in 0..count {
        let start = file.at;
        read_tree(file, &mut nodes)?;
        let tree = nodes.tree().map_err(|reason| {
            let reason = format!("the tree {place} that starts here: {reason}");
            ReadError { place: Place::Byte(start), reason }
        })?;
        trees.push(tree);
    }
    let groups = (0..count).map(|_| file.word().map(u32::cast_signed)).collect::<Result<_, _>>()?;
    Ok((trees, groups))
}

fn read_tree(file: &mut File<'_>, nodes: &mut Nodes) -> Result<(), ReadError> {
    file.word()?;
    let count = file.word()?;
    file.take(3 * 4)?;
    let leaf_vector = file.word()?;
    file.take(31 * 4)?;
    if leaf_vector > 1 {
        return Err(file.error("vector leaves in the old binary format; save it again as JSON"));
    }
    let held = (count as usize).saturating_mul(NODE_BYTES + STATISTICS_BYTES) <= file.left();
    if !held {
        return Err(file.error(format!("a tree of {count} nodes does not fit in the file")));
    }
    nodes.count = count as usize;
    for array in [&mut nodes.left, &mut nodes.right, &mut nodes.features] {
        array.clear();
        array.reserve_exact(count as usize);
    }
    nodes.conditions.clear();
    nodes.conditions.reserve_exact(count as usize);
    nodes.default_left.clear();
    nodes.default_left.reserve_exact(count as usize);
    for _ in 0..count {
        let [_parent, left, right, feature, condition] =
            [file.word()?, file.word()?, file.word()?, file.word()?, file.word()?];
        nodes.left.push(left.cast_signed());
        nodes.right.push(right.cast_signed());
        nodes.features.push((feature & i32::MAX as u32).cast_signed());
        nodes.default_left.push(feature >> 31 == 1);
        nodes.conditions.push(f32::from_bits(condition));
    }
    file.take(count as usize * STATISTICS_BYTES).map(|_| ())
}

fn read_best_iteration(file: &mut File<'_>) -> Result<Option<u32>, ReadError> {
    let count = file.length(16)?;
    let mut best = None;
    for _ in 0..count {
        let (key, value) = (file.bytes_of_text()?, file.bytes_of_text()?);
        if key == b"best_iteration" {
            best = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        }
    }
    Ok(best)
}

struct File<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> File<'a> {
    fn error(&self, reason: impl Into<String>) -> ReadError {
        ReadError { place: Place::Byte(self.at), reason: reason.into() }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ReadError> {
        let bytes = self.bytes;
        let taken = bytes[self.at..].get(..count).ok_or_else(|| {
            self.error("the file is cut short, or no XGBoost model (neither JSON, UBJSON nor the old binary format)")
        })?;
        self.at += count;
        Ok(taken)
    }

    fn word(&mut self) -> Result<u32, ReadError> {
        let taken = self.take(4)?;
        taken.try_into().map(u32::from_le_bytes).map_err(|_| self.error("the file is cut short"))
    }

    /// A count of things of `size` bytes or more, of which the file must hold so many.
    fn length(&mut self, size: usize) -> Result<usize, ReadError> {
        let (low, high) = (self.word()?, self.word()?);
        let stated = u64::from(high) << 32 | u64::from(low);
        let held = usize::try_from(stated).ok().filter(|&count| count <= self.left() / size);
        held.ok_or_else(|| self.error(format!("a length of {stated}, with {} bytes left", self.left())))
    }

    fn bytes_of_text(&mut self) -> Result<&'a [u8], ReadError> {
        let length = self.length(1)?;
        self.take(length)
    }

    fn text(&mut self) -> Result<&'a str, ReadError> {
        let text = self.bytes_of_text()?;
        std::str::from_utf8(text).map_err(|_| self.error("text that is not UTF-8"))
    }

    fn floats(&mut self) -> Result<Vec<f32>, ReadError> {
        let count = self.length(4)?;
        (0..count).map(|_| self.word().map(f32::from_bits)).collect()
    }
}
