"""Hands on a runner's report line by line, and says at its end what the model took. Python 3.8 and its standard library."""

import json
import sys


def quantile(values, fraction):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def main():
    timings, has_ended = [], False
    for line in sys.stdin:
        sys.stdout.write(line)
        report = json.loads(line)
        if report["type"] == "timing":
            timings.append(report)
        elif report["type"] == "error":
            sys.exit("the engine refuses %s: %s" % (report["id"], report["message"]))
        has_ended = report["type"] == "bye"
    if not has_ended or not timings:
        sys.exit("the runner ended before its time: what it said on its standard error is above")
    for timing in timings:
        wall_ms = timing["wall_ms"]
        print(
            "%s: lowest %.4g ms, median %.4g ms, 90th percentile %.4g ms of %d runs; loaded in %.4g ms, first run %.4g ms"
            % (
                timing["id"],
                min(wall_ms),
                quantile(wall_ms, 0.5),
                quantile(wall_ms, 0.9),
                len(wall_ms),
                timing["load_ms"],
                timing["first_ms"],
            )
        )


if __name__ == "__main__":
    main()
