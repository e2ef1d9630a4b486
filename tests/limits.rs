//! What a hostile file may take: little memory, little time, and an ordinary error at the end.
//!
//! Everything runs with an address space of [`SPACE`], so that what would ask for much more is told no by the system,
//! and would end by a signal.
#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

mod program;
mod support;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ggsteer::calibration::{Calibration, Imatrix};
use ggsteer::direction::Direction;
use ggsteer::prompts::PromptSet;
use ggsteer::select::Checkpoint;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use program::{Folder, refusal, spec};
use support::tiny::{self, Spec};

/// KiB of address space: a GiB and what the program takes of it for a small model, memory or not (its own code, the stacks
/// and arenas of its threads).
const SPACE: u32 = (1 << 20) + (3 << 18);

/// Longer than any of these takes, on a machine that does other things too.
const SOON: Duration = Duration::from_secs(20);

/// Runs a line under the limit.
fn run(folder: &Folder, line: &str) -> Output {
    let start = Instant::now();
    let output = folder.shell(&format!("ulimit -v {SPACE}; exec \"$0\" --quiet {line}")).output().unwrap();
    assert!(start.elapsed() < SOON, "ggsteer {line}: {:?}", start.elapsed());
    output
}

/// Runs a line that must end in one line `error: …` with these words.
fn refuses(folder: &Folder, line: &str, words: &[&str]) -> String {
    println!("{line}:");
    refusal(&run(folder, line), words)
}

/// A folder with a direction for `model.gguf`, and with `q8.gguf`, which is rounded by a calibration or an imatrix.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    folder.accepts("quantize model.gguf --type Q8_0 -o q8.gguf");
    folder
}

const GENERATE: &str = "generate model.gguf --threads 1 -n 1 -p hello";

/// The limit is one that the program can live with.
#[test]
fn a_small_model_runs_under_the_limit() {
    let folder = folder();
    for line in [
        GENERATE,
        "inspect model.gguf",
        "orthogonalize model.gguf --direction direction.gguf -o out.gguf",
        "extract model.gguf --threads 1 --harmful harmful.txt --harmless harmless.txt -o directions.gguf",
    ] {
        let output = run(&folder, line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A GGUF header: counts of tensors and keys, then raw bytes.
fn header(n_tensors: u64, n_keys: u64, rest: &[u8]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend(n_tensors.to_le_bytes());
    out.extend(n_keys.to_le_bytes());
    out.extend(rest);
    out
}

fn key(name: &str, tag: u32, value: &[u8]) -> Vec<u8> {
    let length = (name.len() as u64).to_le_bytes();
    [&length[..], name.as_bytes(), &tag.to_le_bytes(), value].concat()
}

fn array(tag: u32, n: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &n.to_le_bytes()].concat()
}

fn tensor(name: &str, ne: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut out = (name.len() as u64).to_le_bytes().to_vec();
    out.extend(name.as_bytes());
    out.extend((ne.len() as u32).to_le_bytes());
    out.extend(ne.iter().flat_map(|n| n.to_le_bytes()));
    out.extend(ty.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

#[test]
fn no_count_in_a_gguf_header_is_believed() {
    let folder = folder();
    let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let mut cases = Vec::new();
    for n in [1 << 31, 1 << 40, u64::MAX] {
        cases.push(header(n, 0, &[0; 4096]));
        cases.push(header(0, n, &[0; 4096]));
        cases.push(header(0, 1, &n.to_le_bytes()));
        cases.push(header(0, 1, &key("k", 8, &n.to_le_bytes())));
        for tag in 0..13 {
            cases.push(header(0, 1, &key("k", 9, &array(tag, n))));
        }
        cases.push(header(1, 0, &tensor("t", &[n], 0, 0)));
        cases.push(header(1, 0, &tensor("t", &[n, 0, n, n], 0, 0)));
    }
    cases.push(header(1, 0, &tensor("t", &[u64::from(u32::MAX); 2], 0, 0)));
    cases.push(header(0, 1, &key("k", 9, &array(9, 1).repeat(100_000))));
    // Of the right kind, and with a tensor of no elements that says it has as many columns as it likes.
    for kind in ["controlvector", "ggsteer-calibration", "llama"] {
        let keys = key("general.architecture", 8, &text(kind));
        for ne in [&[1 << 60, 0][..], &[0, 1 << 60], &[1 << 40], &[u64::MAX]] {
            let infos = [tensor("direction.1", ne, 0, 0), tensor("w.counts", ne, 27, 0)].concat();
            cases.push(header(2, 1, &[&keys[..], &infos, &[0; 64]].concat()));
        }
    }
    for bytes in &cases {
        folder.file("bad.gguf", bytes);
        for line in [
            "inspect bad.gguf",
            "orthogonalize model.gguf --direction bad.gguf -o out.gguf",
            "orthogonalize q8.gguf --direction direction.gguf --calibration bad.gguf -o out.gguf",
        ] {
            let output = run(&folder, line);
            // A header can be sound; a model it is not.
            refusal(&output, &["bad.gguf"]);
        }
    }
}

#[test]
fn no_count_in_an_imatrix_is_believed() {
    let folder = folder();
    let ints = |all: &[i32]| all.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    for head in [&[i32::MAX][..], &[1, i32::MAX], &[-1], &[1, -1]] {
        folder.file("bad.dat", [ints(head), vec![0; 4096]].concat());
        let line = "orthogonalize q8.gguf --direction direction.gguf --imatrix bad.dat -o out.gguf";
        refuses(&folder, line, &["bad.dat"]);
    }
    let entry = [ints(&[1, 1]), b"w".to_vec(), ints(&[1, i32::MAX]), vec![0; 64]].concat();
    folder.file("bad.dat", entry);
    let line = "orthogonalize q8.gguf --direction direction.gguf --imatrix bad.dat -o out.gguf";
    refuses(&folder, line, &["bad.dat", "number of values of \"w\""]);
}

/// A Parquet file whose one text is said `n` times.
fn parquet(texts: &[ByteArray], compression: Compression, dictionary: bool) -> Vec<u8> {
    let schema = Arc::new(parse_message_type("message set { required binary prompt (UTF8); }").unwrap());
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_dictionary_enabled(dictionary)
        .set_data_page_size_limit(1 << 30)
        .set_dictionary_page_size_limit(1 << 30)
        .set_data_page_row_count_limit(usize::MAX)
        .set_max_row_group_row_count(None)
        .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
        .build();
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(texts, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    out
}

#[test]
fn a_small_parquet_file_does_not_become_a_large_one() {
    let folder = folder();
    let line = "evaluate model.gguf --threads 1 --harmful bomb.parquet --harmless harmless.txt";
    // 300 MB of the same letter, in one text: a page larger than any that is read.
    let long = [ByteArray::from(vec![b'a'; 300 << 20])];
    for codec in [
        Compression::ZSTD(ZstdLevel::default()),
        Compression::GZIP(GzipLevel::default()),
        Compression::SNAPPY,
    ] {
        let bytes = parquet(&long, codec, false);
        println!("{codec}: {} bytes", bytes.len());
        folder.file("bomb.parquet", bytes);
        refuses(&folder, line, &["bomb.parquet", "a page", "at most are read"]);
    }
    drop(long);
    // A text of a megabyte that is said four thousand times, by its number in a dictionary.
    let text = ByteArray::from(vec![b'a'; 1 << 20]);
    let bytes = parquet(&vec![text; 4000], Compression::ZSTD(ZstdLevel::default()), true);
    assert!(bytes.len() < 8192, "{}", bytes.len());
    folder.file("bomb.parquet", bytes);
    refuses(&folder, line, &["bomb.parquet", "more than", "bytes of text"]);
}

/// Every four bytes of a small file in turn say that there is a great deal of something.
#[test]
fn no_number_in_a_parquet_file_is_believed() {
    let folder = folder();
    let texts: Vec<ByteArray> = ["a cake", "a loaf", "a bun"].iter().map(|&s| ByteArray::from(s)).collect();
    let whole = parquet(&texts, Compression::UNCOMPRESSED, true);
    for at in 4..whole.len() - 4 {
        let mut bytes = whole.clone();
        // A varint of 2³⁰, in Thrift's zigzag.
        bytes.splice(at..=at, [0x80, 0x80, 0x80, 0x80, 0x08]);
        let end = bytes.len();
        let metadata = u32::from_le_bytes(bytes[end - 8..end - 4].try_into().unwrap());
        if at >= end - 12 - metadata as usize {
            bytes[end - 8..end - 4].copy_from_slice(&(metadata + 4).to_le_bytes());
        }
        folder.file("bad.parquet", &bytes);
        let output =
            run(&folder, "evaluate none.gguf --threads 1 --harmful bad.parquet --harmless harmless.txt");
        let code = output.status.code();
        assert_eq!(code, Some(1), "{at}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn what_is_nested_deeply_is_refused() {
    let folder = folder();
    let deep = |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
    let evaluate =
        |set: &str| format!("evaluate model.gguf --threads 1 --harmful {set} --harmless harmless.txt");
    for text in [deep("[", "]", 100_000), deep("{\"a\":", "}", 100_000), "[".repeat(1_000_000)] {
        for name in ["deep.json", "deep.jsonl"] {
            folder.file(name, &text);
            refuses(&folder, &evaluate(name), &[name, "line 1"]);
        }
        folder.file("run.json", &text);
        refuses(&folder, "report run.json -o page.html", &["run.json"]);
        folder.file("checkpoint", &text);
        let checkpoint = Checkpoint::at(&folder.path("checkpoint"), false).begin(Vec::new(), 1);
        assert!(checkpoint.unwrap_err().to_string().contains("not a checkpoint of ggsteer"));
    }
    for text in [
        format!("threads = {}", deep("[", "]", 100_000)),
        format!("threads = {}", deep("{a = ", "}", 100_000)),
        format!("{}a = 1", "a.".repeat(100_000)),
        format!("[{}a]", "a.".repeat(100_000)),
    ] {
        folder.file("deep.toml", text);
        refuses(&folder, "config --config deep.toml", &["deep.toml"]);
    }
}

/// Templates that ask for more than there is, or for ever.
#[allow(clippy::too_many_lines)] // a list
fn traps() -> Vec<(&'static str, String)> {
    let loops = |body: &str, n: usize| {
        format!(
            "{{% set ns = namespace(a=[1], b=[1], s='xxxxxxxx') %}}{{% for i in range({n}) %}}{body}{{% endfor %}}"
        )
    };
    let nest = |open: &str, middle: &str, close: &str, n: usize| {
        format!("{}{middle}{}", open.repeat(n), close.repeat(n))
    };
    let twice = loops("{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}", 60);
    let deep =
        loops("{% for k in range(1000) %}{% set ns.a = [ns.a] %}{% set ns.b = [ns.b] %}{% endfor %}", 1000);
    let list = nest("[", "1", "]*999", 12);
    let mut all = vec![
        ("a long text", "{{ 'x' * 1000000000 }}".into()),
        ("a long list", "{{ [1] * 1000000000 }}".into()),
        ("a long range", "{{ range(1000000000) | list }}".into()),
        ("a long range, summed", "{{ range(1000000000) | sum }}".into()),
        ("a text doubled", loops("{% set ns.s = ns.s + ns.s %}", 60)),
        ("a text doubled by ~", loops("{% set ns.s = ns.s ~ ns.s %}", 60)),
        ("a text doubled by replacing", loops("{% set ns.s = ns.s.replace('x', 'xx') %}", 60)),
        (
            "a text doubled by a block",
            loops("{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}", 60),
        ),
        ("a text doubled by joining", loops("{% set ns.s = [ns.s, ns.s] | join %}", 60)),
        ("a text doubled by a format", loops("{% set ns.s = '%s%s' | format(ns.s, ns.s) %}", 60)),
        ("a list doubled", loops("{% set ns.a = ns.a + ns.a %}", 60) + "{{ ns.a | list | length }}"),
        ("a long join", "{{ range(100000) | join('x' * 100000) }}".into()),
        ("a wide indent", "{{ ('x\\n' * 1000) | indent(1000000000) }}".into()),
        ("a wide format", "{{ '%1000000000d' | format(1) }}".into()),
        ("a precise format", "{{ '%.1000000000f' | format(1.5) }}".into()),
        ("filled batches", "{{ [1] | batch(1000000000, 0) | list }}".into()),
        ("many slices", "{{ [1] | slice(1000000000) | list }}".into()),
        ("a large power", "{{ 10 ** 1000000000 }}{{ 2 ** 2 ** 2 ** 2 ** 2 ** 2 }}".into()),
        ("loops in loops", nest("{% for i in range(99999) %}", "x", "{% endfor %}", 5)),
        ("a macro that calls itself", "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}".into()),
        (
            "a loop that calls itself",
            "{% for x in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}".into(),
        ),
        ("a namespace that holds itself", "{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns }}".into()),
        ("the same in a text", "{% set ns = namespace() %}{% set ns.ns = ns %}{{ 'x' ~ ns }}".into()),
        ("the same, as JSON", "{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns | tojson }}".into()),
        ("lists of lists of lists", format!("{{{{ {list} }}}}")),
        ("the same compared", format!("{{{{ {list} == {list} }}}}")),
        ("a list in a list in a list", deep.clone()),
        ("a list in a list in a list, written", deep + "{{ ns.a }}{{ ns.a == ns.b }}"),
    ];
    for (what, end) in [
        ("written", "{{ ns.a }}"),
        ("as JSON", "{{ ns.a | tojson }}"),
        ("as JSON, indented", "{{ ns.a | tojson(indent=4) }}"),
        ("as text", "{{ ns.a | string | length }}"),
        ("printed", "{{ ns.a | pprint }}"),
        ("joined", "{{ ns.a | join }}"),
        ("in a text", "{{ 'x' ~ ns.a }}"),
        ("formatted", "{{ '%s' | format(ns.a) }}"),
        ("escaped", "{% autoescape true %}{{ ns.a }}{% endautoescape %}"),
        ("compared", "{{ ns.a == ns.b }}"),
        ("ordered", "{{ ns.a < ns.b }}"),
        ("sorted", "{{ [ns.a, ns.b] | sort | length }}"),
        ("found", "{{ ns.a in [ns.b] }}"),
        ("told apart", "{{ [ns.a, ns.b] | unique | list | length }}"),
        ("as a key", "{{ {ns.a: 1, ns.b: 2} | length }}"),
    ] {
        all.push((what, twice.clone() + end));
    }
    let n = 100_000;
    for (what, source) in [
        ("brackets", format!("{{{{ {} }}}}", nest("[", "1", "]", n))),
        ("parentheses", format!("{{{{ {} }}}}", nest("(", "1", ")", n))),
        ("signs", format!("{{{{ {}1 }}}}", "-".repeat(n))),
        ("nots", format!("{{{{ {}1 }}}}", "not ".repeat(n))),
        ("sums", format!("{{{{ 1{} }}}}", " + x".repeat(n))),
        ("powers", format!("{{{{ 1{} }}}}", " ** x".repeat(n))),
        ("attributes", format!("{{{{ x{} }}}}", ".x".repeat(n))),
        ("filters", format!("{{{{ 'x'{} }}}}", "|upper".repeat(n))),
        ("calls", format!("{{{{ x{} }}}}", "()".repeat(n))),
        ("conditions", format!("{{{{ 1{} }}}}", " if x else 1".repeat(n))),
        ("comparisons", format!("{{{{ 1{} }}}}", " < x".repeat(n))),
        ("blocks", nest("{% if true %}", "x", "{% endif %}", n)),
        ("branches", format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(n))),
        ("open brackets", format!("{{{{ {}", "[{(".repeat(n))),
        ("open blocks", "{% for x in y %}".repeat(n)),
        ("macros", nest("{% macro f() %}", "x", "{% endmacro %}", n)),
        ("sets", "{% set a = [a, a] %}".repeat(60) + "{{ a }}"),
    ] {
        all.push((what, source));
    }
    all
}

/// They end with a word, and a word's code: with an error, or, where nothing of it comes into the prompt, with a prompt
/// without a message, which is an error too.
#[test]
fn a_hostile_template_ends_soon_with_an_error() {
    let folder = &folder();
    let traps: Vec<_> = (0..).zip(traps()).collect();
    // Four at a time: many wait for the bound on time.
    std::thread::scope(|scope| {
        for traps in traps.chunks(traps.len().div_ceil(4)) {
            scope.spawn(move || {
                for (i, (what, source)) in traps {
                    println!("{what}, {} bytes:", source.len());
                    let name = format!("trap-{i}.jinja");
                    folder.file(&name, source);
                    refuses(folder, &format!("{GENERATE} --chat-template {name}"), &["chat template"]);
                }
            });
        }
    });
}

/// A model brings its own.
#[test]
fn a_hostile_template_in_a_model_is_told_of_that_model() {
    let folder = folder();
    let chat_template = Some("{{ 'x' * 1000000000 }}".to_owned());
    folder.model("bad.gguf", Spec { chat_template, ..spec() });
    refuses(&folder, "generate bad.gguf --threads 1 -n 1 -p hello", &["chat template", "fuel"]);
}

/// A sparse file may claim any length.
#[test]
fn a_terabyte_of_nothing_is_refused_whatever_it_should_be() {
    let folder = folder();
    folder.accepts(
        "extract model.gguf --threads 1 --harmful harmful.txt --harmless harmless.txt -o directions.gguf",
    );
    // Others than the directions were measured on, about which there would be a word more.
    folder.file("others.txt", "a cake\na loaf\na bun\na roll");
    folder.file("rest.txt", "a kiln\na bowl\na plate\na jug");
    let sets = "--harmful others.txt --harmless rest.txt";
    let sizes = |name: &str, begin: &[u8]| {
        folder.file(name, begin);
        let file = fs::OpenOptions::new().write(true).open(folder.path(name)).unwrap();
        file.set_len(1 << 40).unwrap_or_else(|e| panic!("this file system takes no file of a terabyte: {e}"));
    };
    let direction = fs::read(folder.path("direction.gguf")).unwrap();
    let model = fs::read(folder.path("model.gguf")).unwrap();
    let mut lines = Vec::new();
    for format in ["txt", "jsonl", "json", "csv", "tsv", "parquet"] {
        sizes(&format!("big.{format}"), b"");
        lines.push((
            format!("evaluate model.gguf --threads 1 --harmful big.{format} --harmless harmless.txt"),
            format!("big.{format}"),
        ));
    }
    for (name, begin) in
        [("zeros.gguf", &b""[..]), ("model-and-zeros.gguf", &model), ("direction-and-zeros.gguf", &direction)]
    {
        sizes(name, begin);
        for line in [
            format!("inspect {name}"),
            format!("generate {name} --threads 1 -n 1 -p hello"),
            format!("orthogonalize model.gguf --direction {name} -o out.gguf"),
            format!("orthogonalize q8.gguf --direction direction.gguf --calibration {name} -o out.gguf"),
            format!("orthogonalize q8.gguf --direction direction.gguf --imatrix {name} -o out.gguf"),
            format!("select model.gguf --threads 1 --directions {name} {sets} -o out.gguf"),
        ] {
            lines.push((line, name.to_owned()));
        }
    }
    sizes("big", b"");
    for line in [
        format!("{GENERATE} --chat-template big"),
        format!(
            "select model.gguf --threads 1 --directions directions.gguf {sets} --checkpoint big -o out.gguf"
        ),
        format!("optimize model.gguf --threads 1 --direction direction.gguf {sets} --trials 2 --log big"),
        format!("evaluate model.gguf --threads 1 {sets} --markers big"),
        format!("evaluate model.gguf --threads 1 {sets} --perplexity big"),
        "config --config big".into(),
        "report big -o page.html".into(),
    ] {
        lines.push((line, "big".into()));
    }
    for (line, name) in lines {
        refuses(&folder, &line, &[&name]);
        assert!(!folder.path("out.gguf").exists(), "{line}");
    }
}

/// Run again in a child, which reads for a second what its parent cuts short and lengthens meanwhile.
#[test]
fn a_file_that_grows_and_shrinks_ends_no_reader_by_a_signal() {
    const FOLDER: &str = "GGSTEER_TEST_CHANGING";
    if let Some(folder) = std::env::var_os(FOLDER) {
        ggsteer::runtime::exit_on_cut_file();
        let path = |name: &str| std::path::Path::new(&folder).join(name);
        let start = Instant::now();
        let (mut read, mut refused) = (0, 0);
        while start.elapsed() < Duration::from_secs(1) {
            let prompts = |name: &str| PromptSet::load(path(name).to_str().unwrap()).is_ok();
            for ok in [
                prompts("set.txt"),
                prompts("set.json"),
                prompts("set.parquet"),
                Direction::load(path("direction.gguf"), None).is_ok(),
                Calibration::load(&path("calibration.gguf")).is_ok(),
                Imatrix::load(&path("imatrix.gguf")).is_ok(),
            ] {
                *(if ok { &mut read } else { &mut refused }) += 1;
            }
        }
        println!("{read} read, {refused} refused");
        return;
    }
    let folder = folder();
    let text = |n: usize| "a cake\n".repeat(n);
    let words: Vec<ByteArray> = (0..2000).map(|i| ByteArray::from(format!("cake {i}").as_str())).collect();
    let seed = |name: &str| fs::read(format!("{}/fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let all = [
        ("set.txt", text(10_000).into_bytes()),
        ("set.json", format!("[{}\"a bun\"]", "\"a cake\",".repeat(5_000)).into_bytes()),
        ("set.parquet", parquet(&words, Compression::ZSTD(ZstdLevel::default()), true)),
        ("direction.gguf", fs::read(folder.path("direction.gguf")).unwrap()),
        ("calibration.gguf", seed("calibration/ours")),
        ("imatrix.gguf", seed("calibration/imatrix")),
    ];
    for (name, bytes) in &all {
        folder.file(name, bytes);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (step, (name, bytes)) in (0..).zip(all.iter().cycle()) {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let file = fs::OpenOptions::new().write(true).open(folder.path(name)).unwrap();
                file.set_len(bytes.len() as u64 * (step / 6 % 4) / 4).unwrap();
                file.write_all_at(bytes, 0).unwrap();
            }
        });
        for _ in 0..4 {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["a_file_that_grows_and_shrinks", "--test-threads=1", "--nocapture"])
                .env(FOLDER, folder.path(""))
                .output()
                .unwrap();
            let words = String::from_utf8_lossy(&output.stderr);
            let cut = output.status.code() == Some(1) && words.contains("became shorter");
            assert!(output.status.success() || cut, "{}: {words}", output.status);
            print!("{}{words}", String::from_utf8_lossy(&output.stdout));
        }
        done.store(true, Ordering::Relaxed);
    });
}
