//! `forebay demo --nats`: the show itself, its judge that can fail, and servers that it cannot run on.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::thread::Builder;

use futures_util::StreamExt as _;

use crate::support::nats::{Nats, run};
use crate::support::repository;

fn demo(arguments: &[&str], failpoints: &str) -> Output {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_forebay"));
    demo.arg("demo").args(arguments).env("FAILPOINTS", failpoints).current_dir(repository()).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn last_line(output: &Output) -> String {
    text(output).lines().last().unwrap_or_default().to_owned()
}

/// Slow enough for a kill midway on a busy machine.
fn streamed(nats: &Nats, failpoints: &str) -> Output {
    demo(&["--nats", &nats.url(), "--records", "3000", "--rate", "2000"], failpoints)
}

/// Two workers, one killed midway; and nothing stays behind.
pub(crate) fn one_worker_killed() {
    let nats = Nats::start();
    let output = streamed(&nats, "");
    let (line, text) = (last_line(&output), text(&output));
    println!("{line}");
    assert!(line.starts_with("demo: in=3000 replies=3000 lost=0 doubled=0 "), "{line}\n{output:?}");
    let parts =
        ["requests  2000 of 2000 answered", "Nats-Service-Error-Code: 400", "SIGKILL to worker demo-a", "\nnext: "];
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let streams = run(async {
        let context = async_nats::jetstream::new(nats.client().await);
        context.stream_names().map(Result::unwrap).collect::<Vec<_>>().await
    });
    assert_eq!(streams, [""; 0]);
}

/// A reply that is missing and one that came twice are seen, and so are servers that it cannot run on.
pub(crate) fn can_fail() {
    let failpoints = "sink::drop_reply=100*off->1*return->off;sink::double_reply=200*off->1*return->off";
    let output = streamed(&Nats::start(), failpoints);
    assert!(last_line(&output).starts_with("demo: in=3000 replies=3000 lost=1 doubled=1 "), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
    unfit_servers();
}

/// What cannot be is said at once, with the server's URL.
fn unfit_servers() {
    let fails = |url: &str, code: i32, wanted: &str| {
        let output = demo(&["--nats", url], "");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.starts_with("forebay: ") && error.contains(wanted), "{error}");
        assert_eq!(output.status.code(), Some(code), "{error}");
    };
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fails(&format!("nats://{free}"), 1, &format!("no NATS server answers at nats://{free}"));
    fails("nats://me:secret@localhost", 2, "--nats: holds a user or password");

    let accounts = "accounts { a { users: [{ user: a, password: a }] } }";
    let nats = Nats::start_with(|_| vec![accounts.to_owned(), "no_auth_user: a".to_owned()]);
    fails(&nats.url(), 1, &format!("the NATS server at {} has no JetStream", nats.url()));

    let old = old_server();
    fails(&old, 1, &format!("the NATS server at {old} has version 2.11.9, and exactly once needs 2.12"));
}

/// A server that says an old version and takes one client. Returns its URL.
fn old_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let serve = move || {
        let (mut client, _) = listener.accept().unwrap();
        let info = r#"{"server_id":"old","version":"2.11.9","proto":1,"headers":true,"max_payload":1048576}"#;
        write!(client, "INFO {info}\r\n").unwrap();
        let lines = BufReader::new(client.try_clone().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            if line == "PING" {
                client.write_all(b"PONG\r\n").unwrap();
            }
        }
    };
    Builder::new().name("test-old-server".to_owned()).spawn(serve).unwrap();
    url
}
