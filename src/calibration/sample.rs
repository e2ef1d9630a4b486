//! A bounded sample of rows whose choice depends on nothing but what the rows are.
//!
//! Chosen: bottom-k sampling (Cohen & Kaplan 2007). Each row has a pseudo-random key, made from the seed, the tensor,
//! the slice and the token's place in the prompts; the k smallest keys stay. That is a uniform sample without
//! replacement, as a reservoir's, but the order in which rows come is of no consequence, and so neither are the size of
//! the batch and the number of threads.
#![forbid(unsafe_code)]

use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use half::bf16;
use tempfile::SpooledTempFile;

use crate::random::SplitMix64;

/// Bytes of one stored element.
pub(super) const WIDTH: usize = 2;

/// Where rows lie.
#[derive(Debug)]
pub(super) enum Store {
    /// Collected: in memory, or past a bound in an unnamed temporary file.
    Spool(SpooledTempFile),
    /// A calibration file, read through its handle: a map would count what was read as memory of the process.
    File(File),
}

impl Store {
    /// An empty store that takes at most so many bytes of memory.
    pub(super) fn spool(memory: usize) -> Self {
        Self::Spool(SpooledTempFile::new(memory))
    }

    /// Writes a row at `offset`.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let Self::Spool(file) = self else { return Err(io::ErrorKind::PermissionDenied.into()) };
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }

    /// Reads what lies at `offset`.
    pub(super) fn read(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let file: &mut dyn ReadSeek = match self {
            Self::Spool(file) => file,
            Self::File(file) => file,
        };
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(bytes)
    }
}

trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

/// Hands out the rows of `n` elements that lie at `offsets`, one after the other, as they are stored.
pub(super) fn each_row<E: From<io::Error>>(
    store: &Mutex<Store>,
    offsets: &[u64],
    n: usize,
    take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bytes = vec![0; n * WIDTH];
    for &offset in offsets {
        store.read(offset, &mut bytes)?;
        take(&bytes)?;
    }
    Ok(())
}

/// The elements of a stored row.
pub(super) fn elements(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<WIDTH>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())
}

/// Reads the rows of `n` elements that lie at `offsets`, one after the other.
pub(super) fn read_rows(store: &Mutex<Store>, offsets: &[u64], n: usize) -> io::Result<Vec<f32>> {
    let mut rows = Vec::with_capacity(offsets.len() * n);
    each_row(store, offsets, n, &mut |bytes| {
        rows.extend(elements(bytes));
        io::Result::Ok(())
    })?;
    Ok(rows)
}

/// The `capacity` rows of the smallest keys among those offered so far.
#[derive(Debug, Default)]
pub(super) struct Reservoir {
    capacity: usize,
    /// Key and offset in the store, the largest key on top.
    kept: BinaryHeap<(u64, u64)>,
}

impl Reservoir {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, kept: BinaryHeap::new() }
    }

    /// Where a row of this key is to be written, if it stays: at `end`, or over the row that it drives out.
    pub(super) fn place(&mut self, key: u64, end: u64) -> Option<u64> {
        if self.kept.len() < self.capacity {
            self.kept.push((key, end));
            return Some(end);
        }
        let mut last = self.kept.peek_mut().filter(|last| key < last.0)?;
        *last = (key, last.1);
        Some(last.1)
    }

    /// Offsets of the rows, by key: an order that is random, and the same whatever order they came in.
    pub(super) fn offsets(self) -> Vec<u64> {
        self.kept.into_sorted_vec().into_iter().map(|(_, offset)| offset).collect()
    }
}

/// The key of a row: a well-mixed function of all its parts.
pub(super) fn key(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |hash, part| SplitMix64(hash ^ part).bits())
}

/// FNV-1a of a name.
pub(super) fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rows: &[u64], capacity: usize, memory: usize) -> Vec<f32> {
        let mut store = Store::spool(memory);
        let mut reservoir = Reservoir::new(capacity);
        let mut end = 0;
        for &row in rows {
            if let Some(at) = reservoir.place(key(&[7, row]), end) {
                let value = bf16::from_f32(row as f32).to_le_bytes();
                store.write(at, &[value, value].concat()).unwrap();
                end = end.max(at + 4);
            }
        }
        read_rows(&Mutex::new(store), &reservoir.offsets(), 2).unwrap()
    }

    #[test]
    fn the_order_of_coming_and_the_spill_to_disk_change_nothing() {
        let rows: Vec<u64> = (0..200).collect();
        let backwards: Vec<u64> = rows.iter().rev().copied().collect();
        let kept = sample(&rows, 16, 1 << 20);
        assert_eq!(kept.len(), 32);
        assert_eq!(kept, sample(&backwards, 16, 1 << 20));
        assert_eq!(kept, sample(&rows, 16, 5), "spilled from the second row on");
        let distinct: std::collections::BTreeSet<u32> = kept.iter().map(|x| *x as u32).collect();
        assert_eq!(distinct.len(), 16, "no row twice");
    }

    #[test]
    fn every_row_is_as_likely_as_another() {
        let mut counts = [0u32; 20];
        for seed in 0..2000 {
            let mut reservoir = Reservoir::new(5);
            for row in 0..20 {
                reservoir.place(key(&[seed, row]), row);
            }
            // Offsets are those of the first five, reused: what counts is which keys stay.
            let mut keys: Vec<(u64, u64)> = (0..20).map(|row| (key(&[seed, row]), row)).collect();
            keys.sort_unstable();
            let kept: Vec<u64> = reservoir.kept.iter().map(|k| k.0).collect();
            for (key, row) in &keys[..5] {
                assert!(kept.contains(key));
                counts[*row as usize] += 1;
            }
        }
        // 500 expected, standard deviation 19.
        assert!(counts.iter().all(|n| (400..600).contains(n)), "{counts:?}");
    }
}
