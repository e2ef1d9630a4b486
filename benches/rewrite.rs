//! What a rewrite costs, beside copying the file and beside encoding the edited tensors anew.
//!
//! `cargo bench --bench rewrite` writes random models as wide as those of 8 billion parameters with the types of Q4_K_M,
//! of about 0.5, 1 and 2 GB; `cargo bench --bench rewrite -- 0.3` takes other sizes. Each is read once, so that it is in
//! the page cache; then each row is measured a few times in turn, and the ratios are those of the same round.
//!
//! The program is run as a child, whole: it opens and checks the file, edits, copies what it does not edit, reads back,
//! and syncs the output to the disk before it gives it its name. `cp` does nothing of the last two, so `cp` followed by
//! `sync` stands beside it. Memory is the largest RssAnon seen in /proc every few milliseconds: what the program holds
//! of its own; pages of the mapped input and output belong to the page cache.
//!
//! Not criterion's harness, because it runs its benchmarks one after the other and a noisy machine drifts meanwhile.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ggsteer::arch;
use ggsteer::calibration::{self, Collector, Origin, Target};
use ggsteer::direction::Provenance;
use ggsteer::gguf::{GgufFile, fingerprint};
use ggsteer::output::OutputFile;
use ggsteer::quant::{decode, encode};
use ggsteer::random::SplitMix64;
use ggsteer::rewrite::{How, Options, Plan, execute};
use ggsteer::runtime::{Site, Token};
use rayon::prelude::*;
use support::writer::{self, Info, Type, Value};

const ROUNDS: usize = 3;
const N_EMBD: usize = 4096;
/// Bytes of a block and of what is not in blocks, about.
const BLOCK: f64 = 131e6;
const REST: f64 = 182e6;

/// Ways of rewriting: a name and the flags of `ggsteer orthogonalize`, run in the bench's folder.
const WAYS: [(&str, &[&str]); 2] = [
    ("uncalibrated", &["--uncalibrated"]),
    ("calibrated, 256 samples a tensor", &["--calibration", "calibration.gguf"]),
];

/// Where all happens: on the disk of the build, where there is room.
struct Bench {
    folder: tempfile::TempDir,
    model: PathBuf,
    direction: PathBuf,
    out: PathBuf,
}

/// A run of the program.
struct Run {
    seconds: f64,
    /// Bytes.
    peak: u64,
}

impl Bench {
    fn new(gigabytes: f64) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = |name: &str| folder.path().join(name);
        let bench = Self {
            model: path("model.gguf"),
            direction: path("direction.gguf"),
            out: path("out.gguf"),
            folder,
        };
        let n_layer = ((gigabytes * 1e9 - REST) / BLOCK).ceil().max(1.0);
        bench.need((2.2 * (REST + n_layer * BLOCK)) as u64);
        support::tiny::wide_q4_k_m(&bench.model, n_layer as usize, 1).unwrap();
        write_direction(&bench.direction);
        write_calibration(&bench.model, &bench.folder.path().join("calibration.gguf"));
        // Its pages are written, and stay in memory.
        fs::File::open(&bench.model).unwrap().sync_all().unwrap();
        std::io::copy(&mut fs::File::open(&bench.model).unwrap(), &mut std::io::sink()).unwrap();
        bench
    }

    /// Stops with a clear word where the disk is too small.
    fn need(&self, bytes: u64) {
        #[cfg(target_os = "linux")]
        {
            let stat = rustix::fs::statvfs(self.folder.path()).unwrap();
            let free = stat.f_bavail * stat.f_frsize;
            if free < bytes {
                eprintln!(
                    "error: {}: {:.1} GB needed, {:.1} GB free; name a smaller size: cargo bench --bench rewrite -- 0.3",
                    env!("CARGO_TARGET_TMPDIR"),
                    bytes as f64 / 1e9,
                    free as f64 / 1e9
                );
                std::process::exit(1);
            }
        }
    }

    /// Seconds of `cp`, and of `cp` and `sync`.
    fn copy(&self) -> [f64; 2] {
        let _ = fs::remove_file(&self.out);
        let start = Instant::now();
        assert!(Command::new("cp").args([&self.model, &self.out]).status().unwrap().success());
        let copied = start.elapsed().as_secs_f64();
        fs::File::open(&self.out).unwrap().sync_all().unwrap();
        [copied, start.elapsed().as_secs_f64()]
    }

    fn program(&self, flags: &[&str]) -> Run {
        let _ = fs::remove_file(&self.out);
        let start = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ggsteer"))
            .current_dir(self.folder.path())
            .arg("orthogonalize")
            .arg(&self.model)
            .arg("--direction")
            .arg(&self.direction)
            .arg("--output")
            .arg(&self.out)
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut peak = 0;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            peak = peak.max(anonymous(child.id()));
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(status.success(), "ggsteer orthogonalize {flags:?} failed");
        Run { seconds: start.elapsed().as_secs_f64(), peak }
    }

    /// Seconds of the library's own copy, nothing edited: what is left of a rewrite is the edit.
    fn untouched(&self) -> f64 {
        let _ = fs::remove_file(&self.out);
        let start = Instant::now();
        let file = GgufFile::open(&self.model).unwrap();
        let plan = Plan::new(&file, &[], Options::default()).unwrap();
        let out = OutputFile::create(&self.out, false, &[&self.model]).unwrap();
        execute(&file, &plan, &How::default(), out, &[], &mut |_| {}).unwrap().commit().unwrap();
        start.elapsed().as_secs_f64()
    }

    /// Bytes that are edited.
    fn edited(&self) -> u64 {
        let file = GgufFile::open(&self.model).unwrap();
        Plan::new(&file, &[support::tiny::unit(N_EMBD, 3)], Options::default()).unwrap().bytes()
    }

    /// Seconds to decode the edited tensors and to encode them again with ggml, on all cores, once.
    fn encode(&self) -> f64 {
        let file = GgufFile::open(&self.model).unwrap();
        let plan = Plan::new(&file, &[support::tiny::unit(N_EMBD, 3)], Options::default()).unwrap();
        let start = Instant::now();
        for planned in &plan.tensors {
            let info = file.tensor(&planned.writer.tensor).unwrap();
            let n = info.ne[0] as usize;
            let row = info.ty.row_size(n as u64).unwrap() as usize;
            file.tensor_data(info).par_chunks(8 * row).for_each(|bytes| {
                let mut w = vec![0.0; bytes.len() / row * n];
                decode(info.ty, bytes, &mut w).unwrap();
                std::hint::black_box(encode(info.ty, &w, n, None).unwrap());
            });
        }
        start.elapsed().as_secs_f64()
    }
}

/// Random inputs for every writer: what they are makes no difference to the time.
fn write_calibration(model: &Path, path: &Path) {
    const TOKENS: usize = 64;
    let file = GgufFile::open(model).unwrap();
    let targets = Target::of(&file, &arch::writers(&file).unwrap());
    let sequences: Vec<Vec<Token>> =
        (0..10).map(|i| (0..TOKENS).map(|t| Token((i * TOKENS + t) as i32)).collect()).collect();
    let options = calibration::Options { rows: Some(256), ..calibration::Options::default() };
    let mut collector = Collector::new(&targets, [&sequences[..5], &sequences[5..]], &options);
    let mut random = SplitMix64(7);
    for target in &targets {
        for job in 0..sequences.len() {
            for position in 1..=TOKENS as i32 {
                let row: Vec<f32> = (0..target.n_in).map(|_| (random.unit() - 0.5) as f32).collect();
                collector.add(job, -position, Site::WriterInput(&target.tensor), &row);
            }
        }
    }
    let source = Provenance {
        architecture: file.arch().ok().map(Into::into),
        model_fingerprint: Some(fingerprint(&file)),
        ..Provenance::default()
    };
    let calibration = collector.finish(Origin { source, ..Origin::default() }).unwrap();
    calibration.save_to(OutputFile::create(path, false, &[]).unwrap()).unwrap();
}

/// A control vector for block 1 of a llama.
fn write_direction(path: &Path) {
    let string = |key: &str, value: &str| (key.to_owned(), Value::Str(value.to_owned()));
    let metadata =
        [string("general.architecture", "controlvector"), string("controlvector.model_hint", "llama")];
    let tensor = Info { name: "direction.1".into(), ne: vec![N_EMBD as u64], ty: Type::F32 };
    let vector = support::tiny::unit(N_EMBD, 3);
    writer::write(path, &metadata, &[tensor], |_, out| {
        vector.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))
    })
    .unwrap();
}

/// Bytes of memory of its own that a process has now; 0 where /proc is not there.
fn anonymous(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut sizes: Vec<f64> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![0.5, 1.0, 2.0];
    }
    let threads = std::thread::available_parallelism().unwrap();
    println!("random llamas, 4096 wide, types of Q4_K_M; {ROUNDS} rounds, medians; {threads} cores");
    let mut per_gigabyte: Vec<(f64, f64)> = Vec::new();
    for size in sizes {
        let bench = Bench::new(size);
        let bytes = fs::metadata(&bench.model).unwrap().len() as f64;
        let edited = bench.edited() as f64;
        println!(
            "\n{:.2} GB, of which {:.2} GB in edited tensors\n{:34}{:>9}{:>8}{:>12}{:>12}",
            bytes / 1e9,
            edited / 1e9,
            "",
            "seconds",
            "x cp",
            "x cp+sync",
            "memory MB"
        );
        let mut copies = Vec::new();
        let mut untouched = Vec::new();
        let mut ways: Vec<Vec<Run>> = WAYS.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            copies.push(bench.copy());
            untouched.push(bench.untouched());
            for (i, (runs, (_, flags))) in ways.iter_mut().zip(WAYS).enumerate() {
                // The slow way once: its minutes drown the noise.
                if i == 0 || runs.is_empty() {
                    runs.push(bench.program(flags));
                }
            }
        }
        let _ = fs::remove_file(&bench.out);
        let row = |name: &str, times: &[f64], peak: Option<u64>| {
            let ratio = |which: usize| median(times.iter().zip(&copies).map(|(t, copy)| t / copy[which]));
            let memory = peak.map_or(String::new(), |peak| format!("{:.0}", peak as f64 / 1e6));
            let seconds = median(times.iter().copied());
            println!("{name:34}{seconds:>9.2}{:>8.2}{:>12.2}{memory:>12}", ratio(0), ratio(1));
        };
        row("cp", &copies.iter().map(|c| c[0]).collect::<Vec<_>>(), None);
        row("cp, then sync", &copies.iter().map(|c| c[1]).collect::<Vec<_>>(), None);
        row("the library's copy, synced", &untouched, None);
        for (runs, (name, _)) in ways.iter().zip(WAYS) {
            let times: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
            row(name, &times, runs.iter().map(|run| run.peak).max());
        }
        let encode = bench.encode();
        row("decoding and encoding, not writing", &[encode; ROUNDS], None);
        let edit = median(ways[0].iter().zip(&untouched).map(|(run, copy)| run.seconds - copy));
        println!(
            "an edited byte: {:.2} ns uncalibrated (over the copy), {:.1} ns by encoding: {:.0} times faster",
            edit / edited * 1e9,
            encode / edited * 1e9,
            encode / edit
        );
        let descent = median(ways[1].iter().zip(&untouched).map(|(run, copy)| run.seconds - copy));
        println!("calibrated (over the copy): {:.2} times the decoding and encoding", descent / encode);
        per_gigabyte.push((bytes, median(ways[0].iter().map(|run| run.seconds)) / bytes * 1e9));
    }
    println!("\nuncalibrated, seconds a GB of file:");
    for (bytes, seconds) in per_gigabyte {
        println!("{:>8.2} GB{seconds:>8.2}", bytes / 1e9);
    }
}
