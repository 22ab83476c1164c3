//! What `nsc` makes: an operator, its accounts and a user, as signed JWTs (nats-io/jwt, version 2).

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value as Json, json};

/// An operator with a system account, and an account with JetStream for users.
pub(crate) struct Accounts {
    operator: KeyPair,
    system: KeyPair,
    users: KeyPair,
}

impl Accounts {
    pub(crate) fn new() -> Self {
        Self { operator: KeyPair::new_operator(), system: KeyPair::new_account(), users: KeyPair::new_account() }
    }

    /// Lines of nats.conf that make a server this operator's.
    pub(crate) fn server_lines(&self) -> Vec<String> {
        let Self { operator, system, users } = self;
        let (system_key, users_key) = (system.public_key(), users.public_key());
        let claims = json!({"type": "operator", "version": 2, "system_account": system_key});
        // The system account may not have JetStream.
        let preloads = [(&system_key, "system", 0), (&users_key, "users", -1)].map(|(key, name, most)| {
            let limits = json!({
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
                "mem_storage": most, "disk_storage": most, "streams": most, "consumer": most,
            });
            let claims = json!({"type": "account", "version": 2, "limits": limits});
            format!("{key}: \"{}\"", signed(operator, key, name, &claims))
        });
        vec![
            format!("operator: \"{}\"", signed(operator, &operator.public_key(), "operator", &claims)),
            format!("system_account: {system_key}"),
            "resolver: MEMORY".to_owned(),
            format!("resolver_preload: {{ {} }}", preloads.join(", ")),
        ]
    }

    /// A new user's creds file.
    pub(crate) fn user_creds(&self) -> String {
        let user = KeyPair::new_user();
        let claims = json!({"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1});
        let jwt = signed(&self.users, &user.public_key(), "worker", &claims);
        let seed = user.seed().unwrap();
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\
             NKEYs are sensitive and should be treated as secrets.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n\
             *************************************************************\n"
        )
    }
}

/// The JWT in which `issuer` says that `subject` has these claims.
fn signed(issuer: &KeyPair, subject: &str, name: &str, claims: &Json) -> String {
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let body = json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name, "sub": subject, "nats": claims,
    });
    let encode = |json: &Json| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
    let text = format!("{}.{}", encode(&header), encode(&body));
    let signature = issuer.sign(text.as_bytes()).unwrap();
    format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}
