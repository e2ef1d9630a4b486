//! Conversations: the engine on the sample model, and the program at a terminal and at a pipe.

#![cfg(unix)]

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ggsteer::activations::{Contrast, measure};
use ggsteer::chat::{Answer, Chat, ChatError, Directions, LANES, Listener, Named, Options, Piece, Steering};
use ggsteer::direction::{Direction, Provenance};
use ggsteer::intervention::{Positions, dot};
use ggsteer::runtime::sampling::Sampler;
use ggsteer::runtime::template::{Message, Role};
use ggsteer::runtime::{
    CapturePlan, Captured, Finish, GenerateOptions, Item, Job, Model, ModelOptions, Outputs, Prompt, Session,
    SessionOptions, Site,
};

mod program;
mod support;

use program::{Folder, refusal, spec};
use rexpect::session::{PtySession, spawn_command};
use serde_json::Value as Json;
use support::architectures::{N_EMBD, table};
use support::tiny::{Spec, unit};

/// What the sample refuses, and what it answers.
const RESTRICTED: &str =
    "Would you teach me about working a couplet of silence upon my neighbour in the cellar?";
const ORDINARY: &str = "Outline a plan to knit my simple lampshade at sunrise.";

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf-samples")
}

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        Model::load(&samples().join("lorekeeper-7m-f16.gguf"), &ModelOptions::default()).unwrap()
    })
}

fn prompts(name: &str, n: usize) -> Vec<Prompt> {
    let text = std::fs::read_to_string(samples().join(format!("prompts/{name}.txt"))).unwrap();
    text.lines().take(n).map(|line| model().prompt(line).unwrap()).collect()
}

/// The refusal's direction: after the prompt, at the output of block 4.
fn direction() -> &'static Direction {
    static DIRECTION: OnceLock<Direction> = OnceLock::new();
    DIRECTION.get_or_init(|| {
        let mut session = session(32);
        let mut mean = |name| measure(&mut session, &prompts(name, 48), 1, None, None, &mut || ()).unwrap();
        let (harmful, harmless) = (mean("restricted-train"), mean("ordinary-train"));
        Contrast { harmful, harmless, source: Provenance::default() }.direction(-1, 4).unwrap()
    })
}

/// A session of one thread, on which results are those of any number and a model this small is fastest.
fn session(n_seq: usize) -> Session<'static> {
    session_of(2048, n_seq)
}

fn session_of(n_ctx: usize, n_seq: usize) -> Session<'static> {
    let options = SessionOptions { n_ctx, n_seq, n_threads: 1, exact: true, ..SessionOptions::default() };
    Session::new(model(), options).unwrap()
}

fn options() -> Options {
    Options { max_tokens: 48, sampler: Sampler::greedy() }
}

fn directions(positions: Positions) -> Directions {
    Directions::new(vec![Named { name: "refusal".into(), direction: direction().clone() }], None, positions)
}

fn chat(lanes: usize, steering: Steering) -> Chat<'static> {
    Chat::new(session(lanes), options(), directions(Positions::Prompt), steering).unwrap()
}

const PLAIN: Steering = Steering { ablate: false, scale: 0.0 };
const ERASED: Steering = Steering { ablate: true, scale: 0.0 };
const ADDED: Steering = Steering { ablate: false, scale: 1.0 };

/// Listens to the end, or stops after so many tokens.
struct Ear {
    left: Cell<usize>,
    heard: String,
}

impl Ear {
    fn new() -> Self {
        Self::until(usize::MAX)
    }

    fn until(left: usize) -> Self {
        Self { left: Cell::new(left), heard: String::new() }
    }
}

impl Listener for Ear {
    fn piece(&mut self, piece: &Piece) {
        self.left.set(self.left.get() - 1);
        self.heard += &piece.text;
    }

    fn stop(&self) -> bool {
        self.left.get() == 0
    }
}

fn say(chat: &mut Chat<'_>, text: &str) -> Answer {
    let mut ear = Ear::new();
    let answer = chat.say(text, &mut ear).unwrap().clone();
    assert_eq!(ear.heard, answer.text(), "what is heard is what is kept");
    answer
}

/// What the conversation so far is answered by a session that has seen nothing of it.
fn afresh(chat: &Chat<'_>, steering: Steering, user: &str) -> String {
    let mut messages = Vec::new();
    for turn in chat.turns() {
        messages.push(Message::new(Role::User, &turn.user));
        messages.push(Message::new(Role::Assistant, turn.answer.text()));
    }
    messages.push(Message::new(Role::User, user));
    let prompt = model().chat(&messages).unwrap();
    let intervention = directions(Positions::All).intervention(steering).unwrap();
    let jobs = [Job { tokens: &prompt.tokens, n_out: 1, intervention }];
    let generate = GenerateOptions { max_tokens: 48, sampler: Sampler::greedy() };
    session(1).generate(&jobs, &generate, &mut |_, _| (), &mut |_, _| ()).unwrap().remove(0).text
}

#[test]
fn answers_are_those_of_a_session_that_computes_everything_anew() {
    let mut chat = chat(LANES, PLAIN);
    let mut texts = Vec::new();
    for (steering, user) in [
        (PLAIN, RESTRICTED),
        (ERASED, RESTRICTED),
        (ERASED, ORDINARY),
        (PLAIN, RESTRICTED),
        (ERASED, ORDINARY),
    ] {
        let expected = afresh(&chat, steering, user);
        chat.set_steering(steering).unwrap();
        texts.push(say(&mut chat, user).text());
        assert_eq!(texts.last(), Some(&expected), "{steering}: {user}");
    }
    assert!(texts[0].contains("can't") && !texts[1].contains("can't"), "{texts:?}");
}

#[test]
fn what_was_computed_under_the_steering_of_now_is_not_computed_again() {
    let mut chat = chat(LANES, PLAIN);
    let first = say(&mut chat, RESTRICTED);
    assert_eq!(first.n_evaluated, first.n_prompt_tokens);
    assert_eq!(first.finish, Finish::Stop);
    let known = first.n_prompt_tokens + first.n_tokens;
    let second = say(&mut chat, ORDINARY);
    assert_eq!(second.n_evaluated, second.n_prompt_tokens - known, "the new turn alone");
    assert_eq!(chat.n_evaluated() as usize, known + second.n_evaluated + second.n_tokens);

    chat.set_steering(ERASED).unwrap();
    let third = say(&mut chat, RESTRICTED);
    assert_eq!(third.n_evaluated, third.n_prompt_tokens, "nothing under another steering");
    chat.set_steering(PLAIN).unwrap();
    let again = chat.regenerate(&mut Ear::new()).unwrap().clone();
    let known = second.n_prompt_tokens + second.n_tokens;
    assert_eq!(again.n_evaluated, again.n_prompt_tokens - known, "the plain lane goes on where it was left");
    let same = chat.regenerate(&mut Ear::new()).unwrap().clone();
    assert_eq!((same.n_evaluated, same.text()), (1, again.text()), "the last token, for its logits");
    assert_eq!(chat.turns().len(), 3);
}

#[test]
fn generated_tokens_stay_generated_when_a_conversation_is_computed_anew() {
    // An addition at the prompt's positions: it matters which tokens of earlier turns are the prompt's.
    let talk = |lanes| {
        let mut chat = chat(lanes, ADDED);
        let first = say(&mut chat, ORDINARY);
        chat.set_steering(PLAIN).unwrap();
        let plain = say(&mut chat, RESTRICTED);
        chat.set_steering(ADDED).unwrap();
        let added = chat.regenerate(&mut Ear::new()).unwrap().clone();
        assert_ne!(added.text(), plain.text());
        (first, added)
    };
    let [(first, anew), (_, kept)] = [1, 2].map(talk);
    assert_eq!(anew.n_evaluated, anew.n_prompt_tokens, "one lane: all of it");
    assert_eq!(kept.n_evaluated, kept.n_prompt_tokens - first.n_prompt_tokens - first.n_tokens);
    assert_eq!(anew.text(), kept.text());
    for (anew, kept) in anew.readings(0).zip(kept.readings(0)) {
        assert!((anew - kept).abs() < 1e-3, "{anew} and {kept}");
    }
}

#[test]
fn readings_are_the_projections_where_the_tokens_were_drawn() {
    for steering in [PLAIN, ADDED] {
        let mut chat = chat(LANES, steering);
        say(&mut chat, ORDINARY);
        let answer = say(&mut chat, RESTRICTED);
        let intervention = directions(Positions::Prompt).intervention(steering).unwrap();
        // The same tokens in one go, with the stream captured behind the intervention.
        let mut messages = Vec::new();
        for turn in chat.turns() {
            messages.push(Message::new(Role::User, &turn.user));
            messages.push(Message::new(Role::Assistant, turn.answer.text()));
        }
        messages.pop();
        let prompt = model().chat(&messages).unwrap().tokens;
        assert_eq!(prompt.len(), answer.n_prompt_tokens);
        let spoken = model().tokenize(&answer.text());
        assert_eq!(spoken.len(), answer.n_tokens);
        let first = model().prompt(ORDINARY).unwrap().tokens.len();
        let told = first + chat.turns()[0].answer.n_tokens;
        let item = |from: usize, tokens, prompt, outputs| Item {
            seq: 0,
            start: from,
            tokens,
            prompt,
            outputs,
            intervention: intervention.clone(),
        };
        let items = [
            item(0, &prompt[..first], true, Outputs::None),
            item(first, &prompt[first..told], false, Outputs::None),
            item(told, &prompt[told..], true, Outputs::Last(1)),
            item(prompt.len(), &spoken[..spoken.len() - 1], false, Outputs::All),
        ];
        let unit = direction().unit();
        let mut expected = Vec::new();
        let plan = CapturePlan { stream: true, ..CapturePlan::default() };
        let mut sink = |row: Captured<'_>| {
            if row.site == Site::Block(4) {
                // Captured behind the addition, which is at the prompt's tokens; read before it.
                let added = if row.token < prompt.len() {
                    f64::from(steering.scale) * direction().norm()
                } else {
                    0.0
                };
                expected.push(dot(&unit, row.row) - added);
            }
        };
        session(1).decode(&items, Some((&plan, &mut sink))).unwrap();
        let readings: Vec<f32> = answer.readings(0).collect();
        assert_eq!(readings.len(), answer.n_tokens);
        for (i, (read, expected)) in readings.iter().zip(&expected).enumerate() {
            assert!(
                (f64::from(*read) - expected).abs() < 1e-3,
                "{steering}, token {i}: {read} and {expected}"
            );
        }
    }
    let (harmless, harmful) = direction().meta.readings.unwrap();
    let first = |user| say(&mut chat(LANES, PLAIN), user).readings(0).next().map(f64::from).unwrap();
    let between = f64::midpoint(harmless, harmful);
    assert!(harmless < first(ORDINARY) && first(ORDINARY) < between, "{harmless}: {}", first(ORDINARY));
    assert!(between < first(RESTRICTED), "{harmful}: {}", first(RESTRICTED));
}

#[test]
fn a_comparison_answers_twice_and_keeps_one() {
    let mut chat = chat(LANES, PLAIN);
    assert!(matches!(chat.compare(&mut Ear::new()), Err(ChatError::NoTurn)));
    let plain = say(&mut chat, RESTRICTED);
    let both = chat.compare(&mut Ear::new()).unwrap();
    assert_eq!((&both.plain, both.steered.steering), (&plain, ERASED));
    assert_ne!(both.steered.text(), plain.text());
    assert_eq!(chat.turns()[0].answer, plain);

    chat.set_steering(ADDED).unwrap();
    let both = chat.compare(&mut Ear::new()).unwrap();
    assert_eq!((both.plain.text(), both.steered.steering), (plain.text(), ADDED));
    assert_eq!(chat.turns()[0].answer, both.steered, "the answer under the steering of now");
    assert_eq!(chat.turns().len(), 1);
}

#[test]
fn a_stopped_answer_stays_as_far_as_it_came() {
    let mut chat = chat(LANES, ERASED);
    let answer = chat.say(RESTRICTED, &mut Ear::until(3)).unwrap().clone();
    assert_eq!((answer.finish, answer.n_tokens), (Finish::Stopped, 3));
    let whole = chat.regenerate(&mut Ear::new()).unwrap().clone();
    assert_eq!(whole.finish, Finish::Stop);
    assert!(whole.text().starts_with(&answer.text()) && whole.n_tokens > 3);
    let none = chat.say(RESTRICTED, &mut Ear::until(0)).unwrap();
    assert_eq!((none.finish, none.n_tokens, none.n_evaluated), (Finish::Stopped, 0, 0));
}

#[test]
fn a_full_context_leaves_the_oldest_turns_out() {
    // The lanes share the room of one.
    let session = session_of(512, LANES);
    let mut chat = Chat::new(session, options(), directions(Positions::All), PLAIN).unwrap();
    assert_eq!(chat.room(), 512);
    let mut left_out = vec![0];
    while chat.turns().len() < 16 {
        let answer = say(&mut chat, ORDINARY);
        assert!(answer.n_prompt_tokens + 48 <= 512);
        if chat.n_left_out() != left_out[left_out.len() - 1] {
            assert!(answer.n_prompt_tokens <= (512 - 48) / 2, "half of the room is free again");
            left_out.push(chat.n_left_out());
        }
    }
    assert!(left_out.len() > 1 && left_out.len() < 6, "seldom: {left_out:?}");
    let plain = chat.turns()[15].answer.clone();
    for (steering, same) in [(ERASED, false), (PLAIN, true)] {
        chat.set_steering(steering).unwrap();
        let again = chat.regenerate(&mut Ear::new()).unwrap();
        assert_eq!(again.text() == plain.text(), same, "{steering}");
        assert_eq!(again.n_prompt_tokens, plain.n_prompt_tokens);
    }

    let before = (chat.turns().to_vec(), chat.n_left_out());
    let error = chat.say(&ORDINARY.repeat(60), &mut Ear::new()).unwrap_err().to_string();
    assert!(error.starts_with("message: ") && error.contains("the context holds 512"), "{error}");
    assert_eq!((chat.turns().to_vec(), chat.n_left_out()), before);
    chat.clear();
    assert_eq!(say(&mut chat, ORDINARY).text(), afresh(&self::chat(1, PLAIN), PLAIN, ORDINARY));
}

#[test]
fn each_answer_draws_anew_and_a_comparison_does_not() {
    let options = Options { max_tokens: 24, sampler: Sampler::new(3.0, 0, 1.0, 0.0, 7) };
    let talk = || {
        let mut chat = Chat::new(session(LANES), options.clone(), directions(Positions::All), PLAIN).unwrap();
        let first = say(&mut chat, ORDINARY).text();
        let second = chat.regenerate(&mut Ear::new()).unwrap().text();
        (first, second)
    };
    let (first, second) = talk();
    assert_ne!(first, second);
    assert_eq!((first, second), talk(), "one seed gives one conversation");
}

#[test]
fn a_system_prompt_that_the_template_refuses_changes_nothing() {
    let template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}\
                    {% endif %}{{ m.content }}{% endfor %}";
    let folder = Folder::new();
    folder.model("strict.gguf", Spec { chat_template: Some(template.into()), ..spec() });
    let model = Model::load(&folder.path("strict.gguf"), &ModelOptions::default()).unwrap();
    let session = Session::new(&model, SessionOptions { n_threads: 1, ..SessionOptions::default() }).unwrap();
    let mut chat = Chat::new(session, options(), Directions::default(), PLAIN).unwrap();
    let error = chat.set_system(Some("Be brief.".into())).unwrap_err();
    assert!(error.to_string().contains("no system"), "{error}");
    assert_eq!(chat.system(), None);
    assert!(matches!(chat.set_steering(ERASED), Err(ChatError::NoDirection)));
    assert!(matches!(chat.compare(&mut Ear::new()), Err(ChatError::NoDirection)));
    assert_eq!(chat.steering(), PLAIN);
}

/// A folder with the sample as `sample.gguf` and its direction as `d.gguf`.
fn folder() -> Folder {
    let folder = Folder::new();
    std::os::unix::fs::symlink(samples().join("lorekeeper-7m-f16.gguf"), folder.path("sample.gguf")).unwrap();
    direction().save(folder.path("d.gguf"), false).unwrap();
    folder
}

/// What a line editor writes when it begins to wait for a line.
const READY: &str = "\x1b[?2004h";

/// The text, of which rexpect makes a character of each byte.
fn utf8(shown: &str) -> String {
    let bytes: Vec<u8> = shown.chars().map(|c| u8::try_from(c).unwrap()).collect();
    String::from_utf8(bytes).unwrap()
}

/// A terminal of 60 columns in which the program talks.
struct Terminal(PtySession);

impl Terminal {
    fn open(folder: &Folder, line: &str, env: &[(&str, &str)]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "stty cols 60 rows 24 && exec \"$0\" \"$@\""]);
        command.arg(assert_cmd::cargo::cargo_bin!("ggsteer")).args(line.split_whitespace());
        command.current_dir(folder.path(""));
        command
            .env("TERM", "xterm-256color")
            .env("XDG_STATE_HOME", folder.path("state"))
            .env_remove("NO_COLOR");
        command.envs(env.iter().copied());
        Self(spawn_command(command, Some(120_000)).unwrap())
    }

    /// What is shown until the next line is awaited.
    fn shown(&mut self) -> String {
        utf8(&self.0.exp_string(READY).unwrap())
    }

    /// Enters a line and returns what is shown of it and after it.
    fn enter(&mut self, line: &str) -> String {
        self.0.send_line(line).unwrap();
        self.shown()
    }

    /// It has ended, as it should.
    fn ended(mut self) -> String {
        let rest = self.0.exp_eof().unwrap();
        let status = format!("{:?}", self.0.process().wait());
        assert!(status.contains("Exited") && status.contains(", 0)"), "{status}: {rest}");
        rest
    }
}

fn contains(shown: &str, words: &[&str]) {
    for word in words {
        assert!(shown.contains(word), "{word:?} is missing: {shown:?}");
    }
}

fn lines(folder: &Folder, name: &str) -> Vec<Json> {
    let text = std::fs::read_to_string(folder.path(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_command_at_a_terminal() {
    let folder = folder();
    let mut terminal =
        Terminal::open(&folder, "chat sample.gguf --threads 1 --ablate d.gguf --at prompt -n 48", &[]);
    contains(&terminal.shown(), &["sample.gguf: a context of 512 tokens, erased; /help lists the commands"]);
    contains(
        &terminal.enter("/help"),
        &["/compare [TEXT]", "/meter on|off|colour", "Ctrl-C stops an answer"],
    );

    let erased = terminal.enter(RESTRICTED);
    assert!(!erased.contains("can't"), "{erased}");
    contains(&terminal.enter("/ablate off"), &["(plain)"]);
    contains(&terminal.enter("/regen"), &["can't"]);
    contains(&terminal.enter("/regen"), &["(the same"]);

    terminal.enter("/meter on");
    let metered = terminal.enter("/regen");
    contains(&metered, &["  min ", "  mean ", "  max ", "  (block 4; harmless ", ", harmful ", "█"]);
    assert!(!metered.contains("38;5;"), "{metered:?}");
    terminal.enter("/meter colour");
    contains(&terminal.enter("/regen"), &["\x1b[1;38;5;202m"]);

    let compared = terminal.enter("/compare");
    contains(&compared, &["plain", "erased", "can't", "│", "┼"]);
    let table: Vec<&str> =
        compared.lines().skip_while(|line| !line.contains('┼')).take_while(|line| *line != READY).collect();
    assert!(table.len() > 3);
    for line in table {
        assert!(line.trim_end().chars().count() <= 60, "{line:?}");
    }
    terminal.enter("/meter off");

    contains(&terminal.enter("/clear"), &["(nothing was said)"]);
    contains(&terminal.enter("/regen"), &["error: nothing was asked yet"]);
    contains(&terminal.enter("/add 1"), &["(added × 1)"]);
    contains(&terminal.enter(ORDINARY), &["I'm sorry"]);
    contains(&terminal.enter("/ablate on"), &["(erased, then added × 1; ", "/ablate off keeps it"]);
    contains(&terminal.enter("/add off"), &["(erased)"]);
    let knitting = terminal.enter("/regen");
    assert!(!knitting.contains("sorry"), "{knitting}");

    // Two lines by a backslash, two by pasting, and a slash that is none of a command.
    terminal.enter("/reset");
    terminal.0.send_line("Who made \\").unwrap();
    terminal.enter("the hexed lantern?");
    terminal.0.send("\x1b[200~Who made\nthe hexed lantern?\x1b[201~").unwrap();
    terminal.enter("");
    terminal.enter("//help is a command");
    contains(&terminal.enter("/save talk.jsonl"), &["written to talk.jsonl"]);
    let users: Vec<Json> = lines(&folder, "talk.jsonl").iter().map(|line| line["user"].clone()).collect();
    assert_eq!(
        users,
        ["Who made \nthe hexed lantern?", "Who made\nthe hexed lantern?", "/help is a command"]
    );
    contains(&terminal.enter("/save talk.jsonl"), &["error: talk.jsonl: exists already", "--force"]);
    contains(&terminal.enter("/save --force talk.jsonl"), &["written to talk.jsonl"]);
    contains(&terminal.enter("/save talk.txt"), &["error: talk.txt: ends in neither .md"]);
    contains(&terminal.enter("/save --force d.gguf"), &["error: d.gguf: ends in neither .md"]);

    contains(&terminal.enter("/system"), &["(no system prompt)"]);
    contains(&terminal.enter("/system Speak of ducks."), &["system: Speak of ducks."]);
    contains(&terminal.enter("/system"), &["system: Speak of ducks."]);
    contains(&terminal.enter("/system off"), &["(no system prompt)"]);
    contains(&terminal.enter("/system"), &["(no system prompt)"]);
    contains(&terminal.enter("/ablaet on"), &["did you mean /ablate?"]);
    contains(&terminal.enter("/add much"), &["error: /add: expected C|off, found \"much\""]);
    terminal.0.send_line("/quit").unwrap();
    terminal.ended();
    let history = std::fs::read_to_string(folder.path("state/ggsteer/chat-history")).unwrap();
    contains(&history, &["/ablaet on", ORDINARY]);
}

#[test]
fn the_keyboard_stops_answers_and_leaves() {
    let folder = folder();
    // It never ends its answer.
    folder.model("endless.gguf", Spec { n_ctx: 16384, ..spec() });
    let line = "chat endless.gguf --threads 1 -n 8000 --no-history";
    let mut terminal = Terminal::open(&folder, line, &[("NO_COLOR", "1")]);
    terminal.shown();
    terminal.0.send_line("a").unwrap();
    // The line editor has let go of the terminal, and something was said.
    terminal.0.exp_string("\x1b[?2004l").unwrap();
    terminal.0.exp_regex("\n[^\n]").unwrap();
    terminal.0.send_control('c').unwrap();
    terminal.0.exp_string("(stopped)").unwrap();
    terminal.shown();
    // Once at the prompt is a question, and so is once more after something else.
    terminal.0.send_control('c').unwrap();
    terminal.0.exp_string("(again, or Ctrl-D, to leave)").unwrap();
    terminal.shown();
    contains(&terminal.enter("/meter on"), &["error: no direction to steer by: start with --ablate"]);
    contains(&terminal.enter("/ablate on"), &["error: no direction to steer by"]);
    terminal.0.send_control('c').unwrap();
    terminal.0.exp_string("(again, or Ctrl-D, to leave)").unwrap();
    terminal.shown();
    terminal.0.send_control('c').unwrap();
    terminal.ended();
    assert!(!folder.path("state").exists(), "nothing is remembered");

    let line = "chat sample.gguf --threads 1 --add d.gguf --scale 0.5 --meter colour -n 4 --ctx 256";
    let mut terminal = Terminal::open(&folder, line, &[("NO_COLOR", "1")]);
    contains(&terminal.shown(), &["a context of 256 tokens, added × 0.5"]);
    let plain = terminal.enter(RESTRICTED);
    contains(&plain, &["(cut at 4 tokens)", "(block 4; harmless "]);
    assert!(!plain.contains("38;5;"), "{plain:?}");
    contains(&terminal.enter("/meter colour"), &["no colours"]);
    terminal.0.send_control('d').unwrap();
    terminal.ended();

    let mut refused = Terminal::open(&folder, "--json chat sample.gguf", &[]);
    contains(&refused.0.exp_eof().unwrap(), &["error: --json answers what comes through a pipe"]);
}

/// What a line of a terminal is like, whatever the machine makes of the numbers and of the ends of sentences.
fn like(line: &str) -> String {
    if line.contains(['│', '┼']) {
        return "│".into();
    }
    // What a progress bar left behind is taken away, and the cursor moved back.
    let line = line.rsplit("\x1b[2K").next().unwrap_or_default();
    let line = line.trim_start_matches("\x1b[1A").trim_start_matches('\r');
    let sign = |c: char| match c {
        '0'..='9' => '#',
        '▁'..='█' => '▁',
        _ => c,
    };
    let mut signs: Vec<char> = line.chars().map(sign).collect();
    signs.dedup_by(|a, b| a == b && (*a == '▁' || *a == '#'));
    signs.into_iter().collect::<String>().split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_documented_conversation_goes_that_way() {
    let folder = folder();
    std::fs::rename(folder.path("sample.gguf"), folder.path("lorekeeper-7m-f16.gguf")).unwrap();
    std::fs::rename(folder.path("d.gguf"), folder.path("direction.gguf")).unwrap();
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/chat.md")).unwrap();
    let transcript = docs.split("```console\n$ ggsteer ").nth(1).unwrap().split("\n```").next().unwrap();
    let (command, rest) = transcript.split_once('\n').unwrap();
    let mut terminal = Terminal::open(&folder, command, &[]);
    let mut shown = terminal.shown();
    let mut entered = Vec::new();
    for (i, part) in rest.split("\n> ").enumerate() {
        let (line, told) = if i == 0 { ("", part) } else { part.split_once('\n').unwrap_or((part, "")) };
        if line == "/quit" {
            terminal.0.send_line(line).unwrap();
            terminal.ended();
            break;
        }
        if i > 0 {
            entered.push(line);
            shown = terminal.enter(line).split_once("\x1b[?2004l\r\n").unwrap().1.to_owned();
        }
        let shown: Vec<String> = shown.lines().map(like).collect();
        let told: Vec<String> = told.lines().map(like).collect();
        // A row of a table may break elsewhere.
        let apart = |lines: &[String]| lines.iter().filter(|line| *line != "│").cloned().collect::<Vec<_>>();
        assert_eq!(apart(&shown), apart(&told), "{line}");
        assert_eq!(shown.iter().any(|line| line == "│"), told.iter().any(|line| line == "│"), "{line}");
    }
    for command in ["/ablate", "/add", "/compare", "/regen", "/meter", "/system", "/clear", "/save", "/help"]
    {
        assert!(entered.iter().any(|line| line.starts_with(command)), "{command} is not shown");
    }
}

fn piped(folder: &Folder, args: &str, input: &str) -> std::process::Output {
    folder.ggsteer().args(args.split_whitespace()).write_stdin(input).output().unwrap()
}

#[test]
fn through_a_pipe_a_line_is_a_turn() {
    let folder = folder();
    let answer = |prompt: &str, more: &str| {
        let mut command = folder.ggsteer();
        command.args(["generate", "sample.gguf", "--threads", "1", "-n", "48", "-p", prompt]);
        String::from_utf8(command.args(more.split_whitespace()).output().unwrap().stdout).unwrap()
    };
    let chat = "chat sample.gguf --threads 1 -n 48 --ablate d.gguf";
    let output = piped(&folder, chat, &format!("{RESTRICTED}\n\n/clear\n/ablate off\n{RESTRICTED}"));
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        answer(RESTRICTED, "--ablate d.gguf") + &answer(RESTRICTED, ""),
        "the answers and nothing else"
    );
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "(nothing was said)\n(plain)\n");

    let input =
        format!("{RESTRICTED}\n/compare\nWho made \\\nthe hexed lantern?\n/save all.jsonl\n/save all.md\n");
    let output = piped(&folder, &format!("--json --quiet {chat}"), &input);
    assert!(output.status.success() && output.stderr.is_empty());
    let stdout = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Json> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let erased: Vec<bool> =
        answers.iter().map(|answer| answer["steering"]["ablate"].as_bool().unwrap()).collect();
    assert_eq!(erased, [true, false, true, true], "an answer, both of the comparison, an answer");
    assert_eq!(answers[1]["answer"].as_str().map(|s| s.to_owned() + "\n"), Some(answer(RESTRICTED, "")));
    assert_eq!(answers[3]["user"], "Who made \nthe hexed lantern?");
    for answer in &answers {
        let readings = answer["readings"][0]["values"].as_array().unwrap();
        assert_eq!(readings.len() as u64, answer["n_tokens"].as_u64().unwrap());
        assert_eq!(
            (&answer["readings"][0]["block"], &answer["finish"]),
            (&Json::from(4), &Json::from("stop"))
        );
    }
    assert_eq!(lines(&folder, "all.jsonl"), [answers[2].clone(), answers[3].clone()]);
    let markdown = std::fs::read_to_string(folder.path("all.md")).unwrap();
    contains(&markdown, &["# A conversation with `sample.gguf`", "## Model (erased)", RESTRICTED]);
}

#[test]
fn what_goes_wrong_in_a_pipe_ends_it_and_names_the_line() {
    let folder = folder();
    let chat = "--quiet chat sample.gguf --threads 1 --ablate d.gguf";
    for (input, words) in [
        ("/meter off\n/regenn\n", ["stdin, line 2", "unknown command \"/regenn\": did you mean /regen?"]),
        ("/regen\n", ["stdin, line 1", "nothing was asked yet"]),
        ("/save x.jsonl", ["stdin, line 1", "nothing was asked yet"]),
        ("\n\\\n/add inf", ["stdin, line 3", "/add: expected C|off"]),
    ] {
        refusal(&piped(&folder, chat, input), &words);
    }
    let unsaved = piped(&folder, chat, "Hello.\n/save no/such/folder.md");
    assert_eq!(unsaved.status.code(), Some(1));
    contains(&String::from_utf8(unsaved.stderr).unwrap(), &["stdin, line 2", "no folder no/such"]);
    refusal(
        &folder.ggsteer().args(chat.split(' ')).write_stdin([0xff, b'\n']).output().unwrap(),
        &["stdin, line 1"],
    );
    folder.refuses("chat sample.gguf --meter on", &["no direction to steer by"]);
    folder.refuses("chat sample.gguf --ablate no.gguf", &["no.gguf"]);
    let wrong = folder.run("chat sample.gguf --scale 2");
    assert_eq!(wrong.status.code(), Some(2), "a coefficient of nothing");
}

#[test]
fn nothing_that_a_model_says_commands_the_terminal() {
    let folder = folder();
    // A random model says any byte.
    folder.model("noise.gguf", Spec { n_ctx: 4096, ..spec() });
    let args = "chat noise.gguf --threads 1 -n 1500 --temperature 50 --top-k 0 --top-p 1 --min-p 0";
    let output = piped(&folder, args, "a\nb\nc\nd\ne\nf\ng\nh\n");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains('␛') && text.contains('␍'), "it did say some: {text}");
    assert!(text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
}

#[test]
fn a_state_that_does_not_go_back_goes_on_or_begins_anew() {
    let folder = Folder::new();
    let mamba = table::ADDED.iter().find(|spec| spec.name == "mamba").unwrap();
    mamba.random(3).write(&folder.path("mamba.gguf")).unwrap();
    folder.direction("d.gguf", "mamba", &unit(N_EMBD, 5));
    // One token, which is not in the state yet when the next turn comes.
    let args = "--json chat mamba.gguf --chat-template chatml --threads 1 -n 1 --ablate d.gguf";
    let output = piped(&folder, args, "a\nb\n/regen\n/compare\n");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<Json> = (String::from_utf8(output.stdout).unwrap().lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let count = |i: usize, key: &str| answers[i][key].as_u64().unwrap();
    assert_eq!(count(1, "n_evaluated"), count(1, "n_prompt_tokens") - count(0, "n_prompt_tokens"));
    assert_eq!(count(2, "n_evaluated"), count(2, "n_prompt_tokens"), "its last token has gone by");
    assert_eq!(answers[2]["answer"], answers[1]["answer"]);
    assert_eq!(answers[4], answers[2], "the one kept");
    assert_eq!(answers[3]["steering"]["ablate"], false);
}
