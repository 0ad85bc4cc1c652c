"""Reads what meshkv-stress has written with HdrHistogram's own Python reader, and compares.

read_hlog.py LOG REPORT.json"""

import json
import sys

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

log, report = sys.argv[1:]
with open(report) as file:
    expected = json.load(file)["latency"]["response"]["all"]
total = HdrHistogram(1, 600_000_000_000, 3)
reader = HistogramLogReader(log, total)
seconds = 0
while (second := reader.get_next_interval_histogram()) is not None:
    total.add(second)
    seconds += 1
inside = HdrHistogram.decode(expected["hdr"])
assert seconds > 1, seconds
for histogram in (total, inside):
    assert histogram.get_total_count() == expected["count"] > 0
    assert histogram.get_max_value() == expected["max"]
    for percentile, name in ((50, "p50"), (99, "p99"), (99.9, "p99_9")):
        assert histogram.get_value_at_percentile(percentile) == expected[name], name
print(f"{seconds} seconds, {expected['count']} answers: the same to both")
