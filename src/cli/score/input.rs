//! A file or stdin in the formats of `forebay score`: what the arguments say, what the name or the first bytes tell.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;

use crate::cli::Usage;
use crate::model::ModelEntry;
use crate::source::lines::{Columns, Format, Input, LinesSource, TableError};

/// Where rows come from, and how they are read.
#[derive(Debug, Args)]
pub(in crate::cli) struct InputArgs {
    /// The rows: a file, or - for standard input
    #[arg(value_name = "INPUT", default_value = "-")]
    input: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) table: TableArgs,
}

/// How a table is read.
#[derive(Clone, Debug, Default, Args)]
pub(in crate::cli) struct TableArgs {
    /// How the input is read; auto goes by the file's ending, else by its first bytes
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    format: FormatArg,
    /// CSV, TSV: the first line is a row
    #[arg(long)]
    no_header: bool,
    /// CSV, TSV: columns to leave out at the left, such as a label
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    skip_columns: u32,
    /// CSV, TSV: the columns to take, in the model's order: names of the header, or with --no-header numbers from 1
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "skip_columns")]
    columns: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    #[default]
    Auto,
    Jsonl,
    Csv,
    Tsv,
}

impl InputArgs {
    /// The same for a file that other arguments name.
    pub(in crate::cli) fn of_file(input: &Path, table: &TableArgs) -> Self {
        Self { input: input.to_owned(), table: table.clone() }
    }

    /// The file, unless it is stdin.
    pub(in crate::cli) fn path(&self) -> Option<&Path> {
        Some(self.input.as_path()).filter(|path| *path != Path::new("-"))
    }

    /// What messages call it.
    pub(in crate::cli) fn name(&self) -> String {
        self.path().map_or_else(|| "standard input".to_owned(), |path| path.display().to_string())
    }
}

/// An open input, which moves a progress bar when it is read.
pub(in crate::cli) struct Opened {
    reader: Box<dyn Read>,
    /// Its length, where it has one.
    pub(in crate::cli) bytes: Option<u64>,
    /// Hidden at first.
    pub(in crate::cli) bar: ProgressBar,
}

impl Read for Opened {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(into)?;
        if self.bytes.is_some() {
            self.bar.inc(read as u64);
        }
        Ok(read)
    }
}

/// Opens the input.
pub(in crate::cli) fn open(args: &InputArgs) -> anyhow::Result<Opened> {
    let bar = ProgressBar::hidden();
    let Some(path) = args.path() else {
        return Ok(Opened { reader: Box::new(io::stdin()), bytes: None, bar });
    };
    let cannot = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(cannot)?;
    let about = file.metadata().with_context(cannot)?;
    if about.is_dir() {
        return Err(Usage(format!("{}: is a folder, wants a file of rows", path.display())).into());
    }
    let bytes = about.is_file().then_some(about.len());
    Ok(Opened { reader: Box::new(file), bytes, bar })
}

/// A source of the input's rows, for a model.
pub(in crate::cli) fn source(
    opened: Opened,
    args: &InputArgs,
    entry: &ModelEntry,
    records_max: usize,
) -> anyhow::Result<LinesSource<Opened>> {
    let cannot = || format!("cannot read {}", args.name());
    let mut input = Input::new(opened);
    let format = match args.table.format {
        FormatArg::Jsonl => Format::JsonLines,
        FormatArg::Csv => Format::CSV,
        FormatArg::Tsv => Format::TSV,
        FormatArg::Auto => match args.path().and_then(Format::of_name) {
            Some(format) => format,
            None => input.look().with_context(cannot)?,
        },
    };
    let TableArgs { no_header, skip_columns, ref columns, .. } = args.table;
    if format == Format::JsonLines && (no_header || skip_columns > 0 || columns.is_some()) {
        let message = "--no-header, --skip-columns and --columns are for tables, and the input is JSON lines; \
                       a table is read with --format csv or --format tsv";
        return Err(Usage(message.to_owned()).into());
    }
    let columns = Columns { header: !no_header, skip: skip_columns as usize, chosen: columns.clone() };
    LinesSource::open(input, format, columns, entry, records_max).map_err(|error| match error {
        TableError::Columns(message) => Usage(format!("{}: {message}", args.name())).into(),
        TableError::Io(error) => anyhow::Error::new(error).context(cannot()),
    })
}
