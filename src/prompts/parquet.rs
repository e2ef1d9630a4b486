//! Parquet files: one column of text.

use std::cell::Cell;
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Once;

use ::parquet::basic::{ConvertedType, Type};
use ::parquet::column::reader::get_typed_column_reader;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::ColumnChunkMetaData;
use ::parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use ::parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use super::PromptError;
use super::formats::guess;

/// Rows decoded at once.
const ROWS: usize = 1024;

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
    let reader = sheltered(|| SerializedFileReader::new(file)).map_err(failed)?;
    let index = find(path, reader.metadata().file_metadata().schema_descr(), column)?;
    let mut prompts = Vec::new();
    for group in 0..reader.num_row_groups() {
        if enough.is_some_and(|enough| prompts.len() >= enough) {
            break;
        }
        check(reader.metadata().row_group(group).column(index), size).map_err(failed)?;
        let values = sheltered(|| texts(&*reader.get_row_group(group)?, index)).map_err(failed)?;
        for value in values {
            let text = String::from_utf8(value.data().to_vec());
            let at = || format!("text {}", prompts.len() + 1);
            let text = text.map_err(|_| PromptError::NotUtf8 { path: path.into(), at: at() })?;
            // Counted as prompts only if they are.
            if !text.trim().is_empty() {
                prompts.push(text);
            }
        }
    }
    Ok(prompts)
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

/// The values of a column in one row group that are not null.
fn texts(group: &dyn RowGroupReader, index: usize) -> Result<Vec<ByteArray>, ParquetError> {
    let mut reader = get_typed_column_reader::<ByteArrayType>(group.get_column_reader(index)?);
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    loop {
        levels.clear();
        let (records, _, _) = reader.read_records(ROWS, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            return Ok(values);
        }
    }
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
