//! Parquet files: one column of text.
//!
//! A page says how much room it takes once it is decompressed, and how many values it has, and a file of a few bytes can
//! say anything. What it says is checked against the bounds here before the decoder believes it.

mod pages;

use std::cell::Cell;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Once;

use ::parquet::basic::{ConvertedType, Type};
use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::ByteArrayType;
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::ColumnChunkMetaData;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use super::PromptError;
use super::formats::guess;
use crate::input;
use pages::{Checked, Source};

/// Rows decoded at once: few, for each may be as long as its page, where all begin like the first.
const ROWS: usize = 4;
/// Bytes of a file's metadata at most.
const MAX_METADATA: u64 = 1 << 26;
/// Rows of a file at most, nulls included.
const MAX_ROWS: usize = 1 << 24;

/// The texts of a column in their order, nulls left out; at least the first `enough`, where given.
pub(super) fn read(
    path: &Path,
    column: Option<&str>,
    enough: Option<usize>,
) -> Result<Vec<String>, PromptError> {
    let unreadable = |source| PromptError::Read { path: path.into(), source };
    let file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let failed = |error: ParquetError| PromptError::Parquet { path: path.into(), message: error.to_string() };
    let source = file.try_clone().map_err(unreadable)?;
    check_metadata(&source, size).map_err(failed)?;
    let reader = sheltered(|| SerializedFileReader::new(file)).map_err(failed)?;
    let metadata = reader.metadata();
    let index = find(path, metadata.file_metadata().schema_descr(), column)?;
    let mut texts = Texts { enough, ..Texts::default() };
    for group in metadata.row_groups() {
        if texts.are_enough() {
            break;
        }
        let column = group.column(index);
        check(column, size).map_err(failed)?;
        let source = source.try_clone().map_err(unreadable)?;
        let rows = usize::try_from(group.num_rows()).unwrap_or(0);
        sheltered(|| texts.read(Source::new(source, column), column, rows)).map_err(failed)?;
        if let Some(at) = texts.not_utf8 {
            return Err(PromptError::NotUtf8 { path: path.into(), at: format!("text {at}") });
        }
    }
    Ok(texts.prompts)
}

/// What was read so far.
#[derive(Default)]
struct Texts {
    enough: Option<usize>,
    prompts: Vec<String>,
    rows: usize,
    bytes: u64,
    /// The text, counted from 1, that is none.
    not_utf8: Option<usize>,
}

impl Texts {
    fn are_enough(&self) -> bool {
        self.enough.is_some_and(|enough| self.prompts.len() >= enough)
    }

    /// Adds the values of a column in one row group that are not null, and not blank: as prompts count only those.
    fn read(
        &mut self,
        source: Source,
        column: &ColumnChunkMetaData,
        rows: usize,
    ) -> Result<(), ParquetError> {
        let pages = Checked::new(source, column, rows)?;
        let mut reader = ColumnReaderImpl::<ByteArrayType>::new(column.column_descr_ptr(), Box::new(pages));
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        while !self.are_enough() && self.not_utf8.is_none() {
            values.clear();
            levels.clear();
            let (records, _, _) = reader.read_records(ROWS, Some(&mut levels), None, &mut values)?;
            if records == 0 {
                break;
            }
            self.rows += records;
            for value in &values {
                let Ok(text) = std::str::from_utf8(value.data()) else {
                    self.not_utf8 = Some(self.prompts.len() + 1);
                    break;
                };
                if !text.trim().is_empty() {
                    self.bytes += text.len() as u64;
                    self.prompts.push(text.to_owned());
                }
            }
            if self.rows > MAX_ROWS || self.bytes > input::TEXT {
                let (most, bytes) = (MAX_ROWS, input::TEXT);
                return Err(ParquetError::General(format!("more than {most} rows or {bytes} bytes of text")));
            }
        }
        Ok(())
    }
}

/// Looks at the metadata at the end of a file before the reader makes room for what it counts. What is no Parquet file
/// the reader tells itself.
fn check_metadata(mut file: &File, size: u64) -> Result<(), ParquetError> {
    let mut end = [0; 8];
    file.seek(SeekFrom::Start(size.saturating_sub(8)))?;
    let whole = file.read_exact(&mut end).is_ok() && end.ends_with(b"PAR1");
    let length = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    let Some(start) = size.checked_sub(8 + length).filter(|_| whole) else { return Ok(()) };
    if length > MAX_METADATA {
        let why = format!("metadata of {length} bytes, and {MAX_METADATA} at most are read");
        return Err(ParquetError::General(why));
    }
    let mut metadata = vec![0; length as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut metadata)?;
    if pages::is_sound(&metadata) {
        return Ok(());
    }
    Err(ParquetError::General("its metadata counts more than there is".to_owned()))
}

/// What the reader takes for granted: that the pages lie in the file.
fn check(column: &ColumnChunkMetaData, size: u64) -> Result<(), ParquetError> {
    let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    let end = start.checked_add(column.compressed_size()).and_then(|end| u64::try_from(end).ok());
    if start < 0 || column.compressed_size() < 0 || end.is_none_or(|end| end > size) {
        return Err(ParquetError::General("a column lies outside the file".to_owned()));
    }
    Ok(())
}

/// Runs a decoder that panics on some damaged pages, and makes that an error without a word on stderr.
fn sheltered<T>(decode: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    thread_local! {
        static DECODING: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    // There is one hook for all threads: the new one hands on what is not from here.
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !DECODING.get() {
                usual(info);
            }
        }));
    });
    DECODING.set(true);
    // Nothing that was borrowed is looked at after a panic.
    let result = std::panic::catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(false);
    result.unwrap_or_else(|_| Err(ParquetError::General("a damaged page".to_owned())))
}

/// The index of the leaf that holds the prompts.
fn find(path: &Path, schema: &SchemaDescriptor, column: Option<&str>) -> Result<usize, PromptError> {
    let found = || schema.root_schema().get_fields().iter().map(|field| field.name().to_owned()).collect();
    let at = || "schema".to_owned();
    let leaves = schema.columns();
    let name = if let Some(column) = column {
        column.to_owned()
    } else {
        let texts = leaves.iter().filter(|leaf| leaf.path().parts().len() == 1 && is_text(leaf, true));
        let names: Vec<&str> = texts.map(|leaf| leaf.name()).collect();
        let guess = guess(&names).ok_or_else(|| PromptError::AmbiguousColumn {
            path: path.into(),
            at: at(),
            found: found(),
        })?;
        guess.to_owned()
    };
    if let Some(index) = leaves.iter().position(|leaf| leaf.path().string() == name && is_text(leaf, false)) {
        return Ok(index);
    }
    let below = format!("{name}.");
    let fields: Vec<String> =
        leaves.iter().map(|leaf| leaf.path().string()).filter(|leaf| leaf.starts_with(&below)).collect();
    Err(if fields.is_empty() {
        PromptError::WrongColumn { path: path.into(), at: at(), column: name, found: found() }
    } else {
        PromptError::Nested { path: path.into(), column: name, fields, found: found() }
    })
}

/// Whether a leaf holds one text a row; bytes without a word on what they are count only where they were
/// asked for.
fn is_text(leaf: &ColumnDescriptor, declared: bool) -> bool {
    let named =
        matches!(leaf.converted_type(), ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON);
    let plain = leaf.converted_type() == ConvertedType::NONE && leaf.logical_type_ref().is_none();
    leaf.physical_type() == Type::BYTE_ARRAY && leaf.max_rep_level() == 0 && (named || plain && !declared)
}
