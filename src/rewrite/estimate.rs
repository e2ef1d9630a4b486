//! How long a rewrite will take: a few rows of each kind of tensor are rounded, and the rest follows.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use super::basis::{Basis, seen_by};
use super::round::{How, Rounding, Slice};
use super::{Plan, PlannedTensor, RewriteError, Rows};
use crate::arch::Axis;
use crate::calibration::{self, Calibration, Collector, Origin, Target, default_rows};
use crate::gguf::GgufFile;
use crate::quant::GgmlType;
use crate::random::SplitMix64;
use crate::runtime::{Site, Token};

/// Rows tried, of each kind: the two give what every slice costs and what each row does.
const FEW: usize = 8;
const MORE: usize = 40;

/// Bytes a second at which what is not edited is taken to be copied: that of a plain solid-state disk.
const COPY: f64 = 1e9;

/// About how long [`execute`](super::execute) will take, on the threads of the present pool, without the verification
/// behind it.
///
/// The rounding is measured in place, on a few rows of every kind of tensor and, where `how` has no calibration yet, with
/// random inputs, as many as one collects by default; the copying is taken at 1 GB a second.
///
/// # Errors
/// Weights that cannot be decoded or are not finite in the rows tried.
pub fn estimate(file: &GgufFile, plan: &Plan, how: &How<'_>) -> Result<Duration, RewriteError> {
    let mut kinds: HashMap<Kind, [f64; 2]> = HashMap::new();
    let mut seconds = 0.0;
    for planned in &plan.tensors {
        let kind = Kind::of(planned);
        let [slice, row] = match kinds.get(&kind) {
            Some(cost) => *cost,
            None => *kinds.entry(kind).or_insert(measure(file, plan, planned, how)?),
        };
        let rows: u64 = planned.ne[1..].iter().product();
        let slices = if planned.writer.axis == Axis::Output { planned.ne[2] } else { 1 };
        seconds += slice * slices as f64 + row * rows as f64;
    }
    // Descents stand side by side, everything else uses all threads for one tensor: either way they share the work.
    let threads = rayon::current_num_threads() as f64;
    let copied: u64 = file.tensors().iter().map(|t| t.bytes).sum::<u64>() - plan.bytes() + plan.out_bytes();
    Ok(Duration::from_secs_f64(seconds / threads + copied as f64 / COPY))
}

/// What tensors of the same cost have in common.
#[derive(PartialEq, Eq, Hash)]
struct Kind(GgmlType, GgmlType, u64, Axis);

impl Kind {
    fn of(planned: &PlannedTensor) -> Self {
        Self(planned.r#type, planned.out_type, planned.ne[0], planned.writer.axis)
    }
}

/// Seconds on one thread for a slice, and for each of its rows.
fn measure(
    file: &GgufFile,
    plan: &Plan,
    planned: &PlannedTensor,
    how: &How<'_>,
) -> Result<[f64; 2], RewriteError> {
    let name = &planned.writer.tensor;
    let other = || RewriteError::OtherFile { tensor: name.clone() };
    let info = file.tensor(name).ok_or_else(other)?;
    let Some(matrix) = Rows::slices(file, info, planned.writer.axis).first().copied() else {
        return Ok([0.0; 2]);
    };
    let mut random = None;
    let descends = matches!(how.rounding, Rounding::Descent(_));
    if descends && planned.needs_calibration() && how.calibration.is_none() {
        random = Some(random_inputs(planned)?);
    }
    let calibration = how.calibration.or(random.as_ref());
    let basis = seen_by(file, &planned.writer, &plan.basis)?;
    let time = |rows: usize| -> Result<f64, RewriteError> {
        let matrix = Rows { data: matrix.bytes_of(0, rows), rows, ..matrix };
        let cut: Basis = match planned.writer.axis {
            Axis::Output => basis.iter().map(|r| r[..rows].to_vec()).collect(),
            Axis::Row | Axis::Bias => basis.to_vec(),
        };
        let slice = Slice {
            planned,
            basis: &cut,
            matrix,
            weights: matrix,
            has_source: how.source.is_some(),
            index: 0,
            inputs: calibration.and_then(|all| all.inputs(name)),
            rounding: how.rounding,
            seed: how.seed,
        };
        let start = Instant::now();
        if slice.descends() && slice.inputs.is_some() {
            slice.descend()?;
        } else {
            slice.write(&mut io::sink())?;
        }
        Ok(start.elapsed().as_secs_f64())
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let (few, more) = (FEW.min(matrix.rows), MORE.min(matrix.rows));
    let both = || -> Result<[f64; 2], RewriteError> { Ok([time(few)?, time(more)?]) };
    let [short, long] = match &pool {
        Ok(pool) => pool.install(both)?,
        Err(_) => both()?,
    };
    let row = if more > few { (long - short).max(0.0) / (more - few) as f64 } else { 0.0 };
    Ok([(short - row * few as f64).max(0.0), row])
}

/// As many inputs of a matrix as are sampled by default.
fn random_inputs(planned: &PlannedTensor) -> Result<Calibration, RewriteError> {
    let n_in = planned.ne[0] as usize;
    let n_slices = planned.ne[2] as usize;
    let rows = default_rows(&Target { tensor: String::new(), n_in, n_slices });
    let targets = [Target { tensor: planned.writer.tensor.clone(), n_in, n_slices: 1 }];
    // The second of two is held out.
    let sequences = [vec![Token(0); rows], vec![Token(1); rows.div_ceil(4)]];
    let options = calibration::Options { rows: Some(rows), ..calibration::Options::default() };
    let mut collector = Collector::new(&targets, [&sequences, &[]], &options);
    let mut random = SplitMix64(1);
    for (job, sequence) in sequences.iter().enumerate() {
        for position in 1..=sequence.len() as i32 {
            let row: Vec<f32> = (0..n_in).map(|_| random.unit() as f32 - 0.5).collect();
            collector.add(job, -position, Site::WriterInput(&targets[0].tensor), &row);
        }
    }
    Ok(collector.finish(Origin::default())?)
}
