//! The patches in `patches/`: llama.cpp that takes directions out in its graph gives the logits of the hook, and
//! llama-cpp-2's own eval callback carries the hook.
//!
//! The tests of [`inside`] are run twice: here, on llama.cpp as it comes, which must refuse, and by `scripts/patched.sh test` on
//! the patched build, which must not. The tests of [`outside`] build that, run it and compare with what is computed here.
//! `GGSTEER_NO_PATCHED=1` leaves them out, and says so.

use std::path::Path;
use std::sync::Arc;

use ggsteer::direction::{Direction, Provenance};
use ggsteer::export::control_vector::{self, Mode};
use ggsteer::gguf::GgufFile;
use ggsteer::intervention::Intervention;
use ggsteer::runtime::{FileType, QuantizeOptions, quantize};

mod exact;
mod support;

use exact::{difference, logits, tokens};

/// Largest difference of a logit, as a part of the largest logit.
const TOLERANCE: f64 = 1e-4;
/// What an ablation has to move for a comparison to say something, in the same parts.
const MOVED: f64 = 0.01;

/// Of a block that does not matter for a projection.
fn direction(vector: &[f32]) -> Direction {
    Direction::new(vector.to_vec(), 1, Provenance::default()).unwrap()
}

fn export(vector: &[f32], mode: Mode, scale: f32, path: &Path) {
    control_vector::convert(&direction(vector), mode, scale).unwrap().save(path, true).unwrap();
}

/// The sample and its direction, at F32.
fn sample(folder: &Path) -> (std::path::PathBuf, Vec<f32>) {
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples");
    let model = folder.join("sample-f32.gguf");
    let f32 = FileType::from_name("F32").unwrap();
    let from = Path::new(samples).join("lorekeeper-7m-f16.gguf");
    quantize(&from, &model, f32, &QuantizeOptions::default()).unwrap();
    let width = GgufFile::open(&model).unwrap().tensor("token_embd.weight").unwrap().ne[0] as usize;
    (model, support::tiny::unit(width, 3))
}

fn hooked(model: &Path, directions: &[Vec<f32>]) -> Vec<Vec<f32>> {
    logits(model, Some(Arc::new(Intervention::ablate(directions).unwrap())))
}

mod inside {
    //! What ggsteer's own runtime does with a projecting control vector.

    use ggsteer::intervention::Positions;
    use ggsteer::runtime::{Error, Stock};

    use super::support::architectures::table::{ADDED, NORMED};
    use super::support::architectures::{N_EMBD, Spec};
    use super::support::tiny::unit;
    use super::*;

    /// Set by `scripts/patched.sh test`.
    fn patched() -> bool {
        std::env::var_os("GGSTEER_PATCHED").is_some()
    }

    /// Logits with these files applied, and what llama.cpp as it comes says to a projection.
    fn in_graph(model: &Path, files: &[(&Path, f32)]) -> Option<Vec<Vec<f32>>> {
        let mut stock = Stock::load(model, 64, 1).unwrap();
        for (file, scale) in files {
            match stock.set_control_vector(file, *scale) {
                Ok(()) => {}
                Err(Error::Adapter { why, .. }) if !patched() => {
                    assert!(why.contains("glp.mode") && why.contains("scripts/patched.sh"), "{why}");
                    return None;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(patched(), "llama.cpp as it comes has taken a projection");
        Some(stock.logits(&tokens(40)).unwrap())
    }

    fn each(specs: &[Spec]) {
        let folder = tempfile::tempdir().unwrap();
        let (model, vector) = (folder.path().join("model.gguf"), folder.path().join("vector.gguf"));
        let r = unit(N_EMBD, 20);
        // A projection takes out what a direction points to, whatever its length.
        export(&r.iter().map(|x| 3.0 * x).collect::<Vec<_>>(), Mode::Project, 1.0, &vector);
        let mut wrong = Vec::new();
        for (seed, spec) in specs.iter().enumerate() {
            spec.random(100 + seed as u64).write(&model).unwrap();
            let Some(graph) = in_graph(&model, &[(&vector, 1.0)]) else { continue };
            let (plain, hook) = (logits(&model, None), hooked(&model, std::slice::from_ref(&r)));
            let (moved, apart) = (difference(&plain, &hook), difference(&graph, &hook));
            println!("{:28} plain to hook {moved:.3}, graph to hook {apart:.1e}", spec.title());
            let right = moved > MOVED && apart <= TOLERANCE;
            wrong.extend((!right).then(|| format!("{}: {apart:e} of {moved:.3}", spec.title())));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn the_graph_projects_as_the_hook_ablates() {
        each(ADDED);
    }

    #[test]
    fn the_graph_projects_behind_norms_as_the_hook_ablates() {
        each(NORMED);
    }

    #[test]
    fn the_sample_has_the_logits_of_the_hook() {
        let folder = tempfile::tempdir().unwrap();
        let (model, r) = sample(folder.path());
        let vector = folder.path().join("vector.gguf");
        export(&r, Mode::Project, 1.0, &vector);
        let Some(graph) = in_graph(&model, &[(&vector, 1.0)]) else { return };
        let hook = hooked(&model, &[r]);
        let (moved, apart) = (difference(&logits(&model, None), &hook), difference(&graph, &hook));
        println!("sample, F32: plain to hook {moved:.3}, graph to hook {apart:.1e}");
        assert!(moved > MOVED && apart <= TOLERANCE, "{apart:e} of {moved:.3}");
    }

    #[test]
    fn an_addition_stands_beside_a_projection_and_each_takes_the_place_of_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (model, project, add, other) = (path("model"), path("project"), path("add"), path("other"));
        ADDED[0].random(100).write(&model).unwrap();
        let (r, v) = (unit(N_EMBD, 20), unit(N_EMBD, 21));
        export(&r, Mode::Project, 1.0, &project);
        export(&unit(N_EMBD, 22), Mode::Project, 1.0, &other);
        // Along r too: what is added after the projection stays, to the next write.
        let v: Vec<f32> = v.iter().zip(&r).map(|(v, r)| 4.0 * (v + r)).collect();
        export(&v, Mode::Add, 1.0, &add);
        let mut both = Intervention::ablate(&[&r]).unwrap();
        both.add = Intervention::add(1, &v, 1.0, Positions::All).unwrap().add;
        let hook = logits(&model, Some(Arc::new(both)));
        for files in [[&other, &project, &add], [&other, &add, &project]] {
            let files = files.map(|file| (file.as_path(), 1.0));
            let Some(graph) = in_graph(&model, &files) else { return };
            let apart = difference(&graph, &hook);
            assert!(apart <= TOLERANCE, "{apart:e}");
            assert!(difference(&graph, &hooked(&model, std::slice::from_ref(&r))) > MOVED);
        }
    }

    #[test]
    fn a_part_of_a_projection_lies_between_none_and_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (model, vector) = (folder.path().join("model"), folder.path().join("vector"));
        ADDED[0].random(100).write(&model).unwrap();
        let r = unit(N_EMBD, 20);
        export(&r, Mode::Project, 0.5, &vector);
        // The scale is a factor of glp.alpha_default.
        let Some(whole) = in_graph(&model, &[(&vector, 2.0)]) else { return };
        let half = in_graph(&model, &[(&vector, 1.0)]).unwrap();
        let none = in_graph(&model, &[(&vector, 0.0)]).unwrap();
        let (plain, hook) = (logits(&model, None), hooked(&model, &[r]));
        assert!(difference(&whole, &hook) <= TOLERANCE && difference(&none, &plain) <= TOLERANCE);
        assert!(difference(&half, &hook) > MOVED && difference(&half, &plain) > MOVED);
    }
}

mod outside {
    //! The patched build, and llama.cpp's own way in: its arguments and its loader of control vectors.

    use std::io::Write;
    use std::path::PathBuf;
    use std::process::{Command, Output, Stdio};
    use std::sync::OnceLock;

    use ggsteer::runtime::Stock;

    use super::support::architectures::table::{ADDED, NORMED};
    use super::support::architectures::{N_EMBD, Spec};
    use super::support::tiny::unit;
    use super::*;

    fn script(argument: &str) -> String {
        let mut script = Command::new("sh");
        script.args(["scripts/patched.sh", argument]).current_dir(env!("CARGO_MANIFEST_DIR"));
        let output = script.stderr(Stdio::inherit()).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "scripts/patched.sh {argument}: {said}");
        said
    }

    /// The program of llama.cpp's that writes logits; none where the patched build is not wanted.
    fn program() -> Option<&'static Path> {
        static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
        let build = || {
            if std::env::var_os("GGSTEER_NO_PATCHED").is_some() {
                eprintln!("NOT RUN: the patched llama.cpp is not built (GGSTEER_NO_PATCHED)");
                return None;
            }
            Some(PathBuf::from(script("build").lines().last().unwrap()))
        };
        PROGRAM.get_or_init(build).as_deref()
    }

    fn run(program: &Path, model: &Path, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        // As `Stock` computes: everything in f32, no flash attention, one batch, one thread.
        command.args(["-c", "64", "-b", "64", "-ub", "64", "-t", "1", "-tb", "1", "-ngl", "0", "-fa", "off"]);
        command.args(["-ctk", "f32", "-ctv", "f32", "--no-warmup", "--fit", "off", "--no-op-offload"]);
        command.arg("-m").arg(model).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let ids: Vec<String> = tokens(40).iter().map(|t| t.0.to_string()).collect();
        // A program that refuses may be gone before it has read them.
        let _ = child.stdin.take().unwrap().write_all(ids.join(" ").as_bytes());
        child.wait_with_output().unwrap()
    }

    fn logits_of(program: &Path, model: &Path, arguments: &[&str]) -> Vec<Vec<f32>> {
        let output = run(program, model, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let values = output.stdout.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let values: Vec<f32> = values.collect();
        values.chunks_exact(values.len() / 40).map(<[f32]>::to_vec).collect()
    }

    fn text(path: &Path) -> &str {
        path.to_str().unwrap()
    }

    /// The sample, a model with parallel blocks that write once, and one with norms behind its writers; each with a
    /// direction.
    fn three(folder: &Path) -> [(&'static str, PathBuf, Vec<f32>); 3] {
        let (model, r) = sample(folder);
        let [parallel, normed] = ["phi2", "gemma2"].map(|arch| {
            let path = folder.join(arch);
            spec(arch).random(100).write(&path).unwrap();
            (arch, path, unit(N_EMBD, 20))
        });
        [("sample", model, r), parallel, normed]
    }

    fn spec(arch: &str) -> &'static Spec {
        ADDED.iter().chain(NORMED).find(|spec| spec.name == arch).unwrap()
    }

    #[test]
    fn the_runtime_and_the_hook_are_right_on_the_patched_build() {
        let Some(_) = program() else { return };
        let said = script("test");
        println!("{said}");
        let passed = said.matches("test result: ok.").count();
        assert_eq!(passed, 3, "of the three test programs {passed} are right");
    }

    #[test]
    fn a_projecting_control_vector_of_llama_cpps_programs_is_the_hook() {
        let Some(program) = program() else { return };
        let folder = tempfile::tempdir().unwrap();
        let vector = folder.path().join("vector.gguf");
        for (name, model, r) in three(folder.path()) {
            export(&r, Mode::Project, 1.0, &vector);
            let graph = logits_of(program, &model, &["--control-vector", text(&vector)]);
            let (plain, hook) = (logits(&model, None), hooked(&model, &[r]));
            let (moved, apart) = (difference(&plain, &hook), difference(&graph, &hook));
            println!("{name}, F32: plain to hook {moved:.3}, --control-vector to hook {apart:.1e}");
            assert!(moved > MOVED && apart <= TOLERANCE, "{name}: {apart:e} of {moved:.3}");
        }
    }

    #[test]
    fn several_files_project_their_span_out() {
        let Some(program) = program() else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (model, first, second) = (path("model"), path("first"), path("second"));
        ADDED[0].random(100).write(&model).unwrap();
        let a = unit(N_EMBD, 20);
        // Far from a right angle: one after the other would leave some of the first.
        let b: Vec<f32> = unit(N_EMBD, 21).iter().zip(&a).map(|(b, a)| b + a).collect();
        export(&a, Mode::Project, 1.0, &first);
        export(&b, Mode::Project, 1.0, &second);
        let files = format!("{},{}", text(&first), text(&second));
        let both = logits_of(program, &model, &["--control-vector", &files]);
        let hook = hooked(&model, &[a, b]);
        let apart = difference(&both, &hook);
        assert!(apart <= TOLERANCE, "{apart:e}");
        // The same file twice is the file once, and a range of blocks is a part of it.
        let once = logits_of(program, &model, &["--control-vector", text(&first)]);
        let twice =
            logits_of(program, &model, &["--control-vector", &format!("{},{}", text(&first), text(&first))]);
        assert!(once == twice);
        let range = ["--control-vector", text(&first), "--control-vector-layer-range", "2", "3"];
        let part = logits_of(program, &model, &range);
        assert!(difference(&part, &once) > MOVED && difference(&part, &logits(&model, None)) > MOVED);
    }

    #[test]
    fn what_is_added_is_unchanged_bit_for_bit() {
        let Some(program) = program() else { return };
        let folder = tempfile::tempdir().unwrap();
        let vector = folder.path().join("vector.gguf");
        for (name, model, r) in three(folder.path()) {
            export(&r, Mode::Add, 3.0, &vector);
            // This very process has llama.cpp as it comes.
            let mut stock = Stock::load(&model, 64, 1).unwrap();
            let plain = stock.logits(&tokens(40)).unwrap();
            stock.set_control_vector(&vector, 0.5).unwrap();
            let added = stock.logits(&tokens(40)).unwrap();
            assert!(difference(&plain, &added) > MOVED, "{name}: the addition does nothing");
            assert!(
                logits_of(program, &model, &[]) == plain,
                "{name}: another result without a control vector"
            );
            let scaled = format!("{}:0.5", text(&vector));
            let patched = logits_of(program, &model, &["--control-vector-scaled", &scaled]);
            assert!(patched == added, "{name}: another result with a control vector");
            println!("{name}, F32: {} logits, plain and added, bit for bit", 40 * added[0].len());
        }
    }

    #[test]
    fn what_cannot_be_projected_ends_the_program() {
        let Some(program) = program() else { return };
        let folder = tempfile::tempdir().unwrap();
        let (model, vector) = (folder.path().join("model.gguf"), folder.path().join("vector.gguf"));
        ADDED[0].random(100).write(&model).unwrap();
        let refused = |why: &str| {
            let output = run(program, &model, &["--control-vector", text(&vector)]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(output.stdout.is_empty() && said.contains(why), "{why}: {said}");
        };
        let with = |change: &dyn Fn(&mut Provenance)| {
            let mut direction = direction(&unit(N_EMBD, 20));
            change(&mut direction.meta);
            direction.save(&vector, true).unwrap();
        };
        with(&|meta| meta.hook_point = Some("attn_out".into()));
        refused("'attn_out'");
        with(&|meta| meta.mode = Some("reflect".into()));
        refused("unknown glp.mode 'reflect'");
        direction(&unit(N_EMBD / 2, 20)).save(&vector, true).unwrap();
        refused("n_embd does not match model");
        std::fs::write(&vector, "not a file of directions").unwrap();
        refused("failed to load control vector file");
        let help = run(program, &model, &["--help"]);
        assert!(String::from_utf8_lossy(&help.stdout).contains("glp.mode = project"));
    }
}
