//! What the program does where it cannot write: one line on stderr, inputs and existing files as they were, nothing
//! half-written left.
#![forbid(unsafe_code)]
#![cfg(unix)]

mod program;
mod support;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use program::{Folder, refusal};
use support::tiny;

const SETS: &str = "--threads 1 --harmful harmful.txt --harmless harmless.txt";

fn folder() -> Folder {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    folder
}

fn orthogonalize(out: &str) -> String {
    format!("orthogonalize model.gguf --direction direction.gguf -o {out}")
}

/// Every command that writes: a line with its output, and an input that this must not be.
const WRITERS: [(&str, &str); 15] = [
    ("orthogonalize model.gguf --direction direction.gguf -o {OUT}", "direction.gguf"),
    ("extract model.gguf {SETS} -o {OUT}", "model.gguf"),
    ("extract model.gguf {SETS} -o out.gguf --save-calibration {OUT}", "harmful.txt"),
    ("abliterate model.gguf {SETS} -o {OUT}", "harmless.txt"),
    ("abliterate model.gguf {SETS} -o out.gguf --save-direction {OUT}", "model.gguf"),
    ("abliterate model.gguf {SETS} -o out.gguf --report {OUT}", "model.gguf"),
    ("export lora model.gguf --direction direction.gguf -o {OUT}", "model.gguf"),
    ("export control-vector direction.gguf --additive -o {OUT}", "direction.gguf"),
    ("quantize model.gguf --type Q8_0 -o {OUT}", "model.gguf"),
    ("report run.json -o {OUT}", "run.json"),
    ("evaluate model.gguf {SETS} --completions {OUT}", "model.gguf"),
    ("select model.gguf {SETS} --directions directions.gguf -o {OUT}", "directions.gguf"),
    (
        "select model.gguf {SETS} --directions directions.gguf -o out.gguf --checkpoint {OUT}",
        "directions.gguf",
    ),
    ("compare model.gguf other.gguf {SETS} --report {OUT}", "other.gguf"),
    ("card made.gguf run.json -o {FOLDER}", "run.json"),
];

/// Those beside, which read nothing that they could replace, or see by what stands there that it is not theirs.
const OTHERS: [&str; 3] = [
    "config --init {OUT}",
    "man {FOLDER}",
    "optimize model.gguf --direction direction.gguf {SETS} --log {OUT}",
];

/// A line whose output is `folder/README.md`.
fn into(line: &str, folder: &str) -> String {
    let line = line.replace("{OUT}", &format!("{folder}/README.md")).replace("{FOLDER}", folder);
    line.replace("{SETS}", SETS)
}

/// With everything that the writers read.
fn full() -> Folder {
    let folder = folder();
    folder.model("other.gguf", tiny::Spec { seed: 2, ..program::spec() });
    folder.accepts(&format!("extract model.gguf {SETS} -o directions.gguf"));
    folder.accepts("orthogonalize model.gguf --direction direction.gguf -o made.gguf");
    let [run, _] = folder.accepts(&format!("evaluate model.gguf {SETS} -n 2 --json"));
    folder.file("run.json", run);
    fs::create_dir(folder.path("sub")).unwrap();
    folder
}

#[test]
fn no_command_writes_to_a_link_to_what_it_reads() {
    let folder = full();
    let place = folder.path("sub/README.md");
    for (line, input) in WRITERS {
        for soft in [true, false] {
            if soft {
                symlink(format!("../{input}"), &place).unwrap();
            } else {
                fs::hard_link(folder.path(input), &place).unwrap();
            }
            let forces =
                ["", " --force"].iter().filter(|force| force.is_empty() || !line.contains("--checkpoint"));
            for force in forces {
                let line = into(line, "sub") + force;
                folder.refuses(&line, &["sub/README.md", &format!("is the input {input} itself")]);
            }
            fs::remove_file(&place).unwrap();
        }
    }
    fs::hard_link(folder.path("model.gguf"), &place).unwrap();
    folder.refuses(&into(OTHERS[2], "sub"), &["sub/README.md", "no log of `ggsteer optimize`"]);
}

#[test]
fn no_command_replaces_a_link_to_something_else() {
    let folder = full();
    folder.file("elsewhere", "words");
    symlink("../elsewhere", folder.path("sub/README.md")).unwrap();
    symlink("../elsewhere", folder.path("sub/ggsteer.1")).unwrap();
    for line in WRITERS.iter().map(|(line, _)| *line).chain(OTHERS[..2].iter().copied()) {
        let force = if line.contains("--checkpoint") { "" } else { " --force" };
        folder.refuses(&(into(line, "sub") + force), &["sub/", "a symbolic link, not a regular file"]);
    }
}

#[test]
fn no_model_is_overwritten_under_any_name() {
    let folder = folder();
    symlink("model.gguf", folder.path("soft.gguf")).unwrap();
    fs::hard_link(folder.path("model.gguf"), folder.path("hard.gguf")).unwrap();
    fs::create_dir(folder.path("sub")).unwrap();
    let absolute = folder.path("model.gguf").display().to_string();
    for out in ["model.gguf", "./model.gguf", "sub/../model.gguf", "soft.gguf", "hard.gguf", &absolute] {
        for force in ["", " --force"] {
            let words = [out, "is the input model.gguf itself"];
            folder.refuses(&(orthogonalize(out) + force), &words);
            folder.refuses(&format!("extract model.gguf {SETS} -o {out}{force}"), &words);
            folder.refuses(&format!("abliterate model.gguf {SETS} -o {out}{force}"), &words);
            folder.refuses(&format!("evaluate model.gguf {SETS} --completions {out}{force}"), &words);
            let save = format!("abliterate model.gguf {SETS} -o out.gguf --save-direction {out}{force}");
            folder.refuses(&save, &words);
        }
    }
}

#[test]
fn no_other_input_is_overwritten() {
    let folder = folder();
    folder.accepts(&format!("extract model.gguf {SETS} -o directions.gguf"));
    let select = format!("select model.gguf {SETS} --directions directions.gguf");
    let steer = "--ablate direction.gguf";
    for (line, input) in [
        (orthogonalize("direction.gguf"), "direction.gguf"),
        (format!("extract model.gguf {SETS} -o harmful.txt"), "harmful.txt"),
        (format!("abliterate model.gguf {SETS} -o ./harmless.txt"), "harmless.txt"),
        (format!("{select} -o directions.gguf"), "directions.gguf"),
        (format!("{select} -o harmful.txt"), "harmful.txt"),
        (format!("evaluate model.gguf {SETS} --completions harmless.txt"), "harmless.txt"),
        (format!("evaluate model.gguf {SETS} {steer} --completions direction.gguf"), "direction.gguf"),
    ] {
        folder.refuses(&format!("{line} --force"), &[&format!("is the input {input} itself")]);
    }
}

#[test]
fn two_outputs_need_two_names() {
    let folder = folder();
    let line = format!("abliterate model.gguf {SETS} -o out.gguf --save-direction out.gguf --force");
    folder.refuses(&line, &["out.gguf", "--output", "--save-direction"]);
}

#[test]
fn an_existing_output_needs_force() {
    let folder = folder();
    folder.file("out.gguf", "old words");
    folder.refuses(&orthogonalize("out.gguf"), &["out.gguf", "exists", "--force"]);
    folder.refuses(&format!("extract model.gguf {SETS} -o out.gguf"), &["out.gguf", "exists", "--force"]);
    let names = |folder: &Folder| folder.contents().into_keys().collect::<Vec<_>>();
    let before = names(&folder);
    folder.accepts(&format!("-q {} --force", orthogonalize("out.gguf")));
    assert_eq!(names(&folder), before);
    folder.accepts("inspect out.gguf");
    folder.accepts(&format!("-q extract model.gguf {SETS} -o out.gguf --force"));
    assert_eq!(names(&folder), before);
    folder.refuses("inspect out.gguf --json", &["out.gguf", "ggsteer-directions"]);
}

#[test]
fn links_folders_and_devices_are_not_replaced() {
    let folder = folder();
    folder.file("elsewhere", "words");
    symlink("elsewhere", folder.path("link.gguf")).unwrap();
    symlink("nowhere", folder.path("dangling.gguf")).unwrap();
    fs::create_dir(folder.path("sub")).unwrap();
    for (out, found) in [
        ("link.gguf", "a symbolic link"),
        ("dangling.gguf", "a symbolic link"),
        ("sub", "a folder"),
        ("/dev/null", "a device or pipe"),
    ] {
        folder.refuses(&format!("{} --force", orthogonalize(out)), &[out, found, "not a regular file"]);
    }
}

#[test]
fn a_folder_that_is_not_there_is_told_before_the_work() {
    let folder = folder();
    // The model would be refused too, only later.
    for line in [
        orthogonalize("none/out.gguf"),
        format!("extract no-model.gguf {SETS} -o none/out.gguf"),
        format!("abliterate no-model.gguf {SETS} -o none/out.gguf"),
        format!("evaluate no-model.gguf {SETS} --completions none/out.gguf"),
    ] {
        folder.refuses(&line, &["none/out.gguf", "no folder none"]);
    }
    folder.refuses(&orthogonalize("harmful.txt/out.gguf"), &["no folder harmful.txt"]);
}

#[test]
fn a_folder_that_cannot_be_written_is_told_before_the_work() {
    let folder = full();
    let sub = folder.path("sub");
    fs::set_permissions(&sub, Permissions::from_mode(0o555)).unwrap();
    // A superuser may write anywhere, unless that capability is laid down first.
    let drop = "setpriv --bounding-set -dac_override --inh-caps -dac_override";
    let prefix = match File::create(sub.join("probe")) {
        Err(_) => "",
        Ok(_) => drop,
    };
    let _ = fs::remove_file(sub.join("probe"));
    if !folder.shell(&format!("! {prefix} touch sub/probe")).output().unwrap().status.success() {
        eprintln!("SKIPPED, not tested: a read-only folder binds no superuser, and there is no setpriv here");
        let _ = fs::remove_file(sub.join("probe"));
        return;
    }
    // The model would be refused too, only later.
    let absent = [orthogonalize("sub/out.gguf"), format!("extract no-model.gguf {SETS} -o sub/out.gguf")];
    let lines = WRITERS.iter().map(|(line, _)| *line).chain(OTHERS).map(|line| into(line, "sub"));
    for line in absent.into_iter().chain(lines) {
        let before = folder.contents();
        let script = format!("exec {prefix} \"$0\" -q \"$@\"");
        let output = folder.shell(&script).args(line.split_whitespace()).output().unwrap();
        refusal(&output, &["sub/", "Permission denied"]);
        assert!(folder.contents() == before);
    }
    fs::set_permissions(&sub, Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn procfs_takes_no_file_from_anyone() {
    let folder = folder();
    if !fs::exists("/proc/self").unwrap() {
        eprintln!("SKIPPED, not tested: no /proc here");
        return;
    }
    folder
        .refuses(&orthogonalize("/proc/out.gguf"), &["/proc/out.gguf", "cannot create a file in its folder"]);
}

/// Runs on every Unix as any user: with SIGXFSZ ignored, a write past the limit fails as on a full disk.
#[test]
fn a_write_that_fails_leaves_nothing() {
    let folder = folder();
    for line in [
        orthogonalize("out.gguf"),
        format!("extract model.gguf {SETS} -o out.gguf"),
        // A direction is smaller than the limit: the answers are not.
        format!("evaluate model.gguf {SETS} -n 50 --completions out.gguf"),
    ] {
        let before = folder.contents();
        let script = "trap '' XFSZ; ulimit -f 1; exec \"$0\" -q \"$@\"";
        let output = folder.shell(script).args(line.split_whitespace()).output().unwrap();
        let message = refusal(&output, &["out.gguf", "cannot write", "File too large"]);
        assert_eq!(message.matches("File too large").count(), 1, "{message}");
        assert!(!message.contains("model.gguf"), "the input is not to blame: {message}");
        assert!(!message.contains(".part"), "the temporary file is our own affair: {message}");
        assert!(folder.contents() == before, "{line}");
    }
}

/// A real full disk: a file system of 16 kB in memory, in a name space of its own.
#[test]
fn a_full_disk_leaves_nothing() {
    let folder = folder();
    fs::create_dir(folder.path("disk")).unwrap();
    let mount = "mount -t tmpfs -o size=16k none disk";
    let can = folder.command("unshare").args(["-rm", "sh", "-c", mount]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED, not tested: no small file system can be mounted here (unshare -rm, mount -t tmpfs)"
        );
        return;
    }
    for force in ["", "--force"] {
        let script = format!(
            "{mount} && echo old > disk/old.gguf && {{ [ -z '{force}' ] || cp disk/old.gguf disk/out.gguf; }} && \
             ls -A disk > before; \"$0\" -q \"$@\" {force}; code=$?; ls -A disk > after; \
             [ -z '{force}' ] || cmp disk/old.gguf disk/out.gguf || exit 9; exit $code"
        );
        let program = assert_cmd::cargo::cargo_bin!("ggsteer");
        let output = (folder.command("unshare").args(["-rm", "sh", "-c", &script]).arg(program))
            .args(orthogonalize("disk/out.gguf").split_whitespace())
            .output()
            .unwrap();
        refusal(&output, &["disk/out.gguf", "cannot write", "No space left on device"]);
        let names = |list: &str| fs::read_to_string(folder.path(list)).unwrap();
        assert_eq!(names("after"), names("before"));
        assert!(names("before").contains("old.gguf"));
    }
}

#[test]
fn a_full_stdout_is_told() {
    let folder = folder();
    for line in
        ["inspect model.gguf", "inspect model.gguf --json", "generate model.gguf --threads 1 -n 4 -p hello"]
    {
        let full = match File::options().write(true).open("/dev/full") {
            Ok(full) => full,
            Err(error) => {
                eprintln!("SKIPPED, not tested: /dev/full: {error}");
                return;
            }
        };
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("ggsteer"));
        command.current_dir(folder.path(".")).args(line.split_whitespace()).stderr(Stdio::piped());
        let output = command.stdout(full).spawn().unwrap().wait_with_output().unwrap();
        refusal(&output, &["stdout", "No space left on device"]);
    }
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let folder = folder();
    let script = "{ sleep 0.3; \"$0\" inspect model.gguf; echo \"code $?\" >&2; } | true";
    let output = folder.shell(script).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "code 0\n");
}
