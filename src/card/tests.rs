//! Cards of small files whose names and metadata try to be more than words.

use std::path::Path;

use serde_json::json;
use serde_yaml_ng::Value as Yaml;

use super::*;
use crate::gguf::{Array, Writer};
use crate::rewrite::RecordedDirection;

const NAME: &str = "</script>\n---\n# [x](y) | \"q\": - 'z'";
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
                      '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
                      {% endif %}";

fn model(template: &str) -> Writer {
    let tokens = ["<s>", "<|im_end|>", "a\"b", "</s>"].map(String::from).to_vec();
    Writer::new()
        .key("general.architecture", "llama")
        .key("general.name", NAME)
        .key("general.license", "apache-2.0")
        .key("general.license.link", "https://example.org/a: b # c")
        .key("general.base_model.0.repo_url", "https://huggingface.co/some-one/a.model_7b")
        .key("llama.block_count", 2u32)
        .key("llama.embedding_length", 32u32)
        .key("tokenizer.ggml.tokens", Array::String(tokens))
        .key("tokenizer.ggml.eos_token_id", 1u32)
        .key("tokenizer.ggml.eot_token_id", 3u32)
        .key("tokenizer.ggml.eom_token_id", 2u32)
        .key("tokenizer.chat_template", template)
}

fn record(edit: &str) -> Record {
    Record {
        edit: edit.into(),
        version: "0.1.0".into(),
        source: "f0".into(),
        directions: vec![RecordedDirection { sha256: "d1".into(), block: 4, position: Some(-1) }],
        tensors: Some(vec![
            "token_embd.weight".into(),
            "blk.0.ffn_down.weight".into(),
            "blk.1.ffn_down.weight".into(),
        ]),
        types: Some(vec!["q4_K".into(), "q4_K".into(), "q6_K".into()]),
        ..Record::default()
    }
}

fn save(folder: &Path, name: &str, mut writer: Writer, record: Option<&Record>) -> GgufFile {
    for (key, value) in record.map(Record::keys).into_iter().flatten() {
        writer = writer.key(key, value);
    }
    let path = folder.join(name);
    std::fs::write(&path, writer.header().unwrap()).unwrap();
    GgufFile::open(path).unwrap()
}

fn runs(folder: &Path, values: &[serde_json::Value]) -> Vec<Run> {
    let load = |(i, value): (usize, &serde_json::Value)| {
        let path = folder.join(format!("{i}.json"));
        std::fs::write(&path, value.to_string()).unwrap();
        Run::load(&path).unwrap()
    };
    values.iter().enumerate().map(load).collect()
}

fn set(hits: usize) -> serde_json::Value {
    let rate =
        |hits: usize| json!({"hits": hits, "n": 50, "rate": hits as f64 / 50.0, "low": 0.01, "high": 0.25});
    json!({"n": 50, "refused": rate(hits), "broken": rate(0), "kl_first": {"n": 50, "mean": 0.5, "low": 0.25, "high": null}})
}

/// The front matter and what follows it.
fn parsed(readme: &str) -> (Yaml, &str) {
    let (yaml, page) = readme.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
    (serde_yaml_ng::from_str(yaml).unwrap(), page)
}

/// A Modelfile's instructions, read as Ollama reads them: a value ends with its line, or with its three quotes.
fn instructions(text: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap();
        rest = after;
        if line.starts_with('#') {
            continue;
        }
        let (word, value) = line.split_once(' ').unwrap();
        if let Some(begun) = value.strip_prefix("\"\"\"") {
            let whole = format!("{begun}\n{after}");
            let (value, after) = whole.split_once("\"\"\"").unwrap();
            all.push((word.to_owned(), value.to_owned()));
            rest = &text[text.len() - after.trim_start_matches('\n').len()..];
        } else {
            all.push((word.to_owned(), value.to_owned()));
        }
    }
    all
}

#[test]
fn a_card_says_what_the_file_says_and_nothing_of_it_is_markup() {
    let folder = tempfile::tempdir().unwrap();
    let name = "it's <b>a | *model*<b> `$(x)`.gguf";
    let file = save(folder.path(), name, model(CHATML), Some(&record("orthogonalize")));
    let abliterated = json!({
        "model": "/home/x/in<i>.gguf", "output": format!("elsewhere/{name}"), "max_leak": 0.125, "max_data_leak": null,
        "before": {"harmful": set(48), "harmless": set(0)}, "ablated": {"harmful": set(2), "harmless": set(0)},
        "after": {"harmful": set(3), "harmless": set(1)},
    });
    let evaluated = json!({
        "model": "in.gguf", "ablate": ["d.gguf"], "add": null, "harmful": set(1), "harmless": set(0),
        "perplexity": {"text": "a|b.txt", "base": {"perplexity": 8.0, "standard_error": 0.5},
                       "this": {"perplexity": 8.25, "standard_error": 0.5}},
    });
    let card = Card::new(&file, None, runs(folder.path(), &[abliterated, evaluated])).unwrap();
    let readme = card.readme();
    let (yaml, page) = parsed(&readme);
    assert_eq!(yaml["base_model"].as_str(), Some("some-one/a.model_7b"));
    assert_eq!(yaml["license"].as_str(), Some("apache-2.0"));
    assert_eq!(yaml["license_link"].as_str(), Some("https://example.org/a: b # c"));
    let tags: Vec<_> = yaml["tags"].as_sequence().unwrap().iter().map(|tag| tag.as_str().unwrap()).collect();
    assert_eq!(tags, ["gguf", "llama.cpp", "ggsteer", "abliterated", "llama"]);

    // The title is one line, and no tag, link or column is of the file's making.
    assert!(page.contains(
        "\n# &lt;/script&gt; --- \\# \\[x\\]\\(y\\) \\| \"q\"&#58; - 'z', with a direction erased\n"
    ));
    assert!(page.contains("&lt;b&gt;a \\| \\*model\\*"), "{page}");
    assert_eq!(
        page.matches("<b>").count(),
        2 * page.matches("<b>a | *model*<b> `$(x)`.gguf'").count(),
        "in commands alone"
    );
    assert!(!page.contains("<i>") && !page.contains("</script"));
    assert!(page.contains("- 3 tensors edited: token\\_embd; ffn\\_down of blocks 0 to 1.\n"), "{page}");
    assert!(page.contains("- They are written as 2 q4\\_K, 1 q6\\_K.\n"));
    assert!(page.contains("largest leak of the weights: 0.1250"));
    assert!(page.contains("| in.gguf, direction erased while it runs | 50 harmful | 2.0 % | 1.0–25.0 | 0.0 % | 0.5000 [0.2500, NaN] |"));
    assert!(page.contains("perplexity on a\\|b.txt: 8.250 ± 0.500, of the base 8.000 ± 0.500"));
    let rows: Vec<&str> =
        page.lines().filter(|line| line.starts_with("| ") && !line.contains("refused")).collect();
    assert_eq!(rows.len(), 8);
    for row in rows {
        assert_eq!(row.replace("\\|", "").matches('|').count(), 7, "{row}");
    }
    let lines = card.commands();
    assert_eq!(lines[0].1, r"llama-cli -m 'it'\''s <b>a | *model*<b> `$(x)`.gguf' -cnv");
    assert_eq!(lines[3].1, "ollama create it-s--b-a----model--b-----x -f Modelfile");
}

#[test]
fn a_modelfile_names_the_file_the_format_and_where_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let modelfile = |template: &str| {
        let file = save(folder.path(), "my \"model\".gguf", model(template), Some(&record("orthogonalize")));
        Card::new(&file, Some("a/b"), Vec::new()).unwrap().modelfile().unwrap()
    };
    let known = instructions(&modelfile(CHATML));
    let words: Vec<&str> = known.iter().map(|(word, _)| word.as_str()).collect();
    assert_eq!(words, ["FROM", "TEMPLATE", "PARAMETER", "PARAMETER"]);
    assert_eq!(known[0].1, "./my \"model\".gguf");
    assert!(known[1].1.ends_with("{{ end }}<|im_start|>assistant\n"), "{:?}", known[1]);
    // The third has a quotation mark, which cannot be written.
    assert_eq!([&known[2].1, &known[3].1], ["stop \"<|im_end|>\"", "stop \"</s>\""]);

    let unknown = modelfile("{{ messages[0].content }}!");
    assert!(unknown.contains("# No TEMPLATE: its chat template is none of the formats"), "{unknown}");
    assert!(instructions(&unknown).iter().all(|(word, _)| word != "TEMPLATE"));
}

#[test]
fn exports_get_the_lines_that_load_them() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = || {
        Writer::new()
            .key("general.type", "adapter")
            .key("general.architecture", "llama")
            .key("ggsteer.lora.left_out", Array::String(vec!["blk.0.attn_output.bias".into()]))
    };
    let lora = |name: &str| {
        Card::new(&save(folder.path(), name, adapter(), Some(&record("lora"))), None, Vec::new()).unwrap()
    };
    let card = lora("a.gguf");
    assert_eq!(card.commands()[1].1, "llama-cli -m model.gguf --lora-scaled a.gguf:0.5 -cnv");
    assert!(card.readme().contains("blk.0.attn\\_output.bias") && card.modelfile().is_none());
    assert!(lora("a:b.gguf").commands().is_empty(), "llama.cpp splits names at colons");

    let path = folder.path().join("v.gguf");
    for (mode, lines) in [("add", 3), ("project", 0)] {
        let meta =
            Provenance { mode: Some(mode.into()), model_name: Some("M".into()), ..Provenance::default() };
        crate::direction::Direction::new(vec![3.0, 4.0], 2, meta).unwrap().save(&path, true).unwrap();
        let card = Card::new(&GgufFile::open(&path).unwrap(), None, Vec::new()).unwrap();
        assert_eq!(card.commands().len(), lines, "{mode}");
        assert_eq!(card.readme().contains("**toward**"), lines == 0);
        assert!(card.readme().contains("at the output of block 2 "));
    }
}

#[test]
fn what_no_card_can_be_made_of_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let made = save(folder.path(), "a.gguf", model(CHATML), Some(&record("orthogonalize")));
    let other = save(folder.path(), "b.gguf", model(CHATML), None);
    assert!(matches!(Card::new(&other, None, Vec::new()), Err(CardError::NotOurs)));
    for name in ["model", "a/b/c", "a b/c", "/", "https://x/y"] {
        assert!(
            matches!(Card::new(&made, Some(name), Vec::new()), Err(CardError::BaseModel { .. })),
            "{name}"
        );
    }
    let run = runs(folder.path(), &[json!({"output": "x/b.gguf", "max_leak": 0.5})]);
    assert!(matches!(Card::new(&made, None, run), Err(CardError::OtherFile { .. })));
    for (text, words) in [
        ("{}", "nothing in it for a card"),
        ("[", "not what `ggsteer"),
        ("{\"max_leak\": \"x\"}", "not what"),
    ] {
        let path = folder.path().join("bad.json");
        std::fs::write(&path, text).unwrap();
        let error = Run::load(&path).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
