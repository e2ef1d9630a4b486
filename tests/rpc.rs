//! A model on another machine's processor (a worker on loopback) is the model at home, with the hook at work in it.

mod program;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use ggsteer::intervention::{Intervention, Positions};
use ggsteer::runtime::{
    self, CapturePlan, FlashAttention, Item, Job, Model, ModelOptions, Outputs, Session, SessionOptions, Site,
};
use program::Folder;

fn sample() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("gguf-samples/lorekeeper-7m-f16.gguf")
}

/// A port that was free a moment ago.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A worker, ended with the test.
struct Worker {
    child: Child,
    address: String,
}

impl Worker {
    fn start() -> Self {
        Self::listening(&format!("127.0.0.1:{}", port()))
    }

    fn listening(address: &str) -> Self {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("ggsteer"))
            .args(["worker", "--threads", "1", "--listen", address])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut words = String::new();
        while !words.contains("listening at") {
            assert!(stderr.read_line(&mut words).unwrap() > 0, "{words}");
        }
        child.stderr = Some(stderr.into_inner());
        let worker = Self { child, address: address.to_owned() };
        // It says so before it does.
        while TcpStream::connect(address.replace("0.0.0.0", "127.0.0.1")).is_err() {
            std::thread::yield_now();
        }
        worker
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Some unit vector.
fn direction(n: usize) -> Vec<f32> {
    let raw: Vec<f32> = (0..n).map(|i| ((i * 37 + 11) % 101) as f32 - 50.0).collect();
    let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
    raw.iter().map(|x| x / norm).collect()
}

/// What a model computes of two prompts: logits, the captured stream, and the inputs of a late writer.
struct Seen {
    logits: Vec<f32>,
    stream: Vec<f32>,
    writer: Vec<f32>,
}

fn run(
    options: &ModelOptions,
    flash_attention: FlashAttention,
    intervention: Option<&Arc<Intervention>>,
) -> Seen {
    let model = Model::load(&sample(), options).unwrap();
    let options =
        SessionOptions { n_ctx: 256, n_batch: 128, n_seq: 4, n_threads: 1, exact: false, flash_attention };
    let mut session = Session::new(&model, options).unwrap();
    let prompts =
        ["How do I bake bread?", "Tell me about the old gate."].map(|text| model.prompt(text).unwrap());
    let jobs =
        prompts.each_ref().map(|p| Job { tokens: &p.tokens, n_out: 3, intervention: intervention.cloned() });
    let name = format!("blk.{}.ffn_down.weight", model.n_block() - 1);
    let plan = CapturePlan { stream: true, writer_inputs: [name].into(), ..CapturePlan::default() };
    let mut seen = Seen { logits: vec![], stream: vec![], writer: vec![] };
    let (mut stream, mut writer) = (vec![], vec![]);
    let mut sink = |_: usize, _: i32, site: Site<'_>, row: &[f32]| match site {
        Site::Block(_) => stream.extend_from_slice(row),
        _ => writer.extend_from_slice(row),
    };
    session
        .prefill(&jobs, Some((&plan, &mut sink)), &mut |_, logits| seen.logits.extend_from_slice(logits))
        .unwrap();
    // A token of the answer, by which the cache is read as well.
    session.clear();
    let whole = &prompts[0].tokens;
    for (start, tokens) in [(0, &whole[..whole.len() - 1]), (whole.len() - 1, &whole[whole.len() - 1..])] {
        let outputs = Outputs::Last(1);
        let item = Item { seq: 0, start, tokens, prompt: true, outputs, intervention: intervention.cloned() };
        session.decode(&[item], None).unwrap();
        seen.logits.extend_from_slice(session.logits(tokens.len() - 1));
    }
    Seen { stream, writer, ..seen }
}

/// The largest difference; both must be finite and alike long.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(!a.is_empty() && a.iter().chain(b).all(|x| x.is_finite()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_worker_computes_what_this_machine_does_with_ablation_and_addition_on() {
    let n_embd = Model::load(&sample(), &ModelOptions::default()).unwrap().n_embd();
    let r = direction(n_embd);
    let ablated = Arc::new(Intervention::ablate(&[&r]).unwrap());
    let added = Arc::new(Intervention::add(1, &r, 3.0, Positions::All).unwrap());
    let interventions = [None, Some(&ablated), Some(&added)];
    let home = interventions.map(|i| run(&ModelOptions::default(), FlashAttention::Auto, i));
    assert!(difference(&home[0].logits, &home[1].logits) > 0.01, "ablation changes nothing");

    let worker = Worker::start();
    runtime::connect(&worker.address).unwrap();
    runtime::connect(&worker.address).unwrap();
    let devices = runtime::devices().unwrap();
    let remote: Vec<_> = devices.iter().filter(|d| d.backend == "RPC").collect();
    assert_eq!(remote.len(), 1, "{devices:?}");
    assert_eq!(remote[0].description, worker.address);

    // All blocks there, or the last two, so that the stream crosses over in the middle.
    for gpu_layers in [u32::MAX, 3] {
        let options =
            ModelOptions { gpu_layers, devices: vec![remote[0].name.clone()], ..ModelOptions::default() };
        for (home, intervention) in home.iter().zip(interventions) {
            let there = run(&options, FlashAttention::Auto, intervention);
            assert!(difference(&home.logits, &there.logits) <= 1e-3, "{gpu_layers} {intervention:?}");
            assert!(difference(&home.stream, &there.stream) <= 1e-3);
            assert!(difference(&home.writer, &there.writer) <= 1e-3);
        }
    }
}

#[test]
fn flash_attention_changes_nothing_that_matters() {
    let n_embd = Model::load(&sample(), &ModelOptions::default()).unwrap().n_embd();
    let ablated = Arc::new(Intervention::ablate(&[direction(n_embd)]).unwrap());
    let [on, off] = [FlashAttention::On, FlashAttention::Off]
        .map(|flash| run(&ModelOptions::default(), flash, Some(&ablated)));
    // Of the largest value: both sum in half precision, each in its own order.
    for (on, off) in [(&on.stream, &off.stream), (&on.logits, &off.logits)] {
        let largest = off.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        assert!(difference(on, off) <= 1e-3 * largest);
    }
    // And they are two ways indeed.
    assert!(on.stream != off.stream, "flash attention was not taken");
}

#[test]
fn the_program_uses_the_worker_and_says_the_same() {
    let worker = Worker::start();
    let folder = Folder::new();
    folder.direction("d.gguf", "llama", &direction(256));
    let ask = |more: &[&str]| {
        let mut command = folder.ggsteer();
        command.args(["generate", sample().to_str().unwrap(), "-p", "How do I bake bread?"]);
        command.args(["-n", "12", "--threads", "1", "--ablate", "d.gguf", "-v"]).args(more);
        let output = command.output().unwrap();
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        assert!(output.status.success(), "{stderr}");
        (stdout, stderr)
    };
    let (home, log) = ask(&[]);
    assert!(!log.contains("RPC"), "{log}");
    let (there, log) = ask(&["--rpc", &worker.address]);
    assert_eq!(home, there);
    // llama.cpp's own account of where the weights are: nearly all of the 14 MiB.
    let line = log.lines().find(|line| line.contains("RPC0") && line.contains("model buffer size"));
    let size =
        line.and_then(|line| line.split('=').nth(1)?.trim().trim_end_matches(" MiB").parse::<f64>().ok());
    assert!(size.is_some_and(|mib| mib > 8.0), "{line:?}\n{log}");
    let line = format!("generate model.gguf -p hello --rpc {} --device RPC1", worker.address);
    folder.refuses(&line, &["no device RPC1", "RPC0", "ggsteer doctor"]);
    let (_, log) = ask(&["--rpc", &worker.address, "-ngl", "0"]);
    let blocks = log.lines().any(|line| line.contains("RPC0") && line.contains("model buffer size"));
    assert!(!blocks, "{log}");

    let [doctor, _] = folder.accepts(&format!("doctor --rpc {}", worker.address));
    assert!(doctor.contains("RPC0") && doctor.contains(&worker.address), "{doctor}");
    let [doctor, _] = folder.accepts(&format!("doctor model.gguf --threads 1 --rpc {}", worker.address));
    assert!(doctor.contains("on other devices"), "{doctor}");
}

#[test]
fn what_cannot_be_reached_or_is_no_server_is_an_error_not_an_abort() {
    let folder = Folder::new();
    let refuses = |server: &str, words: &[&str]| {
        folder.refuses(&format!("generate model.gguf -p hello --rpc {server}"), words);
    };
    let nobody = format!("127.0.0.1:{}", port());
    refuses(&nobody, &["--rpc", &nobody, "cannot be reached", "ggsteer worker"]);
    refuses("127.0.0.1", &["expected HOST:PORT"]);
    refuses("no.such.host.invalid:50052", &["no.such.host.invalid", "no such host"]);

    // A server of another kind.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail.example.org ESMTP, and so on and on and on\r\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    refuses(&address, &[&address, "no RPC server"]);
}

#[test]
fn a_worker_that_dies_ends_the_program_with_a_line() {
    // Says hello as a worker does, to the greeting and to ggml, and leaves.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream = stream.unwrap();
            stream.read_exact(&mut [0; 1 + 8 + 24]).unwrap();
            let mut hello = 28_u64.to_le_bytes().to_vec();
            hello.extend([7, 0, 0, 0]);
            hello.extend([0; 24]);
            stream.write_all(&hello).unwrap();
        }
    });
    let folder = Folder::new();
    folder.refuses(&format!("generate model.gguf -p hello --rpc {address}"), &["ggml gave up", "RPC server"]);
}

#[test]
fn a_worker_warns_where_others_can_reach_it_and_refuses_a_taken_port() {
    let mut worker = Worker::listening(&format!("0.0.0.0:{}", port()));
    worker.child.kill().unwrap();

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = Folder::new();
    let address = taken.local_addr().unwrap().to_string();
    folder.refuses(&format!("worker --listen {address}"), &[&address, "cannot listen"]);

    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("ggsteer"))
        .args(["worker", "--quiet", "--listen", &format!("0.0.0.0:{}", port())])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.starts_with("warning: whoever reaches 0.0.0.0:"), "{line}");
}
