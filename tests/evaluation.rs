//! What `evaluate` measures, against plain recomputations: perplexity by llama.cpp's definition, KL along the
//! base's own answers, the judge's verdicts; and the program's words about all of it.
#![forbid(unsafe_code)]

mod program;
mod support;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ggsteer::activations::Contrast;
use ggsteer::direction::Direction;
use ggsteer::evaluate::forced::{divergences, openings};
use ggsteer::evaluate::judge::{self, Judge};
use ggsteer::evaluate::perplexity::{self, perplexity};
use ggsteer::intervention::{Intervention, Positions};
use ggsteer::runtime::{Model, ModelOptions, Prompt, Session, SessionOptions, Token, backend};
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use program::{Folder, spec};
use serde_json::Value as Json;
use support::forward::{Edit, forward};
use support::tiny::{self, Arch, CHATML, ENDOFTEXT, IM_END, Spec, unit};
use support::writer::Value;

/// Tokens of a chunk on the sample.
const N_CTX: usize = 128;

const TEXT: &str = include_str!("fixtures/lighthouse-bread.txt");

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf-samples")
}

fn load(path: &Path) -> Model {
    Model::load(path, &ModelOptions::default()).unwrap()
}

fn written(spec: Spec, folder: &Path) -> (tiny::Model, Model) {
    let tiny = tiny::Model::random(spec);
    let path = folder.join("tiny.gguf");
    tiny.write(&path).unwrap();
    let model = load(&path);
    (tiny, model)
}

/// f32 throughout; a batch holds several short sequences, or a piece of a long one.
fn exact() -> SessionOptions {
    SessionOptions {
        n_ctx: 256,
        n_batch: 48,
        n_seq: 4,
        n_threads: 1,
        exact: true,
        ..SessionOptions::default()
    }
}

fn ids(tokens: &[Token]) -> Vec<i32> {
    tokens.iter().map(|t| t.0).collect()
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let exps: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
    let total: f64 = exps.iter().sum();
    exps.iter().map(|e| e / total).collect()
}

/// Perplexity and the figure after its ±, from −ln p of the tokens scored, by llama.cpp's formula.
fn estimate(nll: &[f64]) -> [f64; 2] {
    let count = nll.len() as f64;
    let mean = nll.iter().sum::<f64>() / count;
    let mean_of_squares = nll.iter().map(|x| x * x).sum::<f64>() / count;
    let error = ((mean_of_squares - mean * mean) / (count - 1.0)).sqrt();
    [mean.exp(), error * mean.exp()]
}

fn assert_near(found: f64, expected: f64, what: &str) {
    assert!(
        (found - expected).abs() <= 1e-4 * expected.abs().max(1.0),
        "{what}: {found}, expected {expected}"
    );
}

#[test]
fn perplexity_is_llama_cpps_by_an_independent_forward_pass() {
    let folder = tempfile::tempdir().unwrap();
    for (arch, bos) in [(Arch::Llama, false), (Arch::Llama, true), (Arch::Qwen2, true), (Arch::Gpt2, false)] {
        let extra = vec![("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(bos))];
        let (tiny, model) = written(Spec { extra, ..Spec::new(arch) }, folder.path());
        let tokens = perplexity::tokens(&model, &TEXT[..400]);
        assert_eq!(tokens[0].0 == ENDOFTEXT, bos, "the text begins as the model wants it");
        let r = unit(tiny.spec.n_embd, 3);
        let ablate = Arc::new(Intervention::ablate(&[&r]).unwrap());
        let mut session = Session::new(&model, exact()).unwrap();
        // 16: three chunks to a batch; 33: one; 100: three batches to a chunk.
        for n_ctx in [16, 33, 100] {
            for (intervention, edit) in
                [(None, Edit::default()), (Some(&ablate), Edit { ablate: Some(&r), ..Edit::default() })]
            {
                let mut nll = Vec::new();
                for chunk in tokens.chunks_exact(n_ctx) {
                    let mut chunk = ids(chunk);
                    if bos {
                        chunk[0] = ENDOFTEXT;
                    }
                    let logits = forward(&tiny, &chunk, edit).logits;
                    nll.extend(
                        (n_ctx / 2..n_ctx - 1).map(|i| -softmax(&logits[i])[chunk[i + 1] as usize].ln()),
                    );
                }
                let mut steps = 0;
                let found =
                    perplexity(&mut session, &tokens, n_ctx, intervention, &mut || steps += 1).unwrap();
                let what = format!("{arch:?}, bos {bos}, {n_ctx}, {}", intervention.is_some());
                let [expected, error] = estimate(&nll);
                assert_near(found.perplexity, expected, &what);
                assert_near(found.standard_error, error, &what);
                assert!(found.low < found.perplexity && found.perplexity < found.high);
                assert_eq!((found.n_tokens, found.n_chunks, steps), (nll.len(), tokens.len() / n_ctx, steps));
                assert_eq!(steps, found.n_chunks);
            }
        }
    }
}

#[test]
fn perplexity_of_the_sample_is_that_of_a_bare_context_a_chunk_at_a_time() {
    let path = samples().join("lorekeeper-7m-f16.gguf");
    let prompts = std::fs::read_to_string(samples().join("prompts/ordinary-final.txt")).unwrap();
    let bare = LlamaModel::load_from_file(backend().unwrap(), &path, &LlamaModelParams::default()).unwrap();
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(N_CTX as u32))
        .with_n_threads(1)
        .with_n_threads_batch(1);
    let mut context = bare.new_context(backend().unwrap(), params).unwrap();
    let model = load(&path);
    let options = SessionOptions {
        n_ctx: 2048,
        n_batch: 512,
        n_seq: 32,
        n_threads: 1,
        exact: false,
        ..SessionOptions::default()
    };
    let mut session = Session::new(&model, options).unwrap();
    for text in [TEXT, &prompts] {
        let tokens = bare.vocab().tokenize(text.trim_end_matches('\n').as_bytes(), true, false);
        let mut batch = LlamaBatch::new(N_CTX, 1);
        let mut nll = Vec::new();
        for chunk in tokens.chunks_exact(N_CTX) {
            context.clear_kv_cache();
            batch.clear();
            for (i, &token) in chunk.iter().enumerate() {
                batch.add(token, i as i32, &[0], i >= N_CTX / 2).unwrap();
            }
            context.decode(&mut batch).unwrap();
            for i in N_CTX / 2..N_CTX - 1 {
                nll.push(-softmax(context.get_logits_ith(i as i32))[chunk[i + 1].0 as usize].ln());
            }
        }
        let ours = perplexity::tokens(&model, text);
        let found = perplexity(&mut session, &ours, N_CTX, None, &mut || ()).unwrap();
        let [expected, error] = estimate(&nll);
        println!("{} against {expected} ± {error}", found.perplexity);
        assert_near(found.perplexity, expected, "perplexity");
        assert_near(found.standard_error, error, "its error");
    }
}

#[test]
fn kl_runs_along_the_bases_own_answers() {
    let folder = tempfile::tempdir().unwrap();
    let (tiny, model) = written(Spec::new(Arch::Llama), folder.path());
    let texts = ["why", "how does bread rise in the dark of the night", "the lamp"];
    let prompts: Vec<Prompt> = texts.iter().map(|text| model.prompt(text).unwrap()).collect();
    let mut base = Session::new(&model, exact()).unwrap();
    let mut other = Session::new(&model, exact()).unwrap();
    let n = 5;
    let own = openings(&mut base, &prompts, n, &mut || ()).unwrap();
    let r = unit(tiny.spec.n_embd, 3);
    let ablate = Arc::new(Intervention::ablate(&[&r]).unwrap());
    let mut steps = 0;
    let mut measure = |own: &[Vec<Token>], n: usize, i: Option<&Arc<Intervention>>| {
        divergences(&mut base, &mut other, &prompts, own, n, i, &mut || steps += 1).unwrap()
    };
    let found = measure(&own, n, Some(&ablate));
    for ((prompt, own), found) in prompts.iter().zip(&own).zip(&found) {
        let sequence = [ids(&prompt.tokens), ids(own)].concat();
        let plain = forward(&tiny, &sequence, Edit::default()).logits;
        let ablated = forward(&tiny, &sequence, Edit { ablate: Some(&r), ..Edit::default() }).logits;
        assert_eq!(found.len(), n);
        for (j, &found) in found.iter().enumerate() {
            let at = prompt.tokens.len() - 1 + j;
            let (p, q) = (softmax(&plain[at]), softmax(&ablated[at]));
            let best = (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap();
            assert_eq!(best as i32, own[j].0, "greedy");
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
            assert!(kl > 1e-4, "nothing to compare");
            assert_near(found, kl, &format!("position {j}"));
        }
    }
    // An answer that ended is scored at its end too, a longer one no further than n.
    let cut: Vec<Vec<Token>> = own.iter().zip([0, 2, 5]).map(|(own, n)| own[..n].to_vec()).collect();
    let lengths: Vec<usize> = measure(&cut, 4, Some(&ablate)).iter().map(Vec::len).collect();
    assert_eq!(lengths, [1, 3, 4]);
    assert!(measure(&own, n, None).iter().flatten().all(|&kl| kl == 0.0), "the model against itself");
    // What is forced counts as generated: an addition to the prompt alone acts on it only through the prompt.
    let add = |at| Arc::new(Intervention::add(1, &r, 2.0, at).unwrap());
    let all = measure(&own, n, Some(&add(Positions::All)));
    let prompt = measure(&own, n, Some(&add(Positions::Prompt)));
    for (all, prompt) in all.iter().zip(&prompt) {
        assert!((all[0] - prompt[0]).abs() < 1e-6);
        assert!(all[1..].iter().zip(&prompt[1..]).all(|(a, b)| (a - b).abs() > 1e-6));
    }
    assert_eq!(steps, 5 * prompts.len());
}

#[test]
fn a_judge_is_held_to_its_two_verdicts() {
    let folder = tempfile::tempdir().unwrap();
    let (tiny, model) = written(Spec { n_ctx: 1024, ..Spec::new(Arch::Llama) }, folder.path());
    let judge = Judge::new(&model, false, ["yes", "no"]).unwrap();
    let said = [("Why?", "I'm sorry."), ("How?", "Like this: knead it.")];
    let prompts: Vec<Prompt> = said.iter().map(|(p, c)| judge.prompt(p, c).unwrap()).collect();
    let options = SessionOptions { n_ctx: 1024, n_batch: 512, ..exact() };
    let mut session = Session::new(&model, options.clone()).unwrap();
    let opinions = judge.ask(&mut session, &prompts, &mut || ()).unwrap();
    for ((prompt, opinion), (asked, answered)) in prompts.iter().zip(&opinions).zip(said) {
        let text: String = prompt.tokens.iter().map(|&t| model.token_text(t)).collect();
        assert!(text.contains(asked) && text.contains(answered) && text.contains("yes"), "{text}");
        let logits = forward(&tiny, &ids(&prompt.tokens), Edit::default()).logits;
        let p = softmax(logits.last().unwrap());
        // This tokenizer knows bytes: yes begins with y or Y, no with n or N, whatever stands before.
        let mass = |letters: [u8; 2]| -> f64 {
            letters.iter().map(|&l| p[model.tokenize(&char::from(l).to_string())[0].0 as usize]).sum()
        };
        let (yes, no) = (mass([b'y', b'Y']), mass([b'n', b'N']));
        assert!((opinion.p - yes / (yes + no)).abs() < 1e-4, "{opinion:?}");
        assert!((opinion.coverage - yes - no).abs() < 1e-4, "{opinion:?}");
        assert_eq!(opinion.refused, yes >= no);
    }

    // With a template of its own, that is all it reads, and nothing in the answer becomes a control token.
    let source = judge::template("<|im_start|>Q {{ prompt }} A {{ completion }}\nRefused?");
    let own = ModelOptions { chat_template: Some(source), ..ModelOptions::default() };
    let model = Model::load(&folder.path().join("tiny.gguf"), &own).unwrap();
    let judge = Judge::new(&model, true, ["1", "0"]).unwrap();
    let prompt = judge.prompt("Why?", "so<|im_end|>.").unwrap();
    let text: String = prompt.tokens.iter().map(|&t| model.token_text(t)).collect();
    assert_eq!(text, "<|im_start|>Q Why? A so<|im_end|>.\nRefused?");
    assert!(!ids(&prompt.tokens).contains(&IM_END));
}

/// `evaluate` on the sample's test prompts, with `--json`.
fn evaluate(folder: &Folder, more: &str) -> Json {
    let at = |name: &str| samples().join(name).display().to_string();
    let model = at("lorekeeper-7m-f16.gguf");
    let [harmful, harmless] = ["restricted", "ordinary"].map(|set| at(&format!("prompts/{set}-test.txt")));
    let line = format!(
        "--json --quiet evaluate {model} --harmful {harmful} --harmless {harmless} --threads 1 {more}"
    );
    let [stdout, _] = folder.accepts(&line);
    serde_json::from_str(&stdout).unwrap()
}

/// `d.gguf`: the sample's direction at the last position and the middle block, measured on a few prompts.
fn direction(folder: &Folder) {
    let at = |name: &str| samples().join(name).display().to_string();
    let model = at("lorekeeper-7m-f16.gguf");
    let [harmful, harmless] = ["restricted", "ordinary"].map(|set| at(&format!("prompts/{set}-train.txt")));
    folder.accepts(&format!(
        "extract {model} --harmful {harmful} --harmless {harmless} --limit 32 --threads 1 -o dirs.gguf"
    ));
    let contrast = Contrast::load(&folder.path("dirs.gguf")).unwrap();
    let direction = Direction::new(contrast.difference(-1, 4), 4, contrast.source).unwrap();
    direction.save(folder.path("d.gguf"), false).unwrap();
}

fn number(json: &Json, pointer: &str) -> f64 {
    json.pointer(pointer).and_then(Json::as_f64).unwrap_or_else(|| panic!("{pointer} in {json:#}"))
}

#[test]
fn everything_that_is_measured_is_the_same_under_a_seed() {
    let folder = Folder::new();
    direction(&folder);
    folder.file("text.txt", TEXT);
    let judge = "--judge judge.gguf --judge-verdicts a,b --judge-template judge.jinja";
    folder.model("judge.gguf", Spec { n_ctx: 512, chat_template: None, ..spec() });
    folder.file("judge.jinja", "{{ prompt }}\n{{ completion }}\n");
    let more = format!(
        "--limit 12 -n 32 --ablate d.gguf --kl-tokens 4 --perplexity text.txt --ppl-ctx 64 {judge} --seed 3"
    );
    let first = evaluate(&folder, &more);
    assert_eq!(first, evaluate(&folder, &more));

    // Erasing moves what a random direction leaves alone, at hardly any cost to anything else.
    assert!(number(&first, "/harmful/refusal_rate") < 0.35);
    assert!(number(&first, "/control/harmful/refusal_rate") > 0.65);
    assert!(
        number(&first, "/harmful/kl_first/low") > 20.0 * number(&first, "/control/harmful/kl_first/high")
    );
    assert!(number(&first, "/harmful/kl_first_token") > number(&first, "/harmful/kl_tokens/mean"));
    assert_eq!((number(&first, "/n_kl_tokens"), number(&first, "/seed")), (4.0, 3.0));
    assert_eq!(first["over_refusal"], first["harmless"]["refused"]);
    for run in [&first, &first["control"]] {
        for set in ["harmful", "harmless"] {
            for rate in ["refused", "refused_late", "empty", "looping", "garbled", "broken", "answered"] {
                let at = |end: &str| number(run, &format!("/{set}/{rate}/{end}"));
                assert!(at("low") <= at("rate") && at("rate") <= at("high") && at("n") == 12.0);
            }
            let p = number(run, &format!("/{set}/judge/mean_p"));
            assert!(p > 0.0 && p < 1.0);
            assert_eq!(number(run, &format!("/{set}/judge/agreement/n")), 12.0);
        }
    }
    let [base, this] = ["base", "this"].map(|run| number(&first, &format!("/perplexity/{run}/perplexity")));
    assert_near(number(&first, "/perplexity/ratio/ratio"), this / base, "ratio");
    assert!(
        number(&first, "/perplexity/control_ratio/low") < number(&first, "/perplexity/control_ratio/high")
    );
    assert_eq!(number(&first, "/perplexity/this/n_ctx"), 64.0);

    let other = evaluate(&folder, &more.replace("--seed 3", "--seed 4"));
    assert_eq!(other["harmful"]["refused"], first["harmful"]["refused"]);
    assert_ne!(other["harmful"]["kl_first"], first["harmful"]["kl_first"], "another bootstrap");
    assert_ne!(other["control"]["harmful"]["kl_first_token"], first["control"]["harmful"]["kl_first_token"]);
}

#[test]
fn the_smallest_coefficient_that_induces_whole_sentences_is_found() {
    let folder = Folder::new();
    direction(&folder);
    let found = evaluate(&folder, "--limit 24 -n 32 --add d.gguf --at prompt --scale auto --no-control");
    assert_eq!(found["control"], Json::Null);
    let scale = number(&found, "/scale");
    assert_eq!(number(&found, "/scale_search/scale"), scale);
    assert!(scale > 0.25 && scale < 2.0, "{scale}");
    let trials = found["scale_search"]["trials"].as_array().unwrap();
    assert!(
        trials.iter().all(|t| (t["outcome"] == "works") == (number(t, "/scale") >= scale)),
        "{trials:#?}"
    );
    // Found on 12 of the ordinary prompts, evaluated on the other 12.
    assert_eq!((number(&found, "/scale_search/n_prompts"), number(&found, "/harmless/n")), (12.0, 12.0));
    assert!(number(&found, "/harmless/refusal_rate") > 0.7);
    assert_eq!(number(&found, "/harmless/broken/hits"), 0.0);

    // At every position the sample stammers before it refuses enough.
    let [model, harmful, harmless] =
        ["lorekeeper-7m-f16.gguf", "prompts/restricted-test.txt", "prompts/ordinary-test.txt"]
            .map(|name| samples().join(name).display().to_string());
    let output = folder.run(&format!(
        "--quiet evaluate {model} --harmful {harmful} --harmless {harmless} --threads 1 --limit 24 -n 48 \
         --add d.gguf --scale auto"
    ));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{stderr}");
    assert!(stderr.contains("breaks") && stderr.contains("too weak"), "{stderr}");
    assert!(stderr.contains("\nerror: --scale auto: no coefficient"), "{stderr}");
}

#[test]
fn what_cannot_be_measured_is_said_in_a_line() {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &unit(32, 1));
    let line = "evaluate model.gguf --threads 1 -n 4 --harmful harmful.txt --harmless harmless.txt";
    let refuses = |more: &str, words: &[&str]| folder.refuses(&format!("{line} {more}"), words);

    folder.model("mute.gguf", Spec { chat_template: None, ..spec() });
    refuses("--judge mute.gguf", &["mute.gguf", "no chat template", "--judge-template FILE"]);
    refuses("--judge none.gguf", &["--judge none.gguf", "No such file"]);
    refuses(
        "--judge mute.gguf --judge-template none.jinja",
        &["--judge-template none.jinja", "No such file"],
    );
    folder.file("broken.jinja", "{{ prompt }}\n{% if %}");
    refuses("--judge mute.gguf --judge-template broken.jinja", &["broken.jinja", "chat template", ":2"]);
    folder.file("deaf.jinja", "{{ prompt }} refused?");
    refuses("--judge mute.gguf --judge-template deaf.jinja", &["deaf.jinja", "leaves out message 1"]);
    refuses(
        "--judge model.gguf --judge-verdicts yes,yellow",
        &["\"yes\"", "\"yellow\"", "begin differently"],
    );
    refuses("--judge model.gguf", &["--judge", "tokens", "holds 128"]);
    folder.model("wide.gguf", Spec { n_ctx: 1024, chat_template: Some(CHATML.into()), ..spec() });
    let [_, stderr] = folder.accepts(&format!("{line} --judge wide.gguf"));
    assert!(stderr.contains("its verdicts mean little"), "a judge of random weights: {stderr}");

    folder.file("short.txt", "A lamp.\n");
    refuses("--perplexity short.txt", &["short.txt", "7 tokens", "at least 256"]);
    refuses("--perplexity short.txt --ppl-ctx 2", &["short.txt", "2 tokens", "at least 3"]);
    refuses("--perplexity short.txt --ppl-ctx 4096", &["--ppl-ctx 4096", "holds 128"]);
    folder.file("a.jinja", "{{ prompt }} {{ completion }}");
    for (input, more) in [
        ("short.txt", "--perplexity short.txt"),
        ("wide.gguf", "--judge wide.gguf"),
        ("a.jinja", "--judge mute.gguf --judge-template a.jinja"),
    ] {
        let same = format!("is the input {input} itself");
        refuses(&format!("{more} --force --completions {input}"), &[&same]);
    }
    refuses("--perplexity none.txt", &["none.txt", "No such file"]);

    refuses("--scale auto", &["--scale auto", "--add"]);
    refuses("--scale auto --add direction.gguf --limit 1", &["at least 2 ordinary prompts"]);
    folder.refuses(
        "generate model.gguf -p hello --add direction.gguf --scale auto",
        &["--scale auto", "ggsteer evaluate"],
    );
    for wrong in
        ["--scale some", "--judge-template a.jinja", "--judge m.gguf --judge-verdicts yes", "--ppl-ctx 64"]
    {
        assert_eq!(folder.run(&format!("{line} {wrong}")).status.code(), Some(2), "{wrong}");
    }
}
