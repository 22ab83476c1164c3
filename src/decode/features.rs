//! The value of `features` in, rows in the model's order out, with no allocation of their own.
//!
//! Reading and ordering are two steps, because the body may name its model after its features:
//! [`FeatureReader`] appends the values to the chunk's feature arena as they come, and the names of an object to the end
//! of its text arena: `age 0xFF country 0xFF 0xFE`, each name ended by 0xFF and each row by 0xFE, bytes that UTF-8 never
//! holds. A string is a cell of the chunk's text features, and its number stands among the values, in a NaN
//! (`kinds::text_cell`). [`Layout::rows_for`] then checks the widths, or moves named values to their columns, and holds what came
//! against the kinds of the model's columns.
//!
//! Invariants: after a good read there are as many names as values, or none; after a good [`Layout::rows_for`] no text's
//! number is left among the values.

use std::fmt;
use std::mem;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::json::Fault;
use super::kinds::{self, text_cell};
use super::message::{bad_request, clip, nearest, quoted, reject};
use super::value::{Scalar, ScalarVisitor};
use crate::model::ModelEntry;
use crate::record::{Chunk, ErrorCode, Reject, Span, TextMark};

const NAME_END: u8 = 0xFF;
const ROW_END: u8 = 0xFE;
/// A NaN that no JSON makes: marks a column that no name has filled yet, so that a name given twice is seen.
const UNFILLED: u64 = 0x7ff8_f0fe_bad0_0001;

/// The four ways to write features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// `[1, 2]`
    Row,
    /// `[[1, 2], [3, 4]]`
    Rows,
    /// `{"a": 1, "b": 2}`
    Named,
    /// `[{"a": 1, "b": 2}, {"a": 3}]`
    NamedRows,
}

/// Where the arenas end before a record is read: its values and names are what lies behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    /// The feature arena's end.
    pub(super) features: usize,
    /// The text arena's end.
    pub(super) names: usize,
    /// The text features' end.
    pub(super) texts: TextMark,
}

impl Marks {
    pub(super) fn new(chunk: &mut Chunk) -> Self {
        Self { features: chunk.features_mut().len(), names: chunk.text_mark(), texts: chunk.texts_mut().mark() }
    }

    /// Takes out of the feature arenas what lies behind.
    pub(super) fn take_features_back(self, chunk: &mut Chunk) {
        chunk.features_mut().truncate(self.features);
        chunk.texts_mut().truncate(self.texts);
    }
}

/// How the values that were read lie in the arena.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout {
    /// `None` for an empty list, which could have become anything.
    shape: Option<Shape>,
    rows: usize,
    /// Values of the first row.
    width: usize,
    /// The first row that is not as wide as the first, and how wide it is.
    uneven: Option<(usize, usize)>,
    /// Where the first string stands.
    first_text: Option<Place>,
}

impl Layout {
    /// The layout of one row, a list of `width` numbers.
    pub(super) fn row(width: usize) -> Self {
        Self { shape: Some(Shape::Row), rows: 1, width, uneven: None, first_text: None }
    }

    /// Whether it is a list of rows, whose prediction is a list of lists.
    pub(super) fn many(&self) -> bool {
        matches!(self.shape, Some(Shape::Rows | Shape::NamedRows))
    }

    fn named(&self) -> bool {
        matches!(self.shape, Some(Shape::Named | Shape::NamedRows))
    }

    /// Makes rows of the model's width, order and kinds of everything in the arenas since the marks; their number.
    ///
    /// A record may hold `values_max` numbers, or one row where that is more: without a bound, a list of many short
    /// objects for a wide model would take thousands of times its own size.
    pub(super) fn rows_for(
        &self,
        model: &ModelEntry,
        values_max: usize,
        chunk: &mut Chunk,
        marks: Marks,
    ) -> Result<u32, Reject> {
        if let Some(place) = self.first_text.filter(|_| !model.kinds.has_text()) {
            let (place, text) = (place.shown(chunk), chunk.texts_mut().get(marks.texts, 0).unwrap_or_default());
            return Err(bad_request(format!("{place}: got {}, wants a number or null", quoted(text))));
        }
        if self.rows > 1 && self.named() && self.rows.saturating_mul(model.width) > values_max {
            return Err(too_many("features", self.rows, model, values_max));
        }
        if self.named() {
            let mut values = mem::take(chunk.features_mut());
            let names = &chunk.text_mut()[marks.names..];
            let ordered = self.order(model, names, &mut values, marks.features);
            *chunk.features_mut() = values;
            ordered.map_err(bad_request)?;
        } else {
            self.check_width(model).map_err(bad_request)?;
        }
        if !model.kinds.all_numbers() {
            let (values, texts) = chunk.features_and_texts_mut();
            let settled = kinds::settle(&model.kinds, &mut values[marks.features..], model.width, texts, marks.texts);
            settled.map_err(|misfit| bad_request(misfit.message(&self.cell(misfit.row, misfit.column, model))))?;
        }
        u32::try_from(self.rows).map_err(|_| too_many("features", self.rows, model, values_max))
    }

    fn check_width(&self, model: &ModelEntry) -> Result<(), String> {
        let (row, got) = match self.uneven {
            _ if self.width != model.width => (0, self.width),
            Some(uneven) => uneven,
            None => return Ok(()),
        };
        let (name, wants) = (clip(&model.name, 60), model.width);
        if self.many() {
            Err(format!("features[{row}]: got {got} values, model {name} wants {wants}"))
        } else {
            Err(format!("features: got {got} values, model {name} wants {wants}"))
        }
    }

    /// Replaces the values from `mark` on, which stand in the order of `names`, by whole rows in the model's order.
    fn order(&self, model: &ModelEntry, names: &[u8], values: &mut Vec<f64>, mark: usize) -> Result<(), String> {
        let read_end = values.len();
        values.resize(read_end + self.rows * model.width, f64::from_bits(UNFILLED));
        let (read, ordered) = values[mark..].split_at_mut(read_end - mark);
        let mut read = read.iter();
        // A name may be empty, so ends are cut off and not taken for separators.
        let mut rest = names;
        for (row, columns) in ordered.chunks_exact_mut(model.width.max(1)).enumerate() {
            while let Some((name, tail)) = next_name(rest) {
                rest = tail;
                let column = model.feature(name).ok_or_else(|| self.unknown(row, name, model))?;
                let value = read.next().expect("there are as many values as names");
                let old = mem::replace(&mut columns[column], *value);
                if old.to_bits() != UNFILLED {
                    return Err(format!("{}: the name is given twice", self.place(row, name)));
                }
            }
            rest = rest.strip_prefix(&[ROW_END]).unwrap_or(rest);
        }
        for value in ordered {
            if value.to_bits() == UNFILLED {
                *value = f64::NAN;
            }
        }
        values.drain(mark..read_end);
        Ok(())
    }

    fn unknown(&self, row: usize, name: &str, model: &ModelEntry) -> String {
        unknown_feature(&self.place(row, name), name, model)
    }

    /// A cell of the ordered rows, as its sender wrote it.
    fn cell(&self, row: usize, column: usize, model: &ModelEntry) -> String {
        match (self.named(), self.many()) {
            (true, _) => self.place(row, model.feature_names().get(column).map_or("", String::as_str)),
            (false, true) => format!("features[{row}][{column}]"),
            (false, false) => format!("features[{column}]"),
        }
    }

    fn place(&self, row: usize, name: &str) -> String {
        let name = quoted(name);
        if self.many() { format!("features[{row}][{name}]") } else { format!("features[{name}]") }
    }
}

/// More rows than a record may ask for.
pub(super) fn too_many(place: &str, rows: usize, model: &ModelEntry, values_max: usize) -> Reject {
    let message = format!(
        "{place}: {rows} rows of {} values are more than the {values_max} that a record may hold; send fewer rows a record",
        model.width
    );
    reject(ErrorCode::TooLarge, message)
}

/// A name that the model has not.
pub(super) fn unknown_feature(place: &str, name: &str, model: &ModelEntry) -> String {
    let nearest = quoted(nearest(name, model.feature_names().iter().map(String::as_str)).unwrap_or_default());
    let model = clip(&model.name, 60);
    format!("{place}: model {model} has no such feature; did you mean {nearest}?")
}

/// The next name of a row and what follows it; `None` at the row's end.
fn next_name(names: &[u8]) -> Option<(&str, &[u8])> {
    if names.first() == Some(&ROW_END) {
        return None;
    }
    let end = names.iter().position(|byte| *byte == NAME_END)?;
    Some((std::str::from_utf8(&names[..end]).ok()?, &names[end + 1..]))
}

/// Where in a row the reading stands.
#[derive(Clone, Copy, Debug)]
enum Column {
    Index(u32),
    Name(Span),
}

/// Where in `features` the reading stands.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    item: Option<u32>,
    column: Option<Column>,
}

impl Place {
    /// As messages show it: `features[1]["age"]`.
    fn shown(self, chunk: &Chunk) -> String {
        let item = self.item.map_or_else(String::new, |index| format!("[{index}]"));
        let column = match self.column {
            None => String::new(),
            Some(Column::Index(index)) => format!("[{index}]"),
            Some(Column::Name(name)) => format!("[{}]", quoted(chunk.str(name))),
        };
        format!("features{item}{column}")
    }
}

/// Reads `features` into the chunk's arenas. The first fault is kept and the reading goes on.
pub(super) struct FeatureReader<'c> {
    chunk: &'c mut Chunk,
    /// Where the text features begin that are read.
    texts: TextMark,
    layout: Layout,
    fault: Option<Fault>,
    at: Place,
}

impl<'c> FeatureReader<'c> {
    /// A reader to the end of the chunk's arenas.
    pub(super) fn new(chunk: &'c mut Chunk) -> Self {
        let texts = chunk.texts_mut().mark();
        Self { chunk, texts, layout: Layout::default(), fault: None, at: Place::default() }
    }

    /// The chunk that it reads into.
    pub(super) fn chunk(&mut self) -> &mut Chunk {
        self.chunk
    }

    /// How the values lie.
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// The first fault.
    pub(super) fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Where the reading stands: `features[1]["age"]`.
    pub(super) fn place(&self) -> String {
        self.at.shown(self.chunk)
    }

    fn fault(&mut self, level: Level, got: &Scalar<'_>) {
        if self.fault.is_some() {
            return;
        }
        let got = format!("{}: got {got}", self.place());
        self.fault = Some(match (level, self.layout.shape) {
            (Level::Whole, _) => {
                Fault::Said(format!("{got}, wants a row of numbers, rows, or an object by feature name"))
            }
            (Level::Item, Some(Shape::Rows)) => {
                Fault::Said(format!("{got}, wants a row of numbers, as the rows before it"))
            }
            (Level::Item, Some(Shape::NamedRows)) => {
                Fault::Said(format!("{got}, wants an object by feature name, as the rows before it"))
            }
            (Level::Item | Level::Cell, _) => Fault::Cell(got),
        });
    }

    /// Whether an item of this shape fits those before it. The first decides.
    fn fits(&mut self, shape: Shape) -> bool {
        *self.layout.shape.get_or_insert(shape) == shape
    }

    #[inline]
    fn number(&mut self, level: Level, value: f64, got: impl FnOnce() -> Scalar<'static>) {
        let fits = match level {
            Level::Whole => false,
            Level::Item => self.fits(Shape::Row),
            Level::Cell => true,
        };
        if fits {
            self.chunk.features_mut().push(value);
        } else {
            self.fault(level, &got());
        }
    }

    fn text(&mut self, level: Level, text: &str) {
        let fits = match level {
            Level::Whole => false,
            Level::Item => self.fits(Shape::Row),
            Level::Cell => true,
        };
        if !fits {
            return self.fault(level, &Scalar::Text(text.into()));
        }
        let place = self.at;
        self.layout.first_text.get_or_insert(place);
        let texts = self.chunk.texts_mut();
        let cell = text_cell(texts.len_since(self.texts));
        texts.push(Some(text));
        self.chunk.features_mut().push(cell);
    }

    /// A list of numbers, or of rows.
    fn list<'a, A: SeqAccess<'a>>(&mut self, mut seq: A) -> Result<(), A::Error> {
        let mut items = 0;
        loop {
            self.at.item = Some(items);
            if seq.next_element_seed(Slot { reader: self, level: Level::Item })?.is_none() {
                break;
            }
            items += 1;
        }
        self.at.item = None;
        if self.layout.shape.is_none_or(|shape| shape == Shape::Row) {
            self.end_row(items as usize);
        }
        Ok(())
    }

    fn row<'a, A: SeqAccess<'a>>(&mut self, mut seq: A) -> Result<(), A::Error> {
        let mut cells = 0;
        loop {
            self.at.column = Some(Column::Index(cells));
            if seq.next_element_seed(Slot { reader: self, level: Level::Cell })?.is_none() {
                break;
            }
            cells += 1;
        }
        self.at.column = None;
        self.end_row(cells as usize);
        Ok(())
    }

    fn named<'a, A: MapAccess<'a>>(&mut self, mut map: A) -> Result<(), A::Error> {
        let mut cells = 0;
        while let Some(name) = map.next_key_seed(NameSeed { chunk: self.chunk })? {
            self.at.column = Some(Column::Name(name));
            map.next_value_seed(Slot { reader: self, level: Level::Cell })?;
            cells += 1;
        }
        self.at.column = None;
        self.chunk.text_mut().push(ROW_END);
        if cells == 0 && self.fault.is_none() {
            self.fault = Some(Fault::Said(format!("{}: got an empty object, wants one feature or more", self.place())));
        }
        self.layout.rows += 1;
        Ok(())
    }

    fn end_row(&mut self, width: usize) {
        let Layout { rows, width: first, uneven, .. } = &mut self.layout;
        if *rows == 0 {
            *first = width;
        } else if *first != width && uneven.is_none() {
            *uneven = Some((*rows, width));
        }
        *rows += 1;
    }
}

impl<'a> DeserializeSeed<'a> for &mut FeatureReader<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        Slot { reader: self, level: Level::Whole }.deserialize(deserializer)
    }
}

/// How deep in `features` a value stands.
#[derive(Clone, Copy, Debug)]
enum Level {
    /// It is the value of `features`.
    Whole,
    /// It is in the outer list: a number, a string or a row.
    Item,
    /// It is in a row that is itself an item, or in an object: a number or a string.
    Cell,
}

/// Takes one value at its level.
struct Slot<'r, 'c> {
    reader: &'r mut FeatureReader<'c>,
    level: Level,
}

impl<'a> DeserializeSeed<'a> for Slot<'_, '_> {
    type Value = ();

    #[inline]
    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Slot<'_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON")
    }

    #[inline]
    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.reader.number(self.level, number, || Scalar::Number(number));
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "features are f64 by the wire format")]
    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.reader.number(self.level, number as f64, || Scalar::Whole(number.into()));
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "features are f64 by the wire format")]
    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        self.reader.number(self.level, number as f64, || Scalar::Whole(number.into()));
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.reader.number(self.level, f64::NAN, || Scalar::Null);
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.reader.fault(self.level, &Scalar::Bool(value));
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.reader.text(self.level, text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, seq: A) -> Result<(), A::Error> {
        match self.level {
            Level::Whole => return self.reader.list(seq),
            Level::Item if self.reader.fits(Shape::Rows) => return self.reader.row(seq),
            Level::Item | Level::Cell => {}
        }
        let got = ScalarVisitor.visit_seq(seq)?;
        self.reader.fault(self.level, &got);
        Ok(())
    }

    fn visit_map<A: MapAccess<'a>>(self, map: A) -> Result<(), A::Error> {
        match self.level {
            Level::Whole if self.reader.fits(Shape::Named) => return self.reader.named(map),
            Level::Item if self.reader.fits(Shape::NamedRows) => return self.reader.named(map),
            Level::Whole | Level::Item | Level::Cell => {}
        }
        let got = ScalarVisitor.visit_map(map)?;
        self.reader.fault(self.level, &got);
        Ok(())
    }
}

/// Copies a feature's name to the text arena.
struct NameSeed<'c> {
    chunk: &'c mut Chunk,
}

impl<'a> DeserializeSeed<'a> for NameSeed<'_> {
    type Value = Span;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Span, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = Span;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Span, E> {
        let span = self.chunk.push_text(name.as_bytes());
        self.chunk.text_mut().push(NAME_END);
        Ok(span)
    }
}
