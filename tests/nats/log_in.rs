//! Each way to log in: it opens the server to who has the secret, and to nobody else.

use nkeys::KeyPair;

use crate::jwt::Accounts;
use crate::support::nats::{Nats, run, until_async, write};
use crate::{NatsConnection, fails, settings, works};

const REFUSED: &str = "authorization violation";

/// A server with this line: these settings open it, and those do not.
fn check(line: &str, good: &[&str], bad: &[&str]) {
    let nats = Nats::start_with(|_| vec![line.to_owned()]);
    run(async {
        for lines in good {
            works(&NatsConnection::open(&settings(&nats.url(), lines, nats.folder())).await.unwrap()).await;
        }
        for lines in bad {
            fails(&NatsConnection::open(&settings(&nats.url(), lines, nats.folder())).await.unwrap(), REFUSED).await;
        }
    });
}

pub(crate) fn password() {
    check(
        "authorization { user: ann, password: \"s3cret#1\" }",
        &["user = \"ann\"\npassword = \"s3cret#1\""],
        &["", "user = \"ann\"\npassword = \"s3cret#2\"", "user = \"bob\"\npassword = \"s3cret#1\""],
    );
}

pub(crate) fn token() {
    check("authorization { token: \"t0ken#1\" }", &["token = \"t0ken#1\""], &["", "token = \"t0ken#2\""]);
}

pub(crate) fn nkey() {
    let (ann, bob) = (KeyPair::new_user(), KeyPair::new_user());
    let line = |pair: &KeyPair| format!("nkey = \"{}\"", pair.seed().unwrap());
    check(
        &format!("authorization {{ users: [ {{ nkey: {} }} ] }}", ann.public_key()),
        &[&line(&ann)],
        &["", &line(&bob)],
    );
}

pub(crate) fn nkey_file() {
    let (old, new) = (KeyPair::new_user(), KeyPair::new_user());
    let line = |pair: &KeyPair| vec![format!("authorization {{ users: [ {{ nkey: {} }} ] }}", pair.public_key())];
    let mut nats = Nats::start_with(|_| line(&old));
    let folder = nats.folder().to_path_buf();
    let file = |pair: &KeyPair| write(&folder, "user.nk", &format!("{}\n", pair.seed().unwrap()));
    file(&old);
    let settings = settings(&nats.url(), "nkey_file = \"user.nk\"", nats.folder());
    run(async {
        let connection = NatsConnection::open(&settings).await.unwrap();
        works(&connection).await;
        file(&new);
        nats.kill();
        until_async("the end of the connection", || !connection.is_connected()).await;
        nats.restart_with(line(&new));
        works(&connection).await;
    });
}

pub(crate) fn credentials() {
    let accounts = Accounts::new();
    let nats = Nats::start_with(|_| accounts.server_lines());
    let creds = accounts.user_creds();
    write(nats.folder(), "user.creds", &creds);
    write(nats.folder(), "stranger.creds", &Accounts::new().user_creds());
    let settings = |name: &str| settings(&nats.url(), &format!("creds_file = \"{name}\""), nats.folder());
    run(async {
        let connection = NatsConnection::open(&settings("user.creds")).await.unwrap();
        works(&connection).await;
        let jetstream = async_nats::jetstream::new(connection.client().clone());
        let stream = async_nats::jetstream::stream::Config { name: "S".to_owned(), ..Default::default() };
        jetstream.create_stream(stream).await.unwrap();
        fails(&NatsConnection::open(&settings("stranger.creds")).await.unwrap(), REFUSED).await;
    });
}
