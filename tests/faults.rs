//! The disk fails at every system call of every writing command, one at a time: whatever happens, inputs are as they
//! were, and at the output's path stands the whole output or what stood there before.
//!
//! A run under strace tells the calls that write; then each is made to fail in turn (no space, an input/output error,
//! an interruption) or kills the program. Calls are counted for each thread apart, as strace counts them. Short writes come
//! from a library that is loaded before the C library's.
#![forbid(unsafe_code)]
#![cfg(target_os = "linux")]

mod program;
mod support;
#[path = "faults/tally.rs"]
mod tally;
#[path = "faults/trace.rs"]
mod trace;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Mutex;

use program::{Contents, Folder};
use support::{split, tiny};
use tally::Tally;
use trace::{durable, places, trace};

/// Calls by which files come into being, are filled, renamed and removed.
const CALLS: &str = "openat,write,pwrite64,writev,copy_file_range,fsync,fdatasync,ftruncate,fallocate,rename,renameat,\
                     renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat";

/// Whether all faults are tried, as the table is of them (`sh scripts/reliability.sh faults`); it takes many minutes. In
/// the others, every call of what runs in a moment gets one of them.
fn thorough() -> bool {
    std::env::var_os("GGSTEER_TABLES").is_some()
}

/// What a call that fails says, or how it ends the program.
const FAULTS: [&str; 5] = ["error=ENOSPC", "error=EIO", "error=EINTR", "signal=TERM", "signal=KILL"];

/// Every command that writes; what it makes is seen when it is run.
const JOBS: [Job; 20] = [
    job("orthogonalize model.gguf --direction direction.gguf -o out.gguf"),
    job("orthogonalize part-00001-of-00002.gguf --direction direction.gguf -o out.gguf"),
    job("export lora model.gguf --direction direction.gguf -o out.gguf"),
    job("export control-vector direction.gguf --additive -o out.gguf"),
    job("quantize model.gguf --type Q8_0 -o out.gguf"),
    job("report run.json -o out.html"),
    job("report run.json -o out.html --png plots"),
    job("card made.gguf run.json -o card"),
    job("config --init out.toml"),
    job("man pages"),
    slow("extract model.gguf {SETS} -o out.gguf --save-calibration kept.gguf"),
    slow(
        "abliterate model.gguf --direction direction.gguf {SETS} --answer-tokens 2 -o out.gguf --report out.html",
    ),
    slow(
        "quantize model.gguf --type Q8_0 --direction direction.gguf {SETS} -o out.gguf --save-calibration kept.gguf",
    ),
    slow("evaluate model.gguf {SETS} --max-tokens 2 --completions out.json"),
    slow(
        "optimize model.gguf --direction direction.gguf --directions directions.gguf {SETS} -n 2 --trials 6 --save saved",
    ),
    Job {
        force: "",
        ..slow("optimize model.gguf --direction direction.gguf {SETS} -n 2 --trials 4 --log log.jsonl")
    },
    Job { force: "", ..slow("chat model.gguf --threads 1 --max-tokens 2") },
    slow("select sample.gguf --directions measured.gguf {SAMPLE} --limit 2 -o out.gguf"),
    slow("abliterate sample.gguf {SAMPLE} -n 2 --answer-tokens 2 -o out.gguf --save-direction kept.gguf"),
    slow("compare sample.gguf sample-2.gguf {SAMPLE} -n 2 --report out.html"),
];

const SETS: &str = "--threads 1 --harmful harmful.txt --harmless harmless.txt";
/// Prompts that the sample model refuses, or answers, and rules that are kept with as few of them.
const SAMPLE: &str = "--threads 1 --harmful restricted.txt --harmless ordinary.txt --kl-max 1e9 --induce-min -1e9 \
                      --layer-fraction 2 --refusal-token I";
/// What is typed: only chat reads it.
const TYPED: &str = "Hello\n/save out.md\n";

#[derive(Clone, Copy)]
struct Job {
    line: &'static str,
    /// What lets it replace what is there.
    force: &'static str,
    /// Runs a model.
    slow: bool,
}

const fn job(line: &'static str) -> Job {
    Job { line, force: " --force", slow: false }
}

const fn slow(line: &'static str) -> Job {
    Job { line, force: " --force", slow: true }
}

impl Job {
    /// Of the sample, whose every run takes seconds.
    fn is_of_sample(&self) -> bool {
        self.line.contains("sample.gguf")
    }

    /// The faults at the next call: where the job is slow, and where no table asks for more, one of them, in turn.
    fn faults(&self, turn: &mut usize) -> &'static [&'static str] {
        *turn += 1;
        if self.slow || !thorough() { &FAULTS[*turn % FAULTS.len()..][..1] } else { &FAULTS }
    }

    fn line(&self, force: bool) -> String {
        let line = self.line.replace("{SETS}", SETS).replace("{SAMPLE}", SAMPLE);
        line + if force { self.force } else { "" }
    }
}

/// Files that grow, or are there while the work lasts: whatever stands in them, the same command goes on from it.
fn is_kept(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "jsonl" || e == "checkpoint")
}

/// The inputs of the jobs on models of random weights.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.model("model.gguf", tiny::Spec { n_ctx: 512, ..program::spec() });
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    let model = tiny::Model::random(program::spec());
    for (no, part) in split::parts(&model, &[5]).iter().enumerate() {
        part.write(&folder.path(&split::name("part", no, 2)));
    }
    folder.accepts(&format!("extract model.gguf {SETS} -o directions.gguf"));
    let [run, _] = folder.accepts(&format!("evaluate model.gguf {SETS} --max-tokens 2 --json"));
    folder.file("run.json", run);
    folder.accepts("orthogonalize model.gguf --direction direction.gguf -o made.gguf");
    folder.file("typed.txt", TYPED);
    folder
}

/// Those of the jobs on the sample model.
fn sample_folder() -> Folder {
    let folder = Folder::new();
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf-samples");
    for name in ["sample.gguf", "sample-2.gguf"] {
        fs::copy(samples.join("lorekeeper-7m-f16.gguf"), folder.path(name)).unwrap();
    }
    for name in ["restricted", "ordinary"] {
        let all = fs::read_to_string(samples.join(format!("prompts/{name}-validation.txt"))).unwrap();
        folder.file(&format!("{name}.txt"), all.lines().take(10).collect::<Vec<_>>().join("\n"));
    }
    folder.accepts(
        "extract sample.gguf --threads 1 --harmful restricted.txt --harmless ordinary.txt -o measured.gguf",
    );
    folder.file("typed.txt", TYPED);
    folder
}

/// The folder of a job.
fn folder_of<'a>(job: &Job, folders: &'a [Folder; 2]) -> &'a Folder {
    &folders[usize::from(job.is_of_sample())]
}

/// A program with its words, in the folder, with what is typed.
fn typed(folder: &Folder, program: &Path, words: &[&str]) -> std::process::Command {
    let mut command = folder.command(program.to_str().unwrap());
    command.args(words).stdin(fs::File::open(folder.path("typed.txt")).unwrap());
    command
}

/// Runs ggsteer, behind other words where there are any.
fn run(folder: &Folder, before: &[&str], line: &str) -> Output {
    let ggsteer = assert_cmd::cargo::cargo_bin!("ggsteer");
    let mut words = before.to_vec();
    words.push(ggsteer.to_str().unwrap());
    words.push("-q");
    words.extend(line.split_whitespace());
    typed(folder, Path::new(words[0]), &words[1..]).output().unwrap()
}

/// Everything in the folder; of pages without the digits, for `compare` shows how fast each model was.
fn contents(folder: &Folder) -> Contents {
    let mut all = folder.contents();
    for (_, bytes) in all.iter_mut().filter(|(path, _)| path.extension().is_some_and(|e| e == "html")) {
        bytes.iter_mut().for_each(|bytes| bytes.retain(|b| !b.is_ascii_digit()));
    }
    all
}

/// What an undisturbed run leaves, and what of it is new: the outputs.
fn whole(folder: &Folder, line: &str, before: &Contents) -> (Contents, Vec<PathBuf>) {
    let output = run(folder, &["env"], line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    let whole = contents(folder);
    restore(folder, before);
    let new = whole.iter().filter(|(path, bytes)| bytes.is_some() && before.get(*path) != Some(bytes));
    let outputs = new.map(|(path, _)| path.clone()).collect();
    (whole, outputs)
}

/// Brings the folder back to what it was.
fn restore(folder: &Folder, before: &Contents) {
    for (path, bytes) in contents(folder).iter().rev() {
        match before.get(path) {
            Some(old) if old == bytes => {}
            _ if path.is_dir() => fs::remove_dir(path).unwrap(),
            _ => fs::remove_file(path).unwrap(),
        }
    }
    for (path, bytes) in before {
        match bytes {
            Some(bytes) if !path.exists() => fs::write(path, bytes).unwrap(),
            None if !path.exists() => fs::create_dir(path).unwrap(),
            _ => {}
        }
    }
}

fn has_strace(folder: &Folder) -> bool {
    let can = folder.command("strace").args(["-qq", "-e", "inject=fsync:error=EIO", "true"]).output();
    let can = can.is_ok_and(|output| output.status.success());
    if !can {
        eprintln!(
            "SKIPPED, not tested: no strace here, or it may not trace; install it (Debian: apt-get install strace)"
        );
    }
    can
}

/// Every job, with every fault at every call of it; with `force` over what stands there.
fn inject(force: bool) {
    let folders = [folder(), sample_folder()];
    if !has_strace(&folders[0]) {
        return;
    }
    let mut table = String::new();
    let mut wrong = Vec::new();
    let (mut refused, mut left, mut went_on) = (0, 0, 0);
    let tried = |job: &&Job| (!force || !job.force.is_empty()) && (thorough() || !job.is_of_sample());
    for job in JOBS.iter().filter(tried) {
        let folder = folder_of(job, &folders);
        let line = job.line(force);
        let inputs = contents(folder);
        let (_, outputs) = whole(folder, &job.line(false), &inputs);
        assert!(!outputs.is_empty(), "{line}: writes nothing");
        if force {
            for path in &outputs {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("what stood at {}", path.display())).unwrap();
            }
        }
        let before = contents(folder);
        let (whole, _) = whole(folder, &line, &before);
        let calls = trace(folder, &line);
        assert!(contents(folder) == whole, "{line}: not the same again");
        let named = durable(folder, &calls);
        let due = outputs.iter().filter(|path| !is_kept(path)).count();
        assert!(named >= due, "{line}: {named} of {due} outputs got their names by a rename");
        restore(folder, &before);
        let places = places(&calls);
        let mut tally = Tally::of(places.len());
        // Those that turn one way here turn another there.
        let mut turn = if force { 2 } else { 0 };
        for (name, n) in &places {
            for fault in job.faults(&mut turn) {
                let inject = format!("inject={name}:{fault}:when={n}");
                let output = run(folder, &["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject], &line);
                let after = contents(folder);
                tally.add(&outputs, [&before, &after, &whole], &output, &inject);
                went_on += usize::from(output.status.success());
                let kept = after.keys().any(|path| is_kept(path));
                if kept && outputs.iter().all(|path| is_kept(path) || after.get(path) == before.get(path)) {
                    let again = run(folder, &["env"], &line);
                    let words = String::from_utf8_lossy(&again.stderr);
                    let same = outputs.iter().all(|path| contents(folder).get(path) == whole.get(path));
                    assert!(again.status.success() && same, "{line} after {inject}, again: {words}");
                }
                restore(folder, &before);
            }
        }
        print!("{}", tally.row(&line));
        table += &tally.row(&line);
        refused += tally.refused;
        left += tally.left;
        wrong.extend(tally.wrong.iter().map(|what| format!("{line}: {what}")));
        restore(folder, &inputs);
    }
    write_table(force, &table);
    assert!(wrong.is_empty(), "{} faults ended wrong, the first: {}", wrong.len(), wrong[0]);
    assert!(refused > 0 && left > 0 && went_on > 0);
}

const HEAD: &str = "| command | system calls | faults injected | inputs changed | partial outputs | output whole | absent or \
                    as before | some of several | killed, leaving .part |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n";

/// The rows of both tests, for whoever wants them in a file.
fn write_table(force: bool, rows: &str) {
    static ROWS: Mutex<[String; 2]> = Mutex::new([String::new(), String::new()]);
    let Some(tables) = std::env::var_os("GGSTEER_TABLES") else { return };
    let mut all = ROWS.lock().unwrap();
    rows.clone_into(&mut all[usize::from(force)]);
    fs::create_dir_all(&tables).unwrap();
    fs::write(Path::new(&tables).join("faults.md"), format!("{HEAD}{}", all.concat())).unwrap();
}

#[test]
fn whatever_call_fails_the_output_is_whole_or_absent() {
    inject(false);
}

#[test]
fn whatever_call_fails_what_stood_there_is_there_or_the_whole_new_output() {
    inject(true);
}

#[test]
fn short_writes_are_gone_on_with() {
    let folders = [folder(), sample_folder()];
    let folder = &folders[0];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/short.c");
    let built = folder
        .command("cc")
        .args(["-shared", "-fPIC", "-O1", "-o", "short.so"])
        .arg(source)
        .status()
        .unwrap();
    assert!(built.success());
    let preload = format!("LD_PRELOAD={}", folder.path("short.so").display());
    for job in &JOBS {
        let folder = folder_of(job, &folders);
        let line = job.line(false);
        let before = contents(folder);
        let (whole, _) = whole(folder, &line, &before);
        let output = run(folder, &["env", &preload], &line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(contents(folder) == whole, "{line}");
        restore(folder, &before);
    }
}

#[test]
fn of_many_programs_with_one_output_each_writes_it_whole_or_says_that_it_is_there() {
    let folders = [folder(), sample_folder()];
    for job in JOBS.iter().filter(|job| thorough() || !job.is_of_sample()) {
        let folder = folder_of(job, &folders);
        let before = contents(folder);
        for force in [false, true] {
            let line = job.line(force);
            // Some pages show the line by which they were made.
            let (whole, outputs) = whole(folder, &line, &before);
            let n = outputs.len();
            let start = || {
                let words: Vec<&str> = std::iter::once("-q").chain(line.split_whitespace()).collect();
                let mut command = typed(folder, assert_cmd::cargo::cargo_bin!("ggsteer"), &words);
                command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
            };
            let all: Vec<_> = (0..6).map(|_| start()).collect();
            let ended: Vec<_> = all.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
            let (done, refused): (Vec<_>, Vec<_>) = ended.iter().partition(|output| output.status.success());
            for output in refused {
                let words = program::refusal(output, &[]);
                let busy = words.contains("exists already") || words.contains("being written");
                assert!(busy && !(force && n == 1 && !job.force.is_empty()), "{line}: {words}");
            }
            // Of several outputs each has one writer, not always the same.
            assert!(!done.is_empty() || n > 1, "{line}: none wrote it");
            assert!(
                done.len() <= 1 || force && !job.force.is_empty() || is_kept(&outputs[0]),
                "{line}: {} wrote it",
                done.len()
            );
            let mut after = contents(folder);
            // One that was refused at the end keeps what it had done.
            after.retain(|path, _| !is_kept(path) || whole.contains_key(path));
            assert!(after == whole || n > 1, "{line}");
            for path in &outputs {
                let found = after.get(path).cloned().flatten();
                assert!(
                    found.is_none() && n > 1 || whole[path] == found,
                    "{line}: {} is not whole",
                    path.display()
                );
            }
            restore(folder, &before);
        }
    }
}

#[test]
fn a_model_cut_short_while_it_runs_is_named() {
    let folder = Folder::new();
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf-samples/lorekeeper-7m-f16.gguf"),
        folder.path("sample.gguf"),
    )
    .unwrap();
    let mut chat = folder.command(assert_cmd::cargo::cargo_bin!("ggsteer").to_str().unwrap());
    let mut chat = chat
        .args(["-q", "chat", "sample.gguf", "--threads", "1", "--max-tokens", "4"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = chat.stdin.take().unwrap();
    let mut stdout = BufReader::new(chat.stdout.take().unwrap());
    writeln!(stdin, "Who made the hexed lantern?").unwrap();
    let mut answer = String::new();
    while answer.trim().is_empty() {
        assert!(stdout.read_line(&mut answer).unwrap() > 0, "no answer");
    }
    let file = fs::OpenOptions::new().write(true).open(folder.path("sample.gguf")).unwrap();
    file.set_len(1 << 20).unwrap();
    writeln!(stdin, "And who broke it?").unwrap();
    drop(stdin);
    let output = chat.wait_with_output().unwrap();
    program::refusal(
        &Output { stdout: Vec::new(), ..output },
        &["sample.gguf", "became shorter, or its disk failed, while it was being read"],
    );
}

/// A sparse file may claim any length; llama.cpp would read it to its end.
#[test]
fn a_terabyte_of_nothing_is_refused() {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    let file = fs::OpenOptions::new().write(true).open(folder.path("model.gguf")).unwrap();
    if let Err(error) = file.set_len(1 << 40) {
        eprintln!("SKIPPED, not tested: this file system takes no file of a terabyte: {error}");
        return;
    }
    for line in [
        "inspect model.gguf",
        "generate model.gguf --threads 1 --max-tokens 1 --prompt hello",
        "orthogonalize model.gguf --direction direction.gguf -o out.gguf",
        "quantize model.gguf --type Q8_0 -o out.gguf",
    ] {
        let output = folder.run(&format!("-q {line}"));
        program::refusal(&output, &["model.gguf", "tensors end at", "1099511627776"]);
        assert!(!folder.path("out.gguf").exists());
    }
}
