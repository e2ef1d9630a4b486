//! A folder with everything that the documents name.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::document::Group;

/// Prompt files under the documents' names: the sample's lists, and how many of each.
const PROMPTS: &[(&str, &[(&str, usize)])] = &[
    ("harmful.txt", &[("restricted-train", 60), ("restricted-validation", 60)]),
    ("harmless.txt", &[("ordinary-train", 60), ("ordinary-validation", 60)]),
    ("train-a.txt", &[("restricted-train", 128)]),
    ("train-b.txt", &[("ordinary-train", 128)]),
    ("val-a.txt", &[("restricted-validation", 32)]),
    ("val-b.txt", &[("ordinary-validation", 32)]),
    ("test-a.txt", &[("restricted-test", 8)]),
    ("test-b.txt", &[("ordinary-test", 8)]),
    ("a.txt", &[("restricted-train", 8)]),
    ("b.txt", &[("ordinary-train", 8)]),
    ("text.txt", &[("ordinary-final", 100)]),
];

/// The program as the documents call it, with what a line does not say itself: one thread, on which a model this small is
/// fastest where others compute too, and, where no answer is quoted, short answers.
const WRAPPER: &str = r#"#!/bin/sh
help=$(GGSTEER "$1" --help 2>&1)
takes() { case $help in *"$1"*) ;; *) return 1 ;; esac }
says() { case " $line " in *" $1 "*) ;; *) return 1 ;; esac }
line=$*
takes --threads && ! says --threads && set -- "$@" --threads 1
[ -n "$SHORT" ] && takes --max-tokens && ! says --max-tokens && ! says -n && set -- "$@" --max-tokens 24
exec GGSTEER "$@"
"#;

pub struct Scratch(TempDir);

impl Scratch {
    pub fn new() -> Self {
        let scratch = Self(tempfile::tempdir().unwrap());
        let samples = super::root().join("gguf-samples");
        let sample = samples.join("lorekeeper-7m-f16.gguf");
        for copy in ["model.gguf", "model-f16.gguf", "judge.gguf"] {
            scratch.copy(&sample, copy);
        }
        for (name, lists) in PROMPTS {
            let lines = |(list, n): &(&str, usize)| -> Vec<String> {
                let text = fs::read_to_string(samples.join(format!("prompts/{list}.txt"))).unwrap();
                text.lines().take(*n).map(str::to_owned).collect()
            };
            scratch.write(name, &lists.iter().flat_map(lines).collect::<Vec<_>>().join("\n"));
        }
        scratch.copy(&sample, "gguf-samples/lorekeeper-7m-f16.gguf");
        for list in fs::read_dir(samples.join("prompts")).unwrap().map(|entry| entry.unwrap()) {
            scratch.copy(&list.path(), &format!("gguf-samples/prompts/{}", list.file_name().display()));
        }
        // The sets of the page on prompt sets: a table, a folder of one, and a dataset in the hub's cache.
        let table =
            |column: &str| (0..400).fold(format!("{column}\n"), |all, i| all + &format!("Bake loaf {i}.\n"));
        scratch.write("b.csv", &table("question"));
        scratch.write("folder/train.csv", &table("text").replace("Bake", "Curse"));
        let commit = "0".repeat(40);
        scratch.write("hub/datasets--owner--name/refs/main", &commit);
        scratch.write(&format!("hub/datasets--owner--name/snapshots/{commit}/train.csv"), &table("text"));
        // Where a shell keeps what `completions` writes.
        for folder in [".local/share/bash-completion/completions", ".zfunc", ".local/share/man/man1"] {
            fs::create_dir_all(scratch.0.path().join(folder)).unwrap();
        }
        let program = assert_cmd::cargo::cargo_bin!("ggsteer").display().to_string();
        scratch.write("bin/ggsteer", &WRAPPER.replace("GGSTEER", &program));
        fs::set_permissions(scratch.0.path().join("bin/ggsteer"), fs::Permissions::from_mode(0o755)).unwrap();
        scratch
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn copy(&self, from: &Path, name: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(from, path).unwrap();
    }

    /// Runs a command line of a group in the folder; what it prints on stdout, and on stderr where both are quoted.
    pub fn run(&self, line: &str, group: &Group) -> Result<String, String> {
        let path = std::env::var("PATH").unwrap();
        let folder = self.0.path();
        let script = if group.merged { format!("{{ {line}\n}} 2>&1") } else { line.to_owned() };
        let output = Command::new("sh")
            .current_dir(folder)
            .args(["-c", &script])
            .env("PATH", format!("{}:{path}", folder.join("bin").display()))
            .env("HF_HUB_CACHE", folder.join("hub"))
            .env("HF_HUB_OFFLINE", "1")
            .env("HOME", folder)
            .env("SHORT", if group.quote.is_some() { "" } else { "1" })
            .env_remove("XDG_CONFIG_HOME")
            .output()
            .unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
        if output.status.success() == group.fails {
            return Err(format!("`{line}` ended with {}\n{stdout}{stderr}", output.status));
        }
        Ok(stdout)
    }
}
