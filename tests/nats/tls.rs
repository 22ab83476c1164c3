//! Encrypted connections: who is trusted, and who is not.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use crate::support::nats::{Nats, run, until_async, write};
use crate::{NatsConnection, fails, settings, works};

/// Writes `{name}.pem`, of one who may sign, and the same for each of these, signed, with its `-key.pem`.
fn certificates(folder: &Path, name: &str, of: &[(&str, ExtendedKeyUsagePurpose)]) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    write(folder, &format!("{name}.pem"), &authority.pem());
    for (holder, purpose) in of {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose.clone()];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        write(folder, &format!("{holder}.pem"), &certificate.pem());
        write(folder, &format!("{holder}-key.pem"), &key.serialize_pem());
    }
}

/// A server with a certificate, a worker's beside it, another worker's that nobody knows, and more lines of its `tls`.
fn start(lines: &str) -> Nats {
    Nats::start_with(|folder| {
        let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
        certificates(folder, "ca", &[("server", server), ("worker", client.clone())]);
        certificates(folder, "other-ca", &[("stranger", client)]);
        let path = |name: &str| folder.join(name).display().to_string();
        vec![format!(
            "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", {lines} }}",
            path("server.pem"),
            path("server-key.pem"),
            path("ca.pem")
        )]
    })
}

async fn open(nats: &Nats, lines: &str) -> NatsConnection {
    NatsConnection::open(&settings(&nats.url(), lines, nats.folder())).await.unwrap()
}

pub(crate) fn server_certificate() {
    let nats = start("");
    run(async {
        works(&open(&nats, "tls.ca_file = \"ca.pem\"").await).await;
        works(&open(&nats, "tls.ca_file = \"ca.pem\"\ntls.required = false").await).await;
        fails(&open(&nats, "tls.ca_file = \"other-ca.pem\"").await, "certificate").await;
        fails(&open(&nats, "").await, "certificate").await;
    });
}

pub(crate) fn not_encrypted() {
    let (nats, certificates) = (Nats::start(), start(""));
    let settings = |lines: &str| settings(&nats.url(), lines, certificates.folder());
    run(async {
        works(&NatsConnection::open(&settings("tls.ca_file = \"ca.pem\"\ntls.required = false")).await.unwrap()).await;
        fails(&NatsConnection::open(&settings("tls.ca_file = \"ca.pem\"")).await.unwrap(), "InvalidContentType").await;
    });
}

pub(crate) fn client_certificate() {
    let nats = start("verify: true");
    let lines = |name: &str| {
        format!("tls.ca_file = \"ca.pem\"\ntls.cert_file = \"{name}.pem\"\ntls.key_file = \"{name}-key.pem\"")
    };
    run(async {
        works(&open(&nats, &lines("worker")).await).await;
        // Whether the server's reason comes before the end of the connection is a race; its log has it.
        for (lines, reason) in [
            (lines("stranger"), "failed to verify certificate"),
            ("tls.ca_file = \"ca.pem\"".to_owned(), "client didn't provide a certificate"),
        ] {
            fails(&open(&nats, &lines).await, "IO error").await;
            until_async(reason, || nats.log().contains(reason)).await;
        }
    });
}

pub(crate) fn first() {
    let nats = start("handshake_first: true");
    run(async {
        works(&open(&nats, "tls.ca_file = \"ca.pem\"\ntls.first = true").await).await;
        // Both wait for the other's first word.
        fails(&open(&nats, "tls.ca_file = \"ca.pem\"\nconnect_timeout = \"300ms\"").await, "timed out").await;
    });
}
