use super::*;
use crate::model::{FeatureKind, FeatureKinds, ModelEntry, ModelSchema, ModelType, RowType};
use crate::record::{ModelId, Priority, TextMark};

/// Line and values of each row, or its message.
type Rows = Vec<(i64, Result<Vec<f64>, String>)>;

/// Brings a byte at a time: nothing may depend on how an input is cut.
struct Dribble<'a>(&'a [u8]);

impl Read for Dribble<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.len().min(1);
        into[..bytes].copy_from_slice(&self.0[..bytes]);
        self.0 = &self.0[bytes..];
        Ok(bytes)
    }
}

fn rows_of<R: Read>(mut source: LinesSource<R>, decode: impl Fn(&Message<'_>, Received, &mut Chunk)) -> Rows {
    let mut rows = Vec::new();
    while let Some(chunk) = source.recv(&decode).unwrap() {
        for request in chunk.requests() {
            let work = request.work.as_ref();
            let values = work.map(|work| chunk.rows(work).to_vec()).map_err(|reject| reject.message.clone());
            assert_eq!(chunk.str(request.id_json), format!("\"line/{}\"", request.position.offset));
            rows.push((request.position.offset, values));
        }
    }
    rows
}

fn model(features: &[&str], kinds: FeatureKinds) -> ModelEntry {
    let schema = ModelSchema {
        model_type: ModelType::Onnx,
        feature_names: features.iter().map(|&name| name.to_owned()).collect(),
        kinds,
        row_type: RowType::F64,
        outputs: 1,
        details: Vec::new(),
    };
    ModelEntry::new(ModelId(0), "model", &schema, Vec::new(), Priority::new(2).unwrap())
}

fn table(text: &str, columns: &Columns) -> Result<Rows, String> {
    let delimiter = if text.contains('\t') { b'\t' } else { b',' };
    let read = |input: &mut dyn Read| {
        let table = Table::new(delimiter, columns.clone(), &model(&["age", "wage"], FeatureKinds::default()));
        let source = table.and_then(|table| LinesSource::table(Input::new(input), table, 3));
        let source = source.map_err(|error| error.to_string())?;
        Ok(rows_of(source, |_, _, _| unreachable!("a table's rows are not decoded")))
    };
    let whole = read(&mut text.as_bytes());
    let dribbled = read(&mut Dribble(text.as_bytes()));
    assert!(format!("{whole:?}") == format!("{dribbled:?}"), "cut differently, read differently");
    whole
}

fn header() -> Columns {
    Columns { header: true, ..Columns::default() }
}

fn chosen(names: &[&str], header: bool) -> Columns {
    let chosen = Some(names.iter().map(|name| (*name).to_owned()).collect());
    Columns { header, skip: 0, chosen }
}

fn good(text: &str, columns: &Columns) -> Vec<(i64, Vec<f64>)> {
    table(text, columns).unwrap().into_iter().map(|(line, row)| (line, row.unwrap())).collect()
}

#[test]
fn columns_are_found_by_name_by_place_or_as_chosen() {
    let row = |line| vec![(line, vec![1.0, 2.0])];
    assert_eq!(good("age,wage\n1,2\n", &header()), row(2));
    assert_eq!(good("id,wage,name,age\n7,2,\"a, \"\"b\"\"\nc\",1", &header()), row(2));
    assert_eq!(good("\u{feff}a,b\r\n\r\n1,2\r\n", &header()), row(3));
    assert_eq!(good("label\ta\tb\n0\t1\t2\n", &Columns { skip: 1, ..header() }), row(2));
    assert_eq!(good("1,2\n", &Columns::default()), row(1));
    assert_eq!(good("0,1,2\n", &Columns { skip: 1, ..Columns::default() }), row(1));
    assert_eq!(good("b,x,a\n2,0,1\n", &chosen(&["a", "b"], true)), row(2));
    assert_eq!(good("2,0,1\n", &chosen(&["3", "1"], false)), row(1));
}

#[test]
fn a_header_that_does_not_fit_is_refused_and_never_guessed() {
    let refusal = |text: &str, columns: &Columns| table(text, columns).unwrap_err();
    assert!(refusal("1,2\n3,4\n", &header()).contains("--no-header"));
    assert!(refusal("0,1,2\nx,4,5\n", &Columns { skip: 1, ..header() }).contains("--no-header"));
    assert!(refusal("wage,old\n1,2\n", &header()).contains("column 1 is \"wage\", which is the model's feature 2"));
    assert!(refusal("x,age,y\n1,2,3\n", &header()).contains("wage is not in the header"));
    assert!(refusal("age,wage,age\n1,2,3\n", &header()).contains("\"age\" twice"));
    assert!(refusal("a,b\n1,2\n", &chosen(&["a", "c"], true)).contains("no column \"c\"; it has a, b"));
    assert!(refusal("a,b\n1,2\n", &chosen(&["a"], true)).contains("names 1 columns, the model has 2"));
    assert!(refusal("1,2\n", &chosen(&["0", "1"], false)).contains("numbers from 1"));
}

#[test]
fn cells_are_numbers_or_missing_and_all_else_names_its_place() {
    let missing = good("age,wage\n,NA\nnan,null\n NaN ,  \n-NaN,NULL\n", &header());
    assert_eq!(missing.len(), 4);
    assert!(missing.iter().all(|(_, row)| row.iter().all(|value| value.is_nan())), "{missing:?}");
    assert_eq!(good("-1e-3, +.5 \n", &Columns::default()), [(1, vec![-1e-3, 0.5])]);

    let rows = table("age,wage\n1,abc\n1,inf\n1,1e999\n1\n1,2,3\n1,2\n", &header()).unwrap();
    let message = |index: usize| rows[index].1.as_ref().unwrap_err().clone();
    assert!(message(0).starts_with("line 2, column 2 (wage): got \"abc\", wants"), "{}", message(0));
    assert!(message(1).contains("got \"inf\"") && message(2).contains("got \"1e999\""));
    assert!(message(3).starts_with("line 5: got 1 columns, wants 2 (without wage)"), "{}", message(3));
    assert!(message(4).starts_with("line 6: got 3 columns, wants 2"), "{}", message(4));
    assert_eq!(rows[5].1, Ok(vec![1.0, 2.0]));
}

#[test]
fn an_open_quote_ends_with_its_bound() {
    let text = format!("age,wage\n1,2\n1,\"{}\n3,4\n", "2,\n".repeat(RECORD_BYTES_MAX / 2));
    let rows = table(&text, &header()).unwrap();
    assert_eq!((rows[0].0, &rows[0].1), (2, &Ok(vec![1.0, 2.0])));
    assert!(rows[1].1.as_ref().unwrap_err().contains("is a quote missing?"), "{:?}", rows[1]);
    let last = rows.last().unwrap();
    assert_eq!(last.1, Ok(vec![3.0, 4.0]));
    assert_eq!(last.0, i64::try_from(text.lines().count()).unwrap(), "lines are still counted");
}

#[test]
fn text_and_integer_columns_hold_what_their_kind_takes() {
    let kinds = FeatureKinds::new(vec![FeatureKind::Text, FeatureKind::Number, FeatureKind::UINT8]);
    let model = model(&["city", "wage", "age"], kinds);
    let table = Table::new(b',', header(), &model).unwrap();
    let text = b"age,city,wage\n41,\"Z\xc3\xbcrich, \"\"CH\"\"\",1.5\n,NA,\n7,, 2\n1.5,x,1\n256,x,1\n1,\xff,1\n";
    let mut source = LinesSource::table(Input::new(&text[..]), table, 100).unwrap();
    let mut chunk = source.recv(|_, _, _| unreachable!("a table's rows are not decoded")).unwrap().unwrap();
    let row = |index: usize| {
        let work = chunk.requests()[index].work.as_ref().map_err(|reject| reject.message.clone())?;
        Ok((format!("{:?}", chunk.rows(work)), chunk.texts(work).iter().collect::<Vec<_>>()))
    };
    let of = |values: &str, text| Ok::<_, String>((values.to_owned(), vec![text]));
    assert_eq!(row(0), of("[NaN, 1.5, 41.0]", Some("Zürich, \"CH\"")));
    assert_eq!(row(1), of("[NaN, NaN, NaN]", Some("NA")));
    assert_eq!(row(2), of("[NaN, 2.0, 7.0]", None));
    let whole = "wants a whole number from 0 to 255, or nothing, NA, NaN or null where it is missing";
    assert_eq!(row(3), Err(format!("line 5, column 1 (age): got \"1.5\", {whole}")));
    assert_eq!(row(4), Err(format!("line 6, column 1 (age): got \"256\", {whole}")));
    assert_eq!(row(5), Err("line 7, column 2 (city): got \"\u{fffd}\", wants UTF-8".to_owned()));
    assert_eq!((chunk.features_mut().len(), chunk.texts_mut().len_since(TextMark::default())), (9, 3));
}

/// The payload of each JSON line as the decoder gets it.
fn payloads(text: &[u8]) -> Vec<(i64, Result<Vec<f64>, String>)> {
    let decode = |message: &Message<'_>, received: Received, chunk: &mut Chunk| {
        assert_eq!(message.key, Some(format!("line/{}", message.position.offset).as_bytes()));
        let text = String::from_utf8_lossy(message.payload.unwrap()).into_owned();
        reject(message.position, received, Reject::bad_request(text), chunk);
    };
    let read = |input: &mut dyn Read| rows_of(LinesSource::json_lines(Input::new(input), 3), decode);
    let whole = read(&mut &text[..]);
    assert_eq!(whole, read(&mut Dribble(text)));
    whole
}

#[test]
fn json_lines_keep_their_text_and_arrays_become_features() {
    let text = b"\xef\xbb\xbf{\"features\":[1]}\r\n [1, 2] \n\n[1\n[1],\"priority\":1\nabc\n[3]";
    let wanted = [
        "{\"features\":[1]}",
        "{\"features\": [1, 2]}",
        "",
        "the line starts with [ and does not end with ]: wants an array of numbers, or a request",
        "the line starts with [ and does not end with ]: wants an array of numbers, or a request",
        "abc",
        "{\"features\":[3]}",
    ];
    let wanted: Rows = (1..).zip(wanted.map(|text| Err(text.to_owned()))).collect();
    assert_eq!(payloads(text), wanted);
    assert_eq!(payloads(b""), []);
}

#[test]
fn a_line_past_the_bound_is_told_so_and_the_next_is_read() {
    let text = format!(
        "{}\n{}\n{}\n[1]\n",
        "a".repeat(RECORD_BYTES_MAX),
        "b".repeat(RECORD_BYTES_MAX + 3),
        "c".repeat(3 << 20)
    );
    let lines = payloads(text.as_bytes());
    let message = |index: usize| lines[index].1.as_ref().unwrap_err();
    assert_eq!(message(0).len(), RECORD_BYTES_MAX);
    assert!(message(1).contains("at most 1048576 are read"), "{}", message(1));
    assert!(message(2).contains("about 3145729 bytes"), "{}", message(2));
    assert_eq!((lines[3].0, message(3).as_str()), (4, "{\"features\":[1]}"));
}

#[test]
fn a_chunk_waits_for_company_only_while_whole_lines_are_at_hand() {
    let mut source = LinesSource::json_lines(Input::new(&b"1\n2\n3\n4"[..]), 1024);
    let decode = |message: &Message<'_>, received: Received, chunk: &mut Chunk| {
        reject(message.position, received, Reject::bad_request(""), chunk);
    };
    let sizes = std::iter::from_fn(|| source.recv(decode).unwrap().map(|chunk| chunk.requests().len()));
    assert_eq!(sizes.collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn formats_are_told_by_name_or_by_the_first_bytes() {
    let name = |name: &str| Format::of_name(Path::new(name));
    assert_eq!(name("a/b.JSONL"), Some(Format::JsonLines));
    assert_eq!((name("b.csv"), name("b.x.tsv")), (Some(Format::CSV), Some(Format::TSV)));
    assert_eq!((name("b.txt"), name("b"), name("-")), (None, None, None));
    assert_eq!(Format::of_bytes(b" \n{\"id\""), Format::JsonLines);
    assert_eq!(Format::of_bytes(b"[1, 2]\n"), Format::JsonLines);
    assert_eq!(Format::of_bytes(b"a,b\n1\t,2\n"), Format::CSV);
    assert_eq!(Format::of_bytes(b"a\tb\n"), Format::TSV);
    assert_eq!(Format::of_bytes(b""), Format::JsonLines);
}
