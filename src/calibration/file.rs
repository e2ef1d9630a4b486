//! Calibration files: a GGUF of its own kind.
//!
//! For each writer W of ne = [n_in, n_embd(, n_expert)]: `W.fit` and `W.held_out`, BF16 of ne = [n_in, n_rows, n_slices]
//! with zeros behind the rows of a slice that has fewer; `W.mean_square`, F32 of ne = [n_in, n_slices]; `W.counts`, I64
//! of ne = [3, n_slices]: tokens seen, rows to fit on, rows held out. A sample without rows has no tensor.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::sample::{Store, WIDTH, each_row, elements};
use super::{Calibration, CalibrationError, Inputs, Origin, Slice};
use crate::direction::Provenance;
use crate::gguf::{Array, GgufError, GgufFile, TensorInfo, TensorStream, Value, Writer};
use crate::output::OutputFile;
use crate::quant::GgmlType;

/// `general.architecture` of a calibration file.
pub(crate) const KIND: &str = "ggsteer-calibration";

/// What a tensor of ours is called after its writer.
const SUFFIXES: [&str; 4] = [".counts", ".mean_square", ".fit", ".held_out"];

const I64: GgmlType = GgmlType::I64;

impl Calibration {
    /// Writes a calibration file.
    ///
    /// # Errors
    /// A disk that refuses, a temporary file that cannot be read back.
    pub fn save_to(&self, mut out: OutputFile) -> Result<(), CalibrationError> {
        let mut writer = Writer::new().key("general.architecture", KIND);
        if let Some(architecture) = &self.origin.source.architecture {
            writer = writer.key("ggsteer.model.architecture", architecture.as_str());
        }
        for (key, value) in self.origin.source.origin_keys() {
            writer = writer.key(key, value);
        }
        writer = writer
            .key("ggsteer.calibration.seed", self.origin.seed)
            .key("ggsteer.calibration.generated", self.origin.generated as u64)
            .key("ggsteer.calibration.ablated", Array::String(self.origin.ablated.clone()));
        for (name, inputs) in &self.inputs {
            let (n_in, n_slices) = (inputs.n_in as u64, inputs.slices.len() as u64);
            let tensor = |suffix: &str| format!("{name}{suffix}");
            writer = writer.tensor(tensor(".counts"), &[3, n_slices], I64).tensor(
                tensor(".mean_square"),
                &[n_in, n_slices],
                GgmlType::F32,
            );
            for (suffix, rows) in samples(inputs) {
                if rows.most > 0 {
                    let ne = [n_in, rows.most as u64, n_slices];
                    writer = writer.tensor(tensor(suffix), &ne, GgmlType::BF16);
                }
            }
        }
        let written = writer.start(&mut out).map_err(CalibrationError::Write).and_then(|mut stream| {
            self.inputs.values().try_for_each(|inputs| write(inputs, &mut stream))?;
            stream.finish().and_then(|out| Ok(out.flush()?)).map_err(CalibrationError::Write)
        });
        written?;
        Ok(out.commit()?)
    }

    /// Opens a calibration file and checks all of it. The rows stay there until they are asked for.
    ///
    /// # Errors
    /// See [`CalibrationError`].
    pub fn load(path: &Path) -> Result<Self, CalibrationError> {
        let fail = |source| match source {
            // Names the path itself.
            GgufError::Io { path, source } => {
                CalibrationError::Gguf { path, source: GgufError::Write(source) }
            }
            source => CalibrationError::Gguf { path: path.to_path_buf(), source },
        };
        let io = |source| fail(GgufError::Io { path: path.to_path_buf(), source });
        let file = GgufFile::open(path).map_err(fail)?;
        let kind = file.arch().map_err(fail)?;
        // What is no part of a split model is one file.
        let ([part], KIND) = (file.parts(), kind) else {
            return Err(CalibrationError::Kind {
                path: path.to_path_buf(),
                expected: "a calibration file of ggsteer",
                key: "architecture",
                found: format!("{kind:?}"),
            });
        };
        let mut source = Provenance::read(&file);
        source.architecture = file.get_str("ggsteer.model.architecture").ok().map(Into::into);
        let ablated = match file.require("ggsteer.calibration.ablated").map_err(fail)? {
            Value::Array(Array::String(hashes)) => hashes.clone(),
            _ => Vec::new(),
        };
        let origin = Origin {
            source,
            seed: file.get_u64("ggsteer.calibration.seed").map_err(fail)?,
            generated: file.get_u64("ggsteer.calibration.generated").map_err(fail)? as usize,
            ablated,
        };
        let store = Arc::new(Mutex::new(Store::File(part.file().try_clone().map_err(io)?)));
        let reader = Reader { file: &file, path, store: &store };
        let mut calibration = Self { inputs: std::collections::BTreeMap::new(), origin };
        for info in file.tensors() {
            let named = SUFFIXES.iter().find_map(|s| Some((info.name.strip_suffix(s)?, *s)));
            let (name, suffix) = named.ok_or_else(|| {
                reader.wrong(&info.name, format!("a name that ends in {}", SUFFIXES.join(", ")), "it".into())
            })?;
            if suffix == SUFFIXES[0] {
                calibration.inputs.insert(name.into(), reader.inputs(name, info)?);
            } else if file.tensor(&format!("{name}{}", SUFFIXES[0])).is_none() {
                return Err(reader.wrong(&format!("{name}{}", SUFFIXES[0]), "it".into(), "nothing".into()));
            }
        }
        Ok(calibration)
    }
}

/// The rows of one kind in all slices of a writer, and the most that a slice has.
struct Rows<'a> {
    slices: Vec<&'a [u64]>,
    most: usize,
}

fn samples(inputs: &Inputs) -> [(&'static str, Rows<'_>); 2] {
    let rows = |of: fn(&Slice) -> &Vec<u64>| {
        let slices: Vec<&[u64]> = inputs.slices.iter().map(|s| of(s).as_slice()).collect();
        Rows { most: slices.iter().map(|s| s.len()).max().unwrap_or(0), slices }
    };
    [(SUFFIXES[2], rows(|s| &s.fit)), (SUFFIXES[3], rows(|s| &s.held_out))]
}

fn write<W: Write>(inputs: &Inputs, stream: &mut TensorStream<W>) -> Result<(), CalibrationError> {
    let counts = inputs.slices.iter().flat_map(|s| [s.count, s.fit.len() as u64, s.held_out.len() as u64]);
    let counts: Vec<u8> = counts.flat_map(u64::to_le_bytes).collect();
    stream.data(&counts).map_err(CalibrationError::Write)?;
    for slice in &inputs.slices {
        let bytes: Vec<u8> = slice.mean_square.iter().flat_map(|x| x.to_le_bytes()).collect();
        stream.data(&bytes).map_err(CalibrationError::Write)?;
    }
    let zeros = vec![0; inputs.n_in * WIDTH];
    for (_, rows) in samples(inputs) {
        for offsets in &rows.slices {
            each_row(&inputs.store, offsets, inputs.n_in, &mut |row| {
                stream.data(row).map_err(CalibrationError::Write)
            })?;
            (offsets.len()..rows.most)
                .try_for_each(|_| stream.data(&zeros))
                .map_err(CalibrationError::Write)?;
        }
    }
    Ok(())
}

struct Reader<'a> {
    file: &'a GgufFile,
    path: &'a Path,
    store: &'a Arc<Mutex<Store>>,
}

impl Reader<'_> {
    fn wrong(&self, name: &str, expected: String, found: String) -> CalibrationError {
        CalibrationError::Tensor { path: self.path.into(), name: name.into(), expected, found }
    }

    /// The tensor `{name}{suffix}` if it is of this type and shape.
    fn tensor(&self, name: &str, ty: GgmlType, ne: [u64; 3]) -> Result<&TensorInfo, CalibrationError> {
        let info = self.file.tensor(name);
        info.filter(|t| t.ty == ty && t.ne == [ne[0], ne[1], ne[2], 1]).ok_or_else(|| {
            let found = info.map_or("nothing".into(), |t| format!("{} {:?}", t.ty, t.shape()));
            self.wrong(name, format!("{ty} {ne:?}"), found)
        })
    }

    fn inputs(&self, name: &str, counts: &TensorInfo) -> Result<Inputs, CalibrationError> {
        let n_slices = counts.ne[1];
        self.tensor(&counts.name, I64, [3, n_slices, 1])?;
        let squares_name = format!("{name}{}", SUFFIXES[1]);
        let n_in = self.file.tensor(&squares_name).map_or(1, |t| t.ne[0].max(1));
        let squares = self.tensor(&squares_name, GgmlType::F32, [n_in, n_slices, 1])?;
        let mean_squares: Vec<f32> = self
            .file
            .tensor_data(squares)
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect();
        if let Some(i) = mean_squares.iter().position(|x| !(x.is_finite() && *x >= 0.0)) {
            let found = format!("{} at element {i}", mean_squares[i]);
            return Err(self.wrong(&squares_name, "mean squares".into(), found));
        }
        let counts_bytes = self.file.tensor_data(counts).as_chunks::<8>().0;
        let numbers: Vec<u64> = counts_bytes.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let numbers = numbers.as_chunks::<3>().0;
        let mut slices: Vec<Slice> = (numbers.iter().zip(mean_squares.chunks_exact(n_in as usize)))
            .map(|(n, squares)| Slice {
                fit: Vec::new(),
                held_out: Vec::new(),
                mean_square: squares.to_vec(),
                count: n[0],
            })
            .collect();
        for (which, suffix) in SUFFIXES[2..].iter().enumerate() {
            let most = numbers.iter().map(|n| n[1 + which]).max().unwrap_or(0);
            if most == 0 {
                continue;
            }
            let info = self.tensor(&format!("{name}{suffix}"), GgmlType::BF16, [n_in, most, n_slices])?;
            let start = self.file.data_range(info).start as u64;
            let row = n_in * WIDTH as u64;
            for (i, (slice, n)) in slices.iter_mut().zip(numbers).enumerate() {
                let offsets: Vec<u64> =
                    (0..n[1 + which]).map(|k| start + (i as u64 * most + k) * row).collect();
                self.check(info, &offsets, n_in as usize)?;
                *if which == 0 { &mut slice.fit } else { &mut slice.held_out } = offsets;
            }
        }
        if let Some(slice) = slices.iter().find(|s| (s.fit.len() as u64) > s.count) {
            let found = format!("{} rows of {} tokens", slice.fit.len(), slice.count);
            return Err(self.wrong(&counts.name, "no more rows than tokens".into(), found));
        }
        Ok(Inputs { n_in: n_in as usize, slices, store: Arc::clone(self.store) })
    }

    /// Whether every element of the rows is a number.
    fn check(&self, info: &TensorInfo, offsets: &[u64], n_in: usize) -> Result<(), CalibrationError> {
        let mut row = 0;
        each_row(self.store, offsets, n_in, &mut |bytes| {
            if let Some((i, x)) = elements(bytes).enumerate().find(|(_, x)| !x.is_finite()) {
                let found = format!("{x} at element {i} of row {row}");
                return Err(self.wrong(&info.name, "numbers".into(), found));
            }
            row += 1;
            Ok(())
        })
    }
}
