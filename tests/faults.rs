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

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Output, Stdio};

use program::{Contents, Folder};
use support::{split, tiny};

/// Calls by which files come into being, are filled, renamed and removed.
const CALLS: &str = "openat,write,pwrite64,writev,copy_file_range,fsync,fdatasync,ftruncate,fallocate,rename,renameat,\
                     renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat";

/// What a call that fails says, or how it ends the program.
const FAULTS: [&str; 4] = ["error=ENOSPC", "error=EIO", "error=EINTR", "signal=KILL"];

/// Writers: a line, and the outputs it makes.
struct Job {
    line: &'static str,
    outputs: &'static [&'static str],
}

const JOBS: [Job; 9] = [
    Job { line: "orthogonalize model.gguf --direction direction.gguf -o out.gguf", outputs: &["out.gguf"] },
    Job {
        line: "orthogonalize part-00001-of-00002.gguf --direction direction.gguf -o out.gguf",
        outputs: &["out-00001-of-00002.gguf", "out-00002-of-00002.gguf"],
    },
    Job {
        line: "extract model.gguf --threads 1 --harmful harmful.txt --harmless harmless.txt -o out.gguf \
               --save-calibration kept.gguf",
        outputs: &["out.gguf", "kept.gguf"],
    },
    Job {
        line: "abliterate model.gguf --threads 1 --direction direction.gguf --harmful harmful.txt --harmless \
               harmless.txt --answer-tokens 2 -o out.gguf --report out.html",
        outputs: &["out.gguf", "out.html"],
    },
    Job { line: "export lora model.gguf --direction direction.gguf -o out.gguf", outputs: &["out.gguf"] },
    Job { line: "export control-vector direction.gguf --additive -o out.gguf", outputs: &["out.gguf"] },
    Job { line: "quantize model.gguf --type Q8_0 -o out.gguf", outputs: &["out.gguf"] },
    Job { line: "report run.json -o out.html", outputs: &["out.html"] },
    Job {
        line: "evaluate model.gguf --threads 1 --harmful harmful.txt --harmless harmless.txt --max-tokens 2 \
               --completions out.json",
        outputs: &["out.json"],
    },
];

/// The inputs of every job.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.model("model.gguf", tiny::Spec { n_ctx: 512, ..program::spec() });
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    let model = tiny::Model::random(program::spec());
    for (no, part) in split::parts(&model, &[5]).iter().enumerate() {
        part.write(&folder.path(&split::name("part", no, 2)));
    }
    folder.accepts(
        "extract model.gguf --threads 1 --harmful harmful.txt --harmless harmless.txt -o directions.gguf",
    );
    let [run, _] = folder.accepts(
        "evaluate model.gguf --threads 1 --harmful harmful.txt --harmless harmless.txt --max-tokens 2 --json",
    );
    folder.file("run.json", run);
    folder
}

/// One call that a run made: its name and its place among those of its name in its thread, from 1.
type Call = (String, usize);

/// The calls of `CALLS` that an undisturbed run makes on files; opening counts where it makes a file.
fn calls(folder: &Folder, line: &str) -> BTreeSet<Call> {
    let trace = folder.path("trace.txt");
    let mut command = folder.command("strace");
    command.args(["-f", "-qq", "-o"]).arg(&trace).args(["-e", &format!("trace={CALLS}")]);
    command.arg(assert_cmd::cargo::cargo_bin!("ggsteer")).arg("-q").args(line.split_whitespace());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(&trace).unwrap();
    fs::remove_file(trace).unwrap();
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for entry in text.lines() {
        let Some((thread, rest)) = entry.split_once(' ') else { continue };
        let Some((name, arguments)) = rest.trim_start().split_once('(') else { continue };
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        let count = counts.entry((thread, name)).or_default();
        *count += 1;
        if name != "openat" || arguments.contains("O_CREAT") {
            found.insert((name.to_owned(), *count));
        }
    }
    found
}

/// What the folder must hold after a run that ended so: inputs, and outputs old or new.
fn check(folder: &Folder, job: &Job, before: &Contents, whole: &Contents, output: &Output, fault: &str) {
    let told =
        format!("{} under {fault}: {}\n{}", job.line, output.status, String::from_utf8_lossy(&output.stderr));
    let after = folder.contents();
    let place = |name: &str| folder.path(name);
    let outputs: Vec<_> = job.outputs.iter().map(|name| place(name)).collect();
    for (path, bytes) in before.iter().filter(|(path, _)| !outputs.contains(path)) {
        assert!(after.get(path) == Some(bytes), "{told}: {} has changed", path.display());
    }
    let new: Vec<bool> = outputs.iter().map(|path| after.get(path) == whole.get(path)).collect();
    let old: Vec<bool> = outputs.iter().map(|path| after.get(path) == before.get(path)).collect();
    for i in 0..outputs.len() {
        let absent = !after.contains_key(&outputs[i]);
        // The parts of a model that replace others are moved one by one; killed between, some are at neither place.
        let moved = outputs.len() > 1 && absent && fault.contains("KILL");
        assert!(new[i] || old[i] || moved, "{told}: {} is neither old nor new", outputs[i].display());
    }
    if output.status.success() {
        assert!(new.iter().all(|new| *new), "{told}: success without output");
    }
    if !fault.contains("KILL") {
        let known = |path: &Path| before.contains_key(path) || whole.contains_key(path);
        // What cannot be removed stays, under a name by which it is known for ours.
        let ours = |path: &Path| path.extension().is_some_and(|e| e == "part") && fault.contains("unlink");
        let left: Vec<_> = after.keys().filter(|path| !known(path) && !ours(path)).collect();
        assert!(left.is_empty(), "{told}: left behind: {left:?}");
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(1), "{told}");
            assert!(words.lines().count() <= 1 && !words.contains("panicked"), "{told}");
        }
    }
}

/// Brings the folder back to what it was.
fn restore(folder: &Folder, before: &Contents) {
    for (path, bytes) in folder.contents() {
        if before.get(&path) != Some(&bytes) && path.is_file() {
            fs::remove_file(&path).unwrap();
        }
    }
    for (path, bytes) in before {
        if let (Some(bytes), false) = (bytes, path.exists()) {
            fs::write(path, bytes).unwrap();
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
    let folder = folder();
    if !has_strace(&folder) {
        return;
    }
    let (mut injected, mut refused, mut killed, mut went_on) = (0, 0, 0, 0);
    for job in &JOBS {
        if force {
            for name in job.outputs {
                folder.file(name, format!("what stood at {name}"));
            }
        }
        let line = format!("{}{}", job.line, if force { " --force" } else { "" });
        let before = folder.contents();
        let calls = calls(&folder, &line);
        let whole = folder.contents();
        restore(&folder, &before);
        for (name, n) in &calls {
            for fault in FAULTS {
                let inject = format!("inject={name}:{fault}:when={n}");
                let mut command = folder.command("strace");
                command.args(["-f", "-qq", "-o", "/dev/null", "-e", &inject]);
                command.arg(assert_cmd::cargo::cargo_bin!("ggsteer")).arg("-q").args(line.split_whitespace());
                let output = command.output().unwrap();
                check(&folder, job, &before, &whole, &output, &inject);
                injected += 1;
                match output.status.code() {
                    Some(0) => went_on += 1,
                    Some(_) => refused += 1,
                    None => killed += 1,
                }
                restore(&folder, &before);
            }
        }
        for name in job.outputs {
            let _ = fs::remove_file(folder.path(name));
        }
    }
    println!(
        "{} commands{}: {injected} faults, {refused} refused in one line, {killed} killed, {went_on} went on to the end",
        JOBS.len(),
        if force { " with --force over what stood there" } else { "" },
    );
    assert!(refused > 0 && killed > 0 && went_on > 0);
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
    let folder = folder();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/short.c");
    let built = folder
        .command("cc")
        .args(["-shared", "-fPIC", "-O1", "-o", "short.so"])
        .arg(source)
        .status()
        .unwrap();
    assert!(built.success());
    for job in &JOBS {
        let before = folder.contents();
        folder.accepts(&format!("-q {}", job.line));
        let whole = folder.contents();
        restore(&folder, &before);
        let mut command = folder.ggsteer();
        command
            .env("LD_PRELOAD", folder.path("short.so"))
            .arg("-q")
            .args(job.line.split_whitespace())
            .assert()
            .success();
        assert!(folder.contents() == whole, "{}", job.line);
        restore(&folder, &before);
    }
}

#[test]
fn of_many_programs_with_one_output_each_writes_it_whole_or_says_that_it_is_there() {
    let folder = folder();
    let run = |line: &str| {
        let mut command = folder.command(assert_cmd::cargo::cargo_bin!("ggsteer").to_str().unwrap());
        command
            .arg("-q")
            .args(line.split_whitespace())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    for job in JOBS.iter().filter(|job| job.outputs.len() == 1) {
        let before = folder.contents();
        folder.accepts(&format!("-q {}", job.line));
        let whole = folder.contents();
        restore(&folder, &before);
        for force in ["", " --force"] {
            let line = format!("{}{force}", job.line);
            let all: Vec<_> = (0..6).map(|_| run(&line)).collect();
            let outputs: Vec<_> = all.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
            let (done, refused): (Vec<_>, Vec<_>) =
                outputs.iter().partition(|output| output.status.success());
            for output in refused {
                program::refusal(output, &[job.outputs[0], "exists already"]);
                assert_eq!(force, "");
            }
            assert!(
                !done.is_empty() && (done.len() == 1 || !force.is_empty()),
                "{line}: {} wrote it",
                done.len()
            );
            assert!(folder.contents() == whole, "{line}");
            restore(&folder, &before);
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
