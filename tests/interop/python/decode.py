"""Reads messages as JSON lines, and writes what the CloudEvents SDK makes of each."""

import base64
import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_rabbitmq_event
from cloudevents.core.formats.json import JSONFormat


def events(message):
    headers, body = message["headers"], base64.b64decode(message["body"])
    content_type = message["content_type"]
    if message["mode"] == "batch":
        # The SDK has no batches: each element is an event in the JSON format.
        return [JSONFormat().read(None, json.dumps(event)) for event in json.loads(body)]
    if message["sink"] == "rabbitmq":
        return [from_rabbitmq_event(RabbitMQMessage(headers, content_type, body))]
    if message["sink"] == "kafka":
        encoded = {name: value.encode() for name, value in headers.items()}
        if content_type:
            encoded["content-type"] = content_type.encode()
        return [from_kafka_event(KafkaMessage(encoded, None, body))]
    if content_type:
        headers["content-type"] = content_type
    # NATS spells headers as HTTP does.
    return [from_http_event(HTTPMessage(headers, body))]


def text(value):
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def shown(event):
    attributes = {name: text(value) for name, value in event.get_attributes().items() if value is not None}
    data = event.get_data()
    if isinstance(data, (bytes, bytearray)):
        return {"attributes": attributes, "bytes": base64.b64encode(data).decode()}
    return {"attributes": attributes, "data": data}


for line in sys.stdin:
    message = json.loads(line)
    try:
        answer = {"events": [shown(event) for event in events(message)]}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
