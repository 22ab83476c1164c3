//! The live page in a real browser: figures appear and move, nothing overflows, nothing is refused or thrown, and a worker
//! that is gone is said to be. Chromium is driven over its debugging pipe, so that sizes and colour schemes are emulated.
#![allow(clippy::unwrap_used, reason = "a panic is a test's report")]

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forebay::admin::{self, Health};
use forebay::clock;
use forebay::engine::{InferenceEngine, InferenceEngineConfig, PredictionRequest};
use forebay::placement::Pin;
use forebay::record::Priority;
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(30);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A browser with one page.
struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    asked: u64,
    session: Option<String>,
    /// What came that was no answer.
    events: VecDeque<Value>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None` where there is none.
    fn start() -> Option<Self> {
        let binary = ["chromium", "chromium-browser", "google-chrome"].iter().find_map(|name| in_path(name))?;
        let profile = tempfile::Builder::new().prefix("chromium-").tempdir_in(root().join("target")).unwrap();
        // The pipe is descriptors 3 and 4, which only a shell gives away without unsafe code.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 1>/dev/null 2>/dev/null", "sh"])
            .arg(binary)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"])
            .args(["--disable-background-networking", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let (session, events) = (None, VecDeque::new());
        let mut browser = Self { child, to, from, asked: 0, session, events, _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Runtime", "Log", "Page"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    #[track_caller]
    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.asked += 1;
        let mut message = json!({"id": self.asked, "method": method});
        message["params"] = parameters;
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut text = Vec::new();
            self.from.read_until(0, &mut text).unwrap();
            assert_eq!(text.pop(), Some(0), "the browser ended");
            let mut answer: Value = serde_json::from_slice(&text).unwrap();
            if answer["id"] == self.asked {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            self.events.push_back(answer);
        }
    }

    #[track_caller]
    fn eval(&mut self, expression: &str) -> Value {
        let mut answer = self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}));
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true.
    #[track_caller]
    fn until(&mut self, expression: &str) {
        let start = clock::now();
        while self.eval(expression) != true {
            let text = self.eval("document.body.innerText");
            assert!(clock::now() - start < BOUND, "waited {BOUND:?} for {expression}; the page says\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn emulate(&mut self, width: u32, scheme: &str) {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", scheme);
        // Two frames: the page has laid itself out for the new size.
        let frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))";
        self.call("Runtime.evaluate", json!({"expression": frames, "awaitPromise": true}));
    }

    /// What the page threw, logged or was refused by its policy.
    fn complaints(&mut self) -> Vec<String> {
        let bad = ["Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"];
        let events = self.events.drain(..).filter(|event| bad.iter().any(|method| event["method"] == *method));
        events.map(|event| event["params"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn skip(name: &str, why: &str) {
    println!("skipped: {name}: {why}");
    if let Some(path) = std::env::var_os("FOREBAY_SKIPS") {
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        writeln!(file, "{name}: {why}").unwrap();
    }
}

/// An engine with a model of a name that is markup, behind an admin port, and a thread that keeps it busy.
struct Load {
    engine: Arc<InferenceEngine>,
    health: Arc<Health>,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

const MARKUP: &str = "<img src=x onerror=alert(1)>";

impl Load {
    fn start() -> Self {
        let config = InferenceEngineConfig { num_threads: 1, pin: Pin::Off, ..InferenceEngineConfig::default() };
        let engine = Arc::new(InferenceEngine::new(config).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join(format!("{MARKUP}.txt"));
        std::fs::copy(root().join("tests/data/higgs/higgs.model.txt"), &model).unwrap();
        engine.load_model(&model, None, true).unwrap();
        let health = Arc::new(Health::default());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let address = admin::serve(any, Arc::clone(&health), Arc::clone(&engine), None).unwrap();
        let (stop, busy) = (Arc::new(AtomicBool::new(false)), Arc::clone(&engine));
        let until = Arc::clone(&stop);
        let thread = Builder::new().name("load".to_owned()).spawn(move || {
            let mut request = PredictionRequest::new(vec![0.5; 28]);
            for level in [1, 2, 2, 3].into_iter().cycle() {
                if until.load(Ordering::Relaxed) {
                    return;
                }
                request.priority = Priority::new(level);
                let scored = busy.predict_all(vec![request.clone(); 16]);
                assert!(scored.iter().all(Result::is_ok), "{scored:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { engine, health, address, stop, thread: Some(thread.unwrap()), _folder: folder }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn figures_appear_and_move_at_each_width_and_in_both_schemes() {
    let Some(mut browser) = Browser::start() else {
        return skip("figures_appear_and_move_at_each_width_and_in_both_schemes", "no chromium in the path");
    };
    let load = Load::start();
    browser.emulate(1280, "light");
    browser.call("Page.navigate", json!({"url": format!("http://{}/", load.address)}));
    browser.until("document.getElementById('state')?.textContent === 'ready'");
    let figure = |id| format!("document.getElementById('tile-{id}').textContent");
    // The second answer brings the first rate.
    browser.until(&format!(r"/^[1-9][\d,.]* \/s$/.test({})", figure("rate")));
    browser.until(&format!(r"/^[\d.]+ (µs|ms|s)$/.test({})", figure("latency")));
    browser.until(&format!(r"/^[\d.]+ MiB$/.test({})", figure("memory")));
    let scored = "Number(document.querySelectorAll('#card-records dd')[1].textContent.replaceAll(',', ''))";
    let before = browser.eval(scored).as_f64().unwrap();
    let path = "document.querySelector('.plot .line')?.getAttribute('d')";
    let drawn = browser.eval(path);
    browser.until(&format!("{scored} > {before} + 100"));
    browser.until(&format!("{path} !== {drawn}"));
    assert!(browser.eval(scored).as_f64().unwrap() <= load.engine.metrics().scored_total() as f64);

    let mut papers = Vec::new();
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")] {
        browser.emulate(width, scheme);
        let wide = browser.eval("document.documentElement.scrollWidth").as_u64().unwrap();
        assert!(wide <= u64::from(width), "{wide} pixels of {width}");
        let cut = "[...document.querySelectorAll('.tile b, .plot text, dd, button')].filter(node => {\
                   const box = node.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth + 1 })\
                   .map(node => node.textContent).join('; ')";
        assert_eq!(browser.eval(cut), "", "cut off at {width}");
        papers.push(browser.eval("getComputedStyle(document.body).backgroundColor"));
        keep_picture(&mut browser, &format!("page-{width}-{scheme}.png"));
    }
    assert_ne!(papers[0], papers[1], "dark is dark");
    assert_eq!((&papers[0], &papers[1]), (&papers[2], &papers[3]));

    let names = "[...document.querySelectorAll('#card-models td.name')].map(node => node.textContent).join()";
    assert_eq!(browser.eval(names), MARKUP);
    assert_eq!(browser.eval("document.querySelectorAll('img').length"), 0, "a name became markup");
    let levels =
        "[...document.querySelectorAll('#card-queues tbody tr')].map(row => row.children[1].textContent).join()";
    assert_eq!(browser.eval(levels), "1,2,3");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn the_keyboard_reads_charts_and_a_worker_in_trouble_is_said_to_be() {
    let Some(mut browser) = Browser::start() else {
        return skip("the_keyboard_reads_charts_and_a_worker_in_trouble_is_said_to_be", "no chromium in the path");
    };
    let load = Load::start();
    browser.emulate(1280, "light");
    browser.call("Page.navigate", json!({"url": format!("http://{}/", load.address)}));
    browser.until("document.querySelector('.plot .line') !== null");
    let label = "document.querySelector('.plot').getAttribute('aria-label')";
    browser.until(&format!("/^Throughput, now: scored .*s, failed 0 .s$/.test({label})"));
    browser.eval("document.querySelector('.plot').focus()");
    browser.call("Input.dispatchKeyEvent", json!({"type": "keyDown", "key": "Home", "code": "Home"}));
    browser.until(&format!("/^Throughput, [0-9]+ s ago: /.test({label})"));
    browser.call("Input.dispatchKeyEvent", json!({"type": "keyDown", "key": "Escape", "code": "Escape"}));
    browser.until(&format!("/, now: /.test({label})"));
    browser.eval("document.querySelector('[data-span=\"900\"]').click()");
    assert!(browser.eval("document.querySelector('.plot').textContent").to_string().contains("15 min ago"));

    load.health.not_ready("group", "no partitions were assigned yet");
    let alarm = "document.getElementById('alarm').innerText";
    browser.until(&format!("{alarm}.includes('group: no partitions were assigned yet')"));
    assert_eq!(browser.eval("document.getElementById('state').textContent"), "not ready");
    load.health.ready("group");
    browser.until("document.getElementById('alarm').hidden");

    assert_eq!(browser.complaints(), Vec::<String>::new());
    let network =
        |offline: bool| json!({"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
    browser.call("Network.enable", json!({}));
    browser.call("Network.emulateNetworkConditions", network(true));
    browser.until(&format!("{alarm}.includes('has not answered since')"));
    assert_eq!(browser.eval("document.title"), "no answer · forebay");
    browser.call("Network.emulateNetworkConditions", network(false));
    browser.until("document.getElementById('state').textContent === 'ready'");
    browser.until("document.getElementById('alarm').hidden");
}

/// For eyes: pictures of the last run are kept under target/.
fn keep_picture(browser: &mut Browser, name: &str) {
    let picture = browser.call("Page.captureScreenshot", json!({"format": "png", "captureBeyondViewport": true}));
    let bytes = STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
    assert!(bytes.len() > 10_000, "an empty picture");
    std::fs::write(root().join("target").join(name), bytes).unwrap();
}
