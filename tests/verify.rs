//! The proof of a rewrite, on files that are made by hand: parts of an edit, other types, and changes that nobody asked for.
#![forbid(unsafe_code)]

mod support;

use std::path::{Path, PathBuf};

use ggsteer::direction::{Direction, Provenance};
use ggsteer::gguf::{GgufFile, TensorInfo, Writer};
use ggsteer::quant::{self, GgmlType};
use ggsteer::rewrite::{Record, RewriteError, TensorCheck, Tied, Verification, VerifyError, verify};
use support::tiny::{self, Arch, Spec, project_out, unit};

const PARTLY: &str = "blk.0.ffn_down.weight";
const RETYPED: &str = "blk.1.attn_output.weight";
const TOUCHED: &str = "blk.2.ffn_up.weight";

struct Bench {
    _folder: tempfile::TempDir,
    original: PathBuf,
    out: PathBuf,
    direction: Direction,
}

fn values(file: &GgufFile, info: &TensorInfo) -> Vec<f32> {
    let mut values = vec![0.0; info.elements() as usize];
    quant::decode(info.ty, file.tensor_data(info), &mut values).unwrap();
    values
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (original, out) = (folder.path().join("original.gguf"), folder.path().join("out.gguf"));
        tiny::Model::random(Spec { tied: false, ..Spec::new(Arch::Llama) }).write(&original).unwrap();
        let direction = Direction::new(unit(64, 3), 1, Provenance::default()).unwrap();
        Self { _folder: folder, original, out, direction }
    }

    fn open(&self) -> GgufFile {
        GgufFile::open(&self.original).unwrap()
    }

    /// Writes `out` as the original with the record's keys, its tensors as `edit` gives them.
    fn write(&self, record: &Record, edit: impl Fn(&TensorInfo, &mut Vec<f32>) -> GgmlType) {
        let file = self.open();
        let mut writer = Writer::new();
        for (key, value) in file.metadata().iter().cloned().chain(record.keys()) {
            writer = writer.key(key, value);
        }
        let mut data = Vec::new();
        for info in file.tensors() {
            let mut values = values(&file, info);
            let ty = edit(info, &mut values);
            writer = writer.tensor(info.name.as_str(), info.shape(), ty);
            data.push(quant::encode(ty, &values, info.ne[0] as usize, None).unwrap());
        }
        let mut stream = writer.start(Vec::new()).unwrap();
        data.iter().for_each(|bytes| stream.data(bytes).unwrap());
        std::fs::write(&self.out, stream.finish().unwrap()).unwrap();
    }

    fn verify(&self) -> Verification {
        let out = GgufFile::open(&self.out).unwrap();
        let inputs = |file: &GgufFile, name: &str| {
            let mut random = tiny::Random(5);
            let n = file.tensor(name).unwrap().ne[0] as usize;
            (0..24 * n).map(|_| random.spread()).collect::<Vec<f32>>()
        };
        let file = self.open();
        let held_out = &mut |name: &str, _| Ok::<_, RewriteError>(inputs(&file, name));
        let mut steps = 0;
        let directions = std::slice::from_ref(&self.direction);
        let found = verify(&file, &out, directions, Tied::Edit, None, held_out, &mut || steps += 1).unwrap();
        assert_eq!(steps, file.tensors().len() + 7);
        found
    }

    /// The record of an edit of two tensors, one of them by a quarter.
    fn record(&self) -> Record {
        Record {
            tensors: Some(vec![PARTLY.into(), RETYPED.into()]),
            strengths: Some(vec![0.25, 1.0]),
            ..Record::new("orthogonalize", &self.open(), std::slice::from_ref(&self.direction))
        }
    }

    /// W − s·r(rᵀW), n_out × n_in.
    fn erase(&self, w: &mut [f32], n_in: usize, strength: f32) {
        for i in 0..n_in {
            let mut column: Vec<f32> = w.iter().skip(i).step_by(n_in).copied().collect();
            let before = column.clone();
            project_out(&mut column, &self.direction.vector);
            let both = before.iter().zip(&column);
            for (w, (x, y)) in w.iter_mut().skip(i).step_by(n_in).zip(both) {
                *w = x + strength * (y - x);
            }
        }
    }
}

fn of<'a>(found: &'a Verification, name: &str) -> &'a TensorCheck {
    found.tensors.iter().find(|t| t.name == name).unwrap()
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 0.01, "{found}, expected {expected}");
}

#[test]
fn a_part_of_an_edit_and_another_type_are_measured_as_the_file_says() {
    let bench = Bench::new();
    bench.write(&bench.record(), |info, values| {
        let n_in = info.ne[0] as usize;
        match info.name.as_str() {
            PARTLY => bench.erase(values, n_in, 0.25),
            RETYPED => {
                bench.erase(values, n_in, 1.0);
                return GgmlType::F16;
            }
            _ => {}
        }
        info.ty
    });
    let found = bench.verify();
    assert_eq!(found.differences, []);
    assert!(found.has_provenance && !found.untied);
    assert_eq!(found.n_untouched, bench.open().tensors().len() - 2);

    let partly = of(&found, PARTLY);
    assert_eq!(
        (partly.strength, partly.type_before, partly.type_after),
        (0.25, GgmlType::F32, GgmlType::F32)
    );
    near(partly.figures.leak, 0.75);
    near(partly.figures.data_leak.unwrap(), 0.75);
    near(partly.figures.edit_error.unwrap(), 0.0);
    near(partly.figures.distance, 0.0);
    assert!(partly.bytes_changed > 0 && partly.bytes_changed < partly.bytes);

    let retyped = of(&found, RETYPED);
    assert_eq!((retyped.type_before, retyped.type_after), (GgmlType::F32, GgmlType::F16));
    assert_eq!(retyped.bytes_changed, retyped.bytes);
    assert!(retyped.figures.leak < 0.01 && retyped.figures.edit_error.unwrap() < 0.01);

    let other = of(&found, "blk.2.ffn_down.weight");
    assert_eq!((other.strength, other.bytes_changed, other.figures.distance), (0.0, 0, 0.0));
    near(other.figures.leak, 1.0);
    near(of(&found, "token_embd.weight").figures.leak, 1.0);
    assert_eq!(of(&found, "token_embd.weight").figures.data_leak, None);
}

#[test]
fn an_edit_that_was_said_and_not_made_shows_in_the_figures() {
    let bench = Bench::new();
    bench.write(&bench.record(), |info, _| info.ty);
    let found = bench.verify();
    let retyped = of(&found, RETYPED).figures;
    near(retyped.leak, 1.0);
    near(retyped.edit_error.unwrap(), 1.0);
    near(retyped.distance, 1.0);
}

#[test]
fn changes_that_nobody_asked_for_are_all_told() {
    let bench = Bench::new();
    let mut record = bench.record();
    record.tensors.as_mut().unwrap().push(TOUCHED.into());
    record.strengths = None;
    let second = Direction::new(unit(64, 8), 1, Provenance::default()).unwrap();
    record.directions[0].sha256 = second.sha256();
    record.source = "another".into();
    bench.write(&record, |info, values| match info.name.as_str() {
        TOUCHED => {
            values[9] += 1.0;
            info.ty
        }
        "output.weight" => GgmlType::F16,
        _ => info.ty,
    });
    let found = bench.verify().differences;
    let kinds: Vec<&str> = (found.iter())
        .map(|difference| match difference {
            VerifyError::Source { expected, .. } if expected == "another" => "source",
            VerifyError::Direction { index: 0, .. } => "direction",
            VerifyError::NoWriter { name } if name == TOUCHED => "no writer",
            VerifyError::Bytes { name, at: 36..=39 } if name == TOUCHED => "bytes",
            VerifyError::Tensors { expected, found, .. }
                if expected.contains("f32") && found.contains("output.weight") && found.contains("f16") =>
            {
                "type"
            }
            _ => "other",
        })
        .collect();
    let mut expected = ["source", "direction", "no writer", "bytes", "type"];
    let mut kinds = kinds;
    kinds.sort_unstable();
    expected.sort_unstable();
    assert_eq!(kinds, expected, "{found:?}");
}

#[test]
fn what_cannot_be_compared_is_an_error() {
    let bench = Bench::new();
    bench.write(&bench.record(), |info, values| {
        if info.name == PARTLY {
            values[70] = 1e30;
        }
        info.ty
    });
    let (file, out) = (bench.open(), GgufFile::open(&bench.out).unwrap());
    let run = |vector: Vec<f32>, file: &GgufFile, out: &GgufFile| {
        let direction = Direction { vector, ..bench.direction.clone() };
        let none = &mut |_: &str, _| Ok::<_, RewriteError>(Vec::new());
        verify(file, out, &[direction], Tied::Edit, None, none, &mut || ()).map(|_| ()).unwrap_err()
    };
    assert!(matches!(run(unit(32, 1), &file, &out), RewriteError::Width { expected: 64, found: 32, .. }));
    assert!(matches!(run(vec![f32::NAN; 64], &file, &out), RewriteError::NotFinite { .. }));
    assert!(matches!(run(vec![0.0; 64], &file, &out), RewriteError::Dependent { .. }));
    break_weight(&bench.out, 1e30, f32::NAN);
    let broken = GgufFile::open(&bench.out).unwrap();
    let error = run(unit(64, 3), &file, &broken);
    assert!(
        matches!(&error, RewriteError::Weight { tensor, row: 0, column: 70, .. } if tensor == PARTLY),
        "{error}"
    );
}

/// Puts another value where `old` stands.
fn break_weight(path: &Path, old: f32, new: f32) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(4).position(|w| w == old.to_le_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}
