"""moto's server, without two things that make it so slow that tests would mostly wait for it."""

import functools
import sys

import jsonpath_ng.ext
from moto.server import main
from moto.sqs.models import SQSBackend

# Eight expressions are parsed for every event and target, with a parser that is generated afresh each time.
jsonpath_ng.ext.parse = functools.cache(jsonpath_ng.ext.parse)

# Counts every message of the queue to find how long a single one is kept; nothing here lasts four days.
SQSBackend.is_message_valid_based_on_retention_period = lambda backend, queue, message: True

main(sys.argv[1:])
