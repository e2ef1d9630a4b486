//! What `inspect` says of the writers of the residual stream.
#![forbid(unsafe_code)]

mod program;
mod support;

use program::Folder;
use serde_json::Value as Json;
use support::tiny::Spec;
use support::writer::{self, Info, Type, Value};

const N: u64 = 32;

/// Writes a model of zeros: a token embedding, and for each block what `block` names behind `blk.{il}.`.
fn model<'a>(folder: &Folder, arch: &str, n_block: u32, block: impl Fn(u32) -> Vec<(&'a str, Vec<u64>)>) {
    let metadata = [
        ("general.architecture".to_string(), Value::Str(arch.into())),
        (format!("{arch}.embedding_length"), Value::U32(N as u32)),
        (format!("{arch}.block_count"), Value::U32(n_block)),
    ];
    let info = |name: String, ne: Vec<u64>| Info { name, ne, ty: Type::F32 };
    let mut tensors = vec![info("token_embd.weight".into(), vec![N, 64])];
    for il in 0..n_block {
        tensors.extend(block(il).into_iter().map(|(name, ne)| info(format!("blk.{il}.{name}"), ne)));
    }
    let zeros = |i: usize, out: &mut dyn std::io::Write| {
        out.write_all(&vec![0; 4 * tensors[i].ne.iter().product::<u64>() as usize])
    };
    writer::write(&folder.path("model.gguf"), &metadata, &tensors, zeros).unwrap();
}

/// The lines of the table of writers, each with single blanks, without its header; and what is said below it.
fn table(folder: &Folder) -> (Vec<String>, String) {
    let [stdout, _] = folder.accepts("inspect model.gguf");
    let lines = stdout.lines().skip_while(|line| *line != "writers of the residual stream").skip(2);
    let mut lines: Vec<String> =
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let verdict = lines.pop().unwrap();
    (lines, verdict)
}

fn json(folder: &Folder) -> Json {
    serde_json::from_str(&folder.accepts("inspect model.gguf --json")[0]).unwrap()
}

fn attention() -> (&'static str, Vec<u64>) {
    ("attn_output.weight", vec![N, N])
}

#[test]
fn a_hundred_blocks_take_a_row_for_each_kind() {
    let folder = Folder::new();
    model(&folder, "deepseek2", 100, |il| {
        let down = if il < 3 {
            vec![("ffn_down.weight", vec![8, N])]
        } else {
            vec![("ffn_down_exps.weight", vec![8, N, 2]), ("ffn_down_shexp.weight", vec![8, N])]
        };
        [vec![attention()], down].concat()
    });
    let (lines, verdict) = table(&folder);
    assert_eq!(lines[1], "0–2 attn_output ffn_down – 15.4 kB");
    assert!(lines[2].starts_with("3–99 attn_output ffn_down_exps – "), "{lines:?}");
    assert_eq!(lines[3], "ffn_down_shexp");
    assert_eq!(lines.len(), 4);
    assert!(verdict.starts_with("complete"), "{verdict}");
    let json = json(&folder);
    assert_eq!(json["writers"].as_array().unwrap().len(), 1 + 2 * 3 + 3 * 97);
    assert!(json["writers_error"].is_null());
}

#[test]
fn blocks_that_alternate_share_two_rows() {
    let folder = Folder::new();
    model(&folder, "lfm2", 4, |il| {
        let mixer = if il % 2 == 0 { ("shortconv.out_proj.weight", vec![N, N]) } else { attention() };
        vec![mixer, ("ffn_down.weight", vec![8, N])]
    });
    let (lines, _) = table(&folder);
    assert_eq!(
        lines[1..],
        ["0, 2 – ffn_down shortconv.out_proj 10.2 kB", "1, 3 attn_output ffn_down – 10.2 kB"]
    );
}

#[test]
fn norms_biases_and_gaps_have_columns_of_their_own() {
    let folder = Folder::new();
    model(&folder, "gemma2", 3, |il| {
        let mut block = vec![
            attention(),
            ("attn_output.bias", vec![N]),
            ("ffn_down.weight", vec![8, N]),
            ("post_attention_norm.weight", vec![N]),
            ("post_ffw_norm.weight", vec![N]),
        ];
        match il {
            1 => block.truncate(4),
            2 => block.push(("mystery.weight", vec![8, N])),
            _ => {}
        }
        block
    });
    let (lines, verdict) = table(&folder);
    let first = "0 attn_output ffn_down – attn_output post_attention_norm –";
    assert!(lines[1].starts_with(first), "{lines:?}");
    let missing = "1 attn_output – – attn_output post_attention_norm no post_ffw_norm";
    assert!(lines.iter().any(|line| line.starts_with(missing)), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("2 ") && line.contains(" mystery ")), "{lines:?}");
    assert!(verdict.starts_with("incomplete: ") && verdict.contains("--partial"), "{verdict}");
    let json = json(&folder);
    assert_eq!(json["missing"][0]["tensor"], "blk.1.post_ffw_norm.weight");
    assert_eq!(json["unplaced"][1]["tensor"], "blk.2.mystery.weight");
    assert_eq!(json["unplaced"][1]["block"], 2);
    assert_eq!(json["writers"].as_array().unwrap().len(), 9);
}

#[test]
fn a_part_of_a_split_model_tells_nothing() {
    let folder = Folder::new();
    let extra = vec![("split.count".to_string(), Value::U32(3))];
    folder.model("model.gguf", Spec { extra, ..program::spec() });
    let [stdout, _] = folder.accepts("inspect model.gguf");
    let end: Vec<&str> = stdout.lines().rev().take(2).collect();
    assert!(end[0].starts_with("incomplete: file is one of 3 parts"), "{stdout}");
    assert_eq!(end[1], "writers of the residual stream");
    assert!(json(&folder)["writers"].as_array().unwrap().is_empty());
}

#[test]
fn architectures_out_of_the_table_are_told_apart() {
    let folder = Folder::new();
    for (arch, words) in [("martian", "is not known"), ("gemma3n", "several streams")] {
        model(&folder, arch, 1, |_| vec![attention(), ("ffn_down.weight", vec![8, N])]);
        let (lines, verdict) = table(&folder);
        assert!(verdict.starts_with("incomplete: ") && verdict.contains(words), "{verdict}");
        assert_eq!(lines.len(), 2);
        let json = json(&folder);
        assert!(json["writers_error"].as_str().unwrap().contains(words));
        assert_eq!(json["writers"].as_array().unwrap().len(), 3);
    }
}
