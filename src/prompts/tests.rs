//! Files of each kind, good and bad.

use super::*;

/// Writes `bytes` as `name` into a new folder and loads it with `suffix` after its path.
fn load(name: &str, bytes: impl AsRef<[u8]>, suffix: &str) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let shown = format!("{}", folder.path().display());
    match PromptSet::load(&format!("{}{suffix}", path.display())) {
        Ok(set) => Ok(set.prompts),
        Err(error) => Err(error.to_string().replace(&shown, "").replace(['/', '\\'], "")),
    }
}

#[test]
fn text_files_give_a_prompt_a_line_whatever_their_line_ends() {
    let expected = Ok(vec!["How do I bake bread?".to_owned(), "Name a bird".to_owned()]);
    assert_eq!(load("a.txt", "How do I bake bread?\n\n  Name a bird \n", ""), expected);
    assert_eq!(load("a.txt", "\u{feff}How do I bake bread?\r\n \r\nName a bird", ""), expected);
    assert_eq!(load("plain", "How do I bake bread?\nName a bird", ""), expected);
}

#[test]
fn structured_files_give_the_column_asked_for() {
    let expected = Ok(vec!["bake, \"slowly\"".to_owned(), "two\nlines".to_owned()]);
    let csv = "id,task,note\n1,\"bake, \"\"slowly\"\"\",x\n2,\"two\nlines\",y\n3, ,blank\n";
    assert_eq!(load("a.csv", csv, ":task"), expected);
    let jsonl =
        "{\"task\":\"bake, \\\"slowly\\\"\",\"note\":\"x\"}\r\n\n{\"task\":\"two\\nlines\",\"note\":\"y\"}\n";
    assert_eq!(load("a.jsonl", jsonl, ":task"), expected);
    let json = "[{\"task\":\"bake, \\\"slowly\\\"\"},\n{\"task\":\"two\\nlines\"}]";
    assert_eq!(load("a.json", json, ":task"), expected);
}

#[test]
fn the_only_text_column_and_the_usual_names_are_guessed() {
    let expected = Ok(vec!["bake".to_owned()]);
    assert_eq!(load("a.jsonl", "{\"id\": 3, \"whatever\": \"bake\"}", ""), expected);
    assert_eq!(load("a.jsonl", "{\"note\": \"x\", \"Prompt\": \"bake\"}", ""), expected);
    assert_eq!(load("a.jsonl", "\"bake\"", ""), expected);
    assert_eq!(load("a.json", "[\"bake\", \"\"]", ""), expected);
    assert_eq!(load("a.csv", "whatever\nbake\n", ""), expected);
    assert_eq!(load("a.csv", "id,question\n1,bake\n", ""), expected);
}

const NO_SPLITS: &str =
    "a.csv: a file has no splits, yet \"train\" was asked for; a slice is written [FROM:TO]";

#[test]
fn each_failure_names_file_and_line() {
    let cases: [(&str, &[u8], &str, &str); 15] = [
        ("a.txt", b"ok\nfine\n\xff\n", "", "a.txt: line 3: not UTF-8"),
        ("a.txt", b" \n\n", "", "a.txt: no prompts in it"),
        ("a.txt", b"x", ":c", "a.txt: a text file has no columns, yet column \"c\" was asked for"),
        (
            "a.xlsx",
            b"x",
            "",
            "a.xlsx: unknown prompt format \".xlsx\", expected txt, csv, tsv, json, jsonl or parquet",
        ),
        ("a.csv", b"u\n1\n", "[train]", NO_SPLITS),
        ("a.csv", b"u,v\n1,2\n", ":w", "a.csv: line 1: no text in column \"w\", found columns u, v"),
        (
            "a.csv",
            b"u,v\n1,2\n",
            "",
            "a.csv: line 1: which column holds the prompts? found columns u, v; write PATH:COLUMN",
        ),
        ("a.csv", b"", ":w", "a.csv: line 1: no text in column \"w\", found no columns"),
        (
            "a.jsonl",
            b"{\"u\":\"x\"}\n{\"v\":1}",
            "",
            "a.jsonl: line 2: no text in column \"u\", found columns v",
        ),
        ("a.jsonl", b"\n[1]", "", "a.jsonl: line 2: expected a string or an object, found an array"),
        ("a.jsonl", b"\"x\"", ":u", "a.jsonl: line 1: expected an object, found a string"),
        (
            "a.json",
            b"{\"u\":\"x\"}",
            "",
            "a.json: line 1: expected an array of strings or objects, found an object",
        ),
        ("a.json", b"[\"x\", null]", "", "a.json: item 2: expected a string or an object, found null"),
        ("a.json", b"[]", "", "a.json: no prompts in it"),
        ("a.csv", b"text\n\n", "", "a.csv: no prompts in it"),
    ];
    for (name, bytes, suffix, message) in cases {
        assert_eq!(load(name, bytes, suffix).unwrap_err(), message);
    }
    assert!(load("a.jsonl", "\"x\"\n{", "").unwrap_err().starts_with("a.jsonl: line 2: EOF"));
    assert!(load("a.json", "[\n\"x\",\n", "").unwrap_err().starts_with("a.json: line 3: EOF"));
    assert!(load("a.csv", "u,v\n1,2\n1,2,3\n", ":u").unwrap_err().starts_with("a.csv: line 3: "));
}

#[test]
fn colons_in_names_and_drives_are_not_columns() {
    let whole = PromptSet::load("C:\\nowhere\\a.csv").unwrap_err().to_string();
    assert!(whole.starts_with("C:\\nowhere\\a.csv: "), "{whole}");
    if cfg!(unix) {
        let expected = Ok(vec!["bake".to_owned()]);
        assert_eq!(load("at 10:30.txt", "bake", ""), expected);
        assert_eq!(load("at 10:30.csv", "a:b,c\nbake,x\n", ":a:b"), expected);
    }
}

#[test]
fn brackets_in_names_are_not_slices_and_slices_count_prompts() {
    let many = "one\n\ntwo\nthree\n \nfour\n";
    let some = |words: &[&str]| Ok(words.iter().map(|&word| word.to_owned()).collect());
    assert_eq!(load("a.txt", many, "[:2]"), some(&["one", "two"]));
    assert_eq!(load("a.txt", many, "[-1:]"), some(&["four"]));
    assert_eq!(load("a[:2].txt", many, "[1:3]"), some(&["two", "three"]));
    assert_eq!(load("a[:2]", many, ""), some(&["one", "two", "three", "four"]));
    assert_eq!(load("a.csv", "id,words\n1,one\n2,two\n", ":words[50%:]"), some(&["two"]));
    assert!(load("a.csv", "id,words\n1,one\n", ":words[0]").unwrap_err().contains("has no splits"));
    assert_eq!(load("a.tsv", "id\twords\n1\tone, two\n", ":words"), some(&["one, two"]));
    for (suffix, message) in [
        ("[:5]", "a.txt[:5]: the slice [:5] reaches outside the set of 4 prompts"),
        ("[3:1]", "a.txt[3:1]: the slice [3:1] takes nothing: it goes from 3 to 1 of 4 prompts"),
        ("[]", "a.txt[]: nothing in the brackets; write a split or a slice, [train] or [:100]"),
    ] {
        assert_eq!(load("a.txt", many, suffix).unwrap_err(), message);
    }
}

#[test]
fn json_with_an_object_a_line_is_read_as_such() {
    let expected = Ok(vec!["bake".to_owned(), "cook".to_owned()]);
    assert_eq!(load("a.json", "{\"text\":\"bake\"}\n{\"text\":\"cook\"}\n", ""), expected);
}

/// A parquet file with a column of text and one of lists, written by the parquet crate itself.
fn parquet_file(path: &std::path::Path, texts: &[&[Option<&str>]]) {
    use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use ::parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    let schema = "message schema {
        required int64 id;
        optional binary text (UTF8);
        optional group tags (LIST) { repeated group list { optional binary element (UTF8); } }
    }";
    let schema = std::sync::Arc::new(::parquet::schema::parser::parse_message_type(schema).unwrap());
    let properties =
        WriterProperties::builder().set_compression(::parquet::basic::Compression::SNAPPY).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties.into()).unwrap();
    for group in texts {
        let n = group.len();
        let mut rows = writer.next_row_group().unwrap();
        let ids: Vec<i64> = (0..n as i64).collect();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let values: Vec<ByteArray> = group.iter().flatten().map(|&text| text.into()).collect();
        let levels: Vec<i16> = group.iter().map(|text| i16::from(text.is_some())).collect();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        let tags = vec![ByteArray::from("tag"); n];
        column.typed::<ByteArrayType>().write_batch(&tags, Some(&vec![3; n]), Some(&vec![0; n])).unwrap();
        column.close().unwrap();
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

fn load_at(spec: &str) -> Result<Vec<String>, String> {
    PromptSet::load(spec).map(|set| set.prompts).map_err(|error| error.to_string())
}

#[test]
fn parquet_gives_its_text_without_nulls_and_blanks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    // More rows than are decoded at once, in two groups.
    let long: Vec<String> = (0..2500).map(|i| format!("prompt {i}")).collect();
    let first: Vec<Option<&str>> = long.iter().map(|text| Some(text.as_str())).collect();
    parquet_file(&path, &[&first, &[None, Some("last"), Some(" "), None]]);
    let spec = path.display().to_string();
    let all = load_at(&spec).unwrap();
    assert_eq!((all.len(), all[2499].as_str(), all[2500].as_str()), (2501, "prompt 2499", "last"));
    assert_eq!(load_at(&format!("{spec}:text[2500:]")), Ok(vec!["last".to_owned()]));
    assert_eq!(load_at(&format!("{spec}[:2]")).unwrap(), long[..2]);
    let message = load_at(&format!("{spec}:tags")).unwrap_err();
    assert!(message.ends_with(
        "column \"tags\" is nested (tags.list.element), expected plain text; found columns id, text, tags"
    ));
    let message = load_at(&format!("{spec}:id")).unwrap_err();
    assert!(message.ends_with("schema: no text in column \"id\", found columns id, text, tags"), "{message}");
    parquet_file(&path, &[&[None, Some("")]]);
    assert!(load_at(&spec).unwrap_err().ends_with("a.parquet: no prompts in it"));
}

/// Where the file of pyarrow 26.0.1 is. Its table: `id` (0 to 11), `instruction` (of dictionary type; row 3
/// null, row 5 empty), `large` (large_string), `delta` (DELTA_BYTE_ARRAY), `bytes` (binary) and `messages`
/// (lists of role and content); `pyarrow.parquet.write_table(…, row_group_size=5, compression="zstd",
/// use_dictionary=["instruction"], column_encoding={"delta": "DELTA_BYTE_ARRAY"}, store_schema=False)`.
const PYARROW: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/prompts-pyarrow.parquet");

#[test]
fn parquet_of_another_writer_is_read_in_every_encoding() {
    let numbered = |prefix: &str, rows: &[usize]| -> Vec<String> {
        rows.iter().map(|i| format!("{prefix}{i}")).collect()
    };
    let all: Vec<usize> = (0..12).collect();
    let filled = [0, 1, 2, 4, 6, 7, 8, 9, 10, 11].map(|i| format!("Request {i}: où est le café?"));
    assert_eq!(load_at(PYARROW).unwrap(), filled);
    assert_eq!(load_at(&format!("{PYARROW}:large")).unwrap(), numbered("large ", &all));
    assert_eq!(load_at(&format!("{PYARROW}:bytes")).unwrap(), numbered("bytes ", &all));
    let thirds: Vec<usize> = all.iter().map(|i| i / 4).collect();
    assert_eq!(load_at(&format!("{PYARROW}:delta")).unwrap(), numbered("delta ", &thirds));
    let message = load_at(&format!("{PYARROW}:messages")).unwrap_err();
    assert!(
        message.contains("nested (messages.list.element.role, messages.list.element.content)"),
        "{message}"
    );
    assert!(message.ends_with("found columns id, instruction, large, delta, bytes, messages"), "{message}");
}

#[test]
fn damaged_parquet_is_an_error_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let whole = std::fs::read(PYARROW).unwrap();
    for end in (0..whole.len()).step_by(61) {
        std::fs::write(&path, &whole[..end]).unwrap();
        let message = load_at(&path.display().to_string()).unwrap_err();
        assert!(message.contains("a.parquet: not a sound parquet file"), "{end}: {message}");
    }
    let mut random = crate::random::SplitMix64(5);
    let mut failed = 0;
    for _ in 0..600 {
        let mut bytes = whole.clone();
        for _ in 0..=random.bits() % 3 {
            let at = random.bits() as usize % bytes.len();
            bytes[at] = random.bits() as u8;
        }
        std::fs::write(&path, &bytes).unwrap();
        for column in ["", ":large", ":delta"] {
            failed += usize::from(load_at(&format!("{}{column}", path.display())).is_err());
        }
    }
    assert!(failed > 30, "{failed}");
}

#[test]
fn folders_give_their_splits_and_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("data/nested")).unwrap();
    std::fs::write(at("data/train-00000-of-00002.csv"), "text\none\ntwo\n").unwrap();
    std::fs::write(at("data/train-00001-of-00002.csv"), "text\nthree\n").unwrap();
    std::fs::write(at("data/test-00000-of-00001.csv"), "text\nfour\n").unwrap();
    std::fs::write(at("README.md"), "words").unwrap();
    let root = folder.path().display().to_string();
    assert_eq!(load_at(&root).unwrap(), ["one", "two", "three"]);
    assert_eq!(load_at(&format!("{root}:text[test]")).unwrap(), ["four"]);
    assert_eq!(load_at(&format!("{root}:text[train[1:3]]")).unwrap(), ["two", "three"]);
    assert_eq!(load_at(&format!("{root}[-1:]")).unwrap(), ["three"]);
    let message = load_at(&format!("{root}[final]")).unwrap_err();
    assert!(message.ends_with("no split \"final\", found test, train"), "{message}");
    assert_eq!(files_of(&root).len(), 3);
    let message = load_at(&format!("{root}/data/nested")).unwrap_err();
    assert!(message.contains("no prompt file in it, expected txt, csv"), "{message}");
}

#[cfg(unix)]
#[test]
fn the_hubs_cache_is_read_by_revision_and_through_its_links() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = folder.path().join("datasets--owner--name");
    let (old, new) = ("a".repeat(40), "b".repeat(40));
    for (commit, text) in [(&old, "old\n"), (&new, "new\n")] {
        std::fs::create_dir_all(dataset.join("snapshots").join(commit).join("data")).unwrap();
        std::fs::create_dir_all(dataset.join("blobs")).unwrap();
        std::fs::write(dataset.join("blobs").join(commit), text).unwrap();
        let link = dataset.join("snapshots").join(commit).join("data/train.txt");
        std::os::unix::fs::symlink(format!("../../../blobs/{commit}"), link).unwrap();
    }
    std::fs::create_dir_all(dataset.join("refs/pr")).unwrap();
    std::fs::write(dataset.join("refs/main"), &new).unwrap();
    std::fs::write(dataset.join("refs/v1"), format!("{old}\n")).unwrap();
    let hub = Hub {
        endpoint: "http://127.0.0.1:9".into(),
        token: None,
        cache: folder.path().into(),
        offline: true,
    };
    let load = |spec: &str| {
        PromptSet::load_from(spec, &hub, &mut |_| ()).map(|set| set.prompts).map_err(|e| e.to_string())
    };
    assert_eq!(load("hf:owner/name").unwrap(), ["new"]);
    assert_eq!(load("hf:owner/name@v1[train]").unwrap(), ["old"]);
    assert_eq!(load(&format!("hf:owner/name@{old}/data/train.txt[:1]")).unwrap(), ["old"]);
    assert_eq!(load_at(&dataset.display().to_string()).unwrap(), ["new"]);
    std::fs::write(dataset.join("snapshots").join(&new).join("test-00000-of-00002.txt"), "half").unwrap();
    let message = load("hf:owner/name[test]").unwrap_err();
    assert!(message.contains("a piece of the split is missing in the cache at"), "{message}");
    for spec in ["hf:owner/other", "hf:owner/name@v2", "hf:owner/name[final]", "hf:owner/name/en"] {
        let message = load(spec).unwrap_err();
        assert!(message.contains("downloads are off (--offline or HF_HUB_OFFLINE)"), "{message}");
    }
}

#[test]
fn duplicates_are_counted() {
    let set = |prompts: &[&str]| PromptSet::new(prompts.iter().map(|&p| p.to_owned()).collect(), "test");
    assert_eq!((set(&["x", "y", "x", "x"]).n_duplicates(), set(&["x", "z"]).n_duplicates()), (2, 0));
}

#[test]
fn the_fingerprint_depends_on_content_and_boundaries_only() {
    let set = |prompts: &[&str], source: &str| {
        PromptSet::new(prompts.iter().map(|&p| p.to_owned()).collect(), source).sha256
    };
    assert_eq!(set(&[], ""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(set(&["a", "b"], "one"), set(&["a", "b"], "two"));
    assert_ne!(set(&["a", "b"], ""), set(&["ab"], ""));
    assert_ne!(set(&["a\nb"], ""), set(&["a", "b"], ""));
}
