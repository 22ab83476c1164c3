//! A service whose server is the test itself: it takes no answers, or sends requests faster than anybody could take them.

use std::io::{BufRead as _, BufReader, Write as _, copy, sink};
use std::net::{TcpListener, TcpStream};
use std::thread::Builder;

use crate::support::{BOUND, Higgs, Worker, until};

/// As short as a subject can be.
const SUBJECT: &str = "p.m.predict";

/// As much of a NATS server as a service needs.
struct Server {
    stream: BufReader<TcpStream>,
    /// The endpoint's subscription.
    sid: String,
}

impl Server {
    /// Starts a worker, and takes its connection and subscription.
    fn start() -> (Self, Worker) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let toml = format!(
            "[nats]\nservers = \"nats://{}\"\nping_interval = \"5m\"\n[nats.service]\nprefix = \"p\"\n\
             [[model]]\nname = \"m\"\npath = \"{}\"\n",
            listener.local_addr().unwrap(),
            Higgs::model().display()
        );
        let worker = Worker::start(&toml, "w", "");
        listener.set_nonblocking(true).unwrap();
        let mut taken = None;
        until("a connection", || {
            taken = listener.accept().ok();
            taken.is_some()
        });
        let (stream, _) = taken.unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream.set_write_timeout(Some(BOUND)).unwrap();
        let mut server = Self { stream: BufReader::new(stream), sid: String::new() };
        server.send("INFO {\"headers\":true,\"max_payload\":1048576,\"proto\":1}\r\n");
        while server.sid.is_empty() {
            let line = server.line();
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["PING"] => server.send("PONG\r\n"),
                ["SUB", SUBJECT, _, sid] => sid.clone_into(&mut server.sid),
                _ => {}
            }
        }
        (server, worker)
    }

    fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.stream.read_line(&mut line).unwrap() > 0, "the worker has closed the connection");
        line
    }

    /// Reads until so many messages have come for that subject.
    fn read(&mut self, subject: &str, mut count: usize) {
        while count > 0 {
            let line = self.line();
            let mut words = line.split_whitespace();
            if words.next().is_some_and(|word| word == "PUB" || word == "HPUB") && words.next() == Some(subject) {
                count -= 1;
            }
        }
    }

    fn request(&self, reply: &str, body: &str) -> String {
        format!("MSG {SUBJECT} {} {reply} {}\r\n{body}\r\n", self.sid, body.len())
    }
}

/// Answers that the server does not take are dropped and counted, and no request waits behind them.
pub(crate) fn answers_not_taken() {
    const REQUESTS: usize = 5_000;
    /// What the client holds besides what the sockets do.
    const HELD: usize = 2_048;
    let (mut server, worker) = Server::start();
    let body = format!("{{\"features\":{}}}", Higgs::load().rows[0]);
    // It comes back with the answer: more than what the sockets and the client hold.
    let header = format!("NATS/1.0\r\ncorrelation_id: {}\r\n\r\n", "c".repeat(16 * 1024));
    let (header_bytes, all_bytes) = (header.len(), header.len() + body.len());
    let large = format!("HMSG {SUBJECT} {} many {header_bytes} {all_bytes}\r\n{header}{body}\r\n", server.sid);
    for _ in 0..REQUESTS {
        server.send(&large);
    }
    until("all requests taken, and none in flight", || {
        let count = |name: &str| usize::try_from(worker.metric(name)).unwrap();
        count("forebay_records_received_total") == REQUESTS && count("forebay_records_in_flight") == 0
    });
    let dropped = usize::try_from(worker.metric("forebay_replies_dropped_total")).unwrap();
    assert!(dropped > 0 && dropped + HELD < REQUESTS, "{dropped}");
    assert_eq!(worker.log().matches("could not be sent").count(), 1);
    // The others are still there, and what comes from now on is answered.
    server.read("many", HELD);
    let request = server.request("one", &body);
    server.send(&request);
    server.read("many", REQUESTS - dropped - HELD);
    server.read("one", 1);
}

/// Requests past what the client holds are dropped and counted.
pub(crate) fn flooded() {
    let (mut server, worker) = Server::start();
    let mut answers = server.stream.get_ref().try_clone().unwrap();
    Builder::new().name("test-answers".to_owned()).spawn(move || copy(&mut answers, &mut sink())).unwrap();
    let requests = server.request("r", "x").repeat(1 << 18);
    until("dropped requests", || {
        server.send(&requests);
        worker.metric("forebay_service_dropped_total") > 0
    });
    assert!(worker.log().contains("messages of NATS come faster than they are taken"));
}
