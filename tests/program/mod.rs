//! The program itself, run in a folder of its own whose every byte is watched.

// Each test binary includes this module whole and uses its own part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::tiny::{Arch, Model, Spec};
use crate::support::writer::{self, Info, Type, Value};

/// A folder with `model.gguf` (a llama of 2 blocks, 32 wide), `harmful.txt` and `harmless.txt` (12 prompts each).
pub struct Folder(TempDir);

/// What lies in a folder: every path below it with its bytes; `None` for what is no regular file.
pub type Contents = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// The spec of `model.gguf`.
pub fn spec() -> Spec {
    Spec { n_embd: 32, n_head: 2, n_head_kv: 1, n_ff: 64, n_layer: 2, ..Spec::new(Arch::Llama) }
}

impl Folder {
    /// Makes one.
    pub fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.model("model.gguf", spec());
        for set in ["harmful", "harmless"] {
            let prompts: Vec<String> = (0..12).map(|i| format!("{set} {i}")).collect();
            folder.file(&format!("{set}.txt"), prompts.join("\n"));
        }
        folder
    }

    /// Where a file of this name lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Writes the random model of a spec.
    pub fn model(&self, name: &str, spec: Spec) {
        Model::random(spec).write(&self.path(name)).unwrap();
    }

    /// Writes a control vector for block 1 of a model of architecture `hint`.
    pub fn direction(&self, name: &str, hint: &str, vector: &[f32]) {
        self.direction_of(name, hint, 1, vector);
    }

    /// Writes a control vector for a block of a model of architecture `hint`.
    pub fn direction_of(&self, name: &str, hint: &str, block: usize, vector: &[f32]) {
        let string = |key: &str, value: &str| (key.to_owned(), Value::Str(value.to_owned()));
        let metadata =
            [string("general.architecture", "controlvector"), string("controlvector.model_hint", hint)];
        let tensor =
            Info { name: format!("direction.{block}"), ne: vec![vector.len() as u64], ty: Type::F32 };
        let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer::write(&self.path(name), &metadata, &[tensor], |_, out| out.write_all(&bytes)).unwrap();
    }

    /// Everything in it.
    pub fn contents(&self) -> Contents {
        let mut all = Contents::new();
        collect(self.0.path(), &mut all);
        all
    }

    /// The program, to be run in this folder.
    pub fn ggsteer(&self) -> assert_cmd::Command {
        let mut command = assert_cmd::cargo::cargo_bin_cmd!("ggsteer");
        command.current_dir(self.0.path());
        // The settings of whoever runs the tests are not the tests'.
        command.env("XDG_CONFIG_HOME", self.path("no-settings")).env_remove("GGSTEER_TABLES");
        command
    }

    /// Another program, to be run in this folder.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.0.path()).env("XDG_CONFIG_HOME", self.path("no-settings"));
        command.env_remove("GGSTEER_TABLES");
        command
    }

    /// A shell script, to be run in this folder, whose `$0` is the program.
    pub fn shell(&self, script: &str) -> Command {
        let mut command = self.command("sh");
        command.args(["-c", script]).arg(assert_cmd::cargo::cargo_bin!("ggsteer"));
        command
    }

    /// Runs the program with the words of a line, split at blanks.
    pub fn run(&self, line: &str) -> Output {
        self.ggsteer().args(line.split_whitespace()).output().unwrap()
    }

    /// As [`Folder::run`], and it must succeed; returns what it wrote to stdout and stderr.
    pub fn accepts(&self, line: &str) -> [String; 2] {
        let output = self.run(line);
        let [stdout, stderr] = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
        assert!(output.status.success(), "ggsteer {line}: {}\n{stderr}", output.status);
        [stdout, stderr]
    }

    /// Runs a line (quiet, without remarks) that the program must refuse: exit code 1, nothing on stdout, one line
    /// `error: …` with all of `words` on stderr, and every file as it was before, none more. Returns the line.
    pub fn refuses(&self, line: &str, words: &[&str]) -> String {
        let before = self.contents();
        let output = self.run(&format!("--quiet {line}"));
        let message = refusal(&output, words);
        assert!(self.contents() == before, "ggsteer {line}: the folder has changed: {message}");
        message
    }
}

/// Checks what a refusing program said; returns its one line.
pub fn refusal(output: &Output, words: &[&str]) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}: {stderr}", output.status);
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.ends_with('\n'), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is missing: {stderr}");
    }
    // Seen with --nocapture: the messages as people get them.
    print!("{stderr}");
    stderr
}

fn collect(folder: &Path, all: &mut Contents) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            collect(&path, all);
        }
        let bytes = kind.is_file().then(|| fs::read(&path).unwrap());
        all.insert(path, bytes);
    }
}
