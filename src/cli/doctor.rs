//! `ggsteer doctor`: what this build can do, and whether this machine is fit for a model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use ggsteer::arch;
use ggsteer::gguf::{Array, GgufFile, ModelSummary, Value};
use ggsteer::runtime::sampling::Sampler;
use ggsteer::runtime::{self, Device, DeviceKind, GenerateOptions, Job};
use serde::Serialize;

use super::args::RunArgs;
use super::ui::{Ui, bytes, table};

/// Tokens of the measurement: enough to be past the first, slow one.
const MEASURED: usize = 32;

/// Tell what this build can do, and whether this machine is fit for a model
///
/// Every line ends with ok, warn or error, and with what to do about it.
///
/// Example: ggsteer doctor model.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// A model to be run here
    model: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Serialize)]
struct Output {
    checks: Vec<Check>,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Check {
    what: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do about it.
    next: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Error,
}

impl Check {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, found: found.into(), next: None }
    }

    fn warn(what: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Warn, found: found.into(), next: Some(next.into()) }
    }

    fn error(what: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Error, found: found.into(), next: Some(next.into()) }
    }
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        // So that the devices of --rpc are among those listed.
        self.run.model_options(None)?;
        let devices = runtime::devices()?;
        let mut checks = build(&devices)?;
        if let Some(path) = &self.model {
            self.model(ui, path, &devices, &mut checks);
        }
        let output = Output { checks, devices };
        ui.print(&output, || output.text())?;
        let failed = output.checks.iter().filter(|c| c.verdict == Verdict::Error).count();
        if failed > 0 {
            bail!("{failed} of {} checks failed", output.checks.len());
        }
        Ok(())
    }

    fn model(&self, ui: Ui, path: &Path, devices: &[Device], checks: &mut Vec<Check>) {
        let read = GgufFile::open(path).map_err(anyhow::Error::from);
        let read = read.and_then(|file| Ok((ModelSummary::new(&file)?, file)));
        let (summary, file) = match read {
            Ok(read) => read,
            Err(error) => {
                checks.push(Check::error("file", error.to_string(), "download or convert it again"));
                return;
            }
        };
        checks.push(Check::ok(
            "file",
            format!(
                "{}, {} blocks × {}, {}",
                summary.architecture,
                summary.n_block,
                summary.n_embd,
                bytes(summary.file_size)
            ),
        ));
        checks.push(match arch::coverage(&file).map_err(|e| e.to_string()) {
            Ok(coverage) => match coverage.problem() {
                None => {
                    Check::ok("rewriting", format!("{} matrices write the stream", coverage.writers.len()))
                }
                Some(problem) => Check::warn(
                    "rewriting",
                    problem.to_string(),
                    "steering at run time works nonetheless; `ggsteer inspect` shows the tensors",
                ),
            },
            Err(problem) => Check::warn("rewriting", problem, "`ggsteer inspect` shows the tensors"),
        });
        checks.push(match (&self.run.chat_template, summary.has_chat_template) {
            (Some(name), _) => Check::ok("chat template", name.clone()),
            (None, true) => Check::ok("chat template", "in the file"),
            (None, false) => {
                Check::warn("chat template", "none in the file", "give one with --chat-template NAME or FILE")
            }
        });
        let fits = self.fits(&summary, &file, devices);
        let too_large = fits.verdict == Verdict::Error;
        checks.push(fits);
        if too_large {
            return;
        }
        checks.push(match self.speed(ui, path) {
            Ok(speed) => Check::ok("speed", format!("{speed:.1} tokens/s, one answer at a time")),
            Err(error) => {
                Check::error("speed", format!("{error:#}"), "run with -v for llama.cpp's own words")
            }
        });
    }

    /// What it needs against what is free. Caches of a sliding window or of a latent are smaller than said here.
    fn fits(&self, summary: &ModelSummary, file: &GgufFile, devices: &[Device]) -> Check {
        let n_ctx = match self.run.ctx {
            Some(0) => summary.n_ctx_train.unwrap_or(8192),
            Some(n) => n.into(),
            None => 8192,
        };
        let cache = 2 * n_ctx * cache_width(summary, file);
        let logits = 4 * u64::from(self.run.batch) * summary.n_vocab.unwrap_or(0);
        let need = summary.file_size + cache + logits;
        let parts = format!(
            "{} = {} weights + {} cache of {n_ctx} tokens + {} logits",
            bytes(need),
            bytes(summary.file_size),
            bytes(cache),
            bytes(logits)
        );
        let Some(free) = available() else {
            return Check::warn(
                "memory",
                parts,
                "this system does not say how much is free: see for yourself",
            );
        };
        let others = devices.iter().filter(|d| d.kind == DeviceKind::Gpu && self.run.takes(&d.name));
        let others: u64 = others.map(|d| d.memory_free).sum();
        let elsewhere =
            if others > 0 { format!(", {} on other devices", bytes(others)) } else { String::new() };
        let found = format!("{parts}; {} free{elsewhere}", bytes(free));
        let free = free.saturating_add(others);
        let next = "take a smaller quantization, lower --ctx or --batch, or lend a second machine with --rpc";
        if need > free {
            Check::error("memory", found, next)
        } else if need > free / 10 * 9 {
            Check::warn("memory", found, "close other programs, or lower --ctx")
        } else {
            Check::ok("memory", found)
        }
    }

    /// Tokens a second of one answer.
    fn speed(&self, ui: Ui, path: &Path) -> Result<f64> {
        let model = self.run.load(path)?;
        let mut tokens = model.tokenize_text("Once upon a time there was a");
        tokens.truncate(8);
        let mut session = self.run.session(&model, 1, tokens.len() + MEASURED)?;
        let jobs = [Job { tokens: &tokens, n_out: 1, intervention: None }];
        let mut ask = |max_tokens: usize| -> Result<(usize, f64)> {
            let start = Instant::now();
            let options = GenerateOptions { max_tokens, sampler: Sampler::greedy() };
            let done = session.generate(&jobs, &options, &mut |_, _| (), &mut |_, _| ())?;
            Ok((done[0].tokens.len().max(1), start.elapsed().as_secs_f64()))
        };
        // Reads the weights in.
        let bar = ui.busy("measuring the speed");
        ask(1)?;
        let (_, first) = ask(1)?;
        let (n, all) = ask(MEASURED)?;
        bar.finish_and_clear();
        Ok(if n > 1 { (n - 1) as f64 / (all - first).max(1e-9) } else { 1.0 / first.max(1e-9) })
    }
}

/// Elements that keys and values of one token take in all blocks together.
fn cache_width(summary: &ModelSummary, file: &GgufFile) -> u64 {
    let arch = &summary.architecture;
    let number = |key: &str| file.get_u64(&format!("{arch}.{key}")).ok();
    let heads = number("attention.head_count").unwrap_or(1).max(1);
    let own = summary.n_embd / heads;
    let width =
        number("attention.key_length").unwrap_or(own) + number("attention.value_length").unwrap_or(own);
    // One number for all blocks, or one for each.
    let kv_heads = match file.get(&format!("{arch}.attention.head_count_kv")) {
        Some(Value::Array(Array::I32(each))) => each.iter().map(|&n| u64::from(n.unsigned_abs())).sum(),
        Some(Value::Array(Array::U32(each))) => each.iter().map(|&n| u64::from(n)).sum(),
        Some(one) => summary.n_block * one.as_u64().unwrap_or(heads),
        None => summary.n_block * heads,
    };
    width * kv_heads
}

/// What holds without a model.
fn build(devices: &[Device]) -> Result<Vec<Check>> {
    let (ggml, commit) = runtime::ggml_version();
    let commit = if commit == "unknown" { String::new() } else { format!(" ({commit})") };
    let features = runtime::cpu_features()?;
    let on = |name: &str| features.iter().any(|(feature, value)| feature == name && value != "0");
    let (ours, bindings) = (env!("CARGO_PKG_VERSION"), runtime::BINDINGS);
    let versions = format!("ggsteer {ours}, llama.cpp of llama-cpp-sys-2 {bindings}, ggml {ggml}{commit}");
    let mut checks = vec![Check::ok("version", versions)];

    let used: Vec<&str> = features.iter().filter(|f| f.1 != "0").map(|f| f.0.as_str()).collect();
    let unused: Vec<&str> =
        processor().into_iter().filter(|&(name, has)| has && !on(name)).map(|f| f.0).collect();
    let found = format!("ggml uses {}", used.join(" "));
    checks.push(if unused.is_empty() {
        Check::ok("processor", found)
    } else {
        let next = "build on this machine with `make build`, which sets what it can use";
        Check::warn("processor", format!("{found}; the processor also has {}", unused.join(" ")), next)
    });

    let usable = runtime::threads(0);
    let cores = cores().max(usable);
    let threads = if usable < cores {
        format!("{usable} of {cores}: this process is held to so many")
    } else {
        format!("{usable}")
    };
    checks.push(Check::ok("threads", threads));
    checks.push(if on("OPENMP") {
        Check::ok("OpenMP", "yes")
    } else {
        Check::warn("OpenMP", "no", "build with the default features for faster short steps")
    });
    let list: Vec<String> = devices
        .iter()
        .map(|d| {
            let memory =
                if d.memory_total > 0 { format!(", {}", bytes(d.memory_total)) } else { String::new() };
            format!("{} ({}{memory})", d.name, d.description)
        })
        .collect();
    checks.push(Check::ok("devices", list.join(", ")));
    checks.push(if runtime::has_rpc()? {
        Check::ok("RPC", "yes")
    } else {
        Check::warn("RPC", "no", "only --rpc and `ggsteer worker` want it: build with `make build`")
    });
    if let Some(free) = available() {
        checks.push(Check::ok("free memory", bytes(free)));
    }
    Ok(checks)
}

/// What the processor can do, by ggml's names, and whether it does.
#[cfg(target_arch = "x86_64")]
fn processor() -> Vec<(&'static str, bool)> {
    use std::arch::is_x86_feature_detected as has;
    vec![
        ("AVX", has!("avx")),
        ("AVX2", has!("avx2")),
        ("FMA", has!("fma")),
        ("F16C", has!("f16c")),
        ("BMI2", has!("bmi2")),
        ("AVX512", has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq")),
        ("AVX512_VBMI", has!("avx512vbmi")),
        ("AVX512_VNNI", has!("avx512vnni")),
        ("AVX_VNNI", has!("avxvnni")),
    ]
}

#[cfg(target_arch = "aarch64")]
fn processor() -> Vec<(&'static str, bool)> {
    use std::arch::is_aarch64_feature_detected as has;
    vec![
        ("NEON", has!("neon")),
        ("DOTPROD", has!("dotprod")),
        ("MATMUL_INT8", has!("i8mm")),
        ("SVE", has!("sve")),
    ]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn processor() -> Vec<(&'static str, bool)> {
    Vec::new()
}

/// Logical cores of the machine, whatever this process may use of them; 0 where the system does not say.
fn cores() -> usize {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines().filter(|line| line.starts_with("processor")).count()
}

/// Bytes that a program may still take: what the kernel says, or what is left of a container's limit.
fn available() -> Option<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    let read = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok()
    };
    let left = read("memory.max").zip(read("memory.current")).map(|(max, now)| max.saturating_sub(now));
    Some((kib * 1024).min(left.unwrap_or(u64::MAX)))
}

impl Output {
    fn text(&self) -> String {
        let rows = self.checks.iter().map(|check| {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Error => "error",
            };
            let next = check.next.as_ref().map(|next| format!(" → {next}")).unwrap_or_default();
            vec![check.what.to_owned(), verdict.to_owned(), format!("{}{next}", check.found)]
        });
        table(&["", "", ""], 3, rows).trim_start_matches('\n').to_owned()
    }
}
