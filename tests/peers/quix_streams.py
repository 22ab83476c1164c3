#!/usr/bin/env python3
"""The bench's Quix Streams peer: a StreamingDataFrame that scores each row with LightGBM, exactly once.

As its documentation has it (`Application(processing_guarantee="exactly-once")`, JSON topics, `apply`, `to_topic`). Its
commits come every 100 ms, as in the other loops, instead of every 5 s. One argument: the settings as JSON, from
tests/bench.
"""

import json
import sys

import lightgbm
import numpy
from quixstreams import Application

COMMIT_INTERVAL_S = 0.1


def main():
    settings = json.loads(sys.argv[1])
    application = Application(
        broker_address=settings["brokers"],
        consumer_group=settings["group"],
        auto_offset_reset="earliest",
        commit_interval=COMMIT_INTERVAL_S,
        processing_guarantee="exactly-once",
        auto_create_topics=False,
        consumer_extra_config=settings["consumer"],
        producer_extra_config=settings["producer"],
        loglevel="WARNING",
    )
    booster = lightgbm.Booster(model_file=settings["model"])

    def score(request):
        return {"id": request["id"], "prediction": booster.predict(numpy.array([request["features"]])).tolist()}

    stream = application.dataframe(application.topic(settings["input"], value_deserializer="json"))
    stream = stream.apply(score)
    stream.to_topic(application.topic(settings["output"], value_serializer="json"))
    application.run()


if __name__ == "__main__":
    main()
