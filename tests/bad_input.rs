//! What the program says to files and words it cannot use: one line with what is wrong and where, and nothing changed.
#![forbid(unsafe_code)]

mod program;
mod support;

use std::fs;

use program::{Folder, spec};
use support::tiny::{self, Arch, Model, Spec};
use support::writer::Value;

/// A line for every subcommand that takes a model; all else in it is as it should be.
fn lines(model: &str) -> [String; 7] {
    let sets = "--harmful harmful.txt --harmless harmless.txt";
    [
        format!("inspect {model}"),
        format!("generate {model} --threads 1 -p hello"),
        format!("evaluate {model} --threads 1 {sets}"),
        format!("orthogonalize {model} --direction direction.gguf -o out.gguf"),
        format!("extract {model} --threads 1 {sets} -o out.gguf"),
        format!("select {model} --threads 1 --directions directions.gguf {sets} -o out.gguf"),
        format!("abliterate {model} --threads 1 {sets} -o out.gguf"),
    ]
}

/// A folder in which [`lines`] of a good model find what they need.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    folder.accepts(
        "extract model.gguf --threads 1 --harmful harmful.txt --harmless harmless.txt -o directions.gguf",
    );
    folder
}

/// A folder with `direction.gguf` and without directions.
fn small_folder() -> Folder {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    folder
}

fn flagged(key: &str, value: Value) -> Spec {
    Spec { extra: vec![(key.to_owned(), value)], ..spec() }
}

#[test]
fn a_missing_model_is_named_by_every_subcommand() {
    let folder = folder();
    for line in lines("none.gguf") {
        let message = folder.refuses(&line, &["none.gguf", "No such file"]);
        assert_eq!(message.matches("none.gguf").count(), 1, "{message}");
    }
}

#[test]
fn a_folder_in_place_of_a_model_is_refused() {
    let folder = folder();
    fs::create_dir(folder.path("sub.gguf")).unwrap();
    for line in lines("sub.gguf") {
        folder.refuses(&line, &["sub.gguf", "not a regular file"]);
    }
}

#[test]
fn a_text_file_is_no_model() {
    let folder = folder();
    folder.file("words.gguf", "words, and more words\n");
    for line in lines("words.gguf") {
        let message =
            folder.refuses(&line, &["words.gguf", "not a GGUF file", "\"word\"", "expected \"GGUF\""]);
        assert_eq!(message.matches("not a GGUF file").count(), 1, "{message}");
    }
}

#[test]
fn an_empty_file_is_no_model() {
    let folder = folder();
    folder.file("empty.gguf", "");
    for line in lines("empty.gguf") {
        folder.refuses(&line, &["empty.gguf", "not a GGUF file"]);
    }
}

#[test]
fn a_model_cut_short_anywhere_is_refused_with_the_place() {
    let folder = small_folder();
    let whole = fs::read(folder.path("model.gguf")).unwrap();
    let data: usize = Model::random(spec()).tensors.iter().map(|t| 4 * t.data.len()).sum();
    let header = whole.len() - data;
    let key = whole.windows(20).position(|w| w == b"tokenizer.ggml.token").unwrap();
    let tensor = whole.windows(10).position(|w| w == b"blk.0.attn").unwrap();
    for end in [5, 10, 23, 30, key, key + 300, tensor, tensor + 20] {
        assert!(end < header);
        folder.file("cut.gguf", &whole[..end]);
        for line in &lines("cut.gguf")[..4] {
            let message = folder.refuses(line, &["cut.gguf: ", " at "]);
            let place =
                message.contains(&format!("file ends at {end}")) || message.contains("cannot fit in the");
            assert!(place, "{end}: {message}");
        }
    }
    for end in [header, header + 1, header + data / 2, whole.len() - 1] {
        folder.file("cut.gguf", &whole[..end]);
        for line in &lines("cut.gguf")[..4] {
            let words = ["cut.gguf", "tensor \"", "needs", "bytes at", &format!("file ends at {end}")];
            folder.refuses(line, &words);
        }
    }
}

#[test]
fn a_model_without_chat_template_asks_for_one_and_takes_it() {
    let folder = Folder::new();
    folder.model("plain.gguf", Spec { chat_template: None, ..spec() });
    let line = "generate plain.gguf --threads 1 -n 2 -p hello";
    folder.refuses(line, &["plain.gguf", "no chat template", "--chat-template"]);
    folder.accepts(&format!("{line} --chat-template chatml"));
    let sets = "--harmful harmful.txt --harmless harmless.txt";
    folder.refuses(&format!("evaluate plain.gguf --threads 1 {sets}"), &["plain.gguf", "--chat-template"]);
    folder.refuses(
        &format!("extract plain.gguf --threads 1 {sets} -o out.gguf"),
        &["plain.gguf", "--chat-template"],
    );
}

#[test]
fn a_chat_template_that_does_not_compile_is_told_with_its_line() {
    let folder = Folder::new();
    let broken = "{% for message in messages %}\n{{ message.content }}\n{% endfro %}";
    folder.file("broken.jinja", broken);
    let line = "generate model.gguf --threads 1 -n 2 -p hello --chat-template broken.jinja";
    let message = folder.refuses(line, &["broken.jinja", "chat template: ", "endfro", ":3"]);
    assert_eq!(message.matches("chat template").count(), 1, "{message}");
    assert_eq!(message.matches("endfro").count(), 1, "{message}");

    folder.model("broken.gguf", Spec { chat_template: Some(broken.to_owned()), ..spec() });
    folder.refuses(
        "generate broken.gguf --threads 1 -n 2 -p hello",
        &["broken.gguf", "chat template: ", "endfro", ":3"],
    );
    folder.accepts("generate broken.gguf --threads 1 -n 2 -p hello --chat-template chatml");
}

#[test]
fn a_chat_template_that_is_neither_name_nor_file_is_told() {
    let folder = Folder::new();
    folder.refuses(
        "generate model.gguf -p hello --chat-template chatlm",
        &["--chat-template chatlm", "built-in name", "file"],
    );
}

#[test]
fn a_chat_template_that_drops_the_prompt_is_refused() {
    let folder = Folder::new();
    folder.file("deaf.jinja", "no words of yours");
    folder.refuses(
        "generate model.gguf --threads 1 -p hello --chat-template deaf.jinja",
        &["chat template leaves out message 0 (user)"],
    );
}

#[test]
fn prompt_files_that_hold_no_prompt_are_refused() {
    let folder = Folder::new();
    folder.file("empty.txt", "");
    folder.file("blank.txt", "\n  \n\t\n");
    let line =
        |harmful: &str| format!("extract model.gguf --harmful {harmful} --harmless harmless.txt -o out.gguf");
    for name in ["empty.txt", "blank.txt"] {
        folder.refuses(&line(name), &[name, "no prompts"]);
    }
    let message = folder.refuses(&line("none.txt"), &["none.txt", "No such file"]);
    assert_eq!(message.matches("No such file").count(), 1, "{message}");
    folder.refuses(&line("."), &["error: .: "]);
    folder.file("odd.parquet", "PAR1");
    folder.refuses(&line("odd.parquet"), &["odd.parquet", "not a sound parquet file"]);
    folder.file("odd.xlsx", "PK");
    folder.refuses(&line("odd.xlsx"), &["odd.xlsx", "\".xlsx\"", "txt, csv, tsv, json, jsonl or parquet"]);
    folder.file("odd.txt", b"fine\n\xff\xfe\n");
    folder.refuses(&line("odd.txt"), &["odd.txt: line 2", "UTF-8"]);
}

#[test]
fn a_wrong_column_is_told_with_the_right_ones() {
    let folder = Folder::new();
    folder.file("sets.csv", "id,words\n1,one\n2,two\n");
    folder.file("sets.jsonl", "{\"id\":1,\"a\":\"x\",\"b\":\"y\"}\n");
    let line = |harmful: &str| format!("evaluate model.gguf --harmful {harmful} --harmless harmless.txt");
    folder.refuses(&line("sets.csv:goal"), &["sets.csv", "\"goal\"", "words"]);
    folder.refuses(&line("sets.csv"), &["sets.csv", "id", "words", "PATH:COLUMN"]);
    folder.refuses(&line("sets.jsonl:c"), &["sets.jsonl", "line 1", "\"c\"", "id, a, b"]);
    folder.refuses(&line("harmful.txt:goal"), &["harmful.txt", "text file has no columns", "goal"]);
}

#[test]
fn too_few_prompts_to_split_are_refused() {
    let folder = Folder::new();
    folder.file("few.txt", "one\ntwo\n");
    folder.refuses(
        "abliterate model.gguf --harmful few.txt --harmless harmless.txt -o out.gguf",
        &["few.txt", "2 different prompts", "at least 10"],
    );
}

/// The two lines that take a direction for `model.gguf`.
fn directed(direction: &str) -> [String; 2] {
    [
        format!("generate model.gguf --threads 1 -p hello --ablate {direction}"),
        format!("orthogonalize model.gguf --direction {direction} -o out.gguf"),
    ]
}

#[test]
fn a_direction_of_another_width_is_refused() {
    let folder = Folder::new();
    folder.direction("wide.gguf", "llama", &tiny::unit(64, 1));
    for line in directed("wide.gguf") {
        folder.refuses(&line, &["wide.gguf", "n_embd 64", "model has 32"]);
    }
}

#[test]
fn a_direction_of_another_architecture_is_refused() {
    let folder = Folder::new();
    folder.direction("other.gguf", "qwen2", &tiny::unit(32, 1));
    for line in directed("other.gguf") {
        folder.refuses(&line, &["other.gguf", "\"qwen2\"", "\"llama\""]);
    }
}

#[test]
fn a_direction_with_a_value_that_is_no_number_is_refused() {
    let folder = Folder::new();
    let mut vector = tiny::unit(32, 1);
    vector[5] = f32::NAN;
    folder.direction("nan.gguf", "llama", &vector);
    folder.direction("zero.gguf", "llama", &[0.0; 32]);
    for line in directed("nan.gguf") {
        folder.refuses(&line, &["nan.gguf", "value 5 is NaN", "not finite"]);
    }
    for line in directed("zero.gguf") {
        folder.refuses(&line, &["zero.gguf", "direction is zero"]);
    }
}

#[test]
fn a_file_of_another_kind_is_no_direction() {
    let folder = folder();
    for line in directed("model.gguf") {
        folder.refuses(
            &line.replace("out.gguf", "new.gguf"),
            &["model.gguf", "not a control vector", "\"llama\""],
        );
    }
    for line in directed("directions.gguf") {
        folder.refuses(&line, &["directions.gguf", "not a control vector", "ggsteer select"]);
    }
    folder.file("words.gguf", "words");
    for line in directed("words.gguf") {
        let message = folder.refuses(&line, &["words.gguf", "not a GGUF file"]);
        assert_eq!(message.matches("not a GGUF file").count(), 1, "{message}");
    }
    for line in directed("none.gguf") {
        let message = folder.refuses(&line, &["none.gguf", "No such file"]);
        assert_eq!(message.matches("none.gguf").count(), 1, "{message}");
        assert_eq!(message.matches("No such file").count(), 1, "{message}");
    }
}

#[test]
fn a_file_of_another_kind_holds_no_directions() {
    let folder = small_folder();
    let sets = "--harmful harmful.txt --harmless harmless.txt";
    let line = |dirs: &str| format!("select model.gguf --threads 1 --directions {dirs} {sets} -o out.gguf");
    folder.refuses(
        &line("direction.gguf"),
        &["direction.gguf", "not a directions file of `ggsteer extract`", "\"controlvector\""],
    );
    let message = folder.refuses(&line("none.gguf"), &["none.gguf", "No such file"]);
    assert_eq!(message.matches("none.gguf").count(), 1, "{message}");
    assert_eq!(message.matches("No such file").count(), 1, "{message}");
}

#[test]
fn directions_of_another_model_are_refused() {
    let folder = folder();
    folder.model("wide.gguf", Spec { n_embd: 64, ..spec() });
    folder.model("other.gguf", Spec { arch: Arch::Qwen2, ..spec() });
    for (model, words) in [
        ("wide.gguf", ["directions.gguf", "2 blocks × 32", "2 × 64"]),
        ("other.gguf", ["directions.gguf", "\"llama\"", "model is \"qwen2\""]),
    ] {
        folder.refuses(&lines(model)[5], &words);
    }
}

#[test]
fn a_checkpoint_is_no_other_file() {
    let folder = folder();
    folder.file("words.json", "{\"format\": 3}");
    // Fewer prompts than were measured on, for the same ones would bring a warning.
    let line = |more: &str| format!("{} --limit 1 {more}", lines("model.gguf")[5]);
    folder.refuses(&line("--checkpoint words.json"), &["words.json", "not a checkpoint", "--restart"]);
    folder.refuses(&line("--checkpoint model.gguf"), &["model.gguf", "is the input model.gguf itself"]);
    folder.refuses(&line("--checkpoint out.gguf"), &["out.gguf", "is the output itself"]);
    folder.refuses(&line("--checkpoint none/c"), &["none/c", "no folder"]);
}

#[test]
fn a_direction_is_no_model() {
    let folder = small_folder();
    folder.refuses("generate direction.gguf --threads 1 -p hello", &["direction.gguf", "controlvector"]);
}

#[test]
fn an_embedding_only_model_is_refused_where_it_would_be_run() {
    let folder = folder();
    folder.model("embed.gguf", flagged("llama.attention.causal", Value::Bool(false)));
    let lines = lines("embed.gguf");
    for line in [&lines[1], &lines[2], &lines[4], &lines[5], &lines[6]] {
        folder.refuses(line, &["embed.gguf", "embedding-only"]);
    }
    folder.accepts("inspect embed.gguf");
}

#[test]
fn a_model_that_llama_cpp_does_not_load_is_refused_with_its_reason() {
    let folder = small_folder();
    folder.model("bert.gguf", flagged("general.architecture", Value::Str("bert".into())));
    folder.refuses(&lines("bert.gguf")[1], &["bert.gguf", "bert."]);
    folder.refuses(&lines("bert.gguf")[3], &["bert.gguf", "bert."]);
    folder.model("new.gguf", flagged("general.architecture", Value::Str("brandnew".into())));
    folder.refuses(&lines("new.gguf")[1], &["new.gguf", "llama.cpp cannot load it", "brandnew"]);
}

#[test]
fn weights_that_are_no_numbers_are_named_with_their_place() {
    let folder = small_folder();
    let mut model = Model::random(spec());
    let tensor = model.tensors.iter_mut().find(|t| t.name == "blk.1.ffn_down.weight").unwrap();
    tensor.data[7 * 64 + 3] = f32::NAN;
    model.write(&folder.path("nan.gguf")).unwrap();
    let words = ["nan.gguf", "\"blk.1.ffn_down.weight\"", "NaN at row 7, column 3", "not finite"];
    folder.refuses(&lines("nan.gguf")[3], &words);
    folder.refuses("generate nan.gguf --threads 1 -n 2 -p hello", &["logits are not numbers", "weights"]);
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let folder = Folder::new();
    let long = "hello ".repeat(3000);
    folder.file("long.txt", format!("a short one\n{long}\n"));
    let before = folder.contents();
    let output =
        folder.ggsteer().args(["generate", "model.gguf", "--threads", "1", "-n", "4", "-p", &long]).output();
    program::refusal(&output.unwrap(), &["prompt", "tokens", "holds 128", "shorten", "--max-tokens"]);
    assert!(folder.contents() == before);
    for line in [
        "extract model.gguf --threads 1 --harmful long.txt --harmless harmless.txt -o out.gguf",
        "evaluate model.gguf --threads 1 --harmful harmful.txt --harmless long.txt -n 4",
    ] {
        folder.refuses(line, &["long.txt: prompt 2: ", "tokens", "holds 128", "shorten"]);
    }
    folder.refuses("generate model.gguf --threads 1 -n 200 -p hello", &["holds 128", "--max-tokens"]);
}

#[test]
fn wrong_usage_ends_with_code_2() {
    let folder = Folder::new();
    let before = folder.contents();
    for line in [
        "",
        "summon model.gguf",
        "generate model.gguf",
        "inspect",
        "orthogonalize model.gguf -o out.gguf",
        "generate model.gguf -p hello --batch 0",
        "generate model.gguf -p hello -n 0",
        "evaluate model.gguf --harmful a.txt --harmless b.txt --limit 0",
        "generate model.gguf -p hello --ablate a.gguf --add b.gguf",
        "inspect model.gguf --loud",
    ] {
        let output = folder.run(line);
        assert_eq!(output.status.code(), Some(2), "ggsteer {line}");
        assert!(output.stdout.is_empty(), "ggsteer {line}");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains("Usage: ") || stderr.contains("--help"), "ggsteer {line}: {stderr}");
    }
    assert!(folder.contents() == before);
}

#[test]
fn llama_cpp_speaks_only_when_asked() {
    let folder = small_folder();
    let line = "generate model.gguf --threads 1 -n 2 -p hello --ablate direction.gguf";
    let [_, quiet] = folder.accepts(&format!("{line} --quiet"));
    assert_eq!(quiet, "");
    let [_, plain] = folder.accepts(line);
    assert_eq!(plain, "", "one answer needs no remarks");
    let [_, loud] = folder.accepts(&format!("{line} --quiet --verbose"));
    assert!(loud.contains("llama_model_loader"), "{loud}");
    let sets = "--harmful harmful.txt --harmless harmless.txt";
    let [_, quiet] = folder.accepts(&format!("extract model.gguf --threads 1 {sets} -q -o dirs.gguf"));
    assert_eq!(quiet, "");
    let [_, quiet] = folder.accepts(&format!("evaluate model.gguf --threads 1 {sets} -q -n 4"));
    assert_eq!(quiet, "");
}
