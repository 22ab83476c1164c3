//! A NATS server with JetStream, for the tests of everything that speaks NATS.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use forebay::clock;

use super::{BOUND, repository, until};

/// Lines of the server's log that a failed test prints.
const LOG_LINES: usize = 30;

/// One NATS server, killed when dropped. It dies with the thread that started it, too.
pub struct Nats {
    server: Child,
    port: u16,
    lines: Vec<String>,
    folder: tempfile::TempDir,
}

impl Nats {
    pub fn start() -> Self {
        Self::start_with(|_| Vec::new())
    }

    /// With more lines of nats.conf, which may name files that are written into the server's folder first.
    pub fn start_with(lines: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let folder = tempfile::Builder::new().prefix("nats-").tempdir_in(repository().join("target")).unwrap();
        let lines = lines(folder.path());
        let port = quiet_port();
        let mut nats = Self { server: spawn(folder.path(), port, &lines), port, lines, folder };
        nats.wait_ready(0);
        nats
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its data is, and files of a test's own may be.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    /// Starts it again on its port and data.
    pub fn restart(&mut self) {
        let log_before = self.log().len();
        self.server = spawn(self.folder.path(), self.port, &self.lines);
        self.wait_ready(log_before);
    }

    /// The same with other lines of nats.conf.
    pub fn restart_with(&mut self, lines: Vec<String>) {
        self.lines = lines;
        self.restart();
    }

    /// It tells its clients to go elsewhere, and ends some time later.
    pub fn lame_duck(&self) {
        self.signal("-USR2");
    }

    pub fn signal(&self, signal: &str) {
        super::signal(self.pid(), signal);
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join("nats.log")).unwrap_or_default()).into_owned()
    }

    /// A plain client, without anything of the worker's.
    pub async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.unwrap()
    }

    /// Waits for its own word in what it adds to its log: a port that answers may for a moment be the one that
    /// `quiet_port` tried, still open in a process that another test is starting.
    fn wait_ready(&mut self, log_before: usize) {
        until("the NATS server", || {
            let ended = self.server.try_wait().unwrap();
            assert!(ended.is_none(), "the NATS server ended: {ended:?}\n{}", self.log());
            self.log().get(log_before..).is_some_and(|new| new.contains("Server is ready"))
        });
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            eprintln!("---- the end of the NATS server's log\n{end}");
        }
    }
}

fn spawn(folder: &Path, port: u16, lines: &[String]) -> Child {
    // setpriv makes the server die with this process, however that ends.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(repository().join("tests/servers/nats"))
        .arg(folder)
        .arg(port.to_string())
        .args(lines)
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

/// A free port that the system gives to nobody by itself: while the server is down, neither another test nor the own end
/// of a client that tries to connect may take it.
fn quiet_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() * 61 % u32::from(COUNT)).unwrap();
    let mut ports = std::iter::repeat_with(|| FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT);
    ports.by_ref().take(usize::from(COUNT)).find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()).unwrap()
}

/// Runs a test that speaks NATS.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// Waits until the condition holds, while the clients of this thread go on.
pub async fn until_async(what: &str, mut condition: impl FnMut() -> bool) {
    let start = clock::now();
    while !condition() {
        assert!(clock::now() - start < BOUND, "waited {BOUND:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Writes a file for a server or a client, and says where.
pub fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}
