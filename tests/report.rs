//! The report: made of real runs of the sample model, opened in a browser, and its buttons pressed.

mod browser;
mod program;
mod support;

use std::fs;
use std::path::Path;

use browser::Browser;
use program::Folder;
use serde_json::{Value as Json, json};

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples");

/// What a model might say that should stay text.
const MARKUP: &str = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script> & \u{1b}[31m";

/// A folder with the sample's first prompts of each part, few of them.
fn folder() -> Folder {
    let folder = Folder::new();
    for (part, n) in [("train", 24), ("validation", 12), ("final", 6)] {
        for set in ["restricted", "ordinary"] {
            let text = fs::read_to_string(format!("{SAMPLES}/prompts/{set}-{part}.txt")).unwrap();
            let lines: Vec<&str> = text.lines().take(n).collect();
            folder.file(&format!("{set}-{part}.txt"), lines.join("\n"));
        }
    }
    folder
}

fn sets(part: &str) -> String {
    format!("--harmful restricted-{part}.txt --harmless ordinary-{part}.txt")
}

fn sample() -> String {
    format!("{SAMPLES}/lorekeeper-7m-f16.gguf")
}

/// Runs `abliterate` on the sample with a report; returns what it printed.
fn abliterated(folder: &Folder) -> Json {
    let line = format!(
        "--json --quiet abliterate {} -o out.gguf {} --val-harmful restricted-validation.txt --val-harmless \
         ordinary-validation.txt --test-harmful restricted-final.txt --test-harmless ordinary-final.txt -n 24 --threads 1 \
         --save-direction direction.gguf --report report.html --png pictures",
        sample(),
        sets("train")
    );
    serde_json::from_str(&folder.accepts(&line)[0]).unwrap()
}

/// Writes a document that `ggsteer report` reads.
fn save(folder: &Folder, name: &str, json: &Json) {
    folder.file(name, serde_json::to_string(json).unwrap());
}

#[test]
fn the_page_of_a_run_can_be_used_and_asks_for_nothing() {
    let folder = folder();
    let run = abliterated(&folder);
    let html = fs::read_to_string(folder.path("report.html")).unwrap();
    let n_block = run["story"]["analysis"]["blocks"].as_array().unwrap().len();

    // What it printed gives the same page, but for where it is from.
    save(&folder, "run.json", &run);
    folder.accepts("report run.json -o again.html");
    let again = fs::read_to_string(folder.path("again.html")).unwrap();
    let end = |page: &str| page.split("<section id=\"provenance\"").next().unwrap().len();
    assert_eq!(html[..end(&html)], again[..end(&again)]);

    // A picture of every plot, of its size.
    let report: Json =
        serde_json::from_str(&folder.accepts("--json report run.json -o third.html --png more")[0]).unwrap();
    let plots = report["plots"].as_array().unwrap();
    assert_eq!(plots.len(), n_block + 4 + 3 + 3 + 1 - missing_plots(&run));
    for plot in plots {
        let name = format!("{}.png", plot.as_str().unwrap());
        let [ours, theirs] = ["pictures", "more"].map(|f| fs::read(folder.path(f).join(&name)).unwrap());
        assert!(ours == theirs, "{name}: the same drawing, the same picture");
        let [width, height] = png_size(&ours);
        assert!(width > 800 && height > 200, "{name}: {width} x {height}");
    }

    // What a model says may be anything, and so may the names in a file.
    let mut odd = run.clone();
    for run_of in odd["story"]["answers"].as_array_mut().unwrap() {
        run_of["harmful"][0]["completion"] = json!(MARKUP);
        run_of["harmless"][0]["prompt"] = json!(MARKUP);
    }
    odd["model"] = json!(format!("{MARKUP}.gguf"));
    odd["tensors"][0]["name"] = json!(MARKUP);
    odd["tensors"][0]["kind"] = json!(MARKUP);
    odd["arguments"] = json!(["abliterate", MARKUP]);
    odd["story"]["answers"][3]["run"] = json!(MARKUP);
    save(&folder, "odd.json", &odd);
    folder.accepts("report odd.json -o odd.html --png odd");
    let page = fs::read_to_string(folder.path("odd.html")).unwrap();
    assert_eq!(page.matches("<script").count(), 1);
    assert!(!page.contains("<img"));

    let Some(mut browser) = Browser::start() else { return };
    let downloads = folder.path("downloads");
    fs::create_dir(&downloads).unwrap();
    let allow = json!({"behavior": "allow", "downloadPath": downloads, "eventsEnabled": true});
    browser.call("Browser.setDownloadBehavior", &allow);
    let may = json!({"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]});
    browser.call("Browser.grantPermissions", &may);
    browser.call("Emulation.setFocusEmulationEnabled", &json!({"enabled": true}));
    browser.open(&folder.path("report.html"));
    assert_eq!(browser.eval("document.querySelectorAll('.verdict p').length"), 3);
    slider(&mut browser, run["direction"]["block"].as_u64().unwrap(), n_block as u64);
    saved(&mut browser, &downloads);
    copied(&mut browser, &run);
    themes(&mut browser);
    answers(&mut browser);
    hovered(&mut browser);
    for width in [390, 820, 1280] {
        let phone = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500});
        browser.call("Emulation.setDeviceMetricsOverride", &phone);
        let wide = browser.eval("document.documentElement.scrollWidth - innerWidth").as_i64().unwrap();
        assert!(wide <= 0, "the page is {wide} pixels wider than a window of {width}");
    }

    browser.open(&folder.path("odd.html"));
    let said = browser.eval("document.querySelector('.answers .said').textContent");
    assert_eq!(said, MARKUP, "a completion stays what it is");
    assert_eq!(browser.eval("document.querySelectorAll('img, svg script, main script, iframe').length"), 0);
    assert!(!browser.eval("document.title").as_str().unwrap().starts_with("owned"));
    assert_eq!(browser.eval("document.querySelectorAll('[onerror]').length"), 0);

    assert!(browser.complaints().is_empty(), "{:#?}", browser.complaints());
    let pages = ["report.html", "odd.html"].map(|page| format!("file://{}", folder.path(page).display()));
    assert_eq!(browser.requests(), pages, "nothing but the pages themselves");
}

/// F16 is rounded exactly, without inputs: no plot of the edit error.
fn missing_plots(run: &Json) -> usize {
    usize::from(run["max_edit_error"].is_null())
}

/// The slider begins at the direction's block; an arrow key moves to the next.
fn slider(browser: &mut Browser, block: u64, n_block: u64) {
    let shown = "[...document.querySelectorAll('[data-slider] figure')].filter(f => f.offsetParent).map(f => f.id).join()";
    let id = |block: u64| format!("analysis-scatter-{block:03}");
    assert_eq!(browser.eval(shown), id(block));
    browser.eval("document.querySelector('[data-slider] input').focus()");
    let (key, code, to) =
        if block + 1 < n_block { ("ArrowRight", 39, block + 1) } else { ("ArrowLeft", 37, block - 1) };
    browser.press(key, code);
    assert_eq!(browser.eval(shown), id(to));
    assert_eq!(browser.eval("document.querySelector('[data-slider] output').textContent"), to.to_string());
    let three = "document.querySelectorAll('[data-slider] figure:not([hidden]) [data-tip]').length";
    assert_eq!(browser.eval(three), 18, "six prompts of a set, three times");
}

/// Both buttons of a plot save a file that is a drawing, in light colours.
fn saved(browser: &mut Browser, folder: &Path) {
    for (button, name) in [("svg", "choice-bypass.svg"), ("png", "choice-bypass.png")] {
        let from = browser.events.len();
        browser.eval(&format!("document.querySelector('#choice-bypass [data-save={button}]').click()"));
        browser.wait(from, name, |event| {
            event["method"] == "Browser.downloadProgress" && event["params"]["state"] == "completed"
        });
    }
    let svg = fs::read_to_string(folder.join("choice-bypass.svg")).unwrap();
    let options = resvg::usvg::Options::default();
    let tree = resvg::usvg::Tree::from_str(&svg, &options).unwrap_or_else(|e| panic!("{e}: {svg}"));
    assert!(svg.contains("#0072b2") && !svg.contains("var(--"), "{svg}");
    let [width, height] = png_size(&fs::read(folder.join("choice-bypass.png")).unwrap());
    assert_eq!([width as f32, height as f32], [2.0 * tree.size().width(), 2.0 * tree.size().height()]);
}

/// A table comes to the clipboard as CSV.
fn copied(browser: &mut Browser, run: &Json) {
    for table in ["behaviour-counts", "tensors-list", "behaviour-answers", "answers-answers"] {
        let there = browser.eval(&format!("!!document.getElementById('{table}')"));
        assert_eq!(there, table != "behaviour-answers", "{table}");
        if there == false {
            continue;
        }
        let press = format!(
            "(async () => {{ document.querySelector('[data-csv={table}]').click(); \
             await new Promise(done => setTimeout(done, 50)); return await navigator.clipboard.readText(); }})()"
        );
        let text = browser.eval(&press).as_str().unwrap().to_owned();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        let expected = match table {
            "behaviour-counts" => 8,
            "tensors-list" => run["tensors"].as_array().unwrap().len(),
            _ => 12,
        };
        assert_eq!(rows.len(), expected, "{table}: {text}");
        if table == "tensors-list" {
            assert_eq!(rows[0][0], run["tensors"][0]["name"], "{text}");
            let leak: f64 = rows[1][3].parse().unwrap();
            assert!(
                (leak - run["tensors"][1]["leak"].as_f64().unwrap()).abs() < 1e-3 * leak.abs() + 1e-6,
                "{text}"
            );
        }
    }
}

/// Light or dark, and on paper always light.
fn themes(browser: &mut Browser) {
    browser.themes();
    let colour = "getComputedStyle(document.body).backgroundColor";
    browser.call("Emulation.setEmulatedMedia", &json!({"media": "print"}));
    assert_eq!(browser.eval(colour), "rgb(255, 255, 255)");
    assert_eq!(browser.eval("getComputedStyle(document.querySelector('#theme')).display"), "none");
    browser.call("Emulation.setEmulatedMedia", &json!({"media": ""}));
}

/// Some answers are seen at once, all on demand, and those of a kind.
fn answers(browser: &mut Browser) {
    let shown = "[...document.querySelectorAll('.answers tbody tr')].filter(row => row.offsetParent).length";
    assert_eq!(browser.eval(shown), 8);
    browser.eval("document.querySelector('[data-more]').click()");
    assert_eq!(browser.eval(shown), 12);
    browser.eval("document.querySelector('[data-show=turned]').click()");
    let turned = browser.eval("document.querySelectorAll('[data-turned=true]').length");
    assert!(turned.as_u64().unwrap() > 0);
    assert_eq!(browser.eval(shown), turned);
    assert_eq!(
        browser.eval("document.querySelectorAll('.answers tr:not([hidden]) .mark.bad').length > 0"),
        true
    );
    browser.eval("document.querySelector('[data-show=all]').click()");
    assert_eq!(browser.eval(shown), 12);
}

/// The pointer over a mark shows its values.
fn hovered(browser: &mut Browser) {
    let place = browser.eval(
        "(() => { const mark = document.querySelector('#choice-induce [data-tip]'); mark.scrollIntoView(); \
         const box = mark.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()",
    );
    let event = json!({"type": "mouseMoved", "x": place[0], "y": place[1]});
    browser.call("Input.dispatchMouseEvent", &event);
    let tip = browser
        .eval("document.querySelector('#tip').hidden ? '' : document.querySelector('#tip').textContent");
    let tip = tip.as_str().unwrap();
    assert!(tip.contains("output of block 0") && tip.contains("position −"), "{tip:?}");
}

/// Width and height of a PNG.
fn png_size(bytes: &[u8]) -> [u32; 2] {
    assert_eq!(&bytes[1..4], b"PNG");
    [16, 20].map(|at| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()))
}

#[test]
fn each_command_has_its_section_and_all_fit_on_one_page() {
    let folder = folder();
    let model = sample();
    let (train, validation, test) = (sets("train"), sets("validation"), sets("final"));
    let direction = "--direction direction.gguf";
    let parts = "--val-harmful restricted-validation.txt --val-harmless ordinary-validation.txt --test-harmful \
                 restricted-final.txt --test-harmless ordinary-final.txt";
    let runs = [
        (
            "select",
            format!(
                "select {model} --directions d.gguf {validation} --threads 1 -o direction.gguf --exhaustive"
            ),
        ),
        ("analyze", format!("analyze {model} {test} --threads 1 --ablate direction.gguf")),
        ("evaluate", format!("evaluate {model} {test} --threads 1 -n 16 --ablate direction.gguf")),
        (
            "orthogonalize",
            format!("orthogonalize {model} {direction} --uncalibrated --threads 1 -o out.gguf"),
        ),
        ("verify", format!("verify {model} out.gguf {direction}")),
        (
            "compare",
            format!("compare {model} out.gguf {train} {parts} -n 16 --threads 1 --report compared.html"),
        ),
        (
            "optimize",
            format!(
                "optimize {model} {direction} --directions d.gguf {test} --trials 3 -n 16 --threads 1 --save found --log log.jsonl"
            ),
        ),
    ];
    folder.accepts(&format!("extract {model} {train} --threads 1 -o d.gguf"));
    for (command, line) in &runs {
        let [printed, _] = folder.accepts(&format!("--json --quiet {line}"));
        let json: Json = serde_json::from_str(&printed).unwrap();
        assert_eq!(json["command"], *command, "{line}");
        let words: Vec<&str> =
            json["arguments"].as_array().unwrap().iter().filter_map(Json::as_str).collect();
        assert!(words.contains(command) && words.contains(&model.as_str()), "{words:?}");
        folder.file(&format!("{command}.json"), printed);
        let line = format!("--json report {command}.json -o {command}.html");
        let one: Json = serde_json::from_str(&folder.accepts(&line)[0]).unwrap();
        assert_eq!(one["sections"].as_array().unwrap().len(), 2, "{command}: its own, and where it is from");
        let verdict = one["verdict"].as_array().unwrap();
        assert!((2..=3).contains(&verdict.len()), "{command}: {verdict:?}");
        assert!(!one["plots"].as_array().unwrap().is_empty(), "{command}");
    }
    let compared = fs::read_to_string(folder.path("compared.html")).unwrap();
    assert!(compared.contains("Cosine with the first file"));

    let files: Vec<String> = runs.iter().map(|(command, _)| format!("{command}.json")).collect();
    // Twice the same: their names in the page differ.
    let line = format!("--json report {} select.json -o all.html --png all", files.join(" "));
    let all: Json = serde_json::from_str(&folder.accepts(&line)[0]).unwrap();
    assert_eq!(all["sections"].as_array().unwrap().len(), runs.len() + 2);
    assert_eq!(all["verdict"].as_array().unwrap().len(), 3);
    let plots: Vec<&str> = all["plots"].as_array().unwrap().iter().filter_map(Json::as_str).collect();
    let mut names = plots.clone();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), plots.len(), "{plots:?}");
    assert!(names.contains(&"choice-2-kl"));
    let html = fs::read_to_string(folder.path("all.html")).unwrap();
    assert_eq!(
        html.matches("\"choice-candidates\"").count()
            - html.matches("data-csv=\"choice-candidates\"").count(),
        1
    );
    let Some(mut browser) = Browser::start() else { return };
    browser.open(&folder.path("all.html"));
    let ids = "(() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id); \
               return ids.length - new Set(ids).size; })()";
    assert_eq!(browser.eval(ids), 0, "names are unique");
    assert!(browser.complaints().is_empty(), "{:#?}", browser.complaints());
    assert_eq!(browser.requests().len(), 1);
}

#[test]
fn what_is_no_run_is_refused_and_nothing_is_written() {
    let folder = Folder::new();
    let rate = json!({"hits": 1, "n": 2, "rate": 0.5, "low": 0.1, "high": 0.9});
    let counts = json!({"answered": rate, "refused": rate, "broken": rate, "dominates_plain": false,
        "kl": {"n": 2, "mean": 0.1, "low": 0.1, "high": 0.2}});
    let candidate = json!({"position": -1, "paper_layer": 1, "bypass": 0.0, "induce": null, "kl": 0.0});
    let select = json!({"command": "select", "model": "m.gguf", "output": "d.gguf", "direction": {"block": 0, "position": -1},
        "n_harmful": [1, 1], "n_harmless": [1, 1], "rules": {"kl_max": 0.1, "induce_min": 0.0, "layer_fraction": 0.8},
        "candidates": [candidate], "scored_on": [[1, 1, 1]], "verdicts": ["not_a_number"], "chosen": 0});
    save(&folder, "select.json", &select);
    folder.accepts("report select.json -o select.html");
    let mut odd = select.clone();
    odd["model"] = json!("m\u{1b}[2J.gguf");
    odd["candidates"][0]["bypass"] = json!(null);
    odd["subspace"] = json!({"rank": 3});
    save(&folder, "odd.json", &odd);
    let [said, _] = folder.accepts("report odd.json -o odd.html");
    assert!(!said.contains('\u{1b}'), "{said:?}");
    let page = fs::read_to_string(folder.path("odd.html")).unwrap();
    assert!(page.contains("the first of 3 erased together"), "{page}");
    let changed = |key: &str, value: Json| {
        let mut json = select.clone();
        json[key] = value;
        json
    };
    let mut without = select.clone();
    without.as_object_mut().unwrap().remove("verdicts");
    for (json, words) in [
        (json!([1]), vec!["\"command\"", "missing", "abliterate, analyze"]),
        (json!({"model": "m"}), vec!["\"command\"", "missing", "--json"]),
        (json!({"command": 3}), vec!["\"command\" is 3"]),
        (json!({"command": "inspect"}), vec!["\"command\" is \"inspect\"", "verify"]),
        (without, vec!["verdicts", "missing field", "ggsteer select --json"]),
        (changed("candidates", json!([1])), vec!["candidates[0]", "invalid type"]),
        (changed("verdicts", json!(["good"])), vec!["verdicts[0]", "good"]),
        (changed("verdicts", json!([])), vec!["verdicts", "0 elements, expected 1"]),
        (changed("chosen", json!(7)), vec!["chosen"]),
        (
            json!({"command": "optimize", "model": "m", "n_harmful": 1, "n_harmless": 1, "trials": 1, "untouched": counts,
            "plain": counts, "pareto": 1}),
            vec!["pareto", "invalid type"],
        ),
    ] {
        save(&folder, "run.json", &json);
        let mut expected = vec!["run.json"];
        expected.extend(words);
        folder.refuses("report run.json -o report.html", &expected);
    }
    folder.file("run.json", "{\"command\": ");
    folder.refuses("report run.json -o report.html", &["run.json", "not a JSON document", "--json"]);
    folder.refuses("report none.json -o report.html", &["none.json"]);
    folder.refuses("report select.json -o select.html", &["select.html", "--force"]);
    folder.refuses("report select.json -o select.json --force", &["select.json", "input"]);
    folder.refuses("report select.json -o r.html --png none/pictures", &["none", "not a folder"]);
    folder.refuses("report select.json -o r.html --png model.gguf", &["model.gguf", "not a folder"]);
    let prompts = "--harmful harmful.txt --harmless harmless.txt";
    let both = format!("abliterate model.gguf {prompts} -o out.gguf --report out.gguf");
    folder.refuses(&both, &["out.gguf", "--output and --report"]);
    let input = format!("compare model.gguf model.gguf {prompts} --report harmful.txt --force");
    folder.refuses(&input, &["harmful.txt", "input"]);
}
