//! `[kafka.client]`, the way through to librdkafka: which keys may not pass, because the promise stands on the
//! worker's own value, and which values are secrets.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// Keys that are refused, each with the reason and the remedy. A `*` at the end stands for any ending.
const REFUSED: &[(&[&str], &str)] = &[
    (&["bootstrap.servers", "metadata.broker.list"], "use kafka.brokers"),
    (&["group.id"], "use kafka.group"),
    (&["group.instance.id"], "it is made from instance; set instance or --instance"),
    (&["transactional.id"], "it is made from kafka.group and instance; set those"),
    (&["auto.offset.reset"], "a lost position must not skip or repeat records; use kafka.start for a new group"),
    (
        &["enable.auto.commit", "auto.commit.enable", "enable.auto.offset.store"],
        "offsets are committed in one transaction with the replies; remove it",
    ),
    (&["isolation.level"], "records of aborted transactions must not be scored; remove it"),
    (
        &["enable.idempotence", "enable.gapless.guarantee", "acks", "request.required.acks", "max.in.flight*"],
        "transactions need an idempotent producer that waits for all replicas; remove it",
    ),
    (
        &["transaction.timeout.ms", "message.timeout.ms", "delivery.timeout.ms", "socket.timeout.ms"],
        "the time-outs of a transaction are set to fit each other; remove it",
    ),
    (&["partition.assignment.strategy", "group.protocol", "group.remote.assignor"], "use kafka.rebalance"),
];

/// Parts of a key that tell that its value is a secret.
const SECRET_PARTS: &[&str] =
    &["password", "passphrase", "secret", "token", "key.pem", "jaas.config", "oauthbearer.config"];

/// A value for librdkafka.
#[derive(Clone, Debug)]
pub enum ClientValue {
    /// May be printed.
    Plain(String),
    /// By its key a password, token or private key: never printed.
    Secret(SecretString),
}

impl ClientValue {
    /// The value of this key, kept as the key demands.
    #[must_use]
    pub fn new(key: &str, value: String) -> Self {
        let key = key.to_ascii_lowercase();
        if SECRET_PARTS.iter().any(|part| key.contains(part)) { Self::Secret(value.into()) } else { Self::Plain(value) }
    }

    /// The text for librdkafka, and for nobody else.
    #[must_use]
    pub fn expose(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Secret(text) => text.expose_secret(),
        }
    }
}

impl PartialEq for ClientValue {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

/// For people: a secret is `***`.
impl fmt::Display for ClientValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(text) => text,
            Self::Secret(_) => "***",
        })
    }
}

/// Why this key may not be passed on, if it may not.
pub(super) fn refusal(key: &str) -> Option<&'static str> {
    let is_key = |name: &str| name.strip_suffix('*').map_or(key == name, |start| key.starts_with(start));
    let refused = REFUSED.iter().find(|(names, _)| names.iter().any(|name| is_key(name)));
    refused.map(|&(_, reason)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_key() {
        for key in ["sasl.password", "ssl.key.pem", "sasl.oauthbearer.client.secret", "SSL.Keystore.Password"] {
            let value = ClientValue::new(key, "hunter2".to_owned());
            assert_eq!(value.expose(), "hunter2");
            assert_eq!(value.to_string(), "***");
            assert!(!format!("{value:?}").contains("hunter2"), "{key}");
        }
        assert_eq!(ClientValue::new("security.protocol", "SASL_SSL".to_owned()).to_string(), "SASL_SSL");
    }

    #[test]
    fn refuses_what_the_promise_stands_on() {
        let refused = "enable.auto.commit enable.auto.offset.store isolation.level auto.offset.reset \
            enable.idempotence acks request.required.acks transactional.id transaction.timeout.ms message.timeout.ms \
            delivery.timeout.ms socket.timeout.ms group.id group.instance.id bootstrap.servers metadata.broker.list \
            partition.assignment.strategy group.protocol enable.gapless.guarantee max.in.flight \
            max.in.flight.requests.per.connection";
        for key in refused.split_whitespace() {
            assert!(refusal(key).is_some(), "{key}");
        }
        for key in ["session.timeout.ms", "sasl.password", "security.protocol", "linger.ms"] {
            assert_eq!(refusal(key), None, "{key}");
        }
    }
}
