//! The devices that ggml computes on: this machine's own, and other machines' through llama.cpp's RPC backend.
//!
//! ggml ends the whole program where an RPC server cannot be reached or answers in another tongue, so each server is
//! greeted here first: a connection with a time limit, and the HELLO that every version of the protocol begins with.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Mutex;
use std::time::Duration;

use llama_cpp_sys_2 as sys;
use serde::Serialize;

use super::{Error, backend};
use crate::near::did_you_mean;
use crate::unwind::caught;

/// The release of llama-cpp-sys-2 whose llama.cpp is linked.
pub const BINDINGS: &str = "0.1.160";

/// How long a server may take to accept a connection and to say hello.
const PATIENCE: Duration = Duration::from_secs(5);
/// `RPC_CMD_HELLO` of ggml-rpc.cpp, which says that it will always be this.
const HELLO: u8 = 14;
/// `RPC_CONN_CAPS_SIZE` of transport.h.
const CAPABILITIES: usize = 24;
/// `RPC_PROTO_MAJOR_VERSION` and the minor one of the pinned llama.cpp's ggml-rpc.h.
const VERSION: [u8; 2] = [7, 0];
/// `GGML_SCHED_MAX_BACKENDS` of ggml-backend.cpp.
const MAX_DEVICES: usize = 16;

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// A graphics card, with memory of its own or without; a server of the RPC backend says it is one.
    Gpu,
    /// A library that works on the processor's memory.
    Accelerator,
}

/// A device that ggml found or was told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// ggml's name for it, as `CPU` or `RPC0`.
    pub name: String,
    /// What it is; of an RPC device, the server's address.
    pub description: String,
    /// Its backend, as `CPU`, `CUDA` or `RPC`.
    pub backend: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Bytes not in use, as the device tells.
    pub memory_free: u64,
    /// Bytes it has.
    pub memory_total: u64,
}

/// All devices.
///
/// # Errors
/// llama.cpp could not be initialised.
pub fn devices() -> Result<Vec<Device>, Error> {
    backend()?;
    // SAFETY: the registry is there once llama.cpp is initialised; every index below the count has a device.
    Ok(unsafe {
        (0..sys::ggml_backend_dev_count()).map(|i| describe(sys::ggml_backend_dev_get(i))).collect()
    })
}

/// Where a device of this name, other than the processor, stands in ggml's list.
pub(super) fn place(name: &str) -> Result<usize, Error> {
    let all = devices()?;
    let is_other = |d: &&Device| d.kind == DeviceKind::Gpu;
    let others = || all.iter().filter(is_other).map(|d| d.name.as_str());
    let named = |d: &Device| is_other(&d) && d.name.eq_ignore_ascii_case(name);
    all.iter().position(named).ok_or_else(|| {
        let hint = match others().collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => "this build has found none".into(),
            names => format!("there are {names}{}", did_you_mean(name, others())),
        };
        Error::NoDevice { name: name.to_owned(), hint }
    })
}

/// # Safety
/// `device` is a registered one.
unsafe fn describe(device: sys::ggml_backend_dev_t) -> Device {
    let (mut free, mut total) = (0, 0);
    // SAFETY: passed on from the caller; ggml's names are constants or live as long as the device.
    unsafe {
        sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total);
        let kind = match sys::ggml_backend_dev_type(device) {
            sys::GGML_BACKEND_DEVICE_TYPE_CPU => DeviceKind::Cpu,
            sys::GGML_BACKEND_DEVICE_TYPE_ACCEL => DeviceKind::Accelerator,
            _ => DeviceKind::Gpu,
        };
        Device {
            name: text(sys::ggml_backend_dev_name(device)),
            description: text(sys::ggml_backend_dev_description(device)),
            backend: text(sys::ggml_backend_reg_name(sys::ggml_backend_dev_backend_reg(device))),
            kind,
            memory_free: free as u64,
            memory_total: total as u64,
        }
    }
}

/// # Safety
/// `words` is null or ends with a NUL.
unsafe fn text(words: *const c_char) -> String {
    if words.is_null() {
        return String::new();
    }
    // SAFETY: passed on from the caller.
    unsafe { CStr::from_ptr(words) }.to_string_lossy().trim().to_owned()
}

/// What ggml's CPU backend was compiled to use, as `AVX2` or `OPENMP`, in ggml's own words.
///
/// # Errors
/// llama.cpp could not be initialised.
pub fn cpu_features() -> Result<Vec<(String, String)>, Error> {
    backend()?;
    // SAFETY: the registry is there; the function has the type that ggml-backend.h gives for its name, and its list ends
    // with a null name.
    unsafe {
        let registry = sys::ggml_backend_reg_by_name(c"CPU".as_ptr());
        let Some(get) = address(registry, c"ggml_backend_get_features") else { return Ok(Vec::new()) };
        let get: unsafe extern "C" fn(sys::ggml_backend_reg_t) -> *const sys::ggml_backend_feature =
            std::mem::transmute(get);
        let mut features = Vec::new();
        let mut next = get(registry);
        while !next.is_null() && !(*next).name.is_null() {
            features.push((text((*next).name), text((*next).value)));
            next = next.add(1);
        }
        Ok(features)
    }
}

/// The version and the commit of the ggml that is linked.
#[must_use]
pub fn ggml_version() -> (String, String) {
    // SAFETY: both give constants.
    unsafe { (text(sys::ggml_version()), text(sys::ggml_commit())) }
}

/// Whether this build has llama.cpp's RPC backend.
///
/// # Errors
/// llama.cpp could not be initialised.
pub fn has_rpc() -> Result<bool, Error> {
    Ok(!rpc_registry()?.is_null())
}

fn rpc_registry() -> Result<sys::ggml_backend_reg_t, Error> {
    backend()?;
    // SAFETY: the registry of backends is there once llama.cpp is initialised.
    Ok(unsafe { sys::ggml_backend_reg_by_name(c"RPC".as_ptr()) })
}

/// A function that a backend offers beside its interface.
///
/// # Safety
/// `registry` is null or a registered backend.
unsafe fn address(registry: sys::ggml_backend_reg_t, name: &CStr) -> Option<*mut std::ffi::c_void> {
    if registry.is_null() {
        return None;
    }
    // SAFETY: passed on from the caller.
    let found = unsafe { sys::ggml_backend_reg_get_proc_address(registry, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// A function of the RPC backend; a build without it is an error that says how to get one.
fn rpc_function(name: &CStr) -> Result<*mut std::ffi::c_void, Error> {
    let registry = rpc_registry()?;
    // SAFETY: null or registered.
    unsafe { address(registry, name) }.ok_or(Error::NoRpc)
}

/// Adds the devices of the RPC server at `HOST:PORT` for models that are loaded later, once for each server.
///
/// # Errors
/// A build without the RPC backend; an address that cannot be reached; one at which no server of this protocol version
/// answers; more devices than ggml can hold.
pub fn connect(server: &str) -> Result<(), Error> {
    static CONNECTED: Mutex<BTreeSet<SocketAddr>> = Mutex::new(BTreeSet::new());
    let add = rpc_function(c"ggml_backend_rpc_add_server")?;
    let address = resolve(server)?;
    let mut connected = CONNECTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if connected.contains(&address) {
        return Ok(());
    }
    let failed = |why: String| Error::Rpc { server: server.to_owned(), why };
    greet(address).map_err(failed)?;
    // Not the name: ggml would look it up once more, and puts what it is given into the names of tensors.
    let endpoint = endpoint(address);
    // SAFETY: the type that ggml-rpc.h gives for this name; a server that has just answered is there.
    let registry = unsafe {
        let add: unsafe extern "C" fn(*const c_char) -> sys::ggml_backend_reg_t = std::mem::transmute(add);
        add(endpoint.as_ptr())
    };
    if registry.is_null() {
        return Err(failed("it offers no device".into()));
    }
    // SAFETY: not null; ggml keeps it for good.
    let found = unsafe { sys::ggml_backend_dev_count() + sys::ggml_backend_reg_dev_count(registry) };
    if found > MAX_DEVICES {
        return Err(failed(format!("with it there are {found} devices, ggml takes {MAX_DEVICES} at most")));
    }
    // SAFETY: as above.
    unsafe { sys::ggml_backend_register(registry) };
    connected.insert(address);
    Ok(())
}

/// The IPv4 address that a name stands for: ggml's RPC backend knows no other.
fn resolve(server: &str) -> Result<SocketAddr, Error> {
    let failed = |why: String| Error::Rpc { server: server.to_owned(), why };
    let port = server.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = port.filter(|(host, port)| !host.is_empty() && *port > 0) else {
        return Err(failed("expected HOST:PORT, as 192.168.1.7:50052".into()));
    };
    let found = (host, port).to_socket_addrs().map_err(|e| failed(format!("no such host: {e}")))?;
    let address = found.into_iter().find(SocketAddr::is_ipv4);
    address.ok_or_else(|| failed("the host has no IPv4 address, and llama.cpp's RPC takes no other".into()))
}

/// An address as ggml takes it.
fn endpoint(address: SocketAddr) -> CString {
    CString::new(address.to_string()).expect("an address has no NUL")
}

/// Says hello as ggml would, with a time limit.
fn greet(address: SocketAddr) -> Result<(), String> {
    let unreachable = |e: std::io::Error| {
        format!("cannot be reached ({e}); start one there with `ggsteer worker --listen ADDRESS:PORT`")
    };
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(unreachable)?;
    let mut request = vec![HELLO];
    request.extend((CAPABILITIES as u64).to_le_bytes());
    request.extend([0; CAPABILITIES]);
    let mut answer = [0; 8 + 4 + CAPABILITIES];
    let spoken = (stream.set_read_timeout(Some(PATIENCE)))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .and_then(|()| stream.write_all(&request))
        .and_then(|()| stream.read_exact(&mut answer));
    match spoken {
        Ok(()) => {}
        Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
            return Err(format!(
                "it does not answer within {} s: it serves one program at a time and may be busy, or is no RPC server",
                PATIENCE.as_secs()
            ));
        }
        Err(_) => return Err("what answers there is no RPC server of llama.cpp's".into()),
    }
    let (length, rest) = answer.split_at(8);
    if length != (4 + CAPABILITIES as u64).to_le_bytes() {
        return Err("what answers there is no RPC server of llama.cpp's".into());
    }
    let [major, minor] = VERSION;
    if rest[0] != major || rest[1] > minor {
        return Err(format!(
            "it speaks version {}.{} of llama.cpp's RPC, this program {major}.{minor}; run the same build on both",
            rest[0], rest[1]
        ));
    }
    Ok(())
}

/// Where [`serve`] will listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(SocketAddr);

impl Listen {
    /// An address of this machine that is free.
    ///
    /// # Errors
    /// A build without the RPC backend; an address that is not `HOST:PORT`, not of this machine, or taken.
    pub fn new(listen: &str) -> Result<Self, Error> {
        rpc_function(c"ggml_backend_rpc_start_server")?;
        let address = resolve(listen)?;
        TcpListener::bind(address).map_err(|e| Error::Rpc {
            server: listen.to_owned(),
            why: format!("cannot listen there: {e}"),
        })?;
        Ok(Self(address))
    }

    /// Whether it can be reached from this machine alone.
    #[must_use]
    pub fn is_loopback(self) -> bool {
        matches!(self.0.ip(), IpAddr::V4(ip) if ip.is_loopback())
    }

    /// The address.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        self.0
    }
}

/// Lends this machine's devices to llama.cpp on other machines: its graphics cards, or the processor where it has none.
/// Returns when the server can no longer listen. llama.cpp tells on stdout who comes and goes.
///
/// The protocol has no passwords and no encryption, and llama.cpp itself calls it not secure: whoever reaches the
/// address can take over the process.
///
/// # Errors
/// Always, once it returns.
pub fn serve(listen: Listen, n_threads: usize) -> Result<std::convert::Infallible, Error> {
    let start = rpc_function(c"ggml_backend_rpc_start_server")?;
    // SAFETY: every index below the count has a device, which lives for good.
    let all: Vec<sys::ggml_backend_dev_t> =
        unsafe { (0..sys::ggml_backend_dev_count()).map(|i| sys::ggml_backend_dev_get(i)).collect() };
    // SAFETY: as above.
    let kind = |device: &sys::ggml_backend_dev_t| unsafe { sys::ggml_backend_dev_type(*device) };
    let (mut cpu, mut gpu): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|d| kind(d) == sys::GGML_BACKEND_DEVICE_TYPE_CPU);
    gpu.retain(|d| kind(d) != sys::GGML_BACKEND_DEVICE_TYPE_ACCEL);
    let served = if gpu.is_empty() { &mut cpu } else { &mut gpu };
    let endpoint = endpoint(listen.0);
    let n_threads = super::threads(n_threads);
    // SAFETY: the type that ggml-rpc.h gives for this name; the devices are `served.len()` registered ones.
    unsafe {
        let start: unsafe extern "C" fn(
            *const c_char,
            *const c_char,
            usize,
            usize,
            *mut sys::ggml_backend_dev_t,
        ) = std::mem::transmute(start);
        start(endpoint.as_ptr(), std::ptr::null(), n_threads, served.len(), served.as_mut_ptr());
    }
    let why = "llama.cpp stopped listening there; its own words are above".into();
    Err(Error::Rpc { server: listen.0.to_string(), why })
}

/// Where ggml would abort the program (a lost RPC server among others), ends it with `error: …` on stderr and exit code
/// 1 instead. For programs, not for libraries: it holds for the whole process.
pub fn exit_on_abort() {
    // SAFETY: a plain function, which does not return.
    unsafe { sys::ggml_set_abort_callback(Some(leave)) };
}

unsafe extern "C" fn leave(message: *const c_char) {
    // SAFETY: ggml passes a NUL-terminated text.
    let _ = caught(|| give_up(&unsafe { text(message) }));
    // Not `exit`: other threads are at work on what its handlers would take down.
    signal_hook::low_level::exit(1);
}

/// Tells ggml's last words, and takes away the unfinished outputs.
fn give_up(message: &str) {
    // What is in front is a path of the machine that built it.
    let words = message.rsplit_once(".cpp:").map_or(message, |(_, rest)| rest);
    let words = words.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':').trim();
    // `eprintln!` would panic where nobody takes it.
    let _ = writeln!(std::io::stderr(), "error: ggml gave up: {}", words.lines().next().unwrap_or_default());
    crate::output::abandon(&|path| {
        let _ = path.to_str().map(std::fs::remove_file);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::tests::armed;
    use std::process::{Command, Stdio};

    /// Answers one connection with these bytes, and keeps it open until the other side leaves.
    fn answering(bytes: Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hello = [0; 1 + 8 + CAPABILITIES];
            stream.read_exact(&mut hello).unwrap();
            assert_eq!(hello[0], HELLO);
            stream.write_all(&bytes).unwrap();
        });
        address
    }

    fn hello(major: u8, minor: u8) -> Vec<u8> {
        let mut bytes = (4 + CAPABILITIES as u64).to_le_bytes().to_vec();
        bytes.extend([major, minor, 0, 0]);
        bytes.extend([0; CAPABILITIES]);
        bytes
    }

    #[test]
    fn a_server_of_this_version_is_taken_and_others_are_named() {
        let [major, minor] = VERSION;
        assert_eq!(greet(answering(hello(major, minor))), Ok(()));
        let other = greet(answering(hello(major + 1, 0))).unwrap_err();
        assert!(other.contains(&format!("version {}.0", major + 1)), "{other}");
        for bytes in [b"HTTP/1.1 400 Bad Request\r\n\r\n and some more bytes".to_vec(), b"no".to_vec()] {
            let other = greet(answering(bytes)).unwrap_err();
            assert!(other.contains("no RPC server"), "{other}");
        }
    }

    #[test]
    fn an_address_nobody_listens_at_is_refused_with_the_next_step() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let why = greet(free).unwrap_err();
        assert!(why.contains("cannot be reached") && why.contains("ggsteer worker"), "{why}");
    }

    #[test]
    fn the_release_is_the_one_that_is_pinned() {
        let manifest: toml::Table = include_str!("../../Cargo.toml").parse().unwrap();
        let version = manifest["dependencies"]["llama-cpp-sys-2"]["version"].as_str();
        assert_eq!(version, Some(format!("={BINDINGS}").as_str()));
    }

    /// Run again in a child, once with a panic and once where nobody takes its words.
    #[test]
    fn where_ggml_gives_up_the_program_ends_with_a_code_whatever_happens() {
        const HOW: &str = "GGSTEER_TEST_GIVE_UP";
        if let Some(how) = std::env::var_os(HOW) {
            let words = c"/built/here/ggml-rpc.cpp:12: lost".as_ptr();
            // SAFETY: a text that ends with a NUL.
            unsafe { if how == "panic" { armed(|| leave(words)) } else { leave(words) } }
            unreachable!("it does not return");
        }
        let run = |how: &str, stderr: Stdio| {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["where_ggml_gives_up", "--test-threads=1", "--nocapture"]);
            child
                .env(HOW, how)
                .stderr(stderr)
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
                .wait_with_output()
                .unwrap()
        };
        let output = run("words", Stdio::piped());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "error: ggml gave up: lost\n");
        let output = run("panic", Stdio::piped());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        if cfg!(target_os = "linux") {
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            assert_eq!(run("words", full.into()).status.code(), Some(1));
        }
    }

    #[test]
    fn only_a_host_and_a_port_are_an_address() {
        assert_eq!(resolve("127.0.0.1:50052").unwrap(), "127.0.0.1:50052".parse().unwrap());
        for bad in ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", ":50052", "127.0.0.1:70000", "[::1]:50052"]
        {
            let error = resolve(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("RPC server {bad}: ")), "{bad}: {error}");
        }
    }
}
