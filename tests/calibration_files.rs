//! Calibration files and imatrix files: what is written is read back, and what does not fit is refused.

use std::fs;
use std::path::{Path, PathBuf};

use ggsteer::arch::{Writer, writers};
use ggsteer::calibration::{Calibration, Collector, Imatrix, Options, Origin, Target, Whose};
use ggsteer::direction::Provenance;
use ggsteer::gguf::{Array, GgufFile, Value, Writer as GgufWriter, fingerprint};
use ggsteer::output::OutputFile;
use ggsteer::quant::GgmlType;
use ggsteer::runtime::{Site, Token};
use tempfile::TempDir;

mod program;
mod support;

use program::Folder;
use support::tiny::{Arch, Model, Random, Spec};
use support::writer as own;

/// A model file with experts in its FFN, and what is known of it.
struct Made {
    folder: TempDir,
    file: GgufFile,
    writers: Vec<Writer>,
    targets: Vec<Target>,
}

fn spec() -> Spec {
    Spec { n_layer: 2, experts: (3, 2), n_ff: 64, ..Spec::new(Arch::Llama) }
}

fn make(spec: Spec) -> Made {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    Model::random(spec).write(&path).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let writers = writers(&file).unwrap();
    let targets = Target::of(&file, &writers);
    Made { folder, file, writers, targets }
}

impl Made {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A calibration of random rows, as if `n` prompts of four tokens had been run; the last expert is never chosen.
    fn calibration(&self, n: usize) -> Calibration {
        let sequences: Vec<Vec<Token>> =
            (0..n as i32).map(|i| (0..4).map(|t| Token(10 * i + t)).collect()).collect();
        let options = Options { rows: Some(40), seed: 9, ..Options::default() };
        let (a, b) = sequences.split_at(n / 2);
        let mut collector = Collector::new(&self.targets, [a, b], &options);
        let mut random = Random(5);
        for job in 0..n {
            for position in -4..0 {
                for target in &self.targets {
                    let mut row = || (0..target.n_in).map(|_| 1e5 * random.spread()).collect::<Vec<f32>>();
                    let name = target.tensor.as_str();
                    if target.n_slices == 1 {
                        collector.add(job, position, Site::WriterInput(name), &row());
                    } else {
                        (0..2).for_each(|e| collector.add(job, position, Site::ExpertInput(name, e), &row()));
                    }
                }
            }
        }
        collector.finish(self.origin()).unwrap()
    }

    fn origin(&self) -> Origin {
        let source = Provenance {
            architecture: Some("llama".into()),
            model_fingerprint: Some(fingerprint(&self.file)),
            model_name: self.file.get_str("general.name").ok().map(Into::into),
            prompts_harmful_sha256: Some("ab".into()),
            n_harmful: Some(5),
            created_by: Some("test".into()),
            ..Provenance::default()
        };
        Origin { source, seed: 9, generated: 3, ablated: vec!["cd".into()] }
    }

    fn saved(&self, n: usize) -> PathBuf {
        let path = self.path("calibration.gguf");
        self.calibration(n).save_to(OutputFile::create(&path, true, &[]).unwrap()).unwrap();
        path
    }
}

#[test]
fn a_calibration_file_gives_everything_back() {
    let made = make(spec());
    let written = made.calibration(30);
    let read = Calibration::load(&made.saved(30)).unwrap();
    assert_eq!(read.origin(), written.origin());
    assert_eq!(read.tensors().collect::<Vec<_>>(), written.tensors().collect::<Vec<_>>());
    for target in &made.targets {
        let (a, b) = (written.inputs(&target.tensor).unwrap(), read.inputs(&target.tensor).unwrap());
        assert_eq!((a.n_in(), a.n_slices()), (b.n_in(), b.n_slices()));
        for slice in 0..target.n_slices {
            assert_eq!(a.count(slice), b.count(slice));
            assert_eq!(a.mean_square(slice), b.mean_square(slice));
            assert_eq!(a.fit(slice).unwrap(), b.fit(slice).unwrap());
            assert_eq!(a.held_out(slice).unwrap(), b.held_out(slice).unwrap());
            let expected = if slice == 2 { (0, 0) } else { (40, 10) };
            assert_eq!((b.n_fit(slice), b.n_held_out(slice)), expected);
        }
    }
    let fit = read.fits(&made.file, &made.writers, false).unwrap();
    assert_eq!((fit.whose, fit.unmeasured), (Whose::Exact, 0));
    let experts: Vec<(usize, usize)> = fit.thin.iter().map(|t| (t.slice, t.rows)).collect();
    assert_eq!(experts, [(2, 0), (2, 0)], "the expert that was never chosen is named");
}

/// The tensors and keys of a calibration file, to be spoilt.
struct Parts {
    keys: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, GgmlType, Vec<u8>)>,
}

impl Parts {
    fn of(path: &Path) -> Self {
        let file = GgufFile::open(path).unwrap();
        let tensor = |t: &ggsteer::gguf::TensorInfo| {
            (t.name.clone(), t.shape().to_vec(), t.ty, file.tensor_data(t).to_vec())
        };
        Self { keys: file.metadata().to_vec(), tensors: file.tensors().iter().map(tensor).collect() }
    }

    fn data(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.tensors.iter_mut().find(|t| t.0 == name).unwrap().3
    }

    fn write(&self, path: &Path) {
        let writer = self.keys.iter().fold(GgufWriter::new(), |w, (key, value)| w.key(key, value.clone()));
        let writer = self.tensors.iter().fold(writer, |w, (name, ne, ty, _)| w.tensor(name, ne, *ty));
        let mut stream = writer.start(fs::File::create(path).unwrap()).unwrap();
        self.tensors.iter().for_each(|(.., data)| stream.data(data).unwrap());
        stream.finish().unwrap();
    }
}

#[test]
fn a_spoilt_calibration_file_is_refused_with_the_place() {
    let made = make(spec());
    let good = made.saved(30);
    let bad = made.path("bad.gguf");
    let refused = |spoil: &dyn Fn(&mut Parts), words: &[&str]| {
        let mut parts = Parts::of(&good);
        spoil(&mut parts);
        parts.write(&bad);
        let error = Calibration::load(&bad).unwrap_err().to_string();
        assert!(error.contains("bad.gguf"), "{error}");
        words.iter().for_each(|word| assert!(error.contains(word), "{word:?} is missing: {error}"));
    };
    let down = "blk.1.ffn_down_exps.weight";
    refused(
        &|p| p.data(&format!("{down}.fit"))[2 * 130..][..2].copy_from_slice(&[0xc0, 0x7f]),
        &["blk.1.ffn_down_exps.weight.fit", "expected numbers", "NaN at element 2 of row 2"],
    );
    refused(
        &|p| p.data(&format!("{down}.mean_square"))[..4].copy_from_slice(&(-1f32).to_le_bytes()),
        &["blk.1.ffn_down_exps.weight.mean_square", "expected mean squares", "-1 at element 0"],
    );
    refused(
        &|p| p.data(&format!("{down}.counts"))[..8].copy_from_slice(&3u64.to_le_bytes()),
        &["blk.1.ffn_down_exps.weight.counts", "40 rows of 3 tokens"],
    );
    refused(
        &|p| p.data(&format!("{down}.counts"))[8..16].copy_from_slice(&u64::MAX.to_le_bytes()),
        &["blk.1.ffn_down_exps.weight.fit", "bf16 [64, 40, 3]"],
    );
    let gone =
        |suffix: &'static str| move |p: &mut Parts| p.tensors.retain(|t| t.0 != format!("{down}{suffix}"));
    for suffix in [".counts", ".mean_square", ".fit", ".held_out"] {
        refused(&gone(suffix), &[&format!("{down}{suffix}"), "found nothing"]);
    }
    refused(&|p| p.tensors[0].0 = "noise".into(), &["\"noise\"", "a name that ends in .counts"]);
    refused(
        &|p| p.keys[0].1 = "llama".into(),
        &["not a calibration file", "general.architecture is \"llama\""],
    );
    refused(
        &|p| p.keys.retain(|k| k.0 != "ggsteer.calibration.seed"),
        &["ggsteer.calibration.seed", "missing"],
    );

    let whole = fs::read(&good).unwrap();
    for end in [0, 20, 700, whole.len() / 2, whole.len() - 1] {
        fs::write(&bad, &whole[..end]).unwrap();
        let error = Calibration::load(&bad).unwrap_err().to_string();
        assert!(error.starts_with(bad.to_str().unwrap()), "{error}");
    }
    let error = Calibration::load(&made.path("none.gguf")).unwrap_err().to_string();
    assert!(error.contains("none.gguf") && error.contains("No such file"), "{error}");
}

#[test]
fn a_calibration_of_another_model_is_refused_and_of_another_quantization_named() {
    let made = make(spec());
    let calibration = Calibration::load(&made.saved(30)).unwrap();
    let fits = |other: &Made, accept: bool| calibration.fits(&other.file, &other.writers, accept);

    // The same name and shapes, other weights.
    let other = make(Spec { seed: 2, ..spec() });
    let fit = fits(&other, false).unwrap();
    let [a, b] =
        [&made.file, &other.file].map(|f| format!("\"tiny llama\" (fingerprint {:.12})", fingerprint(f)));
    assert_eq!(fit.whose, Whose::OtherFile { calibrated: a.clone(), here: b.clone() });
    assert!(fit.warnings()[0].contains(&a) && fit.warnings()[0].contains(&b), "{:?}", fit.warnings());

    // Another name: the user must say so.
    let name = ("general.name".to_string(), own::Value::Str("other".into()));
    let other = make(Spec { extra: vec![name], ..spec() });
    let error = fits(&other, false).unwrap_err().to_string();
    for word in ["\"tiny llama\"", "\"other\"", &fingerprint(&made.file)[..12], "--other-calibration"] {
        assert!(error.contains(word), "{word:?} is missing: {error}");
    }
    assert!(matches!(fits(&other, true).unwrap().whose, Whose::OtherFile { .. }));

    // Other shapes: never.
    for (other, words) in [
        (
            make(Spec { n_ff: 96, ..spec() }),
            ["blk.0.ffn_down_exps.weight", "expected inputs of 96", "found inputs of 64"],
        ),
        (make(Spec { experts: (4, 2), ..spec() }), ["blk.0.ffn_down_exps.weight", "4 slices", "3 slices"]),
        (
            make(Spec { n_layer: 3, ..spec() }),
            ["blk.2.attn_output.weight", "expected inputs of 64", "found none"],
        ),
        (
            make(Spec { n_layer: 1, ..spec() }),
            ["blk.1.attn_output.weight", "no such writer", "found its inputs"],
        ),
        (make(Spec::new(Arch::Qwen2)), ["architecture", "expected \"qwen2\"", "found \"llama\""]),
    ] {
        let error = fits(&other, true).unwrap_err().to_string();
        assert!(error.starts_with("calibration of another model"), "{error}");
        words.iter().for_each(|word| assert!(error.contains(word), "{word:?} is missing: {error}"));
    }
}

#[test]
fn too_few_rows_are_an_error_and_few_ones_a_figure() {
    let made = make(Spec { n_layer: 1, n_ff: 512, ..Spec::new(Arch::Llama) });
    let error = made.calibration(6).fits(&made.file, &made.writers, false).unwrap_err().to_string();
    assert_eq!(
        error,
        "calibration of \"blk.0.attn_output.weight\": 16 sampled rows, at least 32 are needed; calibrate with more \
         prompts"
    );
    let fit = made.calibration(12).fits(&made.file, &made.writers, false).unwrap();
    assert_eq!(fit.thin.len(), 1);
    assert_eq!(
        fit.warnings(),
        [
            "few sampled rows for the width of 1 of the inputs, the fewest for blk.0.ffn_down.weight (slice 0): 40, \
          should be 64; calibrate with more prompts"
        ]
    );
}

/// Sums of squares and counts of an imatrix.
struct Sums {
    name: &'static str,
    sums: Vec<Vec<f32>>,
    counts: Vec<f32>,
}

fn imatrix_entries() -> Vec<Sums> {
    let sums = |n: usize, scale: f32| (0..n).map(|j| scale * j as f32).collect::<Vec<f32>>();
    vec![
        Sums { name: "blk.0.attn_output.weight", sums: vec![sums(64, 8.0)], counts: vec![16.0] },
        Sums { name: "blk.0.attn_q.weight", sums: vec![sums(64, 1.0)], counts: vec![16.0] },
        Sums {
            name: "blk.0.ffn_down_exps.weight",
            sums: vec![sums(64, 4.0), sums(64, 0.0), sums(64, 9.0)],
            counts: vec![2.0, 0.0, 3.0],
        },
    ]
}

/// In the layout of llama.cpp's tool: for each matrix, sums of squares, counts and (in newer versions) sums.
fn gguf_imatrix(path: &Path, entries: &[Sums], with_sums: bool) {
    let floats = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut parts = Parts {
        keys: vec![
            ("general.type".into(), "imatrix".into()),
            ("imatrix.datasets".into(), Array::String(vec!["words.txt".into()]).into()),
            ("imatrix.chunk_count".into(), 4u32.into()),
            ("imatrix.chunk_size".into(), 512u32.into()),
        ],
        tensors: Vec::new(),
    };
    for Sums { name, sums, counts } in entries {
        let (n, slices) = (sums[0].len() as u64, sums.len() as u64);
        let mut push = |suffix: &str, ne: Vec<u64>, data: &[f32]| {
            parts.tensors.push((format!("{name}.{suffix}"), ne, GgmlType::F32, floats(data)));
        };
        push("in_sum2", vec![n, slices], &sums.concat());
        push("counts", vec![1, slices], counts);
        if with_sums {
            push("in_sum", vec![n, slices], &vec![-1.0; (n * slices) as usize]);
        }
    }
    parts.write(path);
}

/// The older binary format: mean squares times `calls`.
fn legacy_imatrix(entries: &[Sums], calls: i32, with_end: bool) -> Vec<u8> {
    let int = |n: usize| (n as i32).to_le_bytes();
    let mut bytes = int(entries.len()).to_vec();
    for Sums { name, sums, counts } in entries {
        bytes.extend(int(name.len()));
        bytes.extend(name.as_bytes());
        bytes.extend(calls.to_le_bytes());
        bytes.extend(int(sums.len() * sums[0].len()));
        for (sums, count) in sums.iter().zip(counts) {
            let mean = |x: &f32| if *count > 0.0 { x / count } else { 1.0 };
            bytes.extend(sums.iter().flat_map(|x| (mean(x) * calls as f32).to_le_bytes()));
        }
    }
    if with_end {
        bytes.extend(calls.to_le_bytes());
        bytes.extend(int(9));
        bytes.extend(b"words.txt");
    }
    bytes
}

#[test]
fn imatrix_files_of_both_formats_give_the_mean_squares() {
    let made = make(Spec { n_layer: 1, ..spec() });
    let path = made.path("imatrix");
    for format in ["gguf with sums", "gguf", "legacy", "legacy without its end"] {
        match format {
            "legacy" | "legacy without its end" => {
                fs::write(&path, legacy_imatrix(&imatrix_entries(), 4, format == "legacy")).unwrap();
            }
            _ => gguf_imatrix(&path, &imatrix_entries(), format == "gguf with sums"),
        }
        let imatrix = Imatrix::load(&path).unwrap();
        let calibration = imatrix.calibration(&made.targets).unwrap();
        assert_eq!(calibration.tensors().count(), 2, "{format}: readers are left out");
        for (tensor, slice, step) in [
            ("blk.0.attn_output.weight", 0, 0.5),
            ("blk.0.ffn_down_exps.weight", 0, 2.0),
            ("blk.0.ffn_down_exps.weight", 2, 3.0),
        ] {
            let inputs = calibration.inputs(tensor).unwrap();
            let expected: Vec<f32> = (0..64).map(|j| step * j as f32).collect();
            assert_eq!(inputs.mean_square(slice), expected, "{format}: {tensor}, slice {slice}");
            assert_eq!((inputs.n_fit(slice), inputs.n_held_out(slice), inputs.has_rows()), (0, 0, false));
            assert!(inputs.fit(slice).unwrap().is_empty());
        }
        let unused = calibration.inputs("blk.0.ffn_down_exps.weight").unwrap();
        assert_eq!(
            unused.mean_square(1),
            [1.0; 64],
            "{format}: an expert that was never chosen counts everywhere the same"
        );
        if format.starts_with("gguf") {
            assert_eq!([0, 1, 2].map(|slice| unused.count(slice)), [2, 0, 3]);
        }
        let fit = calibration.fits(&made.file, &made.writers, false).unwrap();
        assert_eq!(fit.whose, Whose::Unknown);
    }
}

#[test]
fn a_wrong_imatrix_is_refused_with_the_tensor_and_what_was_expected() {
    let made = make(Spec { n_layer: 1, ..spec() });
    let path = made.path("wrong.imatrix");
    let refused = |words: &[&str]| {
        let error = Imatrix::load(&path).and_then(|i| i.calibration(&made.targets)).unwrap_err().to_string();
        assert!(error.contains("wrong.imatrix"), "{error}");
        words.iter().for_each(|word| assert!(error.contains(word), "{word:?} is missing: {error}"));
    };
    for legacy in [false, true] {
        let write = |entries: &[Sums]| {
            if legacy {
                fs::write(&path, legacy_imatrix(entries, 4, true)).unwrap();
            } else {
                gguf_imatrix(&path, entries, false);
            }
        };
        write(&imatrix_entries()[..2]);
        refused(&["blk.0.ffn_down_exps.weight", "expected 64 values for each of 3 slices", "found nothing"]);
        let mut entries = imatrix_entries();
        entries[2].sums.pop();
        entries[2].counts.pop();
        write(&entries);
        refused(&[
            "blk.0.ffn_down_exps.weight",
            "expected 64 values for each of 3 slices",
            "found 128 values",
        ]);
        let mut entries = imatrix_entries();
        entries[0].sums[0][7] = f32::NAN;
        write(&entries);
        refused(&["blk.0.attn_output.weight", "expected mean squares", "NaN at element 7"]);
    }

    let parts_of = |spoil: &dyn Fn(&mut Parts)| {
        gguf_imatrix(&path, &imatrix_entries(), false);
        let mut parts = Parts::of(&path);
        spoil(&mut parts);
        parts.write(&path);
    };
    parts_of(&|p| p.keys[0].1 = "model".into());
    refused(&["not an imatrix file", "general.type is \"model\""]);
    parts_of(&|p| p.tensors.retain(|t| t.0 != "blk.0.attn_q.weight.counts"));
    refused(&["blk.0.attn_q.weight.counts", "expected F32", "found nothing"]);
    parts_of(&|p| p.data("blk.0.attn_q.weight.counts").copy_from_slice(&f32::INFINITY.to_le_bytes()));
    refused(&["blk.0.attn_q.weight.counts", "numbers of tokens", "inf"]);

    let whole = legacy_imatrix(&imatrix_entries(), 4, false);
    fs::write(&path, &whole[..200]).unwrap();
    refused(&["number of values of \"blk.0.attn_output.weight\" at 36", "64, 160 bytes follow"]);
    fs::write(&path, [&1i32.to_le_bytes(), &whole[4..30]].concat()).unwrap();
    refused(&["length of name 0 at 4", "24, 22 bytes follow"]);
    fs::write(&path, [0; 40]).unwrap();
    refused(&["number of entries at 0", "0, expected at least 1"]);
    fs::write(&path, "words, and more words, and yet more").unwrap();
    refused(&["not an imatrix file: number of entries at 0"]);
    fs::write(&path, []).unwrap();
    refused(&["number of entries at 0", "needs 4 bytes, file ends at 0"]);
}

#[test]
fn extract_samples_in_the_run_that_measures() {
    let folder = Folder::new();
    let line = "--json extract model.gguf --threads 1 --harmful harmful.txt --harmless harmless.txt";
    let [plain, _] = folder.accepts(&format!("{line} -o plain.gguf"));
    let with = format!("{line} -o d.gguf --save-calibration c.gguf --samples 64");
    let [json, _] = folder.accepts(&with);
    let [plain, json] = [plain, json].map(|text| serde_json::from_str::<serde_json::Value>(&text).unwrap());
    assert_eq!((plain.get("calibration"), json["calibration"].as_str()), (None, Some("c.gguf")));
    for (a, b) in plain["differences"].as_array().unwrap().iter().zip(json["differences"].as_array().unwrap())
    {
        let norms = [a, b].map(|row| row["norm"].as_f64().unwrap());
        assert!((norms[0] - norms[1]).abs() <= 1e-3 * norms[0], "the means do not change: {norms:?}");
    }

    let calibration = Calibration::load(&folder.path("c.gguf")).unwrap();
    let file = GgufFile::open(folder.path("model.gguf")).unwrap();
    let fit = calibration.fits(&file, &writers(&file).unwrap(), false).unwrap();
    assert_eq!((&fit.whose, fit.warnings().len()), (&Whose::Exact, 0));
    let origin = calibration.origin();
    assert_eq!((origin.source.n_harmful, origin.generated, origin.ablated.len()), (Some(12), 0, 0));
    let inputs = calibration.inputs("blk.1.ffn_down.weight").unwrap();
    assert_eq!((inputs.n_fit(0), inputs.n_held_out(0)), (64, 16));
    assert!(inputs.count(0) > 200, "every token of twenty prompts: {}", inputs.count(0));

    folder.refuses(&with, &["d.gguf", "exists already"]);
    folder.refuses(&format!("{line} -o e.gguf --save-calibration e.gguf"), &["both --output and"]);
    folder.refuses(&format!("{line} -o e.gguf --save-calibration c.gguf"), &["c.gguf", "exists already"]);
    folder.refuses(&format!("{line} -o e.gguf --save-calibration model.gguf --force"), &["is the input"]);
}
