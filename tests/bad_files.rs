//! Files that are not what they should be, each field of a header in turn and each way in which parts do not fit: one
//! line with the file and what is wrong, and nothing changed.
#![forbid(unsafe_code)]

mod program;
mod support;

use std::fs;

use program::{Folder, spec};
use support::split::{self, Part, name};
use support::tiny::{self, Arch, Model, Spec};
use support::writer::Value;

fn folder() -> Folder {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    folder
}

fn refuses(folder: &Folder, model: &str, words: &[&str]) {
    for line in [
        format!("inspect {model}"),
        format!("orthogonalize {model} --direction direction.gguf -o out.gguf"),
        format!("generate {model} --threads 1 -p hello"),
    ] {
        folder.refuses(&line, words);
    }
}

/// The bytes of a model file, and where to find things in it.
struct Header(Vec<u8>);

impl Header {
    /// Where `name` with its length before it ends.
    fn after(&self, name: &str) -> usize {
        let text = [&(name.len() as u64).to_le_bytes(), name.as_bytes()].concat();
        self.0.windows(text.len()).position(|w| w == text).unwrap() + text.len()
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }
}

#[test]
fn each_field_of_a_header_is_checked() {
    let folder = folder();
    let header = Header(fs::read(folder.path("model.gguf")).unwrap());
    let key = header.after("llama.block_count");
    let tokens = header.after("tokenizer.ggml.tokens");
    let tensor = "blk.1.ffn_down.weight";
    // Behind a tensor's name: dimensions, two sizes, type, offset.
    let info = header.after(tensor);
    let (first, other) = (header.after("token_embd.weight"), header.after("blk.0.ffn_down.weight"));
    let u32 = |n: u32| n.to_le_bytes().to_vec();
    let u64 = |n: u64| n.to_le_bytes().to_vec();
    let offset = header.u64(info + 24);
    let cases: Vec<(&str, usize, Vec<u8>, Vec<&str>)> = vec![
        ("magic", 0, b"GGML".to_vec(), vec!["not a GGUF file", "\"GGML\"", "expected \"GGUF\""]),
        ("version", 4, u32(4), vec!["version 4", "expected 2 or 3"]),
        ("byte order", 4, 3u32.to_be_bytes().to_vec(), vec!["big-endian", "version 3"]),
        ("tensor count", 8, u64(1 << 40), vec!["tensor count: 1099511627776 at 8 cannot fit"]),
        ("one tensor more", 8, u64(header.u64(8) + 1), vec!["tensor \"", "at"]),
        ("key count", 16, u64(u64::MAX), vec!["key count", "at 16 cannot fit"]),
        ("a key's length", 24, u64(1 << 50), vec!["key 0", "needs", "at 32"]),
        ("a key's letters", 40, vec![0xff], vec!["key 0 at 24 is not UTF-8"]),
        ("a value's type", key, u32(77), vec!["\"llama.block_count\"", "unknown value type 77"]),
        ("a value of another type", key, u32(6), vec!["llama.block_count", "expected", "f32"]),
        ("an array's type", tokens + 4, u32(99), vec!["\"tokenizer.ggml.tokens\"", "value type 99"]),
        ("an array's length", tokens + 8, u64(1 << 60), vec!["\"tokenizer.ggml.tokens\"", "cannot fit"]),
        ("a string's length", tokens + 16, u64(1 << 60), vec!["\"tokenizer.ggml.tokens\"", "needs"]),
        ("a tensor's name", info - 1, vec![0xff], vec!["name of tensor", "is not UTF-8"]),
        ("its length", info - tensor.len() - 8, u64(1 << 33), vec!["name of tensor", "needs 8589934592"]),
        ("its dimensions", info, u32(5), vec![tensor, "5 dimensions", "at most 4"]),
        ("its width", info + 4, u64(u64::MAX), vec![tensor, "is too large"]),
        ("its height", info + 12, u64(1 << 62), vec![tensor, "is too large"]),
        ("its type", info + 20, u32(1000), vec![tensor, "unknown ggml type id 1000"]),
        ("a type that is gone", info + 20, u32(4), vec![tensor, "unknown ggml type id 4"]),
        ("overlapping", info + 24, u64(offset - 32), vec![tensor, "data offset", "expected"]),
        ("apart", info + 24, u64(offset + 32), vec![tensor, "data offset", "expected"]),
        ("far out", info + 24, u64(u64::MAX), vec![tensor, "data offset 18446744073709551615"]),
        ("in another's place", info + 24, u64(header.u64(other + 24)), vec![tensor, "data offset"]),
        ("unaligned", first + 24, u64(1), vec!["token_embd.weight", "data offset 1, expected 0"]),
        ("rows of no whole block", other + 20, u32(14), vec!["rows of 64", "multiple of 256", "q6_K"]),
        ("the same name twice", info - 17, b"0".to_vec(), vec!["blk.0.ffn_down.weight", "is there twice"]),
    ];
    for (what, at, bytes, words) in cases {
        let mut bad = header.0.clone();
        bad[at..at + bytes.len()].copy_from_slice(&bytes);
        folder.file("bad.gguf", &bad);
        println!("{what}:");
        let words = [&["bad.gguf: "][..], &words].concat();
        refuses(&folder, "bad.gguf", &words);
    }
}

#[test]
fn an_alignment_that_is_none_is_refused() {
    let folder = folder();
    for (value, word) in [
        (Value::U32(0), "general.alignment is 0"),
        (Value::U32(24), "general.alignment is 24, not a power of two"),
        (Value::Str("32".into()), "expected u32, found string"),
    ] {
        let extra = vec![("general.alignment".to_owned(), value)];
        folder.model("bad.gguf", Spec { extra, ..spec() });
        refuses(&folder, "bad.gguf", &["bad.gguf", word]);
    }
}

/// Writes the model in three parts, each changed by `change`, which gets their numbers.
fn write(folder: &Folder, change: impl Fn(usize, &mut Part)) -> [String; 3] {
    for (no, mut part) in split::parts(&Model::random(spec()), &[5, 7]).into_iter().enumerate() {
        change(no, &mut part);
        part.write(&folder.path(&name("big", no, 3)));
    }
    [0, 1, 2].map(|no| name("big", no, 3))
}

#[test]
fn a_missing_part_is_named_whichever_part_is_given() {
    let folder = folder();
    let names = write(&folder, |_, _| {});
    refuses_nothing(&folder, &names);
    for (gone, given) in [(1, 0), (2, 0), (0, 1), (2, 1)] {
        let away = folder.path("away");
        fs::rename(folder.path(&names[gone]), &away).unwrap();
        let no = format!("part {} of 3 must lie beside the others", gone + 1);
        refuses(&folder, &names[given], &[&names[given], &names[gone], &no, "No such file"]);
        fs::rename(away, folder.path(&names[gone])).unwrap();
    }
    fs::remove_file(folder.path(&names[1])).unwrap();
    fs::create_dir(folder.path(&names[1])).unwrap();
    refuses(&folder, &names[0], &[&names[1], "not a regular file"]);
}

fn refuses_nothing(folder: &Folder, names: &[String; 3]) {
    for name in names {
        folder.accepts(&format!("inspect {name}"));
    }
}

#[test]
fn a_part_under_another_name_is_told_its_own() {
    let folder = folder();
    let names = write(&folder, |_, _| {});
    fs::rename(folder.path(&names[1]), folder.path("second.gguf")).unwrap();
    refuses(&folder, "second.gguf", &["second.gguf", "part 2 of 3", "\"-00002-of-00003.gguf\"", "rename"]);
    // Two parts that have changed their places.
    fs::rename(folder.path(&names[2]), folder.path(&names[1])).unwrap();
    fs::rename(folder.path("second.gguf"), folder.path(&names[2])).unwrap();
    refuses(&folder, &names[0], &[&names[1], "split.no is 2, expected 1"]);
    refuses(&folder, &names[1], &[&names[1], "part 3 of 3", "\"-00003-of-00003.gguf\""]);
}

type Change = Box<dyn Fn(&mut Part)>;

#[test]
fn parts_that_do_not_fit_together_are_refused_by_name() {
    let folder = folder();
    let text = |s: &str| Value::Str(s.to_owned());
    let set =
        |key: &'static str, value: Value| -> Change { Box::new(move |part| part.set(key, value.clone())) };
    let cases: Vec<(usize, Change, Vec<&str>)> = vec![
        (1, set("split.count", Value::U16(4)), vec!["split.count is 4, expected 3"]),
        (1, set("split.count", Value::U16(1)), vec!["split.count is 1, expected 3"]),
        (1, set("split.tensors.count", Value::I32(7)), vec!["split.tensors.count is 7, expected"]),
        (
            2,
            set("general.architecture", text("qwen2")),
            vec!["general.architecture is \"qwen2\", expected \"llama\""],
        ),
        (1, set("split.no", Value::U32(1)), vec!["split.no", "expected u16, found u32 1"]),
        (2, Box::new(|part| part.metadata.clear()), vec!["split.count is 1, expected 3"]),
        (
            2,
            Box::new(|part| drop(part.tensors.pop())),
            vec!["split.tensors.count is 21, the 3 parts hold 20 tensors"],
        ),
        (
            2,
            Box::new(|part| part.tensors[0].name = "token_embd.weight".into()),
            vec!["\"token_embd.weight\"", "in another part too"],
        ),
    ];
    for (no, change, words) in cases {
        let names = write(&folder, |i, part| {
            if i == no {
                change(part);
            }
        });
        // Which part is at fault can be told but for the number of tensors in all.
        let fault = if words[0].contains("the 3 parts") { &names[0] } else { &names[no] };
        refuses(&folder, &names[0], &[&words[..], &[fault]].concat());
    }
    // All parts agree on a type that llama.cpp does not read.
    let names = write(&folder, |_, part| part.set("split.count", Value::U32(3)));
    refuses(&folder, &names[0], &[&names[0], "split.count", "expected u16, found u32 3"]);
    // A part of another model, and one that is no model.
    let names = write(&folder, |_, _| {});
    let other = Model::random(Spec { arch: Arch::Gpt2, ..spec() });
    split::parts(&other, &[5, 7])[1].write(&folder.path(&names[1]));
    refuses(&folder, &names[0], &[&names[1], "split.tensors.count is"]);
    folder.file(&names[1], "words");
    refuses(&folder, &names[0], &[&names[0], &names[1], "not a GGUF file"]);
}
