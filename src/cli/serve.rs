//! `ggsteer serve`: the model behind an OpenAI-compatible HTTP server, each request steered in its own way.

use std::future::Future;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use axum::http::HeaderValue;
use ggsteer::chat::Named;
use ggsteer::input;
use ggsteer::runtime::Model;
use ggsteer::serve::{Add, At, Limits, Logged, Logger, Options, Server, Steering, Term, Which, Whole};
use serde::Serialize;
use tokio::runtime::Runtime;

use super::args::{RunArgs, at_least_one, describe, direction};
use super::generate::AtArg;
use super::interrupt;
use super::ui::Ui;

/// Serve a model over HTTP, with OpenAI's routes, steered anew by each request
///
/// A request's "steering" says which directions are erased, added and read for it; a page to try it out is at /.
/// Without an API key only this machine can reach it.
///
/// Example: ggsteer serve model.gguf --direction direction.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model
    model: PathBuf,
    /// A direction that requests can steer by; its name is the file's, without .gguf, unless given
    #[arg(long, value_name = "[NAME=]FILE")]
    direction: Vec<String>,
    /// Which block's direction to take from files that hold several
    #[arg(long, value_name = "IL")]
    block: Option<usize>,
    /// Erase these directions for requests that bring no steering
    #[arg(long, value_name = "NAME")]
    ablate: Vec<String>,
    /// Add this direction for requests that bring no steering
    #[arg(long, value_name = "NAME")]
    add: Option<String>,
    /// Coefficient of --add: 1 adds the raw difference in means once
    #[arg(long, value_name = "C", default_value_t = 1.0, allow_negative_numbers = true, requires = "add")]
    scale: f32,
    /// Where --add acts: at every position, or at those of the prompt alone
    #[arg(long, value_enum, default_value_t = AtArg::All, requires = "add")]
    at: AtArg,
    /// What clients call the model [default: the file's name without .gguf]
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    limit: LimitArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Who may ask, and where.
#[derive(Debug, clap::Args)]
struct AccessArgs {
    /// Address of this machine to listen at; one that others can reach needs an API key
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen at; 0 for any that is free
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// The key that clients must have (Authorization: Bearer KEY); others see it in the list of processes, so better
    /// GGSTEER_API_KEY or --api-key-file
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// The same, from the first line of a file
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    api_key_file: Option<PathBuf>,
    /// Let pages of this site ask (CORS), as https://example.com; * for those of all
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Option<String>,
}

/// What is taken.
#[derive(Debug, clap::Args)]
struct LimitArgs {
    /// Answers computed side by side
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    slots: u16,
    /// Answers that may wait for their turn; more are told to come again (429)
    #[arg(long, value_name = "N", default_value_t = Limits::default().queue)]
    queue: usize,
    /// Bytes of a request
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().body)]
    max_body: usize,
    /// Tokens of an answer: the most that a request may ask for, and what it gets, as far as they fit, where it asks for none
    #[arg(short = 'n', long, value_name = "N", default_value_t = Limits::default().max_tokens, value_parser = at_least_one)]
    max_tokens: usize,
    /// How long a client may take to send a request or to take its answer, and how long answers under way are given at the
    /// end
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
}

/// Tokens of a conversation, unless --ctx says otherwise or the model's own context is shorter.
const CONTEXT: usize = 8192;

/// What is printed once the server listens.
#[derive(Serialize)]
struct Listening {
    url: String,
    model: String,
}

impl Args {
    pub fn run(self, ui: Ui, verbose: bool) -> Result<()> {
        let api_key = self.access.key()?;
        let allow_origin = self.access.allow_origin.as_deref().map(origin).transpose()?;
        let listener = self.access.listen(api_key.is_some())?;
        let model = self.run.load(&self.model)?;
        describe(ui, &model);
        let directions = self.directions(&model)?;
        let context = self.run.ctx.map_or(CONTEXT, |n| if n == 0 { usize::MAX } else { n as usize });
        let longest = model.n_ctx_train().min(context);
        let session = self.run.session_options(&model, self.limit.slots.into(), longest)?;
        let options = Options {
            name: self.alias.clone().unwrap_or_else(|| stem(&self.model)),
            host: self.access.host.clone(),
            api_key,
            allow_origin,
            steering: self.steering(),
            limits: self.limit.limits(),
            logger: verbose.then(|| Arc::new(|request: &Logged| eprintln!("{request}")) as Logger),
        };
        let listening = Listening {
            url: format!("http://{}", listener.local_addr().context("cannot listen")?),
            model: options.name.clone(),
        };
        let server = Server::start(model, session, directions, options)?;
        Runtime::new().context("cannot start the server")?.block_on(async {
            let shutdown = shutdown(ui)?;
            let listener = tokio::net::TcpListener::from_std(listener).context("cannot listen")?;
            ui.note(&format!("listening on {}", listening.url));
            if ui.json {
                ui.print(&listening, String::new)?;
            }
            Ok(server.run(listener, shutdown).await?)
        })
    }

    /// The directions with their names.
    fn directions(&self, model: &Model) -> Result<Vec<Named>> {
        let named = |given: &String| -> Result<Named> {
            let (name, path) = match given.split_once('=') {
                Some((name, path)) if !Path::new(given).exists() => (name.to_owned(), Path::new(path)),
                _ => (stem(Path::new(given)), Path::new(given)),
            };
            Ok(Named { name, direction: direction(path, self.block, model)? })
        };
        self.direction.iter().map(named).collect()
    }

    /// The steering of requests that bring none.
    fn steering(&self) -> Steering {
        let add = self.add.clone().map(|direction| {
            let positions = match self.at {
                AtArg::All => At::All,
                AtArg::Prompt => At::Prompt,
            };
            Add::One(Term::Whole(Whole { direction, scale: self.scale, block: None, positions }))
        });
        let ablate = (!self.ablate.is_empty()).then(|| Which::Several(self.ablate.clone()));
        Steering { ablate, add, ..Steering::default() }
    }
}

impl AccessArgs {
    fn key(&self) -> Result<Option<String>> {
        let key = match (&self.api_key, &self.api_key_file) {
            (Some(key), _) => key.clone(),
            (None, Some(path)) => {
                let text = input::read_text(path, input::BY_HAND);
                let text = text.with_context(|| format!("--api-key-file {}", path.display()))?;
                text.lines().next().unwrap_or_default().trim().to_owned()
            }
            (None, None) => return Ok(None),
        };
        let printable = !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic());
        ensure!(printable, "the API key must be one or more printable ASCII characters without spaces");
        Ok(Some(key))
    }

    /// Takes the port, before anything is loaded.
    fn listen(&self, has_key: bool) -> Result<TcpListener> {
        let at = || format!("--host {} --port {}", self.host, self.port);
        let host = self.host.trim_matches(['[', ']']);
        let addresses: Vec<SocketAddr> = (host, self.port).to_socket_addrs().with_context(at)?.collect();
        if !has_key && !addresses.iter().all(|address| address.ip().is_loopback()) {
            bail!(
                "--host {}: others can reach that address, so the server needs an API key: --api-key-file FILE, or \
                 GGSTEER_API_KEY in the environment",
                self.host
            );
        }
        let listener = TcpListener::bind(&addresses[..]).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => anyhow!("{}: another program listens there; take another --port", at()),
            _ => anyhow!("{}: {error}", at()),
        })?;
        listener.set_nonblocking(true).with_context(at)?;
        Ok(listener)
    }
}

impl LimitArgs {
    fn limits(&self) -> Limits {
        Limits {
            queue: self.queue,
            body: self.max_body,
            max_tokens: self.max_tokens,
            timeout: Duration::from_secs(self.timeout.into()),
            ..Limits::default()
        }
    }
}

/// A file's name without .gguf.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
}

fn origin(text: &str) -> Result<HeaderValue> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_origin = text == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains('/'));
    ensure!(is_origin, "--allow-origin {text}: expected http://HOST, https://HOST (with :PORT) or *");
    text.parse().with_context(|| format!("--allow-origin {text}"))
}

/// Waits for Ctrl-C or the polite kill, which are caught from here on; the next ends the program at once.
fn shutdown(ui: Ui) -> Result<impl Future<Output = ()>> {
    let mut signals = Signals::catch()?;
    interrupt::serves();
    Ok(async move {
        signals.next().await;
        ui.note("shutting down: answers under way are completed; again to end at once");
        tokio::spawn(async move {
            let signal = signals.next().await;
            signal_hook::low_level::exit(128 + signal);
        });
    })
}

/// The signals that ask a program to end.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn catch() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let catch = |kind| signal(kind).context("cannot catch Ctrl-C");
        Ok(Self { terminate: catch(SignalKind::terminate())?, interrupt: catch(SignalKind::interrupt())? })
    }

    #[cfg(unix)]
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => 15,
            _ = self.interrupt.recv() => 2,
        }
    }

    #[cfg(not(unix))]
    fn catch() -> Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) -> i32 {
        // An error means that Ctrl-C cannot be caught; then it ends the program by itself.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        2
    }
}
