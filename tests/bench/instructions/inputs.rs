//! The stages' inputs, the same in every run: rows of the HIGGS sample, requests made from them, the shipped model.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use forebay::clock;
use forebay::decode::{Decoded, Received, RouteDecoder};
use forebay::model::{
    self, Catalog, FeatureKinds, LoadOptions, Model, ModelBytes, ModelEntry, ModelSchema, ModelType, RowType,
};
use forebay::record::{Chunk, Message, ModelId, PartitionId, Position, Priority};

/// Significant digits of a number in a request: as many as tell all f32 apart.
const DIGITS: i32 = 9;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn model_path() -> PathBuf {
    root().join("tests/data/higgs/higgs.model.txt")
}

/// The LightGBM model, 100 trees of 31 leaves, for the compiled forest.
pub(crate) fn higgs_model() -> anyhow::Result<(Box<dyn Model>, String)> {
    let file = ModelBytes::read(&model_path(), None)?;
    let model = model::load(&file, &LoadOptions::default())?;
    Ok((model, file.sha256))
}

/// Rows of numbers as text, `width` each, a row as a request has it: comma-separated.
pub(crate) struct RowTexts(Vec<String>);

impl RowTexts {
    /// The sample's 500 test rows, each repeated up to `width`. The sample is rounded to three places; what the rounding
    /// took is put back at random, so that a number has nine significant digits.
    pub(crate) fn load(width: usize) -> anyhow::Result<Self> {
        let path = root().join("tests/data/higgs/higgs.test.tsv");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut random = SplitMix(1);
        let row = |line: &str| -> anyhow::Result<String> {
            let values: Vec<f64> = line.split('\t').skip(1).map(str::parse).collect::<Result<_, _>>()?;
            let row = values.iter().cycle().take(width);
            Ok(row.map(|value| digits(value + (random.unit() - 0.5) * 1e-3)).collect::<Vec<_>>().join(","))
        };
        Ok(Self(text.lines().map(row).collect::<Result<_, _>>()?))
    }

    /// The first `count` rows as numbers, row-major.
    pub(crate) fn values(&self, count: usize) -> anyhow::Result<Vec<f64>> {
        let numbers = self.0[..count].iter().flat_map(|row| row.split(','));
        Ok(numbers.map(str::parse).collect::<Result<_, _>>()?)
    }

    /// Bodies of requests, as in the reference stream of the benchmark.
    pub(crate) fn requests(&self, count: usize) -> Vec<String> {
        let rows = self.0.iter().cycle().take(count).enumerate();
        rows.map(|(record, row)| format!("{{\"id\": \"r{record}\", \"features\": [{row}]}}")).collect()
    }
}

/// A number with nine significant digits and no exponent.
fn digits(value: f64) -> String {
    #[allow(clippy::cast_possible_truncation, reason = "an exponent of ten is small")]
    let exponent = value.abs().log10().floor() as i32;
    let places = usize::try_from(DIGITS - 1 - exponent).unwrap_or(0);
    format!("{value:.places$}")
}

/// Steele, Lea and Flood's `SplitMix64`.
struct SplitMix(u64);

impl SplitMix {
    /// From 0 to 1, without 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A route's decoder and the model that it decodes for.
pub(crate) struct Front {
    decoder: RouteDecoder,
    catalog: Arc<Catalog>,
    received: Received,
}

impl Front {
    /// For the model in slot 0 of a catalog.
    pub(crate) fn new(catalog: Arc<Catalog>) -> Self {
        let decoder = RouteDecoder::new(ModelId(0), "scores");
        let received = Received { arrived: clock::now(), unix_ms: clock::unix_ms() };
        Self { decoder, catalog, received }
    }

    /// For a model of that many features, which need not exist.
    pub(crate) fn of_width(width: usize) -> Self {
        let schema = ModelSchema {
            model_type: ModelType::LightGbm,
            feature_names: (0..width).map(|place| format!("f{place}")).collect(),
            kinds: FeatureKinds::default(),
            row_type: RowType::F64,
            outputs: 1,
            details: Vec::new(),
        };
        let mut catalog = Catalog::default();
        catalog.put(ModelEntry::new(
            ModelId(0),
            "reference",
            &schema,
            vec![forebay::model::LevelTimeout::default(); 3],
            priority(),
        ));
        Self::new(Arc::new(catalog))
    }

    /// Decodes bodies into one chunk, as one poll of the source does. Offsets count up from `offset`.
    pub(crate) fn decode(&self, bodies: &[String], offset: i64) -> Chunk {
        let mut chunk = Chunk::default();
        for (body, offset) in bodies.iter().zip(offset..) {
            let message = Message {
                topic: "features",
                partition_number: 0,
                position: Position { partition: PartitionId(0), offset },
                timestamp_ms: None,
                is_append_time: false,
                key: None,
                payload: Some(body.as_bytes()),
                headers: &[],
            };
            let decoded = self.decoder.decode(&message, self.received, &self.catalog, &mut chunk);
            debug_assert_eq!(decoded, Decoded::Request);
        }
        chunk
    }
}

/// The level of every request.
pub(crate) fn priority() -> Priority {
    Priority::new(2).expect("2 is not 0")
}

/// That every request of a chunk can be scored: a stage that rejects would look cheap.
pub(crate) fn ensure_readable(chunk: &Chunk, count: usize) -> anyhow::Result<()> {
    let rejected = chunk.requests().iter().find_map(|request| request.work.as_ref().err());
    ensure!(rejected.is_none(), "a request was rejected: {rejected:?}");
    ensure!(chunk.requests().len() == count, "{} of {count} requests", chunk.requests().len());
    Ok(())
}
