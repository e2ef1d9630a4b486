//! `ggsteer worker`: lends this machine to llama.cpp on another.

use anyhow::Result;
use ggsteer::runtime::{Listen, serve};

use super::ui::{Ui, warn};

/// Lend this machine's processor (or its graphics cards) to a run elsewhere, which names it with --rpc
///
/// llama.cpp's RPC protocol has no passwords and no encryption, and its makers call it not secure: keep the
/// address to this machine or to a network of your own.
///
/// Example: ggsteer worker --listen 192.168.1.7:50052
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Address of this machine to listen at
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:50052")]
    listen: String,
    /// Threads [default: all]
    #[arg(short = 't', long, value_name = "N", default_value_t = 0, hide_default_value = true,
        value_parser = clap::value_parser!(u16).range(0..=512))]
    threads: u16,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let listen = Listen::new(&self.listen)?;
        let address = listen.address();
        if !listen.is_loopback() {
            warn(&format!(
                "whoever reaches {address} can take over this process: llama.cpp's RPC has no passwords and no encryption; \
                 listen in a network of your own only"
            ));
        }
        ui.note(&format!("listening at {address}; Ctrl-C ends it"));
        match serve(listen, self.threads.into())? {}
    }
}
