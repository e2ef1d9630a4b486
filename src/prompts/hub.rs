//! Datasets of the Hugging Face hub: out of its cache on this machine, or downloaded into it.
//!
//! The web API and the cache's layout are as the hub documents them, so that its other clients find what was
//! downloaded here and the other way round: `datasets--OWNER--NAME` with `refs/REVISION` (a commit),
//! `snapshots/COMMIT/PATH` (links) and `blobs/` (what they lead to).

use std::ffi::OsString;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use ureq::http::Response;
use ureq::{Agent, Body};

use super::folder;
use super::spec::{Address, is_relative};

/// Where datasets come from, and where they are kept.
#[derive(Clone)]
pub struct Hub {
    /// The web address, without a slash at its end.
    pub endpoint: String,
    /// The user's key, sent to the endpoint and to no other host.
    pub token: Option<String>,
    /// The cache folder that all clients of the hub share.
    pub cache: PathBuf,
    /// Nothing but the cache.
    pub offline: bool,
}

/// How far a download is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The file, as a path in its dataset.
    pub file: &'a str,
    /// Bytes that have come.
    pub done: u64,
    /// Bytes of the whole file, where the server says.
    pub total: Option<u64>,
}

/// Why a dataset of the hub could not be had. Every one says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Not in the cache, and nothing else may be asked.
    #[error(
        "{dataset}: {why} in the cache at {}, and downloads are off (--offline or HF_HUB_OFFLINE); allow \
         them, or give a local file",
        cache.display()
    )]
    Offline {
        /// What was asked for.
        dataset: String,
        /// What is missing.
        why: String,
        /// The cache.
        cache: PathBuf,
    },
    /// No connection.
    #[error("{dataset}: cannot reach {endpoint}: {why}; check the network, or give a local file")]
    Unreachable {
        /// What was asked for.
        dataset: String,
        /// The address.
        endpoint: String,
        /// What the client said.
        why: String,
    },
    /// There is no such dataset.
    #[error("{dataset}: {endpoint} has no such dataset; check its name, or give a local file")]
    NotFound {
        /// What was asked for.
        dataset: String,
        /// The address.
        endpoint: String,
    },
    /// There is no such branch, tag or commit.
    #[error("{dataset}: the dataset has no revision \"{revision}\"; leave it out for the newest")]
    NoRevision {
        /// What was asked for.
        dataset: String,
        /// The revision.
        revision: String,
    },
    /// A dataset with terms to be accepted.
    #[error(
        "{dataset}: access is gated; accept the terms at {page} and set HF_TOKEN to a token of that account"
    )]
    Gated {
        /// What was asked for.
        dataset: String,
        /// Where the terms are.
        page: String,
    },
    /// Private, or not there: the hub does not tell strangers which.
    #[error(
        "{dataset}: {endpoint} shows no such dataset to {who}; check its name, or set HF_TOKEN to a token \
         that may read it"
    )]
    Unauthorized {
        /// What was asked for.
        dataset: String,
        /// The address.
        endpoint: String,
        /// Who asked.
        who: &'static str,
    },
    /// Any other refusal.
    #[error("{dataset}: {url} answers {status}; try again later, or give a local file")]
    Status {
        /// What was asked for.
        dataset: String,
        /// The address.
        url: String,
        /// The status line.
        status: String,
    },
    /// An answer that is not that of a hub.
    #[error(
        "{dataset}: {url} does not answer as the hub does: {why}; check HF_ENDPOINT, or give a local file"
    )]
    Answer {
        /// What was asked for.
        dataset: String,
        /// The address.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The connection broke, or what came is not the file.
    #[error("{dataset}: the download of {file} {why}; nothing was kept, try again")]
    Broken {
        /// What was asked for.
        dataset: String,
        /// The file.
        file: String,
        /// How.
        why: String,
    },
    /// The cache cannot be written.
    #[error("{}: cannot keep a download there: {source}; set HF_HUB_CACHE to another folder", path.display())]
    Cache {
        /// The place.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A dataset at one commit.
pub(super) struct Dataset {
    commit: String,
    files: Vec<Remote>,
}

/// A file as the hub lists it.
#[derive(Deserialize)]
struct Remote {
    #[serde(rename = "rfilename")]
    path: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    id: Option<String>,
    lfs: Option<Large>,
}

/// A large file's content.
#[derive(Deserialize)]
struct Large {
    sha256: String,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Remote>,
}

impl Dataset {
    /// The paths of its prompt files.
    pub fn files(&self) -> Vec<String> {
        let paths = self.files.iter().map(|file| &file.path);
        let mut paths: Vec<String> = paths.filter(|path| folder::is_data(path)).cloned().collect();
        paths.sort();
        paths
    }
}

/// An address that answers nothing for this long is given up.
const PATIENCE: Duration = Duration::from_mins(1);

/// The most bytes of a list of files.
const LIST_BYTES: u64 = 64 << 20;

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN` (or the file that a login left), `HF_HUB_CACHE`,
    /// `HF_HOME` and `HF_HUB_OFFLINE`.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_vars(|key| std::env::var_os(key).filter(|value| !value.is_empty()), std::env::home_dir())
    }

    fn from_vars(var: impl Fn(&str) -> Option<OsString>, user: Option<PathBuf>) -> Self {
        let text = |key: &str| var(key).map(|value| value.to_string_lossy().trim().to_owned());
        let caches = var("XDG_CACHE_HOME").map(PathBuf::from);
        let caches = caches.unwrap_or_else(|| user.unwrap_or_default().join(".cache"));
        let home = var("HF_HOME").map_or_else(|| caches.join("huggingface"), PathBuf::from);
        let login = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = text("HF_TOKEN").or_else(|| std::fs::read_to_string(login).ok());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let yes = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            cache: var("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            offline: text("HF_HUB_OFFLINE").is_some_and(yes),
        }
    }

    /// The folder of a dataset in the cache.
    fn folder(&self, address: &Address) -> PathBuf {
        self.cache.join(format!("datasets--{}", address.id.replace('/', "--")))
    }

    /// The files of a dataset that the cache holds, as a folder.
    pub(super) fn cached(&self, address: &Address) -> Option<PathBuf> {
        folder::snapshot(&self.folder(address), &address.revision)
    }

    /// Asks the hub which files a dataset has.
    pub(super) fn list(&self, address: &Address) -> Result<Dataset, HubError> {
        let revision = address.revision.replace('/', "%2F");
        let url = format!("{}/api/datasets/{}/revision/{revision}?blobs=true", self.endpoint, address.id);
        let bad = |why: String| HubError::Answer { dataset: address.to_string(), url: url.clone(), why };
        let mut response = self.get(address, &url)?;
        let body = response.body_mut().with_config().limit(LIST_BYTES).read_to_vec();
        let body = body.map_err(|error| self.unreachable(address, &error))?;
        let info: Info = serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
        if info.sha.is_empty() || !info.sha.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(bad("no commit in it".to_owned()));
        }
        if let Some(file) = info.siblings.iter().find(|file| !is_relative(&file.path)) {
            return Err(bad(format!("a file {:?} in it", file.path)));
        }
        Ok(Dataset { commit: info.sha, files: info.siblings })
    }

    /// The path of a dataset's file in the cache, downloaded where it is not there yet.
    pub(super) fn fetch(
        &self,
        address: &Address,
        dataset: &Dataset,
        file: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, HubError> {
        let root = self.folder(address);
        let path = root.join("snapshots").join(&dataset.commit).join(file);
        if path.is_file() {
            return Ok(path);
        }
        let remote = dataset.files.iter().find(|remote| remote.path == file);
        let (blobs, refs) = (root.join("blobs"), root.join("refs").join(&address.revision));
        for folder in [Some(blobs.as_path()), path.parent(), refs.parent()].into_iter().flatten() {
            std::fs::create_dir_all(folder).map_err(|source| cache(folder, source))?;
        }
        let blob = self.download(address, dataset, file, remote, &blobs, progress)?;
        link(&blob, &path, file).map_err(|source| cache(&path, source))?;
        // A commit is its own name.
        if address.revision != dataset.commit {
            std::fs::write(&refs, &dataset.commit).map_err(|source| cache(&refs, source))?;
        }
        Ok(path)
    }

    /// Downloads a file, checks it and gives it its name among the blobs.
    fn download(
        &self,
        address: &Address,
        dataset: &Dataset,
        file: &str,
        remote: Option<&Remote>,
        blobs: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, HubError> {
        let broken = |why: String| HubError::Broken { dataset: address.to_string(), file: file.into(), why };
        let (id, commit, name) = (&address.id, &dataset.commit, encode(file));
        let url = format!("{}/datasets/{id}/resolve/{commit}/{name}", self.endpoint);
        let mut response = self.get(address, &url)?;
        let total = remote.and_then(|remote| remote.size).or(response.body().content_length());
        let mut out = tempfile::Builder::new()
            .suffix(".incomplete")
            .tempfile_in(blobs)
            .map_err(|source| cache(blobs, source))?;
        let (mut hash, mut done, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 16]);
        let mut body = response.body_mut().as_reader();
        loop {
            progress(Progress { file, done, total });
            let n = body
                .read(&mut buffer)
                .map_err(|error| broken(format!("broke off at {done} bytes: {error}")))?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            out.write_all(&buffer[..n]).map_err(|source| cache(out.path(), source))?;
            done += n as u64;
        }
        if let Some(total) = total.filter(|&total| total != done) {
            return Err(broken(format!("ended at {done} of {total} bytes")));
        }
        let found = crate::hex(&hash.finalize());
        let large = remote.and_then(|remote| remote.lfs.as_ref());
        if let Some(large) = large.filter(|large| large.sha256 != found) {
            return Err(broken(format!("has SHA-256 {found}, expected {}", large.sha256)));
        }
        // Its name is its content's, large or small, as the hub counts it.
        let id = remote.and_then(|remote| remote.id.as_deref()).filter(|_| large.is_none());
        let plain = |id: &&str| id.len() >= 40 && id.bytes().all(|b| b.is_ascii_hexdigit());
        let blob = blobs.join(id.filter(plain).unwrap_or(&found));
        out.persist(&blob).map_err(|error| cache(&blob, error.error))?;
        Ok(blob)
    }

    /// A successful answer, or why there is none.
    fn get(&self, address: &Address, url: &str) -> Result<Response<Body>, HubError> {
        let mut request = self.agent().get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request.call().map_err(|error| self.unreachable(address, &error))?;
        let (dataset, endpoint) = (address.to_string(), self.endpoint.clone());
        let code = response.headers().get("X-Error-Code").and_then(|code| code.to_str().ok());
        let page = || format!("{endpoint}/datasets/{}", address.id);
        Err(match (response.status().as_u16(), code) {
            (200, _) => return Ok(response),
            (_, Some("GatedRepo")) | (403, _) => HubError::Gated { page: page(), dataset },
            (_, Some("RevisionNotFound")) => {
                HubError::NoRevision { dataset, revision: address.revision.clone() }
            }
            (401, _) => {
                let who = if self.token.is_some() { "the owner of your token" } else { "strangers" };
                HubError::Unauthorized { dataset, endpoint, who }
            }
            (404, Some("RepoNotFound")) => HubError::NotFound { dataset, endpoint },
            (404, _) if url.contains("/api/") => HubError::NotFound { dataset, endpoint },
            _ => HubError::Status { dataset, url: url.to_owned(), status: response.status().to_string() },
        })
    }

    fn agent(&self) -> Agent {
        let config = Agent::config_builder()
            .user_agent(concat!("ggsteer/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(PATIENCE / 3))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE));
        // No proxy leads back to this machine.
        let config = if self.is_here() { config.proxy(None) } else { config };
        config.build().new_agent()
    }

    /// Whether the endpoint is on this machine.
    fn is_here(&self) -> bool {
        let host = self.endpoint.split("://").nth(1).unwrap_or_default();
        ["127.0.0.1", "localhost", "[::1]"].iter().any(|here| host.starts_with(here))
    }

    fn unreachable(&self, address: &Address, error: &ureq::Error) -> HubError {
        let (dataset, endpoint, why) = (address.to_string(), self.endpoint.clone(), error.to_string());
        HubError::Unreachable { dataset, endpoint, why }
    }

    /// What is said where the cache does not suffice and nothing else may be asked.
    pub(super) fn not_cached(&self, address: &Address, why: &str) -> HubError {
        HubError::Offline { dataset: address.to_string(), why: why.to_owned(), cache: self.cache.clone() }
    }
}

fn cache(path: &Path, source: std::io::Error) -> HubError {
    HubError::Cache { path: path.into(), source }
}

/// Leads from a file's name to its content, without a moment in which a wrong one is there.
fn link(blob: &Path, path: &Path, file: &str) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let name = blob.file_name().expect("a blob has a name");
        let up = "../".repeat(file.matches('/').count() + 2);
        match std::os::unix::fs::symlink(Path::new(&format!("{up}blobs")).join(name), path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        std::fs::rename(blob, path)
    }
}

/// A path in a web address.
fn encode(path: &str) -> String {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    path.bytes().map(|b| if safe(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(vars: &[(&str, &str)]) -> Hub {
        let find = |key: &str| vars.iter().find(|(name, _)| *name == key).map(|(_, value)| value.into());
        Hub::from_vars(find, Some("/home/anna".into()))
    }

    #[test]
    fn the_environment_is_read_as_the_hubs_own_client_does() {
        let plain = hub(&[]);
        assert_eq!(plain.cache, Path::new("/home/anna/.cache/huggingface/hub"));
        assert_eq!(
            (plain.endpoint.as_str(), plain.token, plain.offline),
            ("https://huggingface.co", None, false)
        );
        assert_eq!(hub(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
        assert_eq!(hub(&[("HF_HOME", "/h")]).cache, Path::new("/h/hub"));
        let vars = [
            ("HF_HUB_CACHE", "/c"),
            ("HF_HOME", "/h"),
            ("HF_ENDPOINT", "http://127.0.0.1:9/"),
            ("HF_TOKEN", " secret\n"),
            ("HF_HUB_OFFLINE", "True"),
        ];
        let all = hub(&vars);
        assert_eq!((all.cache.as_path(), all.endpoint.as_str()), (Path::new("/c"), "http://127.0.0.1:9"));
        assert_eq!((all.token.as_deref(), all.offline, all.is_here()), (Some("secret"), true, true));
        assert!(!hub(&[("HF_HUB_OFFLINE", "0")]).offline && !plain.endpoint.is_empty());
    }

    #[test]
    fn the_token_of_a_login_is_found() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "from-file\n").unwrap();
        let home = folder.path().display().to_string();
        assert_eq!(hub(&[("HF_HOME", &home)]).token.as_deref(), Some("from-file"));
        assert_eq!(hub(&[("HF_HOME", &home), ("HF_TOKEN", "mine")]).token.as_deref(), Some("mine"));
    }

    #[test]
    fn names_are_safe_in_web_addresses() {
        assert_eq!(encode("data/a b-1.csv"), "data/a%20b-1.csv");
        assert_eq!(encode("ä?#%"), "%C3%A4%3F%23%25");
    }
}
