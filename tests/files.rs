//! Files as people have them: models in several parts, file systems that clone, processes that are killed.
#![forbid(unsafe_code)]

mod program;
mod support;

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ggsteer::gguf::{GgufFile, Value, Writer, fingerprint};
use ggsteer::quant::GgmlType;
use program::{Contents, Folder, spec};
use serde_json::Value as Json;
use support::split::{self, name};
use support::tiny::{self, Arch, Model, Random, Spec};

const REWRITE: &str = "orthogonalize --direction direction.gguf";

/// A folder with two models, `tied.gguf` a qwen2 without output matrix of its own, a direction for each, and both in
/// parts too: `big` in three, the first one without tensors, `two` in two.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    folder.direction("other.gguf", "qwen2", &tiny::unit(32, 1));
    let tied = Spec { arch: Arch::Qwen2, tied: true, ..spec() };
    folder.model("tied.gguf", tied.clone());
    for (prefix, spec, sizes) in [("big", spec(), &[0, 7][..]), ("two", tied, &[9])] {
        let parts = split::parts(&Model::random(spec), sizes);
        for (no, part) in parts.iter().enumerate() {
            part.write(&folder.path(&name(prefix, no, parts.len())));
        }
    }
    folder
}

fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let file = GgufFile::open(path).unwrap();
    file.tensors().iter().map(|t| (t.name.clone(), file.tensor_data(t).to_vec())).collect()
}

#[test]
fn every_part_of_a_split_model_opens_all() {
    let folder = folder();
    let of = |no| GgufFile::open(folder.path(&name("big", no, 3))).unwrap();
    for no in 0..3 {
        let file = of(no);
        assert_eq!(file.path(), folder.path(&name("big", 0, 3)));
        assert_eq!((file.n_parts(), file.parts()[2].tensors().len()), (3, file.tensors().len() - 7));
        assert_eq!(fingerprint(&file), fingerprint(&of(0)));
        assert_eq!(tensors(file.parts()[no].path()), tensors(&folder.path("model.gguf")));
    }
    assert_ne!(fingerprint(&of(0)), fingerprint(&GgufFile::open(folder.path("model.gguf")).unwrap()));
}

#[test]
fn a_split_model_does_in_every_subcommand_what_the_whole_one_does() {
    let folder = folder();
    let sets = "--harmful harmful.txt --harmless harmless.txt --threads 1";
    for no in 0..3 {
        let part = name("big", no, 3);
        for line in [
            "generate MODEL --threads 1 -n 8 -p hello --ablate direction.gguf".to_string(),
            format!("evaluate MODEL {sets} -n 4"),
        ] {
            let [whole, _] = folder.accepts(&line.replace("MODEL", "model.gguf"));
            let [parts, _] = folder.accepts(&line.replace("MODEL", &part));
            assert_eq!(whole, parts, "{line}");
        }
        folder.accepts(&format!("-q extract {part} {sets} -o dirs.gguf --force"));
        let [words, _] = folder.accepts(&format!("--json inspect {part}"));
        let json: Json = serde_json::from_str(&words).unwrap();
        let whole = GgufFile::open(folder.path("model.gguf")).unwrap();
        assert_eq!(json["n_tensors"], whole.tensors().len());
        assert!(json["writers_error"].is_null() && !json["writers"].as_array().unwrap().is_empty());
    }
}

#[test]
fn a_split_model_is_rewritten_in_as_many_parts() {
    let folder = folder();
    folder.accepts(&format!("-q {REWRITE} model.gguf -o whole.gguf"));
    let (part, first) = (name("big", 1, 3), name("out", 0, 3));
    let [words, _] = folder.accepts(&format!("-q --json {REWRITE} {part} -o out.gguf"));
    let json: Json = serde_json::from_str(&words).unwrap();
    assert_eq!(json["output"], first);
    assert_eq!(json["files"].as_array().unwrap().len(), 3);
    assert!(!folder.path("out.gguf").exists());
    assert_eq!(tensors(&folder.path(&first)), tensors(&folder.path("whole.gguf")));
    let file = GgufFile::open(folder.path(&first)).unwrap();
    for (new, old) in file.parts().iter().zip(GgufFile::open(folder.path(&part)).unwrap().parts()) {
        let keys = |part: &ggsteer::gguf::Part| {
            let keys = part.metadata().iter().filter(|(key, _)| !key.starts_with("ggsteer."));
            keys.cloned().collect::<Vec<_>>()
        };
        assert_eq!(keys(new), keys(old));
    }
    // llama.cpp finds the other parts, and the answers are those of the whole.
    let say = |model: &str| folder.accepts(&format!("generate {model} --threads 1 -n 8 -p hello"))[0].clone();
    assert_eq!(say(&first), say("whole.gguf"));
    assert_ne!(say(&first), say("model.gguf"));
    // A name with the ending of a part stands for its prefix; existing parts need --force, and inputs stay.
    let again = format!("{REWRITE} {part} -o {}", name("out", 2, 3));
    folder.refuses(&again, &["exists already", "--force"]);
    let sets = "--harmful harmful.txt --harmless harmless.txt --threads 1";
    folder.refuses(&format!("abliterate {part} {sets} -o out.gguf"), &[&first, "exists already"]);
    folder.accepts(&format!("-q {again} --force"));
    folder.refuses(&format!("{REWRITE} {part} -o big.gguf --force"), &["is the input", "big-00001-of-00003"]);
    let other = format!("{REWRITE} {part} -o {} --force", name("big", 2, 3));
    folder.refuses(&other, &["is the input", "big-00001-of-00003"]);
}

#[test]
fn a_tied_split_model_is_untied_and_every_part_counts_the_new_tensor() {
    let folder = folder();
    let (part, first) = (name("two", 0, 2), name("out", 0, 2));
    let line = |model: &str, out: &str| {
        format!("-q orthogonalize --tied untie --direction other.gguf {model} -o {out}")
    };
    folder.accepts(&line("tied.gguf", "whole.gguf"));
    folder.accepts(&line(&part, "out.gguf"));
    assert_eq!(tensors(&folder.path(&first)), tensors(&folder.path("whole.gguf")));
    let file = GgufFile::open(folder.path(&first)).unwrap();
    for part in file.parts() {
        let n = file.tensors().len() as i32;
        assert_eq!(part.get("split.tensors.count"), Some(&Value::I32(n)));
    }
    let say = |model: &str| folder.accepts(&format!("generate {model} --threads 1 -n 8 -p hello"))[0].clone();
    assert_eq!(say(&first), say("whole.gguf"));
}

/// Mostly holes: no disk holds it, and no memory has to.
#[test]
fn a_file_past_4_gib_is_read_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.gguf");
    let names: Vec<String> = (0..6).map(|i| format!("blk.{i}.ffn_up.weight")).collect();
    let mut writer = Writer::new().key("general.architecture", "llama");
    for name in &names {
        writer = writer.tensor(name.as_str(), &[1 << 15, 1 << 13], GgmlType::F32);
    }
    let header = writer.header().unwrap();
    let size = header.len() as u64 + (6 << 30);
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(size).unwrap();
    file.seek(SeekFrom::End(-5)).unwrap();
    file.write_all(b"words").unwrap();
    let open = || GgufFile::open(&path).unwrap();
    let file = open();
    let last = file.tensor(names.last().unwrap()).unwrap();
    assert_eq!((file.file_len(), last.bytes), (size, 1 << 30));
    assert!(file.tensor_data(last).ends_with(b"\0words"));
    let (last_but_one, before) = (file.tensor(&names[4]).unwrap(), fingerprint(&file));
    assert_eq!(file.first_difference(last, (&file, last_but_one)), Some((1 << 30) - 5));
    drop(file);
    let mut file = fs::File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::End(-1)).unwrap();
    file.write_all(b"d").unwrap();
    assert_ne!(fingerprint(&open()), before);
    file.set_len(size - 1).unwrap();
    let error = GgufFile::open(&path).unwrap_err().to_string();
    assert!(error.contains(names.last().unwrap()) && error.contains("needs 1073741824 bytes at"), "{error}");
}

/// In a file of the test's own, where it may be mounted: a file system on which blocks can be shared.
#[test]
fn a_file_system_that_clones_shares_what_is_not_edited() {
    let folder = Folder::new();
    let spec =
        Spec { n_embd: 256, n_head: 4, n_head_kv: 4, n_ff: 1024, n_layer: 6, ..Spec::new(Arch::Llama) };
    folder.model("model.gguf", spec);
    folder.direction("direction.gguf", "llama", &tiny::unit(256, 1));
    let [words, _] = folder.accepts(&format!("-q --json {REWRITE} model.gguf -o plain.gguf"));
    let plain: Json = serde_json::from_str(&words).unwrap();
    let size = plain["file_size"].as_u64().unwrap();
    let program = assert_cmd::cargo::cargo_bin!("ggsteer");
    fs::create_dir(folder.path("disk")).unwrap();
    let mut tested = 0;
    for make in ["mkfs.xfs -q -f", "mkfs.btrfs -q -f"] {
        let mount = format!(
            "rm -f image && truncate -s 400M image && PATH=$PATH:/sbin:/usr/sbin && {make} image >&2 && \
             mount -o loop image disk"
        );
        let can = folder.command("unshare").args(["-m", "sh", "-c", &mount]).output();
        if !can.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED, not tested: {make} and mount -o loop do not both work here");
            continue;
        }
        let script = format!(
            "{{ {mount}; }} && cp model.gguf direction.gguf disk && cd disk && \
             used() {{ sync; df --output=used -B1 . | tail -1; }} && before=$(used) && \
             \"$0\" -q --json {REWRITE} model.gguf -o out.gguf && after=$(used) && \
             cmp out.gguf ../plain.gguf && cmp model.gguf ../model.gguf && echo $((after - before))"
        );
        let output =
            folder.command("unshare").args(["-m", "sh", "-c", &script]).arg(program).output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
        assert!(output.status.success(), "{make}: {stderr}");
        let (json, grown) = stdout.trim_end().rsplit_once('\n').unwrap();
        let json: Json = serde_json::from_str(json).unwrap();
        let (shared, grown) = (json["shared_bytes"].as_u64().unwrap(), grown.parse::<u64>().unwrap());
        println!("{make}: {size} bytes written, {shared} of them shared, {grown} bytes of disk taken");
        // Of a block of a llama, the output of the attention and of the FFN are edited: 5 of 16 equal squares.
        assert!(shared > size * 6 / 10, "{make}: {shared} of {size}");
        assert!(grown < size / 2, "{make}: {grown} of {size}");
        tested += 1;
    }
    println!("tested on {tested} file systems that clone");
}

/// A model on which the work takes a while, in one file or in three.
fn large(split: bool) -> Folder {
    let folder = Folder::new();
    let spec =
        Spec { n_embd: 512, n_head: 8, n_head_kv: 8, n_ff: 2048, n_layer: 5, ..Spec::new(Arch::Llama) };
    folder.direction("direction.gguf", "llama", &tiny::unit(512, 1));
    let model = Model::random(spec);
    if !split {
        model.write(&folder.path("model.gguf")).unwrap();
        return folder;
    }
    let parts = split::parts(&model, &[15, 15]);
    for (no, part) in parts.iter().enumerate() {
        part.write(&folder.path(&name("big", no, parts.len())));
    }
    folder
}

/// Runs a rewrite undisturbed, then again and again, killed at moments spread over the time it took; `check` looks at
/// the folder after each with whether the process was killed. Returns how many were.
fn kill(folder: &Folder, line: &str, moments: u32, check: impl Fn(bool)) -> u32 {
    let spawn = || {
        let mut command = folder.command(assert_cmd::cargo::cargo_bin!("ggsteer").to_str().unwrap());
        command.args(line.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let start = Instant::now();
    assert!(spawn().wait().unwrap().success());
    let whole = start.elapsed();
    check(false);
    let mut random = Random(7);
    let mut killed = 0;
    for i in 0..moments {
        // One in each of equal pieces of the time, and a little past its end.
        let at = (f64::from(i) + (random.bits() >> 11) as f64 / (1u64 << 53) as f64) / f64::from(moments);
        let mut child = spawn();
        std::thread::sleep(Duration::from_secs_f64(1.1 * at * whole.as_secs_f64()));
        child.kill().unwrap();
        let done = child.wait().unwrap().success();
        killed += u32::from(!done);
        check(!done);
    }
    println!("{killed} of {moments} killed within {whole:?}");
    killed
}

/// The names of what lies in the folder and was not there before, temporary files left out and removed.
fn outputs(folder: &Folder, before: &Contents) -> Vec<String> {
    let names = fs::read_dir(folder.path("")).unwrap().map(|entry| entry.unwrap());
    let names = names.filter(|entry| !before.contains_key(&entry.path()));
    let mut names: Vec<String> = names.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.retain(|name| {
        let ours =
            name.starts_with(".ggsteer-") && name.rsplit_once('.').is_some_and(|(_, end)| end == "part");
        if ours {
            fs::remove_file(folder.path(name)).unwrap();
        }
        !ours
    });
    names.sort();
    names
}

#[test]
fn a_killed_process_leaves_nothing_or_the_finished_file() {
    let folder = large(false);
    let before = folder.contents();
    folder.accepts(&format!("-q {REWRITE} model.gguf -o expected.gguf"));
    let expected = fs::read(folder.path("expected.gguf")).unwrap();
    fs::remove_file(folder.path("expected.gguf")).unwrap();
    let killed = kill(&folder, &format!("-q {REWRITE} model.gguf -o out.gguf"), 20, |_| {
        match outputs(&folder, &before)[..] {
            [] => {}
            [ref name] => {
                assert_eq!(name, "out.gguf");
                assert!(
                    fs::read(folder.path(name)).unwrap() == expected,
                    "out.gguf is not the finished file"
                );
                fs::remove_file(folder.path(name)).unwrap();
            }
            ref names => panic!("{names:?}"),
        }
        assert!(folder.contents() == before, "an input has changed");
    });
    assert!(killed > 0, "no process was killed at work");
}

#[test]
fn a_killed_process_leaves_no_loadable_piece_of_a_split_model() {
    let folder = large(true);
    let before = folder.contents();
    let model = name("big", 0, 3);
    folder.accepts(&format!("-q {REWRITE} {model} -o expected.gguf"));
    let names: Vec<String> = (0..3).map(|no| name("out", no, 3)).collect();
    let expected: Vec<Vec<u8>> = (0..3)
        .map(|no| {
            let path = folder.path(&name("expected", no, 3));
            let bytes = fs::read(&path).unwrap();
            fs::remove_file(path).unwrap();
            bytes
        })
        .collect();
    let killed = kill(&folder, &format!("-q {REWRITE} {model} -o out.gguf"), 20, |_| {
        let found = outputs(&folder, &before);
        // The first part is the last to come.
        if found.contains(&names[0]) {
            assert_eq!(found, names);
            for (name, expected) in names.iter().zip(&expected) {
                assert!(fs::read(folder.path(name)).unwrap() == *expected, "{name} is not the finished part");
            }
        }
        for name in &found {
            assert!(names.contains(name), "{name}");
            fs::remove_file(folder.path(name)).unwrap();
        }
        assert!(folder.contents() == before, "an input has changed");
    });
    assert!(killed > 0, "no process was killed at work");
}
