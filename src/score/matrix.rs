//! A batch's rows in one pooled buffer, in the float type of the model's own library; and their texts, where they are.

use std::ops::Range;
use std::sync::Arc;

use super::prepared::{FeatureCache, Lookups};
use crate::batch::{MemoryPool, PooledBuffer};
use crate::metrics::MemoryPoolSnapshot;
use crate::model::validate::narrow;
use crate::model::{LoadedModel, ModelSchema, Preprocessor, RowType, Rows, Values};
use crate::placement::Plan;
use crate::placement::memory::MemoryPolicy;
use crate::record::{Reject, Texts};

/// Batch buffers that a node keeps for reuse, of each float type: a score thread needs one at a time, of a few MiB at the
/// most.
const IDLE_BYTES_MAX: usize = 64 << 20;

/// The batch buffers of each NUMA node that threads are held to; of one part where they are held to none.
#[derive(Debug)]
pub(crate) struct Pools {
    nodes: Vec<NodePools>,
    /// Each score thread's part.
    of_thread: Vec<usize>,
}

/// A node's batch buffers, of both float types.
#[derive(Debug)]
pub(super) struct NodePools {
    node: Option<u32>,
    /// All nodes share one.
    features: Option<Arc<FeatureCache>>,
    f32: MemoryPool<f32>,
    f64: MemoryPool<f64>,
}

impl Pools {
    /// `features` keeps preprocessed rows.
    pub(crate) fn new(plan: &Plan, huge_pages: bool, features: Option<&Arc<FeatureCache>>) -> Self {
        let nodes = plan.nodes.iter().map(|node| Some(node.os_index));
        let nodes = if plan.nodes.is_empty() { vec![None] } else { nodes.collect() };
        let pools = nodes.into_iter().map(|node| NodePools::new(MemoryPolicy { node, huge_pages }, features.cloned()));
        Self {
            nodes: pools.collect(),
            of_thread: plan.places.iter().map(|place| place.node.unwrap_or_default()).collect(),
        }
    }

    /// The buffers near a score thread.
    pub(super) fn of(&self, thread: usize) -> &NodePools {
        &self.nodes[self.of_thread[thread]]
    }

    /// Score threads that have buffers.
    pub(super) fn threads(&self) -> usize {
        self.of_thread.len()
    }

    pub(crate) fn snapshot(&self) -> MemoryPoolSnapshot {
        let stats = self.nodes.iter().map(|pools| {
            let both = [pools.f32.get_stats(), pools.f64.get_stats()];
            (pools.node, both.into_iter().sum())
        });
        MemoryPoolSnapshot::new(&stats.collect::<Vec<_>>())
    }
}

impl NodePools {
    fn new(policy: MemoryPolicy, features: Option<Arc<FeatureCache>>) -> Self {
        Self {
            node: policy.node,
            features,
            f32: MemoryPool::with_source(IDLE_BYTES_MAX, policy.source()),
            f64: MemoryPool::with_source(IDLE_BYTES_MAX, policy.source()),
        }
    }
}

/// The rows of one batch. Places that nothing was put in read as 0, or as a missing text.
pub(super) struct Matrix<'b> {
    values: Buffer,
    width: usize,
    count: usize,
    texts: Vec<Option<&'b str>>,
    /// Text columns.
    text_width: usize,
    preparing: Option<Preparing<'b>>,
}

/// What a batch's rows take and how they become it.
#[derive(Clone, Copy)]
pub(super) struct Form<'m> {
    schema: &'m ModelSchema,
    preprocessor: Option<&'m Arc<Preprocessor>>,
}

impl<'m> Form<'m> {
    /// A model's.
    pub(super) fn of(model: &'m LoadedModel) -> Self {
        Self { schema: model.schema(), preprocessor: model.preprocessor() }
    }
}

/// A request's rows on their way through the preprocessing.
struct Preparing<'b> {
    preprocessor: Arc<Preprocessor>,
    cells: Vec<Option<&'b str>>,
    values: Vec<f64>,
    texts: Vec<Option<&'b str>>,
    lookups: Option<Lookups>,
}

impl<'b> Preparing<'b> {
    fn new(preprocessor: &Arc<Preprocessor>, features: Option<&Arc<FeatureCache>>) -> Self {
        // Rounding alone is quicker than a lookup.
        let features = features.filter(|_| preprocessor.has_steps());
        Self {
            preprocessor: Arc::clone(preprocessor),
            cells: Vec::new(),
            values: Vec::new(),
            texts: Vec::new(),
            lookups: features.map(|features| Lookups::new(features, preprocessor)),
        }
    }

    /// The request's rows as the model takes them, in `values` and `texts`.
    fn prepare(&mut self, features: &[f64], texts: Texts<'b>) -> Result<(), Reject> {
        self.cells.clear();
        self.cells.extend(texts.iter());
        self.values.clear();
        self.values.resize(features.len(), 0.0);
        let key = match self.lookups.as_mut().map(|lookups| lookups.find(features, texts, &mut self.values)) {
            Some(Ok(())) => {
                self.preprocessor.pass_texts(&self.cells, &mut self.texts);
                return Ok(());
            }
            Some(Err(key)) => Some(key),
            None => None,
        };
        let unfit = self.preprocessor.check(features, &self.cells);
        unfit.map_err(|unfit| Reject::bad_request(unfit.to_string()))?;
        self.preprocessor.apply(features, &self.cells, &mut self.values, &mut self.texts);
        if let (Some(lookups), Some(key)) = (&mut self.lookups, key) {
            lookups.keep(key, &self.values);
        }
        Ok(())
    }
}

enum Buffer {
    F32(PooledBuffer<f32>),
    F64(PooledBuffer<f64>),
}

impl<'b> Matrix<'b> {
    pub(super) fn new(pools: &NodePools, form: Form<'_>, count: usize) -> Self {
        let Form { schema, preprocessor } = form;
        let width = schema.width();
        let (text_width, row_type) = match preprocessor {
            Some(preprocessor) => (preprocessor.text_width(), preprocessor.row_type()),
            None => (schema.kinds.text_columns().len(), schema.row_type),
        };
        let preparing = preprocessor.map(|preprocessor| Preparing::new(preprocessor, pools.features.as_ref()));
        let values = match row_type {
            RowType::F32 => Buffer::F32(pools.f32.get_buffer(count * width)),
            RowType::F64 => Buffer::F64(pools.f64.get_buffer(count * width)),
        };
        Self { values, width, count, texts: vec![None; count * text_width], text_width, preparing }
    }

    /// Number of rows.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Puts a request's rows from its first row on, preprocessed where the model has such steps. A value that they cannot
    /// be done to is refused, and a number that only f64 can hold, which would be infinite for an f32 model.
    pub(super) fn put(&mut self, first: usize, features: &[f64], texts: Texts<'b>) -> Result<(), Reject> {
        let Some(mut preparing) = self.preparing.take() else {
            return self.copy(first, features, texts.iter());
        };
        let prepared = preparing.prepare(features, texts);
        let put = prepared.and_then(|()| self.copy(first, &preparing.values, preparing.texts.iter().copied()));
        self.preparing = Some(preparing);
        put
    }

    fn copy(
        &mut self,
        first: usize,
        features: &[f64],
        texts: impl Iterator<Item = Option<&'b str>>,
    ) -> Result<(), Reject> {
        for (place, text) in self.texts[first * self.text_width..].iter_mut().zip(texts) {
            *place = text;
        }
        let places = first * self.width..first * self.width + features.len();
        match &mut self.values {
            Buffer::F64(values) => values[places].copy_from_slice(features),
            Buffer::F32(values) => {
                let values = &mut values[places];
                for (place, &feature) in values.iter_mut().zip(features) {
                    *place = narrow(feature);
                }
                if let Some(index) = values.iter().position(|value| value.is_infinite()) {
                    // The row is scored with its neighbours all the same, and must not make them fail.
                    values.fill(0.0);
                    let (column, feature) = (index % self.width, features[index]);
                    let message = format!("features[{column}]: {feature} is too large: the model takes 32-bit floats");
                    return Err(Reject::bad_request(message));
                }
            }
        }
        Ok(())
    }

    /// Some of the rows.
    pub(super) fn rows(&self, rows: Range<usize>) -> Rows<'_> {
        let places = rows.start * self.width..rows.end * self.width;
        let values = match &self.values {
            Buffer::F32(values) => Values::F32(&values[places]),
            Buffer::F64(values) => Values::F64(&values[places]),
        };
        let texts = &self.texts[rows.start * self.text_width..rows.end * self.text_width];
        Rows { values, width: self.width, texts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Action, Category, FeatureKind, FeatureKinds, ModelType, Real, Step, Unknown};
    use crate::placement::{Place, PlanNode};
    use crate::record::Chunk;

    fn schema(row_type: RowType, width: usize) -> ModelSchema {
        ModelSchema {
            model_type: ModelType::Onnx,
            feature_names: vec![String::new(); width],
            kinds: FeatureKinds::default(),
            row_type,
            outputs: 1,
            details: Vec::new(),
        }
    }

    fn form(schema: &ModelSchema) -> Form<'_> {
        Form { schema, preprocessor: None }
    }

    #[test]
    fn a_number_that_f32_cannot_hold_is_refused_by_its_place() {
        let pools = NodePools::new(MemoryPolicy { node: None, huge_pages: false }, None);
        let mut matrix = Matrix::new(&pools, form(&schema(RowType::F32, 2)), 2);
        assert_eq!(matrix.put(0, &[1.5, f64::NAN], Texts::NONE), Ok(()));
        let error = matrix.put(1, &[0.0, 1e39], Texts::NONE).unwrap_err();
        assert!(error.message.starts_with("features[1]: 1000000"), "{error}");
        let Values::F32(values) = matrix.rows(0..1).values else { panic!("f32") };
        assert_eq!((values[0].to_bits(), values[1].is_nan()), (1.5_f32.to_bits(), true));
        let mut wide = Matrix::new(&pools, form(&schema(RowType::F64, 1)), 1);
        assert_eq!(wide.put(0, &[1e39], Texts::NONE), Ok(()));
    }

    #[test]
    fn texts_stand_beside_their_rows() {
        let pools = NodePools::new(MemoryPolicy { node: None, huge_pages: false }, None);
        let kinds = FeatureKinds::new(vec![FeatureKind::Text, FeatureKind::Number, FeatureKind::Text]);
        let schema = ModelSchema { kinds, ..schema(RowType::F32, 3) };
        let mut chunk = Chunk::default();
        let mark = chunk.texts_mut().mark();
        for text in [Some("a"), None, Some(""), Some("b")] {
            chunk.texts_mut().push(text);
        }
        chunk.features_mut().extend([f64::NAN, 1.0, f64::NAN, f64::NAN, 2.0, f64::NAN]);
        let level = crate::record::Priority::new(1).unwrap();
        let mut work = chunk.work(crate::record::ModelId(0), 0, 2, true, level, None);
        chunk.attach_texts(&mut work, mark);
        let mut matrix = Matrix::new(&pools, form(&schema), 3);
        assert_eq!(matrix.put(1, chunk.rows(&work), chunk.texts(&work)), Ok(()));
        assert_eq!(matrix.rows(0..3).texts, [None, None, Some("a"), None, Some(""), Some("b")]);
        assert_eq!(matrix.rows(2..3).texts, [Some(""), Some("b")]);
    }

    /// Steps for a text and the logarithm of a number, before a model of f32 rows.
    fn steps(fill: f64) -> Arc<Preprocessor> {
        let codes = [("red", 1.0), ("blue", 2.0)].map(|(text, code)| (Category::Text(text.to_owned()), Real(code)));
        let steps = [
            ("colour", Action::Categories { codes: codes.into(), unknown: Unknown::Error }),
            ("income", Action::Impute(vec![Real(fill)])),
            ("income", Action::Log1p),
        ];
        let steps = steps.map(|(feature, action)| Step { features: vec![feature.to_owned()], action });
        let feature_names = ["colour", "income"].map(str::to_owned).to_vec();
        let model = ModelSchema { feature_names, ..schema(RowType::F32, 2) };
        Arc::new(Preprocessor::new(&steps, &model).unwrap())
    }

    /// The bits of a raw row's place in a matrix.
    fn put(pools: &NodePools, steps: &Arc<Preprocessor>, colour: &str, income: f64) -> Result<Vec<u32>, Reject> {
        let kinds = FeatureKinds::new(vec![FeatureKind::Text, FeatureKind::Number]);
        let raw = ModelSchema { kinds, ..schema(RowType::F64, 2) };
        let mut chunk = Chunk::default();
        let mark = chunk.texts_mut().mark();
        chunk.texts_mut().push(Some(colour));
        chunk.features_mut().extend([f64::NAN, income]);
        let level = crate::record::Priority::new(1).unwrap();
        let mut work = chunk.work(crate::record::ModelId(0), 0, 1, true, level, None);
        chunk.attach_texts(&mut work, mark);
        let mut matrix = Matrix::new(pools, Form { schema: &raw, preprocessor: Some(steps) }, 1);
        matrix.put(0, chunk.rows(&work), chunk.texts(&work))?;
        let Values::F32(values) = matrix.rows(0..1).values else { panic!("the model takes f32") };
        Ok(values.iter().map(|value| value.to_bits()).collect())
    }

    #[test]
    fn preprocessed_rows_are_found_again_by_whoever_has_equal_steps() {
        let metrics = Arc::new(crate::metrics::Metrics::new());
        let features = FeatureCache::new(std::num::NonZeroUsize::new(1 << 20).unwrap(), Arc::clone(&metrics)).unwrap();
        let policy = || MemoryPolicy { node: None, huge_pages: false };
        let (cached, plain) = (NodePools::new(policy(), Some(Arc::new(features))), NodePools::new(policy(), None));
        let counts = || {
            let counted = &metrics.feature_cache;
            (counted.hits.get(), counted.misses.get(), counted.entries.get())
        };
        let expected = vec![2.0_f32.to_bits(), 1.25_f32.ln_1p().to_bits()];
        // Each has steps of its own making, as a new version or another model has.
        for (round, expected_counts) in [(0, (0, 1, 1)), (1, (1, 1, 1)), (2, (2, 1, 1))] {
            assert_eq!(put(&cached, &steps(1.25), "blue", f64::NAN), Ok(expected.clone()), "round {round}");
            assert_eq!(counts(), expected_counts, "round {round}");
        }
        assert_eq!(put(&plain, &steps(1.25), "blue", f64::NAN), Ok(expected));
        let (other_steps, other_row) =
            (put(&cached, &steps(2.0), "blue", f64::NAN), put(&cached, &steps(1.25), "red", 3.0));
        assert_eq!(other_steps, put(&plain, &steps(2.0), "blue", f64::NAN));
        assert_eq!(other_row, put(&plain, &steps(1.25), "red", 3.0));
        assert_eq!(counts(), (2, 3, 3));
        // What cannot be preprocessed is refused each time, and never kept.
        for _ in 0..2 {
            let refused = put(&cached, &steps(1.25), "green", 1.0).unwrap_err();
            assert!(refused.message.contains("colour") && refused.message.contains("green"), "{}", refused.message);
        }
        assert_eq!(counts(), (2, 5, 3));
    }

    #[test]
    fn a_thread_takes_its_nodes_buffers() {
        let node = |os_index| PlanNode { os_index, cpus: vec![0] };
        let places = [1, 0, 1].map(|node| Place { cpu: None, node: Some(node) }).to_vec();
        let pools = Pools::new(&Plan { places, nodes: vec![node(0), node(4)] }, false, None);
        let matrix = Matrix::new(pools.of(0), form(&schema(RowType::F32, 100)), 3);
        drop(Matrix::new(pools.of(2), form(&schema(RowType::F64, 100)), 3));
        drop(matrix);
        drop(Matrix::new(pools.of(2), form(&schema(RowType::F32, 160)), 2));
        drop(Matrix::new(pools.of(1), form(&schema(RowType::F32, 1)), 1));
        let snapshot = pools.snapshot();
        let of = |at: usize| {
            let pool = &snapshot.nodes[at];
            (pool.node, pool.total_buffers, pool.hits, pool.misses)
        };
        assert_eq!((snapshot.total_buffers, snapshot.hits, snapshot.misses), (3, 1, 3));
        assert_eq!([of(0), of(1)], [(Some(0), 1, 0, 1), (Some(4), 2, 1, 2)]);
        let unheld = Pools::new(&Plan { places: vec![Place { cpu: None, node: None }], nodes: vec![] }, false, None);
        assert_eq!((unheld.snapshot().nodes.len(), unheld.snapshot().nodes[0].node), (1, None));
        drop(Matrix::new(unheld.of(0), form(&schema(RowType::F32, 1)), 1));
        assert_eq!(unheld.snapshot().misses, 1);
    }
}
