//! The C interface, called by a C program with a llama.cpp of its own; and hosts that are not to be trusted.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use ggsteer::intervention::{Addition, Basis, Intervention, Positions, Projection, Side};
use tempfile::TempDir;

use crate::exact::{difference, logits};
use crate::program::{Folder, spec};
use crate::support::architectures::table::{ADDED, NORMED};
use crate::support::architectures::{self};
use crate::support::tiny::{Arch, Spec, unit};

/// Where cargo has put the program.
fn target() -> PathBuf {
    assert_cmd::cargo::cargo_bin!("ggsteer").parent().unwrap().to_path_buf()
}

/// The shared library: what `cargo build` puts beside the program, tests alone leave with the other libraries.
pub fn library() -> PathBuf {
    let found = ["libggsteer.so", "libggsteer.dylib"].map(|name| target().join("deps").join(name));
    found.into_iter().find(|path| path.is_file()).expect("cargo builds it for the tests")
}

/// What a program prints; it must succeed.
pub fn run(command: &mut Command) -> String {
    // Cargo sets it, and it would come before where the program itself looks for the plugin.
    command.env_remove("LD_LIBRARY_PATH").env_remove("DYLD_FALLBACK_LIBRARY_PATH");
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Builds a C program as examples/plugin/Makefile does its own.
pub fn build(source: &Path, out: &Path) -> PathBuf {
    let makefile = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/plugin");
    let name = source.file_stem().unwrap();
    let program = out.join(name);
    let mut make = Command::new("make");
    make.arg("-C").arg(makefile).arg(format!("TARGET={}", target().display()));
    make.arg(format!("PLUGIN={}", library().parent().unwrap().display()));
    make.arg(format!("OUT={}", out.display())).arg(format!("SOURCE={}", source.display())).arg(&program);
    // A make around this one is not to pass its jobs on.
    run(make.env_remove("MAKEFLAGS").env_remove("MFLAGS"));
    program
}

/// `drive.c`, built once.
fn driver() -> &'static Path {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, program) = BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plugin/drive.c");
        let program = build(&source, folder.path());
        (folder, program)
    });
    program
}

/// What the driver prints for these words.
fn drive(folder: &Folder, model: &str, words: &str) -> String {
    run(folder.command(driver().to_str().unwrap()).arg(model).args(words.split_whitespace()))
}

/// Logits that the driver has written.
fn written(folder: &Folder, name: &str, n: usize) -> Vec<Vec<f32>> {
    let bytes = fs::read(folder.path(name)).unwrap();
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    values.chunks(values.len() / n).map(<[f32]>::to_vec).collect()
}

#[test]
fn the_shared_library_exports_its_functions_and_nothing_of_llama_cpp() {
    let exported = run(Command::new("nm").args(["-g", "-P"]).args(dynamic()).arg(library()));
    let names: BTreeSet<&str> = (exported.lines())
        .filter_map(|line| line.split(' ').next().zip(line.split(' ').nth(1)))
        .filter(|(_, kind)| *kind == "T")
        .map(|(name, _)| name.trim_start_matches('_'))
        .collect();
    let header = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("include/ggsteer.h")).unwrap();
    let declared = regex::Regex::new(r"\*?(ggsteer_\w+)\(").unwrap();
    let declared: BTreeSet<&str> =
        declared.captures_iter(&header).map(|c| c.get(1).unwrap().as_str()).collect();
    assert_eq!(names, declared);
    assert!(declared.len() > 15);
}

fn dynamic() -> &'static [&'static str] {
    if cfg!(target_os = "macos") { &[] } else { &["-D", "--defined-only"] }
}

#[test]
fn every_architecture_is_steered_as_by_the_session_or_refused() {
    let folder = Folder::new();
    let path = folder.path("arch.gguf");
    let r = unit(architectures::N_EMBD, 20);
    let erased = Arc::new(Intervention::ablate(&[&r]).unwrap());
    let (mut served, mut refused, mut wrong) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for spec in ADDED.iter().chain(NORMED) {
        spec.random(7).write(&path).unwrap();
        folder.direction("r.gguf", spec.name, &r);
        let words = "open load=-1,r.gguf mode=0,1 context decode=0,40,logits check";
        let said = drive(&folder, "arch.gguf", words);
        if said.starts_with("open: 0") {
            assert!(said.contains(&format!("architecture {:?}: the names", spec.name)), "{said}");
            refused.insert(spec.name);
            continue;
        }
        served.insert(spec.name);
        let found = written(&folder, "logits", 40);
        let (expected, plain) = (logits(&path, Some(Arc::clone(&erased))), logits(&path, None));
        let (off, moved) = (difference(&found, &expected), difference(&expected, &plain));
        if off > 1e-5 || moved < 0.01 || !said.ends_with("check: 0\n") {
            wrong.push(format!("{}: off by {off:e} of {moved:e}: {said}", spec.title()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The page lists them, in the first cells of a table's rows.
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plugin.md")).unwrap();
    let rows = page.lines().filter(|line| line.ends_with(", `l_out-N` |"));
    let listed = rows.flat_map(|row| row.split('|').nth(1).unwrap().split(',').map(str::trim)).collect();
    assert_eq!(served, listed);
    println!("{} architectures served, refused: {refused:?}", served.len());
    let expected =
        ["arctic", "bloom", "falcon-h1", "gptneox", "jamba", "lfm2", "phi3", "phimoe", "qwen3next", "rwkv7"];
    assert_eq!(refused, BTreeSet::from(expected));
}

/// What is said of `model.gguf` (2 blocks, 32 wide), whose direction is `r.gguf`.
fn said(words: &str) -> String {
    let folder = Folder::new();
    folder.direction("r.gguf", "llama", &unit(32, 1));
    drive(&folder, "model.gguf", words)
}

#[test]
fn what_can_be_set_does_what_it_does_in_the_session() {
    let folder = Folder::new();
    folder.model("model.gguf", Spec { n_layer: 4, ..spec() });
    let [a, b] = [1, 2].map(|seed| unit(32, seed).iter().map(|x| 3.0 * x).collect::<Vec<f32>>());
    folder.direction("a.gguf", "llama", &a);
    folder.direction("b.gguf", "llama", &b);
    let (model, erased) = (folder.path("model.gguf"), |v| Projection::new(v).unwrap());
    let projected = |p: Vec<Projection>| Intervention { project: p, ..Intervention::default() };
    let added = |vector: Vec<f32>, positions| Addition { block: 1, vector, positions };
    let half: Vec<f32> = a.iter().map(|x| -0.5 * x).collect();
    let cases = [
        ("mode=0,1 mode=1,1", Intervention::ablate(&[&a, &b]).unwrap()),
        (
            "mode=0,2 strength=0,-0.5",
            Intervention { add: vec![added(half, Positions::All)], ..Intervention::default() },
        ),
        ("mode=0,1 strength=0,0.5", projected(vec![erased(&a).strength(0.5)])),
        ("mode=0,1 blocks=0,1,2", projected(vec![erased(&a).blocks(1..3)])),
        (
            "mode=0,1 blocks=0,2,-1 side=0,1,0.25",
            projected(vec![erased(&a).blocks(2..4).center(0.25).side(Side::Above)]),
        ),
        ("mode=1,1 side=1,2,-0.1", projected(vec![erased(&b).center(-0.1).side(Side::Below)])),
        (
            "mode=0,1 mode=1,2",
            Intervention {
                ablate: Basis::new(&[&a]).unwrap(),
                add: vec![added(b.clone(), Positions::All)],
                ..Intervention::default()
            },
        ),
        ("mode=0,1 blocks=0,0,3 mode=0,0", Intervention::default()),
    ];
    let plain = logits(&model, None);
    for (words, intervention) in cases {
        for pieces in [64, 7] {
            let words = format!(
                "open load=-1,a.gguf load=1,b.gguf {words} context={pieces} decode=0,40,steered check detach \
                 decode=0,40,plain check"
            );
            let said = drive(&folder, "model.gguf", &words);
            assert!(!said.contains("-1"), "{said}");
            let expected = logits(&model, Some(Arc::new(intervention.clone())));
            assert!(difference(&written(&folder, "steered", 40), &expected) < 1e-4, "{words}");
            assert!(difference(&written(&folder, "plain", 40), &plain) < 1e-4, "{words}");
            assert!(
                intervention.is_empty() || difference(&expected, &plain) > 0.001,
                "{words} changes nothing"
            );
        }
    }

    // At the prompt alone, in pieces of which the last is one token; then what is generated.
    let words = "open load=-1,a.gguf mode=0,1 positions=0,1 context=8 phase=1 decode=0,17,both phase=0 \
                 decode=17,18,both decode=18,40,both check";
    assert!(!drive(&folder, "model.gguf", words).contains("-1"));
    let both = written(&folder, "both", 40);
    let everywhere = logits(&model, Some(Arc::new(Intervention::ablate(&[&a]).unwrap())));
    assert!(difference(&both[..17], &everywhere[..17]) < 1e-4);
    assert!(
        difference(&both[17..], &everywhere[17..]) > 0.001 && difference(&both[17..], &plain[17..]) > 0.001
    );
}

#[test]
fn readings_are_those_of_the_session() {
    let folder = Folder::new();
    let r = unit(32, 1);
    folder.direction("r.gguf", "llama", &r);
    let words = "open load=-1,r.gguf read=0,1 context decode=0,40,logits readings=0 readings=0,10 readings=0,64 \
                 readings=0,64 read=0,-1 decode=0,40,logits readings=0,64 check";
    let said = drive(&folder, "model.gguf", words);
    let (numbers, words): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| line.parse::<f32>().is_ok());
    assert_eq!(
        words,
        [
            "open: 1",
            "load: 0",
            "read: 0",
            "readings: 40",
            "readings: 40",
            "readings: 40",
            "readings: 0",
            "read: 0",
            "readings: 0",
            "check: 0"
        ]
    );
    let tiny = crate::support::tiny::Model::random(spec());
    let ids: Vec<i32> = crate::exact::tokens(40).iter().map(|t| t.0).collect();
    let oracle = crate::support::forward::forward(&tiny, &ids, crate::support::forward::Edit::default());
    let expected = oracle.l_out[1].iter().map(|x| ggsteer::intervention::dot(&r, x) as f32).collect();
    let found = numbers.iter().map(|n| n.parse().unwrap()).collect();
    assert!(difference(&[found], &[expected]) < 1e-4);
}

#[test]
fn wrong_calls_are_told_from_right_ones() {
    let version = said("version");
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
    let cases = [
        ("open-null", "open-null: 0 model is NULL"),
        ("load=-1,r.gguf", "load: -1 steering is NULL"),
        ("check", "check: -1 steering is NULL"),
        ("free", "free: 0"),
        ("open load=-1", "load: -1 path is NULL"),
        ("open load=-1,none.gguf", "load: -1 none.gguf: "),
        ("open load=0,r.gguf", "load: -1 r.gguf: no direction for block 0; it has directions for blocks [1]"),
        ("open load=-2,r.gguf", "load: -1 block -2 is none of those in ggsteer.h"),
        ("open load=-1,model.gguf", "load: -1 model.gguf: not a control vector"),
        ("open mode=0,1", "mode: -1 no direction 0: 0 are loaded, counted from 0"),
        ("open load=-1,r.gguf mode=0,7", "mode: -1 mode 7 is none of those in ggsteer.h"),
        ("open load=-1,r.gguf mode=-1,1", "mode: -1 no direction -1: 1 are loaded, counted from 0"),
        ("open load=-1,r.gguf positions=0,3", "positions: -1 positions 3 is none"),
        ("open load=-1,r.gguf side=0,3,0", "side: -1 side 3 is none"),
        ("open load=-1,r.gguf side=0,0,nan", "side: -1 center is NaN, not a finite number"),
        ("open load=-1,r.gguf strength=0,inf", "strength: -1 strength is inf, not a finite number"),
        ("open load=-1,r.gguf blocks=0,1,2", "blocks: -1 blocks 1 to 2: the model has blocks 0 to 1"),
        ("open load=-1,r.gguf blocks=0,1,0", "blocks: -1 blocks 1 to 0: the model has blocks 0 to 1"),
        ("open load=-1,r.gguf read=0,2", "read: -1 blocks 2 to 2: the model has blocks 0 to 1"),
        ("open readings=0,64", "readings: -1 no direction 0: 0 are loaded"),
        ("open load=-1,r.gguf load=-1,r.gguf mode=0,1 mode=1,1", "mode: -1 direction 1: zero, or a linear"),
        (
            "open load=-1,r.gguf mode=0,1 positions=0,2 context decode=0,4,l check",
            "check: -1 something is done at some",
        ),
        (
            "open load=-1,r.gguf mode=0,1 context vectors check",
            "check: -1 the residual stream has no beginning",
        ),
        ("open free check", "check: -1 this steering was freed"),
        ("open free free", "free: -1 this steering was freed"),
        ("open free load=-1,r.gguf", "load: -1 this steering was freed"),
    ];
    for (words, expected) in cases {
        let said = said(words);
        let last = said.lines().last().unwrap();
        assert!(last.starts_with(expected), "{words}: {last}");
    }
    // An error leaves what was set before, a context outlives its steering, and one without a steering is a plain one.
    let folder = Folder::new();
    folder.direction("r.gguf", "llama", &unit(32, 1));
    let plain = logits(&folder.path("model.gguf"), None);
    for words in ["context decode=0,40,l", "open load=-1,r.gguf mode=0,1 context free decode=0,40,l"] {
        drive(&folder, "model.gguf", words);
        assert!(difference(&written(&folder, "l", 40), &plain) < 1e-5, "{words}");
    }
    drive(
        &folder,
        "model.gguf",
        "open load=-1,r.gguf mode=0,1 strength=0,nan mode=0,9 context decode=0,40,l check",
    );
    let erased = Intervention::ablate(&[unit(32, 1)]).unwrap();
    let erased = logits(&folder.path("model.gguf"), Some(Arc::new(erased)));
    assert!(difference(&written(&folder, "l", 40), &erased) < 1e-5);
    // A direction of another model.
    folder.direction("other.gguf", "qwen2", &unit(32, 1));
    folder.direction("narrow.gguf", "llama", &unit(31, 1));
    folder.direction_of("beyond.gguf", "llama", 2, &unit(32, 1));
    for (name, expected) in [
        ("other", "direction was made for architecture \"qwen2\", model is \"llama\""),
        ("narrow", "direction has n_embd 31, model has 32"),
        ("beyond", "blocks 2 to 2: the model has blocks 0 to 1"),
    ] {
        let said = drive(&folder, "model.gguf", &format!("open load=-1,{name}.gguf"));
        assert!(said.contains(expected), "{said}");
    }
}

/// Builds `fake.c` as a library: `LACKS_NAME` leaves a function out, `WRONG=NAME` lets one answer wrongly.
fn fake(folder: &Path, define: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plugin/fake.c");
    let library = folder.join(format!("{}.so", define.replace('=', "-")));
    let mut cc = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()));
    run(cc.args(["-std=c11", "-shared", "-fPIC", "-o"]).arg(&library).arg(format!("-D{define}")).arg(source));
    library
}

#[test]
fn a_host_that_is_not_as_expected_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = |library: &Path| {
        let path = std::ffi::CString::new(library.to_str().unwrap()).unwrap();
        // Any address will do for a model: the host is tried out before it is asked of one.
        let mut model = 0u64;
        // SAFETY: the path ends with a NUL; what is not opened is not used.
        unsafe {
            let opened = ggsteer::plugin::c::ggsteer_open(path.as_ptr(), (&raw mut model).cast());
            let why = ggsteer::plugin::c::ggsteer_last_error();
            let why = (!why.is_null()).then(|| std::ffi::CStr::from_ptr(why).to_string_lossy().into_owned());
            (opened.is_null(), why.unwrap_or_default())
        }
    };
    // Loaded by nobody: it is not loaded here either.
    let library = fake(folder.path(), "WRONG=none");
    let (refused, why) = open(&library);
    assert!(refused && why.contains("not a library that this program has loaded"), "{why}");
    let (refused, why) = open(Path::new("/nowhere/libllama.so"));
    assert!(refused && why.contains("/nowhere/libllama.so: not a library"), "{why}");

    let mut cases = vec![("WRONG=none".to_owned(), "the model does not say its architecture".to_owned())];
    for name in [
        "ggml_type_name",
        "ggml_nelements",
        "ggml_nrows",
        "ggml_nbytes",
        "ggml_element_size",
        "ggml_is_contiguous",
        "ggml_get_name",
        "ggml_op_desc",
        "ggml_backend_tensor_get",
        "ggml_backend_tensor_set",
        "ggml_init",
        "ggml_new_tensor_2d",
        "ggml_tensor_overhead",
    ] {
        cases.push((format!("WRONG={name}"), format!("{name} does not answer as it should")));
    }
    for name in ["ggml_get_name", "ggml_backend_tensor_set", "llama_model_n_layer"] {
        cases.push((format!("LACKS_{name}"), format!("has no function {name}")));
    }
    for (define, expected) in cases {
        let library = fake(folder.path(), &define);
        // SAFETY: the library runs no code as it is loaded.
        let loaded = unsafe { libloading::Library::new(&library) }.unwrap();
        let (refused, why) = open(&library);
        assert!(refused && why.contains(&expected), "{define}: {why}");
        drop(loaded);
    }
}

#[test]
fn the_driver_is_plain_where_the_plugin_is_not_used() {
    for arch in [Arch::Llama, Arch::Gpt2] {
        let folder = Folder::new();
        folder.model("model.gguf", Spec::new(arch));
        drive(&folder, "model.gguf", "open context=64 decode=0,40,l check");
        let plain = logits(&folder.path("model.gguf"), None);
        assert!(difference(&written(&folder, "l", 40), &plain) < 1e-6);
    }
}
