//! `ggsteer chat`: a conversation with a model whose steering changes while one talks.

mod command;
mod input;
mod meter;
mod screen;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use ggsteer::chat::{Answer, Chat, ChatError, Directions, LANES, Named, Options, Steering, harmless};
use ggsteer::direction::Direction;
use ggsteer::runtime::{Finish, Model};

use self::command::{Command, System};
use self::input::{Input, Source};
use self::meter::{Meter, Shown};
use self::screen::{Silent, Stream, columns};
use super::args::{RunArgs, direction};
use super::generate::{AtArg, SampleArgs, erased};
use super::interrupt::Stop;
use super::ui::Ui;

/// Talk with a model, with a direction erased or added, and see what it reads at every token
///
/// Lines are turns; those that begin with / are commands, and /help lists them. Through a
/// pipe the answers alone are printed; with --json, an object a line.
///
/// Example: ggsteer chat model.gguf --ablate direction.gguf --meter colour
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    steer: Steer,
    /// The system prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Show what the direction reads at every token: a line, or the text in colours as well
    #[arg(long, value_enum, default_value_t = Shown::Nothing)]
    meter: Shown,
    /// Do not remember lines between runs
    #[arg(long)]
    no_history: bool,
    #[command(flatten)]
    sample: SampleArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// What the conversation can be steered by, and how it is at first.
#[derive(Debug, clap::Args)]
struct Steer {
    /// Erase this direction from the residual stream, after every write to it; /ablate off and on switches it
    #[arg(long, value_name = "DIRECTION")]
    ablate: Vec<PathBuf>,
    /// Add this direction at its block's output; /add changes how much of it. Without it, /add takes that of --ablate
    #[arg(long, value_name = "DIRECTION")]
    add: Option<PathBuf>,
    /// Coefficient of --add: 1 adds the raw difference in means once
    #[arg(long, value_name = "C", default_value_t = 1.0, allow_negative_numbers = true, requires = "add")]
    scale: f32,
    /// Where an addition acts: at every position, or at those of the prompt alone, which keeps a large coefficient fluent
    #[arg(long, value_enum, default_value_t = AtArg::All)]
    at: AtArg,
    /// Which block's direction to take from a file that holds several
    #[arg(long, value_name = "IL")]
    block: Option<usize>,
}

impl Steer {
    fn load(&self, model: &Model) -> Result<(Directions, Steering)> {
        let name = |path: &Path, direction: Direction| Named { name: path.display().to_string(), direction };
        let ablate = erased(&self.ablate, self.block, model)?;
        let ablate: Vec<Named> = self.ablate.iter().zip(ablate).map(|(path, d)| name(path, d)).collect();
        let add = self.add.as_deref().map(|path| Ok(name(path, direction(path, self.block, model)?)));
        let add: Option<Named> = add.transpose().map_err(|e: anyhow::Error| e)?;
        let scale = if add.is_some() { self.scale } else { 0.0 };
        let steering = Steering { ablate: !ablate.is_empty(), scale };
        Ok((Directions::new(ablate, add, self.at.into()), steering))
    }
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        if ui.json && std::io::stdin().is_terminal() {
            bail!(
                "--json answers what comes through a pipe; at a terminal leave it out and /save FILE.jsonl"
            );
        }
        let model = self.run.load(&self.model)?;
        let (directions, steering) = self.steer.load(&model)?;
        if directions.is_empty() && self.meter != Shown::Nothing {
            return Err(no_direction());
        }
        let context = self.run.ctx.map_or(CONTEXT, |n| if n == 0 { usize::MAX } else { n as usize });
        let session = self.run.session(&model, LANES, model.n_ctx_train().min(context))?;
        let options = Options { max_tokens: self.sample.max_tokens, sampler: self.sample.sampler() };
        let meter = Meter::new(self.meter, screen::colours(), &directions);
        let mut chat = Chat::new(session, options, directions, steering)?;
        if self.system.is_some() {
            chat.set_system(self.system)?;
        }
        let mut inputs = vec![self.model];
        inputs.extend(self.steer.ablate);
        inputs.extend(self.steer.add);
        let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let history = if at_terminal && !self.no_history { input::history_file() } else { None };
        let mut source = Source::open(history)?;
        let stop = if source.is_terminal() { Some(Stop::catch()?) } else { None };
        if source.is_terminal() {
            ui.note(&format!(
                "{}: a context of {} tokens, {}; /help lists the commands",
                inputs[0].display(),
                chat.room(),
                chat.steering(),
            ));
        }
        Talk { chat, meter, stop, ui, inputs, greedy: self.sample.temperature <= 0.0 }.run(&mut source)
    }
}

/// Tokens of a conversation, unless --ctx says otherwise or the model's own context is shorter.
const CONTEXT: usize = 8192;

/// A conversation at a terminal or a pipe.
struct Talk<'m> {
    chat: Chat<'m>,
    meter: Meter,
    /// Ctrl-C, where it stops answers.
    stop: Option<Stop>,
    ui: Ui,
    /// Files that must not be written over.
    inputs: Vec<PathBuf>,
    /// Whether the likeliest token is always taken.
    greedy: bool,
}

impl Talk<'_> {
    /// Takes turns until there are no more. At a terminal an error is shown and the conversation goes on; in a pipe it is
    /// the end.
    fn run(&mut self, source: &mut Source) -> Result<()> {
        let mut leaving = false;
        loop {
            let line = match source.next()? {
                Input::Line(line) => line,
                Input::End => return Ok(()),
                Input::Interrupted if leaving => return Ok(()),
                Input::Interrupted => {
                    eprintln!("(again, or Ctrl-D, to leave)");
                    leaving = true;
                    continue;
                }
            };
            leaving = false;
            let done = match command::parse(&line) {
                Ok(None) => continue,
                Ok(Some(Command::Quit)) => return Ok(()),
                Ok(Some(command)) => self.execute(command),
                Err(words) => Err(anyhow!(words)),
            };
            if let Err(error) = done {
                match source.line_number() {
                    _ if error.is::<Stdout>() => return Err(error),
                    None => eprintln!("error: {}", harmless(&format!("{error:#}"))),
                    Some(n) => return Err(error.context(format!("stdin, line {n}"))),
                }
            }
        }
    }

    fn execute(&mut self, command: Command) -> Result<()> {
        if let Some(stop) = &self.stop {
            stop.clear();
        }
        match command {
            Command::Say(text) => self.answer(|chat, stream| chat.say(&text, stream).map(|_| ())),
            Command::Regen => {
                let last = |chat: &Chat<'_>| {
                    chat.turns().last().map(|turn| (turn.answer.steering, turn.answer.text()))
                };
                let before = last(&self.chat);
                self.answer(|chat, stream| chat.regenerate(stream).map(|_| ()))?;
                if self.greedy && last(&self.chat) == before {
                    self.ui.note("(the same: without --temperature one steering gives one answer)");
                }
                Ok(())
            }
            Command::Compare(text) => self.compare(text),
            Command::Ablate(ablate) => self.steer(Steering { ablate, ..self.chat.steering() }),
            Command::Add(scale) => self.steer(Steering { scale, ..self.chat.steering() }),
            Command::System(wanted) => {
                match wanted {
                    None => {}
                    Some(System::Off) => self.chat.set_system(None)?,
                    Some(System::Text(text)) => self.chat.set_system(Some(text))?,
                }
                let shown =
                    self.chat.system().map_or("(no system prompt)".into(), |s| format!("system: {s}"));
                self.ui.note(&harmless(&shown));
                Ok(())
            }
            Command::Clear => {
                self.chat.clear();
                self.ui.note("(nothing was said)");
                Ok(())
            }
            Command::Meter(shown) => {
                if shown != Shown::Nothing && self.chat.directions().is_empty() {
                    return Err(no_direction());
                }
                self.meter.shown = shown;
                if shown == Shown::Colour && !self.meter.colours {
                    self.ui.note("(no colours: stdout is no terminal that takes them, or NO_COLOR is set)");
                }
                Ok(())
            }
            Command::Save { path, force } => {
                let inputs: Vec<&Path> = self.inputs.iter().map(PathBuf::as_path).collect();
                self.chat.save(&path, force, &inputs).map_err(explained)?;
                self.ui.note(&format!("written to {}", path.display()));
                Ok(())
            }
            Command::Help => {
                eprintln!("{}", command::help());
                Ok(())
            }
            Command::Quit => Ok(()),
        }
    }

    fn steer(&mut self, steering: Steering) -> Result<()> {
        self.chat.set_steering(steering).map_err(explained)?;
        let lasting = if steering.ablate && steering.scale != 0.0 {
            "; what lies along the erased direction, the next block erases again: /ablate off keeps it"
        } else {
            ""
        };
        self.ui.note(&format!("({steering}{lasting})"));
        Ok(())
    }

    /// Lets the conversation make an answer, shows it as it comes, and then what is to be said about it.
    fn answer(
        &mut self,
        ask: impl FnOnce(&mut Chat<'_>, &mut Stream<'_>) -> Result<(), ChatError>,
    ) -> Result<()> {
        let left_out = self.chat.n_left_out();
        let mut stream = Stream {
            meter: &mut self.meter,
            stop: self.stop.as_ref(),
            written: !self.ui.json,
            last: None,
            ui: self.ui,
            bar: None,
            broken: None,
        };
        let asked = ask(&mut self.chat, &mut stream);
        stream.end(asked.is_ok());
        if let Some(error) = stream.broken {
            return Err(anyhow!(error).context(Stdout));
        }
        asked.map_err(explained)?;
        if self.ui.json {
            self.print_record(None)?;
        }
        let answer = &self.chat.turns()[self.chat.turns().len() - 1].answer;
        if self.meter.shown != Shown::Nothing {
            self.meter.lines(answer).iter().for_each(|line| self.ui.note(line));
        }
        match answer.finish {
            Finish::Stop => {}
            Finish::Length => self.ui.note(&format!("(cut at {} tokens)", answer.n_tokens)),
            Finish::Stopped => self.ui.note("(stopped)"),
        }
        if self.chat.n_left_out() > left_out {
            self.ui.note(&format!(
                "(the context of {} tokens is full: the oldest {} turns are left out from now on)",
                self.chat.room(),
                self.chat.n_left_out()
            ));
        }
        Ok(())
    }

    fn compare(&mut self, text: Option<String>) -> Result<()> {
        if self.chat.directions().is_empty() {
            return Err(no_direction());
        }
        let bar = screen::spinner(self.ui);
        let mut silent = Silent { meter: &mut self.meter, stop: self.stop.as_ref(), bar: bar.clone() };
        let said = text.map_or(Ok(()), |text| self.chat.say(&text, &mut silent).map(|_| ()));
        let compared = said.and_then(|()| self.chat.compare(&mut silent));
        bar.finish_and_clear();
        let both = compared.map_err(explained)?;
        let both = [&both.plain, &both.steered];
        if self.ui.json {
            return both.into_iter().try_for_each(|answer| self.print_record(Some(answer)));
        }
        let mut rows = vec![both.map(|answer| harmless(&answer.text()))];
        if self.meter.shown != Shown::Nothing {
            rows.push(both.map(|answer| Meter::figures(answer).unwrap_or_default()));
        }
        print(&columns(both.map(|answer| answer.steering.to_string()), &rows, screen::width()))?;
        if both.iter().any(|answer| answer.finish == Finish::Stopped) {
            self.ui.note("(stopped)");
        }
        Ok(())
    }

    /// One JSON object on a line: of `answer` to the last turn, or of its own.
    fn print_record(&self, answer: Option<&Answer>) -> Result<()> {
        let last = self.chat.turns().len() - 1;
        let record = self.chat.record(last, answer.unwrap_or(&self.chat.turns()[last].answer));
        print(&(serde_json::to_string(&record)? + "\n"))
    }
}

fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context(Stdout)
}

/// Context of an error of stdout, after which nothing can be said.
#[derive(Debug, Clone, Copy)]
struct Stdout;

impl std::fmt::Display for Stdout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stdout")
    }
}

fn no_direction() -> anyhow::Error {
    anyhow!("{}: start with --ablate DIRECTION or --add DIRECTION", ChatError::NoDirection)
}

/// An error of the conversation, with what to do about it here.
fn explained(error: ChatError) -> anyhow::Error {
    match error {
        ChatError::NoDirection => no_direction(),
        other => other.into(),
    }
}
