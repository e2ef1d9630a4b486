//! The page of the server: one document that asks for nothing but this server's own answers.

use std::sync::LazyLock;

use crate::report;

/// The page and what it may do.
pub(crate) struct Page {
    /// The document.
    pub(crate) html: String,
    /// Its `Content-Security-Policy`: its one style, its one script, and requests to where it came from.
    pub(crate) policy: String,
}

const SCRIPT: &str = concat!(include_str!("../report/base.js"), include_str!("page.js"));

/// The page, made once.
pub(crate) fn page() -> &'static Page {
    static PAGE: LazyLock<Page> = LazyLock::new(|| {
        let style = report::base_style() + include_str!("page.css");
        let html = include_str!("page.html")
            .replace("{{ version }}", env!("CARGO_PKG_VERSION"))
            .replace("{{ style }}", &style)
            .replace("{{ script }}", SCRIPT);
        let policy = report::policy(&style, SCRIPT) + "; connect-src 'self'; frame-ancestors 'none'";
        Page { html, policy }
    });
    &PAGE
}
