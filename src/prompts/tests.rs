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

#[test]
fn each_failure_names_file_and_line() {
    let cases: [(&str, &[u8], &str, &str); 14] = [
        ("a.txt", b"ok\nfine\n\xff\n", "", "a.txt: line 3: not UTF-8"),
        ("a.txt", b" \n\n", "", "a.txt: no prompts in it"),
        ("a.txt", b"x", ":c", "a.txt: a text file has no columns, yet column \"c\" was asked for"),
        (
            "a.parquet",
            b"x",
            "",
            "a.parquet: unknown prompt format \".parquet\", expected txt, json, jsonl or csv",
        ),
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
fn duplicates_and_overlap_are_counted() {
    let set = |prompts: &[&str]| PromptSet::new(prompts.iter().map(|&p| p.to_owned()).collect(), "test");
    let (a, b) = (set(&["x", "y", "x", "x"]), set(&["x", "z", "x"]));
    assert_eq!((a.n_duplicates(), b.n_duplicates()), (2, 1));
    assert_eq!((overlap(&a, &b), overlap(&b, &a), overlap(&a, &set(&[]))), (1, 1, 0));
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
