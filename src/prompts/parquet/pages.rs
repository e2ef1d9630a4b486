//! Pages that are looked at before the decoder makes room for them.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use ::parquet::basic::{Compression, Encoding};
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::metadata::ColumnChunkMetaData;
use ::parquet::file::reader::{ChunkReader, Length};
use ::parquet::file::serialized_reader::SerializedPageReader;
use bytes::Bytes;

use super::MAX_ROWS;

/// Bytes of a page at most, decompressed; writers make pages of one MiB, or at most of some hundred.
const MAX_PAGE: u64 = 1 << 28;
/// Bytes of a page's header at most: two texts for its statistics, twice.
const MAX_HEADER: u64 = 1 << 20;

fn wrong(why: impl Into<String>) -> ParquetError {
    ParquetError::General(why.into())
}

/// The file, as a decoder of pages reads it: for a reader at every header, for bytes at every page.
pub(super) struct Source {
    file: File,
    gzip: bool,
}

impl Source {
    pub(super) fn new(file: File, column: &ColumnChunkMetaData) -> Self {
        Self { file, gzip: matches!(column.compression(), Compression::GZIP(_)) }
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        Length::len(&self.file)
    }
}

impl ChunkReader for Source {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        let room = self.len().saturating_sub(start).min(MAX_HEADER);
        let header = |length: u64| -> Result<Option<u64>> {
            Ok(page_size(&self.file.get_bytes(start, length as usize)?))
        };
        // Most are short.
        let size = match header(room.min(1 << 10))? {
            None => header(room)?,
            size => size,
        };
        match size {
            None => Err(wrong("a page's header is damaged")),
            Some(size) if size > MAX_PAGE => {
                Err(wrong(format!("a page takes {size} bytes, and {MAX_PAGE} at most are read")))
            }
            Some(_) => self.file.get_read(start),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        if length as u64 > MAX_PAGE {
            return Err(wrong(format!("a page of {length} bytes, and {MAX_PAGE} at most are read")));
        }
        let bytes = self.file.get_bytes(start, length)?;
        // The one codec that is decoded to its end, whatever length its page has.
        if self.gzip {
            let mut decoder = flate2::read::MultiGzDecoder::new(&bytes[..]).take(MAX_PAGE + 1);
            if io::copy(&mut decoder, &mut io::sink()).is_ok_and(|size| size > MAX_PAGE) {
                return Err(wrong(format!(
                    "a page takes more than the {MAX_PAGE} bytes that are read at most"
                )));
            }
        }
        Ok(bytes)
    }
}

/// The decompressed size in a page's header, which is Thrift's compact protocol: fields in the order of their numbers,
/// each a byte with the step from the last number and the type. None for what no writer writes: numbers that are not
/// in order could come twice.
fn page_size(header: &[u8]) -> Option<u64> {
    let mut at = Reader(header);
    let (mut number, mut size) = (0, None);
    loop {
        let field = at.byte()?;
        if field == 0 {
            return size;
        }
        let (step, kind) = (field >> 4, field & 15);
        if step == 0 {
            return None;
        }
        number += u32::from(step);
        if (number, kind) == (2, 5) {
            let zigzag = at.varint()?;
            size = Some(zigzag >> 1).filter(|_| zigzag & 1 == 0);
        } else {
            at.skip(kind, 0)?;
        }
    }
}

/// Whether the counts in a file's metadata can be true: every list has at least a byte for each of its elements, and no
/// group of the schema has more members than the schema has elements.
pub(super) fn is_sound(metadata: &[u8]) -> bool {
    let mut at = Reader(metadata);
    let mut walk = || {
        let mut number = 0;
        loop {
            let kind = at.field(&mut number)?;
            if kind == STOP {
                break;
            }
            if (number, kind) != (2, 9) {
                at.skip(kind, 0)?;
                continue;
            }
            let (elements, kind) = at.list()?;
            for _ in 0..elements {
                let mut number = 0;
                loop {
                    let kind = at.field(&mut number).filter(|_| kind == 12)?;
                    if kind == STOP {
                        break;
                    }
                    if (number, kind) == (5, 5) {
                        at.varint().filter(|zigzag| zigzag >> 1 <= elements)?;
                    } else {
                        at.skip(kind, 1)?;
                    }
                }
            }
        }
        Some(())
    };
    walk().is_some()
}

/// In place of a type: there are no more fields.
const STOP: u8 = 0;

/// What is left of some bytes.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    fn bytes(&mut self, n: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(n).ok()?..)?;
        Some(())
    }

    /// The head of the next field in Thrift's compact protocol: its type, and `number` made its own. [`STOP`] at the end.
    fn field(&mut self, number: &mut i64) -> Option<u8> {
        let head = self.byte()?;
        if head == STOP {
            return Some(STOP);
        }
        *number = if head >> 4 == 0 {
            let zigzag = self.varint()?;
            (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)
        } else {
            number.checked_add(i64::from(head >> 4))?
        };
        Some(head & 15).filter(|kind| *kind != STOP)
    }

    /// The head of a list: how many elements, and their type.
    fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let n = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        (n <= self.0.len() as u64).then_some((n, head & 15))
    }

    /// Integers as differences (Parquet's DELTA_BINARY_PACKED), skipped: how many there are.
    fn deltas(&mut self) -> Option<u64> {
        let (block, parts) = (self.varint()?, self.varint()?);
        let (count, _first) = (self.varint()?, self.varint()?);
        let part = block.checked_div(parts)?;
        let mut left = count.saturating_sub(1);
        while left > 0 {
            self.varint()?;
            let widths = self.0.get(..usize::try_from(parts).ok()?)?;
            self.bytes(parts)?;
            for width in widths {
                // Past the last number a width may be anything.
                if left == 0 {
                    break;
                }
                self.bytes(part.checked_mul(u64::from(*width))? / 8)?;
                left = left.saturating_sub(part);
            }
        }
        Some(count)
    }

    /// A field's value in Thrift's compact protocol.
    fn skip(&mut self, kind: u8, depth: u32) -> Option<()> {
        if depth > 16 {
            return None;
        }
        match kind {
            // A truth value is its own type.
            1 | 2 => Some(()),
            3 => self.bytes(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.bytes(8),
            8 => {
                let length = self.varint()?;
                self.bytes(length)
            }
            9 | 10 => {
                let (n, kind) = self.list()?;
                // In a list, a truth value is a byte.
                let kind = if kind < 3 { 3 } else { kind };
                (0..n).try_for_each(|_| self.skip(kind, depth + 1))
            }
            12 => {
                let mut number = 0;
                loop {
                    match self.field(&mut number)? {
                        STOP => break Some(()),
                        kind => self.skip(kind, depth + 1)?,
                    }
                }
            }
            // Maps: there are none in these files.
            _ => None,
        }
    }
}

/// A decoder of pages that hands on only those whose counts can be true.
pub(super) struct Checked {
    pages: SerializedPageReader<Source>,
    /// Whether rows may be null.
    levels: bool,
}

impl Checked {
    pub(super) fn new(source: Source, column: &ColumnChunkMetaData, rows: usize) -> Result<Self> {
        let levels = column.column_descr().max_def_level() > 0;
        Ok(Self { pages: SerializedPageReader::new(Arc::new(source), column, rows, None)?, levels })
    }

    fn check(&self, page: &Page) -> Result<()> {
        let n = u64::from(page.num_values());
        if n > MAX_ROWS as u64 {
            return Err(wrong(format!("a page has {n} values, and {MAX_ROWS} at most are read")));
        }
        let (buffer, encoding, start) = match page {
            // Each value takes at least its length's four bytes.
            Page::DictionaryPage { buf, .. } if n > buf.len() as u64 / 4 => {
                return Err(wrong(format!("a dictionary of {n} values in {} bytes", buf.len())));
            }
            Page::DictionaryPage { .. } => return Ok(()),
            Page::DataPage { buf, encoding, .. } => {
                let length = buf.first_chunk().map_or(0, |b| u32::from_le_bytes(*b) as usize);
                (buf, *encoding, if self.levels { length.saturating_add(4) } else { 0 })
            }
            Page::DataPageV2 { buf, encoding, def_levels_byte_len, rep_levels_byte_len, .. } => {
                (buf, *encoding, *def_levels_byte_len as usize + *rep_levels_byte_len as usize)
            }
        };
        let lists = match encoding {
            Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
            // How much of the value before each begins with, and how long the rest is.
            Encoding::DELTA_BYTE_ARRAY => 2,
            _ => 0,
        };
        let mut at = Reader(buffer.get(start..).unwrap_or_default());
        for _ in 0..lists {
            let lengths = at.deltas().ok_or_else(|| wrong("a page's lengths are damaged"))?;
            if lengths > n {
                return Err(wrong(format!("a page of {n} values with {lengths} lengths")));
            }
        }
        Ok(())
    }
}

impl Iterator for Checked {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Checked {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        page.iter().try_for_each(|page| self.check(page))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }
}
