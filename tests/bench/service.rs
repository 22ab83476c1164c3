//! `make bench-service`: requests of a NATS client answered by forebay's microservice and by a bare echo, on one server in one
//! run. The echo takes a message and publishes it to its reply subject, and does nothing else.
//!
//! Each is a process of its own, asked in turn, several times over, by the same client: one request at a time; 1,000 a second;
//! and as many as it answers, with a bounded number in flight. Each answer is checked, after its phase.
#![allow(clippy::print_stdout, reason = "it is a program")]
#![allow(clippy::unwrap_used, reason = "in a measurement the panic is the report")]

mod cpu;
mod no_work;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use forebay::clock;
use futures_util::StreamExt as _;
use hdrhistogram::Histogram;

use cpu::process_cpu_us;
use support::nats::{Nats, run};
use support::{BOUND, Higgs, Worker};

/// Features of a row.
const FEATURES: usize = 28;
const RATE_PER_MS: usize = 1;
/// Requests in flight while as many are asked as are answered.
const IN_FLIGHT: usize = 512;
const TOLERANCE: f64 = 1e-9;

/// How much is asked.
struct Size {
    rounds: usize,
    serial: usize,
    phase: Duration,
}

const WHOLE: Size = Size { rounds: 5, serial: 2000, phase: Duration::from_secs(3) };
const QUICK: Size = Size { rounds: 1, serial: 200, phase: Duration::from_millis(500) };

/// Who answers.
enum Process {
    Echo(Child),
    Forebay(Box<Worker>),
}

impl Process {
    fn pid(&self) -> u32 {
        match self {
            Self::Echo(child) => child.id(),
            Self::Forebay(worker) => worker.pid(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A worker ends itself.
        if let Self::Echo(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Subject {
    name: &'static str,
    what: &'static str,
    address: &'static str,
    process: Process,
    /// What a row's answer must be; `None` for the request itself.
    expected: Option<fn(&Higgs, usize) -> f64>,
    serial_us: Histogram<u64>,
    paced_us: Histogram<u64>,
    /// Requests a second of each round.
    rates: Vec<f64>,
    cpu_us: f64,
    answered: usize,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, url] = &arguments[..]
        && word == "--echo"
    {
        run(echo(url));
    }
    let size = if arguments.iter().any(|argument| argument == "--quick") { QUICK } else { WHOLE };
    let (nats, higgs) = (Nats::start(), Higgs::load());
    run(async {
        let client = nats.client().await;
        let folder = tempfile::tempdir().unwrap();
        let leaf = folder.path().join("no-work.txt");
        fs::write(&leaf, no_work::of_width(FEATURES)).unwrap();
        let mut subjects = [
            subject("echo", "publishes what comes", "echo", Process::Echo(start_echo(&nats.url())), None),
            subject(
                "service-no-model",
                "forebay with a model of one leaf",
                "bench.none.predict",
                Process::Forebay(Box::new(start_forebay(&nats.url(), "none", &leaf))),
                Some(|_, _| no_work::SCORE),
            ),
            subject(
                "service",
                "forebay, 100 trees of 31 leaves",
                "bench.higgs.predict",
                Process::Forebay(Box::new(start_forebay(&nats.url(), "higgs", &Higgs::model()))),
                Some(|higgs, n| higgs.scores[n % higgs.rows.len()]),
            ),
        ];
        for subject in &subjects {
            wait_there(&client, subject.address).await;
        }
        for _ in 0..size.rounds {
            for subject in &mut subjects {
                subject.measure(&client, &higgs, &size).await;
            }
        }
        report(&subjects, higgs.request(0).len());
    });
    ExitCode::SUCCESS
}

fn subject(
    name: &'static str,
    what: &'static str,
    address: &'static str,
    process: Process,
    expected: Option<fn(&Higgs, usize) -> f64>,
) -> Subject {
    let histogram = || Histogram::new(3).unwrap();
    let (serial_us, paced_us) = (histogram(), histogram());
    Subject { name, what, address, process, expected, serial_us, paced_us, rates: Vec::new(), cpu_us: 0.0, answered: 0 }
}

fn start_echo(url: &str) -> Child {
    Command::new(std::env::current_exe().unwrap()).args(["--echo", url]).stdin(Stdio::null()).spawn().unwrap()
}

/// On one thread, as forebay's service is: it is the cheapest.
async fn echo(url: &str) {
    let client = async_nats::connect(url).await.unwrap();
    let mut requests = client.queue_subscribe("echo", "q".to_owned()).await.unwrap();
    while let Some(Message { reply, payload, .. }) = requests.next().await {
        if let Some(reply) = reply {
            client.publish(reply, payload).await.unwrap();
        }
    }
}

fn start_forebay(url: &str, name: &str, model: &std::path::Path) -> Worker {
    let path = model.display();
    let toml = format!(
        "[nats]\nservers = \"{url}\"\n[nats.service]\nprefix = \"bench\"\nname = \"{name}\"\n[[model]]\nname = \"{name}\"\npath = \"{path}\"\n"
    );
    Worker::ready(&toml, name)
}

async fn wait_there(client: &Client, address: &str) {
    let start = clock::now();
    while client.request(address.to_owned(), "{}".into()).await.is_err() {
        assert!(clock::now() - start < BOUND, "nobody answers at {address}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Subject {
    async fn measure(&mut self, client: &Client, higgs: &Higgs, size: &Size) {
        let mut asker = Asker::new(client, self.address).await;
        for n in 0..size.serial {
            asker.ask(n, higgs).await;
            asker.take_one().await;
        }
        self.take(&mut asker, higgs, |subject| &mut subject.serial_us);

        let mut asker = Asker::new(client, self.address).await;
        asker.pace(higgs, size.phase).await;
        self.take(&mut asker, higgs, |subject| &mut subject.paced_us);

        let mut asker = Asker::new(client, self.address).await;
        let (start, before) = (clock::now(), process_cpu_us(self.process.pid()).unwrap());
        asker.fill(higgs, size.phase).await;
        self.cpu_us += process_cpu_us(self.process.pid()).unwrap() - before;
        self.answered += asker.answers.len();
        self.rates.push(asker.answers.len() as f64 / (clock::now() - start).as_secs_f64());
        self.check(&asker, higgs);
    }

    fn take(&mut self, asker: &mut Asker, higgs: &Higgs, histogram: impl Fn(&mut Self) -> &mut Histogram<u64>) {
        self.check(asker, higgs);
        for (_, _, took) in &asker.answers {
            *histogram(self) += u64::try_from(took.as_nanos() / 100).unwrap();
        }
    }

    /// Each answer is the right one, and each request has one.
    fn check(&self, asker: &Asker, higgs: &Higgs) {
        let mut seen = vec![false; asker.sent.len()];
        for (n, payload, _) in &asker.answers {
            assert!(!std::mem::replace(&mut seen[*n], true), "{}: request {n} was answered twice", self.name);
            let Some(expected) = self.expected else {
                assert_eq!(payload, higgs.request(n % higgs.rows.len()).as_bytes());
                continue;
            };
            let json: serde_json::Value = serde_json::from_slice(payload).unwrap();
            let got = json["prediction"][0].as_f64().unwrap_or_else(|| panic!("{}: {json}", self.name));
            assert!((got - expected(higgs, *n)).abs() <= TOLERANCE, "{}: {json}", self.name);
        }
        assert!(seen.into_iter().all(|seen| seen), "{}: a request has no answer", self.name);
    }

    fn rate(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }
}

/// Asks, and keeps what is answered and when.
struct Asker {
    client: Client,
    address: &'static str,
    inbox: String,
    replies: Subscriber,
    sent: Vec<Instant>,
    answers: Vec<(usize, Bytes, Duration)>,
}

impl Asker {
    async fn new(client: &Client, address: &'static str) -> Self {
        let inbox = client.new_inbox();
        let replies = client.subscribe(format!("{inbox}.*")).await.unwrap();
        client.flush().await.unwrap();
        Self { client: client.clone(), address, inbox, replies, sent: Vec::new(), answers: Vec::new() }
    }

    async fn ask(&mut self, n: usize, higgs: &Higgs) {
        let (reply, body) = (format!("{}.{n}", self.inbox), higgs.request(n % higgs.rows.len()));
        self.sent.push(clock::now());
        self.client.publish_with_reply(self.address, reply, body.into()).await.unwrap();
    }

    async fn take_one(&mut self) {
        let message = tokio::time::timeout(BOUND, self.replies.next()).await.unwrap().unwrap();
        self.keep(&message);
    }

    fn keep(&mut self, message: &Message) {
        let n: usize = message.subject.rsplit('.').next().unwrap().parse().unwrap();
        let took = clock::now() - self.sent[n];
        // What an answer lies in is a buffer of many: a copy lets it go.
        self.answers.push((n, Bytes::copy_from_slice(&message.payload), took));
    }

    /// So many a second, each at its time whether or not the one before is answered.
    async fn pace(&mut self, higgs: &Higgs, phase: Duration) {
        let start = clock::now();
        let count = usize::try_from(phase.as_millis()).unwrap() * RATE_PER_MS;
        while self.answers.len() < count {
            let n = self.sent.len();
            if n == count {
                self.take_one().await;
                continue;
            }
            let due = start + Duration::from_micros((n * 1000 / RATE_PER_MS) as u64);
            tokio::select! {
                biased;
                message = self.replies.next() => self.keep(&message.unwrap()),
                () = tokio::time::sleep_until(due.into()) => self.ask(n, higgs).await,
            }
        }
    }

    /// As many as are answered.
    async fn fill(&mut self, higgs: &Higgs, phase: Duration) {
        let start = clock::now();
        let mut is_open = true;
        while is_open || self.answers.len() < self.sent.len() {
            while is_open && self.sent.len() - self.answers.len() < IN_FLIGHT {
                self.ask(self.sent.len(), higgs).await;
            }
            self.take_one().await;
            is_open = clock::now() - start < phase;
        }
    }
}

fn report(subjects: &[Subject], bytes: usize) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    println!("requests of {bytes} bytes or so, nats-server, who asks and who answers on the same {cores} cores");
    println!(
        "{:18} {:>11} {:>20} {:>20} {:>12} {:>16}",
        "", "serial p50", "p50 at 1,000/s", "p99 at 1,000/s", "requests/s", "CPU us/request"
    );
    let echo = &subjects[0];
    let us = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 10.0;
    for subject in subjects {
        let of = |value: f64, floor: f64| format!("{value:.1} ({:.2}x)", value / floor);
        let cpu = |subject: &Subject| subject.cpu_us / subject.answered as f64;
        println!(
            "{:18} {:>11} {:>20} {:>20} {:>12} {:>16}   {}",
            subject.name,
            of(us(&subject.serial_us, 0.5), us(&echo.serial_us, 0.5)),
            of(us(&subject.paced_us, 0.5), us(&echo.paced_us, 0.5)),
            of(us(&subject.paced_us, 0.99), us(&echo.paced_us, 0.99)),
            format!("{:.0} ({:.2}x)", subject.rate(), subject.rate() / echo.rate()),
            of(cpu(subject), cpu(echo)),
            subject.what
        );
    }
}
