//! One tensor from its old bytes to its new ones: which way it is rounded, and what came of it.
//!
//! Whatever the way, the target is W' = W − s·R(RᵀW), columns scaled back to their lengths where that is asked for, and
//! the figures are measured on the bytes that come out.
#![forbid(unsafe_code)]

use std::io::Write;

use rayon::prelude::*;
use serde::Serialize;

use super::basis::Basis;
use super::descent::{Descent, Metric, Settings};
use super::figures::{Part, Totals};
use super::nearest::{Saturation, nearest};
use super::target::{Edit, Target};
use super::{PlannedTensor, RewriteError, Rows};
use crate::arch::Axis;
use crate::calibration::{Calibration, Inputs};
use crate::gguf::GgufFile;
use crate::quant::{self, CodecError, GgmlType, Grid};
use crate::random::SplitMix64;

/// How quantized tensors find their codes. Floats are written as exactly as they can be, whatever this says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rounding {
    /// Descent on the error of the output, for the inputs of a calibration.
    Descent(Settings),
    /// To the nearest code on the grid that is there, by the weights alone.
    Nearest,
    /// By ggml's own quantizer, scales anew.
    Reencode,
}

impl Default for Rounding {
    fn default() -> Self {
        Self::Descent(Settings::default())
    }
}

/// What a rewrite has to go by, beside its plan.
#[derive(Debug, Clone, Copy, Default)]
pub struct How<'a> {
    /// How codes are found.
    pub rounding: Rounding,
    /// The inputs of the writers; without them a quantized matrix cannot be rounded by descent.
    pub calibration: Option<&'a Calibration>,
    /// The same model at a higher precision: the edit then starts from its weights.
    pub source: Option<&'a GgufFile>,
    /// Of the order in which the descent visits columns.
    pub seed: u64,
}

/// The way a tensor went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Nothing was to be edited.
    Kept,
    /// Floats, each rounded to the nearest.
    Exact,
    /// [`Rounding::Nearest`].
    Nearest,
    /// [`Rounding::Reencode`], and types whose codes cannot be moved one at a time.
    Reencoded,
    /// [`Rounding::Descent`].
    Descent,
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Kept => "kept",
            Self::Exact => "exact",
            Self::Nearest => "nearest",
            Self::Reencoded => "re-encoded",
            Self::Descent => "descent",
        })
    }
}

/// What came of one slice.
#[derive(Debug)]
pub(super) struct Done {
    pub method: Method,
    pub totals: Totals,
    pub saturation: Saturation,
}

/// One slice of a tensor and all that its rounding needs.
pub(crate) struct Slice<'a> {
    pub planned: &'a PlannedTensor,
    /// R as this tensor sees it.
    pub basis: &'a Basis,
    /// As it lies in the file.
    pub matrix: Rows<'a>,
    /// W: the file's, or the source's.
    pub weights: Rows<'a>,
    pub has_source: bool,
    /// Its place in the tensor.
    pub index: usize,
    pub inputs: Option<&'a Inputs>,
    pub rounding: Rounding,
    pub seed: u64,
}

impl<'a> Slice<'a> {
    fn axis(&self) -> Axis {
        self.planned.writer.axis
    }

    fn grid(&self) -> Option<&'static Grid> {
        Grid::of(self.planned.out_type)
    }

    /// Whether the codes in the file are those of the type that is to be.
    fn keeps_type(&self) -> bool {
        self.planned.out_type == self.planned.r#type
    }

    /// Whether this slice is rounded as a whole, by its inputs: see [`Slice::descend`].
    pub fn descends(&self) -> bool {
        matches!(self.rounding, Rounding::Descent(_)) && self.axis() == Axis::Output && self.grid().is_some()
    }

    /// Bytes that [`Slice::descend`] holds at once, about: error, codes, images, bytes.
    pub fn memory(&self) -> usize {
        let elements = self.matrix.n * self.matrix.rows;
        let samples = self.inputs.map_or(0, |inputs| inputs.n_fit(self.index));
        6 * elements + 8 * samples * self.matrix.n + 4 * samples.min(self.matrix.n) * self.matrix.rows
    }

    /// Writes the new bytes of a slice that does not [descend](Slice::descends).
    pub fn write(&self, out: &mut dyn Write) -> Result<Done, RewriteError> {
        let plain = self.keeps_type() && !self.has_source && !self.planned.preserve_norm;
        if let (Rounding::Nearest, Some(grid), true) = (self.rounding, self.grid(), plain) {
            return self.nearest(grid, out);
        }
        // Along rows there are no inputs.
        let held_out = match self.inputs {
            Some(inputs) if self.axis() == Axis::Output => inputs.held_out(self.index)?,
            _ => Vec::new(),
        };
        let target = self.target(&held_out)?;
        let along: f64 = target.meter().along().iter().flatten().map(|x| x * x).sum();
        if plain && self.axis() == Axis::Output && along == 0.0 {
            return self.keep(out);
        }
        let by_codes = match self.rounding {
            Rounding::Reencode => None,
            Rounding::Descent(settings) => self.grid().map(|grid| (grid, Some(settings))),
            Rounding::Nearest => self.grid().filter(|_| self.keeps_type()).map(|grid| (grid, None)),
        };
        let mut parts: Option<Part> = None;
        let mut saturation = Saturation::default();
        let make = |first: usize, w: Vec<f32>| {
            let ideal = target.ideal(first, &w);
            let old = self.matrix.bytes_of(first, w.len() / self.matrix.n);
            let untouched = |row: usize| {
                let range = row * self.matrix.n..(row + 1) * self.matrix.n;
                w[range.clone()].iter().zip(&ideal[range]).all(|(w, x)| f64::from(*w) == *x)
            };
            let keep: Vec<bool> = (0..w.len() / self.matrix.n).map(|row| plain && untouched(row)).collect();
            if keep.iter().all(|keep| *keep) {
                return Ok((old.to_vec(), target.measure(first, &w, &ideal, &w), Saturation::default()));
            }
            let (mut bytes, saturation) = match by_codes {
                Some((grid, settings)) => self.round_rows(grid, settings, first, &ideal, old)?,
                None => (self.encode(first, &ideal)?, Saturation::default()),
            };
            let size = bytes.len() / keep.len();
            for (row, _) in keep.iter().enumerate().filter(|(_, keep)| **keep) {
                bytes[row * size..(row + 1) * size].copy_from_slice(&old[row * size..(row + 1) * size]);
            }
            let written = self.decode(first, &bytes)?;
            Ok((bytes, target.measure(first, &w, &ideal, &written), saturation))
        };
        self.weights.each(make, |(bytes, part, of)| {
            out.write_all(&bytes)?;
            saturation.add(of);
            match &mut parts {
                None => parts = Some(part),
                Some(parts) => parts.add(&part),
            }
            Ok(())
        })?;
        let totals = parts.map_or_else(Totals::default, |parts| target.meter().totals(&parts));
        let method = match by_codes {
            _ if plain && totals.edit == 0.0 => Method::Kept,
            Some((_, Some(_))) => Method::Descent,
            Some((_, None)) => Method::Nearest,
            None if self.planned.is_quantized() => Method::Reencoded,
            None => Method::Exact,
        };
        Ok(Done { method, totals, saturation })
    }

    fn keep(&self, out: &mut dyn Write) -> Result<Done, RewriteError> {
        let mut weight = 0.0;
        self.weights.each(
            |_, w| Ok(w.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()),
            |square| {
                weight += square;
                Ok(())
            },
        )?;
        out.write_all(self.matrix.data)?;
        let totals = Totals { weight, ..Totals::default() };
        Ok(Done { method: Method::Kept, totals, saturation: Saturation::default() })
    }

    fn nearest(&self, grid: &Grid, out: &mut dyn Write) -> Result<Done, RewriteError> {
        // √s R in place of R makes the edit s·R(RᵀW), and what lies along it √s RᵀW.
        let s = self.planned.strength;
        let scaled = self.basis.iter().map(|r| r.iter().map(|x| s.sqrt() * x).collect()).collect();
        let basis = if s == 1.0 { self.basis } else { &scaled };
        let (mut totals, saturation) = nearest(self.matrix, grid, basis, self.axis(), out)?;
        totals.before /= s;
        totals.after /= s;
        let method = if totals.before > 0.0 { Method::Nearest } else { Method::Kept };
        Ok(Done { method, totals, saturation })
    }

    /// W' and its measure, on `inputs` (rows of n).
    fn target(&self, inputs: &[f32]) -> Result<Target<'a>, RewriteError> {
        let PlannedTensor { writer, strength, preserve_norm, .. } = self.planned;
        let edit =
            Edit { basis: self.basis, axis: writer.axis, strength: *strength, lengths: *preserve_norm };
        Target::new(edit, &self.weights, inputs)
    }

    /// Encodes rows by ggml, with the importance of the inputs where there is one.
    fn encode(&self, first: usize, ideal: &[f64]) -> Result<Vec<u8>, RewriteError> {
        let rows: Vec<f32> = ideal.iter().map(|x| *x as f32).collect();
        let (ty, n) = (self.planned.out_type, self.matrix.n);
        let of_inputs = self.inputs.map(|inputs| inputs.mean_square(self.index));
        // Rows that have no input, as an embedding's, count alike in every column.
        let even = vec![1.0; n];
        let importance = match of_inputs {
            Some(_) if Grid::of(ty).is_some() => None,
            None if ty.needs_importance() => Some(even.as_slice()),
            other => other,
        };
        quant::encode(ty, &rows, n, importance).map_err(|source| match source {
            CodecError::NonFinite { row, .. } | CodecError::Range { row, .. } => {
                self.out_of_range(first + row)
            }
            source => RewriteError::Type { tensor: self.matrix.name.into(), source },
        })
    }

    /// What written bytes decode to; from row `first` on.
    fn decode(&self, first: usize, bytes: &[u8]) -> Result<Vec<f32>, RewriteError> {
        let ty: GgmlType = self.planned.out_type;
        let row = ty.row_size(self.matrix.n as u64).map_or(1, |size| size as usize);
        let mut out = vec![0.0; bytes.len() / row * self.matrix.n];
        quant::decode(ty, bytes, &mut out)
            .map_err(|source| RewriteError::Type { tensor: self.matrix.name.into(), source })?;
        match out.iter().position(|x| !x.is_finite()) {
            None => Ok(out),
            Some(i) => Err(self.out_of_range(first + i / self.matrix.n)),
        }
    }

    fn out_of_range(&self, row: usize) -> RewriteError {
        RewriteError::Range {
            tensor: self.matrix.name.into(),
            row: (self.matrix.first_row + row) as u64,
            ty: self.planned.out_type,
        }
    }

    fn random(&self, from: usize) -> SplitMix64 {
        let name =
            self.matrix.name.bytes().fold(self.seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        SplitMix64(name ^ ((self.matrix.first_row + from) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Rows that stand for themselves, at the nearest codes and, with settings, by descent within each row.
    fn round_rows(
        &self,
        grid: &Grid,
        settings: Option<Settings>,
        first: usize,
        ideal: &[f64],
        old: &[u8],
    ) -> Result<(Vec<u8>, Saturation), RewriteError> {
        let bytes = if self.keeps_type() { old.to_vec() } else { self.encode(first, ideal)? };
        let mut codes = Codes::of(grid, bytes);
        let mut error = codes.nearest(ideal);
        if let Some(settings) = settings.filter(|_| self.axis() == Axis::Row) {
            let along: Vec<Vec<f32>> = narrow(self.basis);
            let metric = Metric::of_rows(&along, self.matrix.n, settings.mu_rows);
            codes.descend(&metric, &[], &settings, &mut error, &mut self.random(first));
        }
        let saturation = codes.saturation(&error);
        Ok((codes.into_bytes(), saturation))
    }

    /// The new bytes of a slice that [descends](Slice::descends).
    pub fn descend(&self) -> Result<(Vec<u8>, Done), RewriteError> {
        let (Rounding::Descent(settings), Some(grid)) = (self.rounding, self.grid()) else {
            unreachable!("asked for only where it descends");
        };
        let settings = settings.for_size(self.matrix.n * self.matrix.rows);
        let inputs = self.inputs.ok_or_else(|| RewriteError::Uncalibrated {
            tensor: self.matrix.name.into(),
            ty: self.planned.out_type,
        })?;
        let target = self.target(&inputs.held_out(self.index)?)?;
        let mut starts = Vec::new();
        if self.keeps_type() {
            starts.push(self.matrix.data.to_vec());
        }
        if self.has_source || !self.keeps_type() {
            let mut bytes = Vec::new();
            self.weights.each(
                |first, w| self.encode(first, &target.ideal(first, &w)),
                |part| {
                    bytes.extend(part);
                    Ok(())
                },
            )?;
            starts.push(bytes);
        }
        let metric = Metric::new(&inputs.fit(self.index)?, inputs.mean_square(self.index), settings.damping);
        let along = narrow(self.basis);
        let mut best: Option<(f64, Vec<u8>, Saturation)> = None;
        for start in starts {
            let (left, bytes, saturation) =
                self.descend_from(grid, start, &target, &metric, &along, &settings)?;
            if best.as_ref().is_none_or(|(least, ..)| left < *least) {
                best = Some((left, bytes, saturation));
            }
        }
        let (_, bytes, saturation) = best.expect("there is one start at least");
        let mut parts: Option<Part> = None;
        let size = bytes.len() / self.matrix.rows;
        let measure = |first: usize, w: Vec<f32>| {
            let rows = w.len() / self.matrix.n;
            let written = self.decode(first, &bytes[first * size..(first + rows) * size])?;
            Ok(target.measure(first, &w, &target.ideal(first, &w), &written))
        };
        self.weights.each(measure, |part| {
            match &mut parts {
                None => parts = Some(part),
                Some(parts) => parts.add(&part),
            }
            Ok(())
        })?;
        let totals = parts.map_or_else(Totals::default, |parts| target.meter().totals(&parts));
        Ok((bytes, Done { method: Method::Descent, totals, saturation }))
    }

    /// J, bytes and saturation of a descent that starts at these bytes.
    fn descend_from(
        &self,
        grid: &Grid,
        start: Vec<u8>,
        target: &Target<'_>,
        metric: &Metric,
        along: &[Vec<f32>],
        settings: &Settings,
    ) -> Result<(f64, Vec<u8>, Saturation), RewriteError> {
        let mut codes = Codes::of(grid, start);
        let mut error = Vec::with_capacity(self.matrix.n * self.matrix.rows);
        let n = self.matrix.n;
        // The rows' ideals come in order, so the codes can follow them.
        self.weights.each(
            |first, w| Ok((first, target.ideal(first, &w))),
            |(first, ideal)| {
                error.extend(codes.nearest_from(first * n, &ideal));
                Ok(())
            },
        )?;
        let left = codes.descend(metric, along, settings, &mut error, &mut self.random(0));
        let saturation = codes.saturation(&error);
        Ok((left, codes.into_bytes(), saturation))
    }
}

fn narrow(basis: &Basis) -> Vec<Vec<f32>> {
    basis.iter().map(|r| r.iter().map(|x| *x as f32).collect()).collect()
}

/// Blocks taken apart.
struct Codes<'a> {
    grid: &'a Grid,
    blocks: Vec<u8>,
    codes: Vec<u8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

impl<'a> Codes<'a> {
    fn of(grid: &'a Grid, blocks: Vec<u8>) -> Self {
        let elements = blocks.len() / grid.block_bytes() * grid.block();
        let mut codes = vec![0; elements];
        let (mut scales, mut offsets) =
            (vec![0.0; elements / grid.group()], vec![0.0; elements / grid.group()]);
        grid.unpack(&blocks, &mut codes, &mut scales, &mut offsets);
        Self { grid, blocks, codes, scales, offsets }
    }

    fn nearest(&mut self, ideal: &[f64]) -> Vec<f32> {
        self.nearest_from(0, ideal)
    }

    /// Moves the codes from element `from` on to those nearest to `ideal`; returns what is then off.
    fn nearest_from(&mut self, from: usize, ideal: &[f64]) -> Vec<f32> {
        let (grid, group) = (self.grid, self.grid.group());
        let last = grid.levels().len() - 1;
        let mut error = Vec::with_capacity(ideal.len());
        for (g, ideal) in ideal.chunks(group).enumerate() {
            let (scale, offset) = (self.scales[from / group + g], self.offsets[from / group + g]);
            let off = |code: usize, x: f64| f64::from(grid.value(scale, offset, code as u8)) - x;
            for (code, x) in self.codes[from + g * group..][..ideal.len()].iter_mut().zip(ideal) {
                // Levels ascend, so walking towards the target finds the nearest; a tie keeps the code.
                let mut at = usize::from(*code);
                let mut left = off(at, *x);
                loop {
                    let up = if at < last { off(at + 1, *x) } else { f64::INFINITY };
                    let down = if at > 0 { off(at - 1, *x) } else { f64::INFINITY };
                    if up.abs() < left.abs() && up.abs() <= down.abs() {
                        (at, left) = (at + 1, up);
                    } else if down.abs() < left.abs() {
                        (at, left) = (at - 1, down);
                    } else {
                        break;
                    }
                }
                *code = at as u8;
                error.push(left as f32);
            }
        }
        error
    }

    /// Which of the elements have no place on the grid as its scales now are; `error` is what is off.
    fn saturation(&self, error: &[f32]) -> Saturation {
        let (grid, group) = (self.grid, self.grid.group());
        let last = (grid.levels().len() - 1) as u8;
        let mut saturation = Saturation::default();
        for (g, (codes, error)) in self.codes.chunks(group).zip(error.chunks(group)).enumerate() {
            let value = |code: u8| f64::from(grid.value(self.scales[g], self.offsets[g], code));
            // Half a step beyond each end, in the order of the codes; a negative scale turns them around.
            let beyond = |end: u8, inner: u8| value(end) + (0.5 + 1e-6) * (value(end) - value(inner));
            let (a, b) = (beyond(0, 1), beyond(last, last - 1));
            let (low, high) = (a.min(b), a.max(b));
            for (code, e) in codes.iter().zip(error) {
                let e = f64::from(*e);
                let ideal = value(*code) - e;
                // Where the scale is 0, what is not on the one value is off; sums that cancel may leave a trace.
                if (ideal < low || ideal > high) && e.abs() > 1e-12 {
                    saturation.elements += 1;
                    saturation.left += e * e;
                }
            }
        }
        saturation
    }

    /// Descends; returns what is left of J.
    fn descend(
        &mut self,
        metric: &Metric,
        along: &[Vec<f32>],
        settings: &Settings,
        error: &mut [f32],
        random: &mut SplitMix64,
    ) -> f64 {
        let mut descent = Descent {
            grid: self.grid,
            metric,
            along,
            mu: settings.mu,
            blocks: &mut self.blocks,
            codes: &mut self.codes,
            scales: &mut self.scales,
            offsets: &mut self.offsets,
            image: metric.image(error),
            error,
        };
        descent.run(settings, random)[1]
    }

    fn into_bytes(mut self) -> Vec<u8> {
        self.grid.pack(&self.codes, &mut self.blocks);
        self.blocks
    }
}

/// Runs the descents of slices that stand side by side; the order of the results is theirs.
pub(super) fn descend_all(slices: &[Slice<'_>]) -> Vec<Result<(Vec<u8>, Done), RewriteError>> {
    slices.par_iter().map(Slice::descend).collect()
}
