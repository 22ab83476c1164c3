//! What the subject tells of a delivery, that it is acknowledged at.

/// A delivery of one message by a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// How often the consumer has delivered the message, this time included.
    pub(crate) count: u64,
    /// The message's sequence in its stream.
    pub(crate) sequence: i64,
    /// The number of this delivery among all of the consumer's, without a gap.
    pub(crate) number: u64,
    /// When the stream took the message, in milliseconds since the epoch.
    pub(crate) timestamp_ms: i64,
    /// Messages that the consumer has not delivered yet.
    pub(crate) pending: u64,
}

/// Reads `$JS.ACK.<stream>.<consumer>.<count>.<sequence>.<number>.<nanoseconds>.<pending>`, or the form of newer servers
/// with domain and account before the stream and a token at the end.
pub(crate) fn read(subject: &str) -> Option<Delivery> {
    let mut tokens = [""; 12];
    let mut count = 0;
    for token in subject.split('.') {
        *tokens.get_mut(count)? = token;
        count += 1;
    }
    let first = match count {
        9 => 4,
        11 | 12 => 6,
        _ => return None,
    };
    if (tokens[0], tokens[1]) != ("$JS", "ACK") {
        return None;
    }
    let number = |at: usize| tokens[first + at].parse::<i64>().ok().filter(|&number| number >= 0);
    Some(Delivery {
        count: number(0)?.unsigned_abs(),
        sequence: number(1)?,
        number: number(2)?.unsigned_abs(),
        timestamp_ms: number(3)? / 1_000_000,
        pending: number(4)?.unsigned_abs(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let wanted = Delivery { count: 2, sequence: 81, number: 90, timestamp_ms: 1_700_000_000_123, pending: 7 };
        assert_eq!(read("$JS.ACK.FEATURES.fraud-0.2.81.90.1700000000123456789.7"), Some(wanted));
        assert_eq!(read("$JS.ACK.hub.ACCHASH.FEATURES.fraud-0.2.81.90.1700000000123456789.7.token"), Some(wanted));
        assert_eq!(read("$JS.ACK.hub.ACCHASH.FEATURES.fraud-0.2.81.90.1700000000123456789.7"), Some(wanted));
        for other in ["", "_INBOX.a.b", "$JS.ACK.S.C.1.2.3.4", "$JS.ACK.S.C.1.x.3.4.5", "$JS.API.S.C.1.2.3.4.5"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
