//! What the program costs as models grow: `scale GIGABYTES FOLDER TABLE` writes models of random weights of up to so many
//! gigabytes into the folder, rewrites and verifies each, and writes what it measured as a Markdown table. Called by
//! `scripts/scale.sh`.
//!
//! Memory is what /proc says every two milliseconds: the largest resident set (VmHWM) with the pages of the mapped files,
//! and the largest part of it that is the program's own (RssAnon). Where a limit stands beside it, the run was under one
//! of the system (RLIMIT_DATA), which ends whoever asks for more.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};

#[path = "../tests/support/mod.rs"]
mod support;

use support::split;
use support::tiny::{self, Arch, Spec};
use support::writer::{self, Info, Type};

/// Gigabytes of the models that are rewritten, as far as they were asked for.
const SIZES: [f64; 4] = [0.5, 2.0, 8.0, 20.0];
/// Bytes of a file of a model, about; larger ones are split.
const FILE: u64 = 5_000_000_000;
/// Megabytes of its own that a rewrite without calibration may have.
const LIMIT: u64 = 128;
/// Threads, at most: each has a stack and room of its own, whatever it works on.
const THREADS: usize = 8;
const PROMPTS: usize = 100_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [gigabytes, folder, table] = &arguments[..] else { bail!("usage: scale GIGABYTES FOLDER TABLE") };
    let gigabytes: f64 = gigabytes.parse().context("GIGABYTES")?;
    let mut scale = Scale::new(fs::canonicalize(folder)?)?;
    for size in SIZES.into_iter().filter(|size| *size <= gigabytes) {
        scale.size(size)?;
    }
    scale.calibrated()?;
    for n in [2_000, 32_000] {
        scale.tensors(n)?;
    }
    scale.wide()?;
    scale.prompts()?;
    fs::write(table, scale.table)?;
    Ok(())
}

/// The measurements so far, and where they are made.
struct Scale {
    folder: PathBuf,
    program: PathBuf,
    threads: usize,
    table: String,
    stop: Stop,
}

/// How a run ended and what it took.
struct Run {
    seconds: f64,
    /// Bytes.
    resident: u64,
    /// Bytes.
    own: u64,
    stdout: String,
}

/// Model files and the bytes of them all.
struct Model {
    paths: Vec<PathBuf>,
    bytes: u64,
}

impl Model {
    fn of(paths: Vec<PathBuf>) -> Result<Self> {
        let lengths = paths.iter().map(|path| Ok(fs::metadata(path)?.len())).collect::<Result<Vec<_>>>()?;
        Ok(Self { paths, bytes: lengths.iter().sum() })
    }

    fn first(&self) -> &str {
        self.paths[0].to_str().expect("named here")
    }

    fn remove(self) -> Result<()> {
        Ok(self.paths.iter().try_for_each(fs::remove_file)?)
    }
}

/// As wide as models of 8 billion parameters, with as many blocks as make a file of so many bytes.
fn wide_spec(bytes: f64) -> Spec {
    let spec = Spec {
        n_embd: 4096,
        n_head: 32,
        n_head_kv: 8,
        n_ff: 14336,
        n_vocab: 32_000,
        n_ctx: 2048,
        ..Spec::new(Arch::Llama)
    };
    let (block, rest) = (122.7e6, 147.4e6);
    Spec { n_layer: ((bytes - rest) / block).round().max(1.0) as usize, ..spec }
}

impl Scale {
    fn new(folder: PathBuf) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("../ggsteer");
        ensure!(program.is_file(), "{}: not built", program.display());
        let threads = std::thread::available_parallelism()?.get().min(THREADS);
        let table = "| case | bytes | seconds | peak resident MB | own memory MB (limit) | outcome |\n\
                     |---|---:|---:|---:|---:|---|\n";
        Ok(Self { folder, program, threads, table: table.into(), stop: Stop::catch()? })
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().expect("a folder of the build").to_owned()
    }

    fn row(&mut self, case: &str, bytes: u64, run: &Run, limit: Option<u64>, outcome: &str) {
        let mega = |bytes: u64| bytes.div_ceil(1_000_000);
        let limit = limit.map_or(String::new(), |limit| format!(" ({limit})"));
        let Run { seconds, resident, own, .. } = run;
        let line = format!(
            "| {case} | {bytes} | {seconds:.1} | {} | {}{limit} | {outcome} |",
            mega(*resident),
            mega(*own)
        );
        println!("{line}");
        let _ = writeln!(self.table, "{line}");
    }

    fn model(&self, prefix: &str, spec: &Spec, ty: Type, count: usize) -> Result<Model> {
        Model::of(split::big(&self.folder, prefix, spec, ty, count)?)
    }

    /// Writes a direction for block 1.
    fn direction(&self, name: &str, n_embd: usize) -> Result<String> {
        let text = |key: &str, value: &str| (key.to_owned(), writer::Value::Str(value.to_owned()));
        let metadata =
            [text("general.architecture", "controlvector"), text("controlvector.model_hint", "llama")];
        let info = Info { name: "direction.1".into(), ne: vec![n_embd as u64], ty: Type::F32 };
        let bytes: Vec<u8> = tiny::unit(n_embd, 3).iter().flat_map(|x| x.to_le_bytes()).collect();
        let path = self.path(name);
        writer::write(Path::new(&path), &metadata, &[info], |_, out| out.write_all(&bytes))?;
        Ok(path)
    }

    /// Two sets of `n` prompts, and their bytes.
    fn sets(&self, n: usize, extension: &str) -> Result<([String; 2], u64)> {
        let mut bytes = 0;
        let mut paths = Vec::new();
        for (name, food) in [("harmful", "honey"), ("harmless", "plums")] {
            let prompts = (0..n).map(|i| format!("How do I store {i} jars of {food}?"));
            let line = |prompt| match extension {
                "jsonl" => serde_json::json!({ "prompt": prompt }).to_string() + "\n",
                _ => prompt + "\n",
            };
            let text: String = prompts.map(line).collect();
            bytes += text.len() as u64;
            paths.push(self.path(&format!("{name}.{extension}")));
            fs::write(&paths[paths.len() - 1], text)?;
        }
        let paths = <[String; 2]>::try_from(paths).expect("two were made");
        Ok((paths, bytes))
    }

    fn command(&self, limit: Option<u64>, words: &[&str]) -> Command {
        let mut command = Command::new("sh");
        let limit = limit.map_or(String::new(), |mb| format!("ulimit -d {} && ", mb * 1_000_000 / 1024));
        command.args(["-c", &format!("{limit}exec \"$0\" \"$@\"")]).arg(&self.program).args(words);
        command.current_dir(&self.folder).env("RAYON_NUM_THREADS", self.threads.to_string());
        command.env("GGSTEER_THREADS", self.threads.to_string());
        command
    }

    /// Runs the program to its end, which must be a good one.
    fn run(&self, limit: Option<u64>, words: &[&str]) -> Result<Run> {
        let [stdout, stderr] = ["stdout", "stderr"].map(|name| self.folder.join(name));
        let mut command = self.command(limit, words);
        command.stdout(fs::File::create(&stdout)?).stderr(fs::File::create(&stderr)?);
        let start = Instant::now();
        let mut child = command.spawn()?;
        let mut run = Run { seconds: 0.0, resident: 0, own: 0, stdout: String::new() };
        self.stop.hold(true);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if self.stop.is_wanted() {
                child.kill()?;
                child.wait()?;
                bail!("interrupted");
            }
            if let Ok(text) = fs::read_to_string(format!("/proc/{}/status", child.id())) {
                run.resident = run.resident.max(bytes_of(&text, "VmHWM:"));
                run.own = run.own.max(bytes_of(&text, "RssAnon:"));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        self.stop.hold(false);
        run.seconds = start.elapsed().as_secs_f64();
        run.stdout = fs::read_to_string(&stdout)?;
        ensure!(status.success(), "ggsteer {}: {status}\n{}", words.join(" "), fs::read_to_string(&stderr)?);
        [stdout, stderr].iter().try_for_each(fs::remove_file)?;
        Ok(run)
    }

    /// Rewrites a model and verifies what came of it: two rows.
    fn rewrite(&mut self, what: &str, model: &Model, direction: &str) -> Result<()> {
        let out = self.path("out.gguf");
        let words = [
            "orthogonalize",
            model.first(),
            "--direction",
            direction,
            "--uncalibrated",
            "--json",
            "-o",
            &out,
        ];
        let run = self.run(Some(LIMIT), &words)?;
        let report: Value = serde_json::from_str(&run.stdout)?;
        let files: Vec<PathBuf> = serde_json::from_value(report["files"].clone())?;
        let outcome =
            format!("{} tensors rewritten, {} as they were", report["n_edited"], report["n_untouched"]);
        self.row(&format!("orthogonalize, {what}"), model.bytes, &run, Some(LIMIT), &outcome);

        let out = Model::of(files)?;
        let words = ["verify", model.first(), out.first(), "--direction", direction, "--json"];
        let run = self.run(Some(LIMIT), &words)?;
        let found: Value = serde_json::from_str(&run.stdout)?;
        ensure!(found["ok"] == true, "verify says {}", found["differences"]);
        let outcome = format!("ok: {} tensors byte-identical", found["n_untouched"]);
        self.row(&format!("verify, {what}"), model.bytes + out.bytes, &run, Some(LIMIT), &outcome);
        out.remove()
    }

    /// A model of so many gigabytes, in files of at most 5: rewritten, verified, and stopped half-way.
    fn size(&mut self, gigabytes: f64) -> Result<()> {
        let spec = wide_spec(1e9 * gigabytes);
        let count = (1e9 * gigabytes / FILE as f64).ceil() as usize;
        let model = self.model("model", &spec, Type::Q4K, count)?;
        let direction = self.direction("direction.gguf", spec.n_embd)?;
        let files = if count > 1 { format!(" in {count} files") } else { String::new() };
        self.rewrite(&format!("{gigabytes} GB{files}"), &model, &direction)?;
        if gigabytes == SIZES[1] {
            for (signal, name) in [(SIGINT, "INT"), (SIGTERM, "TERM")] {
                self.interrupt(&model, &direction, signal, name)?;
            }
        }
        model.remove()
    }

    /// Stops a rewrite by a signal when half of the output is there.
    fn interrupt(&mut self, model: &Model, direction: &str, signal: i32, name: &str) -> Result<()> {
        let names = || -> Result<BTreeSet<_>> {
            Ok(fs::read_dir(&self.folder)?.map(|e| Ok(e?.file_name())).collect::<std::io::Result<_>>()?)
        };
        let before = names()?;
        let out = self.path("out.gguf");
        let words =
            ["-q", "orthogonalize", model.first(), "--direction", direction, "--uncalibrated", "-o", &out];
        let mut child = self.command(None, &words).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let written = loop {
            ensure!(child.try_wait()?.is_none(), "it ended before it could be interrupted");
            let part = names()?.into_iter().find(|name| name.to_string_lossy().ends_with(".part"));
            let length =
                part.and_then(|part| fs::metadata(self.folder.join(part)).ok()).map_or(0, |m| m.len());
            if length >= model.bytes / 2 {
                break length;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let start = Instant::now();
        let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status()?;
        ensure!(sent.success(), "kill failed");
        let status = child.wait()?;
        let seconds = start.elapsed().as_secs_f64();
        // By the signal itself there is no code.
        ensure!(status.code().is_none_or(|code| code == 128 + signal), "SIG{name}: {status}");
        let left: Vec<_> = names()?.difference(&before).cloned().collect();
        ensure!(left.is_empty(), "SIG{name} left {left:?}");
        let line = format!(
            "| orthogonalize, 2 GB, SIG{name} half-way | {written} | {seconds:.1} | – | – | ended within this time, nothing \
             left behind |"
        );
        println!("{line}");
        let _ = writeln!(self.table, "{line}");
        Ok(())
    }

    /// With a calibration, errors and codes of whole tensors are held.
    fn calibrated(&mut self) -> Result<()> {
        let spec = wide_spec(0.5e9);
        let model = self.model("model", &spec, Type::Q4K, 1)?;
        let direction = self.direction("direction.gguf", spec.n_embd)?;
        let ([harmful, harmless], _) = self.sets(24, "txt")?;
        let [out, inputs, directions] =
            ["out.gguf", "inputs.gguf", "directions.gguf"].map(|name| self.path(name));
        let words = ["extract", model.first(), "--harmful", &harmful, "--harmless", &harmless];
        self.run(None, &[&words[..], &["--save-calibration", &inputs, "-o", &directions]].concat())?;
        let words = ["orthogonalize", model.first(), "--direction", &direction, "--calibration", &inputs];
        let run = self.run(None, &[&words[..], &["--json", "-o", &out]].concat())?;
        let report: Value = serde_json::from_str(&run.stdout)?;
        let largest = spec.n_embd * spec.n_ff;
        let outcome = format!(
            "largest matrix {largest} elements, edit error {:.2}",
            report["max_edit_error"].as_f64().context("edit error")?
        );
        self.row("orthogonalize with a calibration, 0.5 GB", model.bytes, &run, None, &outcome);
        let files: Vec<PathBuf> = serde_json::from_value(report["files"].clone())?;
        Model::of(files)?.remove()?;
        [inputs, directions].iter().try_for_each(fs::remove_file)?;
        model.remove()
    }

    /// Many small tensors.
    fn tensors(&mut self, n: usize) -> Result<()> {
        // Nine a block, three outside.
        let spec = Spec {
            n_embd: 64,
            n_head: 2,
            n_head_kv: 1,
            n_ff: 64,
            n_layer: (n - 3) / 9,
            ..Spec::new(Arch::Llama)
        };
        let model = self.model("model", &spec, Type::F16, 1)?;
        let direction = self.direction("direction.gguf", spec.n_embd)?;
        let run = self.run(Some(LIMIT), &["inspect", model.first(), "--json"])?;
        let found: Value = serde_json::from_str(&run.stdout)?;
        let n = found["n_tensors"].as_u64().context("n_tensors")?;
        self.row(&format!("inspect, {n} tensors"), model.bytes, &run, Some(LIMIT), "read");
        self.rewrite(&format!("{n} tensors"), &model, &direction)?;
        model.remove()
    }

    /// A stream of 16,384 elements.
    fn wide(&mut self) -> Result<()> {
        let spec = Spec {
            n_embd: 16_384,
            n_head: 128,
            n_head_kv: 8,
            n_ff: 4096,
            n_layer: 2,
            ..Spec::new(Arch::Llama)
        };
        let model = self.model("model", &spec, Type::Q4K, 1)?;
        let direction = self.direction("direction.gguf", spec.n_embd)?;
        let run = self.run(Some(LIMIT), &["inspect", model.first(), "--json"])?;
        self.row("inspect, n_embd 16384", model.bytes, &run, Some(LIMIT), "read");
        self.rewrite("n_embd 16384", &model, &direction)?;
        let ([harmful, harmless], _) = self.sets(24, "txt")?;
        self.extract("n_embd 16384", model.bytes, model.first(), [&harmful, &harmless])?;
        model.remove()
    }

    /// Sets of 100,000 prompts, each run through a small model.
    fn prompts(&mut self) -> Result<()> {
        let spec =
            Spec { n_embd: 32, n_head: 2, n_head_kv: 1, n_ff: 64, n_layer: 2, ..Spec::new(Arch::Llama) };
        let model = self.model("model", &spec, Type::F16, 1)?;
        for extension in ["txt", "jsonl"] {
            let ([harmful, harmless], bytes) = self.sets(PROMPTS, extension)?;
            let what = format!("two sets of {PROMPTS} prompts in .{extension}");
            self.extract(&what, bytes, model.first(), [&harmful, &harmless])?;
        }
        model.remove()
    }

    fn extract(&mut self, what: &str, bytes: u64, model: &str, sets: [&str; 2]) -> Result<()> {
        let out = self.path("directions.gguf");
        let words = ["extract", model, "--harmful", sets[0], "--harmless", sets[1], "--json", "-o", &out];
        let run = self.run(None, &words)?;
        let found: Value = serde_json::from_str(&run.stdout)?;
        let outcome = format!("{} and {} prompts measured", found["n_harmful"], found["n_harmless"]);
        self.row(&format!("extract, {what}"), bytes, &run, None, &outcome);
        Ok(fs::remove_file(out)?)
    }
}

/// A line of /proc/PID/status, which counts in kB.
fn bytes_of(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// A signal ends this program at once, but while there is a child to be taken along.
struct Stop {
    wanted: Arc<AtomicBool>,
    at_once: Arc<AtomicBool>,
}

impl Stop {
    fn catch() -> Result<Self> {
        let stop = Self { wanted: Arc::default(), at_once: Arc::new(AtomicBool::new(true)) };
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(
                signal,
                128 + signal,
                Arc::clone(&stop.at_once),
            )?;
            signal_hook::flag::register(signal, Arc::clone(&stop.wanted))?;
        }
        Ok(stop)
    }

    fn hold(&self, hold: bool) {
        self.at_once.store(!hold, Ordering::Relaxed);
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
}
