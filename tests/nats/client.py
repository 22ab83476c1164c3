"""A client of the NATS service, by nats-py: what its micro types read, and what requests are answered with.

client.py URL discover NAME COUNT               three lines of JSON: so many answers to PING, INFO and STATS of that service
client.py URL ask                               a request on each line of stdin, an answer on each line of stdout

A request is {"subject", "body", "headers", "timeout_s"}; all are sent at once. An answer is {"body", "headers", "ms"},
or {"lost"} when none came in time.
"""

import asyncio
import json
import sys
import time

import nats
from nats.errors import NoRespondersError, TimeoutError
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats


async def discover(client, name, count):
    for verb, kind in (("PING", ServicePing), ("INFO", ServiceInfo), ("STATS", ServiceStats)):
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)
        await client.publish(f"$SRV.{verb}.{name}", b"", reply=inbox)
        found = []
        while len(found) < count:
            message = await answers.next_msg(timeout=30)
            raw = json.loads(message.data)
            read = kind.from_dict(raw).to_dict()
            found.append({"raw": raw, "read": read})
            # The same instance is found by its id.
            one = await client.request(f"$SRV.{verb}.{name}.{raw['id']}", b"", timeout=10)
            assert json.loads(one.data)["id"] == raw["id"]
        # Who answers by its id has answered to all before: another answer would be here.
        assert answers.pending_msgs == 0, "more answers than services"
        print(json.dumps(found))


async def ask(client):
    requests = [json.loads(line) for line in sys.stdin]

    async def one(request):
        start = time.perf_counter()
        try:
            answer = await client.request(
                request["subject"],
                request["body"].encode(),
                timeout=request.get("timeout_s", 30),
                headers=request.get("headers"),
            )
        except (TimeoutError, NoRespondersError) as error:
            return {"lost": type(error).__name__}
        ms = (time.perf_counter() - start) * 1e3
        return {"body": json.loads(answer.data), "headers": dict(answer.headers or {}), "ms": ms}

    for answer in await asyncio.gather(*map(one, requests)):
        print(json.dumps(answer))


async def main():
    client = await nats.connect(sys.argv[1])
    await (discover(client, sys.argv[3], int(sys.argv[4])) if sys.argv[2] == "discover" else ask(client))
    await client.close()


asyncio.run(main())
