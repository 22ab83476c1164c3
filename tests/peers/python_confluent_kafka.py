#!/usr/bin/env python3
"""The bench's Python peer: confluent-kafka and LightGBM in one loop, exactly once.

As confluent-kafka's own example of an exactly-once loop has it (consume, transform, produce, send offsets, commit), on
batches of up to 1,024 records, with a transaction every 100 ms. One argument: the settings as JSON, from tests/bench.
"""

import json
import sys
import time

import lightgbm
import numpy
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

BATCH_RECORDS = 1024
INTERVAL_S = 0.1


def main():
    settings = json.loads(sys.argv[1])
    common = {"bootstrap.servers": settings["brokers"]}
    consumer = Consumer(
        {**common, **settings["consumer"], **settings["consumer_of_a_loop"], "group.id": settings["group"]}
    )
    producer = Producer({**common, **settings["producer"], "transactional.id": settings["group"]})
    producer.init_transactions()
    consumer.subscribe([settings["input"]])
    booster = lightgbm.Booster(model_file=settings["model"])
    loop(consumer, producer, booster, settings["input"], settings["output"])


def loop(consumer, producer, booster, input_topic, output_topic):
    begun = None
    positions = {}
    while True:
        wait = 1.0 if begun is None else max(begun + INTERVAL_S - time.monotonic(), 0)
        # It returns when it has them all or the wait is over: a short one lets a lone record through.
        messages = consumer.consume(BATCH_RECORDS, min(wait, 0.005))
        if messages:
            if begun is None:
                producer.begin_transaction()
                begun = time.monotonic()
            for message in messages:
                if message.error():
                    raise KafkaException(message.error())
                positions[message.partition()] = message.offset() + 1
            requests = [json.loads(message.value()) for message in messages]
            scores = booster.predict(numpy.array([request["features"] for request in requests]))
            for message, request, score in zip(messages, requests, scores.tolist()):
                reply = json.dumps({"id": request["id"], "prediction": [score]})
                send(producer, output_topic, message.key(), reply)
            producer.poll(0)
        if begun is not None and time.monotonic() - begun >= INTERVAL_S:
            offsets = [TopicPartition(input_topic, number, offset) for number, offset in positions.items()]
            producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata())
            producer.commit_transaction()
            begun, positions = None, {}


def send(producer, topic, key, value):
    while True:
        try:
            return producer.produce(topic, value, key)
        except BufferError:
            producer.poll(0.01)


if __name__ == "__main__":
    main()
