//! Servers that come and go.

use std::net::TcpListener;

use crate::support::nats::{Nats, run, until_async};
use crate::{NatsConnection, fails, settings, works};

pub(crate) fn waited_for() {
    let mut nats = Nats::start();
    nats.kill();
    run(async {
        let connection = NatsConnection::open(&settings(&nats.url(), "", nats.folder())).await.unwrap();
        fails(&connection, "refused").await;
        for _ in 0..3 {
            nats.restart();
            works(&connection).await;
            nats.kill();
            fails(&connection, "refused").await;
        }
    });
}

pub(crate) fn several_servers() {
    let (mut first, second) = (Nats::start(), Nats::start());
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    run(async {
        let servers = format!("nats://{dead},{}", first.url());
        // Whichever is asked first.
        for _ in 0..5 {
            works(&NatsConnection::open(&settings(&servers, "", first.folder())).await.unwrap()).await;
        }
        let both = format!("{},{}", first.url(), second.url());
        let connection = NatsConnection::open(&settings(&both, "", first.folder())).await.unwrap();
        let port = || connection.client().server_info().port;
        works(&connection).await;
        first.kill();
        until_async("the other server", || connection.is_connected() && port() == second.port()).await;
        works(&connection).await;
    });
}

pub(crate) fn hanging() {
    let (first, second) = (Nats::start(), Nats::start());
    run(async {
        let connection = NatsConnection::open(&settings(&first.url(), "", first.folder())).await.unwrap();
        works(&connection).await;
        first.signal("-STOP");
        until_async("the end of the connection", || !connection.is_connected()).await;
        first.signal("-CONT");
        works(&connection).await;
        // One that takes the connection and says nothing holds nobody up for long.
        first.signal("-STOP");
        let servers = format!("{},{}", first.url(), second.url());
        let settings = settings(&servers, "connect_timeout = \"200ms\"", first.folder());
        for _ in 0..5 {
            works(&NatsConnection::open(&settings).await.unwrap()).await;
        }
        first.signal("-CONT");
    });
}

pub(crate) fn lame_duck() {
    let lines =
        |_: &std::path::Path| vec!["lame_duck_duration: \"30s\"".into(), "lame_duck_grace_period: \"1s\"".into()];
    let (first, second) = (Nats::start_with(lines), Nats::start());
    run(async {
        let servers = format!("{},{}", first.url(), second.url());
        let connection = NatsConnection::open(&settings(&servers, "", first.folder())).await.unwrap();
        works(&connection).await;
        let port = || connection.client().server_info().port;
        first.lame_duck();
        until_async("the other server", || connection.is_connected() && port() == second.port()).await;
        works(&connection).await;
    });
}
