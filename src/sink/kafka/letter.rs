//! Dead letters: a record that could not be read or scored, as it came, with the headers that Spring's
//! `DeadLetterPublishingRecoverer` writes, so that its tools read ours.

use rdkafka::message::{Header, OwnedHeaders};

use super::super::ledger::Pending;
use super::super::producer::{Outgoing, ReplyProducer, TransactionError};
use super::Committer;
use crate::record::{Original, Reject, Ticket};

impl Committer {
    /// The topics that dead letters may go to.
    pub(super) fn letter_topics(&self) -> Vec<String> {
        let letters = self.ledger.routes.iter().flat_map(|route| {
            let letter = route.dead_letter.as_ref();
            letter.into_iter().flat_map(|letter| route.inputs.iter().map(|input| letter.topic(input)))
        });
        letters.collect()
    }

    /// How many partitions the dead letters' topics have is asked for before one of them goes out.
    pub(super) fn look_up_letter_topics(&mut self, producer: &ReplyProducer) -> Result<(), TransactionError> {
        for topic in self.letter_topics() {
            self.facts_of(producer, &topic)?;
        }
        Ok(())
    }

    pub(super) fn send_letter(
        &self,
        producer: &ReplyProducer,
        pending: &Pending,
        index: usize,
    ) -> Result<(), TransactionError> {
        let Ticket { chunk, .. } = &pending.reply.ticket;
        let request = pending.reply.ticket.request();
        let route = &self.ledger.routes[request.route as usize];
        let (Some(original), Some(letter), Some(reject)) =
            (chunk.original(request), &route.dead_letter, &pending.reply.error)
        else {
            return Ok(());
        };
        let topic = letter.topic(chunk.str(original.topic));
        // The same partition, as Spring does, where there is one of that number.
        let count = self.topics.get(&topic).and_then(|facts| facts.partitions);
        let partition = count.filter(|&count| original.number < count).map(|_| original.number);
        producer.send(Outgoing {
            topic: &topic,
            partition,
            key: request.key.map(|key| chunk.bytes(key)),
            payload: original.payload.map(|payload| chunk.bytes(payload)),
            headers: Some(self.letter_headers(&pending.reply.ticket, original, reject)),
            index,
        })
    }

    fn letter_headers(&self, ticket: &Ticket, original: &Original, reject: &Reject) -> OwnedHeaders {
        let chunk = &ticket.chunk;
        let number = original.number.to_be_bytes();
        let offset = ticket.request().position.offset.to_be_bytes();
        let timestamp = original.timestamp_ms.map(i64::to_be_bytes);
        let class = format!("forebay.{}", reject.code);
        let added: [(&str, &[u8]); 6] = [
            ("kafka_dlt-original-topic", chunk.bytes(original.topic)),
            ("kafka_dlt-original-partition", &number),
            ("kafka_dlt-original-offset", &offset),
            ("kafka_dlt-original-consumer-group", self.sink.limits.group.as_bytes()),
            ("kafka_dlt-exception-fqcn", class.as_bytes()),
            ("kafka_dlt-exception-message", reject.message.as_bytes()),
        ];
        let mut headers = OwnedHeaders::new_with_capacity(original.headers.len() + added.len() + 3);
        for (name, value) in &original.headers {
            let value = value.map(|value| chunk.bytes(value));
            headers = headers.insert(Header { key: chunk.str(*name), value });
        }
        for (key, value) in added {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        if let Some(id) = self.message_id(ticket.request().position, "letter") {
            headers = headers.insert(Header { key: super::MESSAGE_ID, value: Some(id.as_bytes()) });
        }
        if let Some(timestamp) = &timestamp {
            headers = headers.insert(Header { key: "kafka_dlt-original-timestamp", value: Some(timestamp) });
            let kind = if original.is_append_time { "LogAppendTime" } else { "CreateTime" };
            headers = headers.insert(Header { key: "kafka_dlt-original-timestamp-type", value: Some(kind) });
        }
        headers
    }
}
