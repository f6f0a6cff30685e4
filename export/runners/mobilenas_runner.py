"""What every runner does: it reads a job, says hello, times or lowers each of its models, and says bye.

Usage of a runner: python ENGINE_runner.py JOB.json, with this file beside it. Python 3.8 and its standard library.

A runner hands ``main`` an ``Engine``. One JSON object is printed per line: "hello", one per model, "bye"
(export/protocol/report.schema.json). A model that fails prints its error and the others go on.

A job:
  {"mode": "time" | "lower" | "compute", "threads": 1, "provider": "CPUExecutionProvider", "precision": "fp32",
   "models": [{"id": "m1", "path": "m1.onnx", "optimise": true}], "sentinel": "sentinel.onnx", "sentinel_every_s": 0.001,
   "samples": 50, "maximum_samples": 200, "minimum_s": 0.01, "maximum_s": 1.0,
   "warmup_runs": 3, "warmup_s": 0.005, "warmup_maximum_s": 0.1, "warmup_tolerance_fraction": 0.02}

A model may hold more: "inputs", files of values in NumPy's format by input; "index_limits", by input the number of rows that it
is an index into; "weights_folder", where weights lie that are not in the model.

"time" runs every model on one fixed random input, in the order given, and prints wall and CPU time of every sample. Between
them, every so often, it runs the sentinel, one and the same small model, which tells how fast the device is at that moment.
"lower" prints what the engine executes of each model: of each node the provider and output shapes, and where the model's
"profiled_runs" is above 1 the time of one run, if the engine tells it.
"compute" runs each model on the job's "inputs", a file of "calls" times as many float32 numbers as the model's one input has,
and prints where the numbers of its one output lie.
"""

import glob
import json
import os
import platform
import sys
import time

PROTOCOL = 3
WARMUP_WINDOW = 5  # runs whose median is compared with that of as many before them
FEWEST_SAMPLES = 10  # of a model that takes so long that "maximum_s" ends it
SENTINEL_RUNS = 4  # at a time, of which the least counts
FEWEST_BETWEEN = 3  # samples between two times of the sentinel


class Unavailable(Exception):
    """The engine is here, and what it would run on is not."""


class Engine:
    """What a runner tells of its engine; ``job`` holds "threads", "provider" and "precision"."""

    name = ""
    version = ""
    providers = ()

    def load(self, job, path, optimise):
        """A session of the model in ``path``; other files of it lie beside, under the same stem. May raise."""
        raise NotImplementedError

    def inputs(self, job, session):
        """Return what ``bind``, ``provider`` and ``compute`` receive: ``session`` with its inputs. Not timed.

        ``job["model"]`` may hold, by name of the input, files of values in "inputs" and bounds of indices in "index_limits".
        """
        return session

    def bind(self, session):
        """A call that runs the model once on fixed inputs, and has done so.

        It may return how many nanoseconds that took on the device, where that has a clock of its own.
        """
        raise NotImplementedError

    def provider(self, session):
        """What really executes it."""
        return self.providers[0]

    def compute(self, session, numbers):
        """The model's one output for one input, both as bytes of float32 numbers."""
        raise NotImplementedError

    def complaint(self, error):
        """Format an error as the text of an "error" report."""
        return "%s: %s" % (type(error).__name__, error)

    def lower(self, job, path):
        """Fields of the "graph" report: "nodes", and "path" of the graph if the engine has rewritten it."""
        raise NotImplementedError


REPORT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # engines print to the standard output, which is the report's


def say(**report):
    REPORT.write(json.dumps(report) + "\n")
    REPORT.flush()


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def machine_state():
    """What this device tells of itself now; what it does not tell stays empty."""
    models, clocks = [], []
    for line in read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            models.append(value.strip())
        elif key.strip() == "cpu MHz":
            clocks.append(float(value))
    for path in sorted(glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")) if not clocks else ():
        clocks.append(int(read(path) or 0) / 1000.0)
    zones = [read(path).strip() for path in sorted(glob.glob("/sys/class/thermal/thermal_zone*/temp"))]
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpu_model": models[0] if models else platform.processor() or "unknown",
        "cpu_count": os.cpu_count() or 1,
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        "frequencies_mhz": clocks,
        "temperatures_celsius": [int(zone) / 1000.0 for zone in zones if zone],
        "load_average": list(os.getloadavg()),
    }


def reset_peak_memory():
    """Best effort: without it the peak is that of all models so far in this process."""
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")
    except OSError:
        pass


def peak_memory_mib():
    """The process's peak resident memory since the reset, or None where the system does not tell."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024.0
    except OSError:
        pass
    return None


def cpu_times_s():
    """Return the seconds since boot and the busy seconds, summed over all processors; None where the system does not report
    them. Time that the host gave to other guests ("steal") counts as busy.
    """
    words = read("/proc/stat").partition("\n")[0].split()
    if len(words) < 8 or words[0] != "cpu":
        return None
    user, nice, system, idle, waiting, interrupts, soft, *stolen = (int(word) for word in words[1:9])
    busy = user + nice + system + interrupts + soft + sum(stolen)
    hertz = float(os.sysconf("SC_CLK_TCK"))
    return (busy + idle + waiting) / hertz, busy / hertz


class Load:
    """Meter of the share of all processors that other processes take, from its creation on."""

    def __init__(self):
        self.begin, self.own_s = cpu_times_s(), time.process_time()

    def fraction(self):
        """Return the share so far; None within the first tenth of a second, or where the system does not report it."""
        end, own_s = cpu_times_s(), time.process_time() - self.own_s
        if self.begin is None or end is None or end[0] - self.begin[0] < 0.1 * (os.cpu_count() or 1):
            return None
        whole_s = end[0] - self.begin[0]
        return min(1.0, max(0.0, (end[1] - self.begin[1] - own_s) / whole_s))


SINCE_START = Load()


def warm_up(job, run):
    """Run until the times have settled; False if they have not when the job's patience ends.

    It lasts ten times as long for a model that takes so long that too few runs could tell yet.
    """
    begin = time.perf_counter()
    times = []
    while True:
        start = time.perf_counter()
        run()
        end = time.perf_counter()
        times.append(end - start)
        if len(times) < job["warmup_runs"] or end - begin < job["warmup_s"]:
            continue
        if len(times) >= 2 * WARMUP_WINDOW:
            now, before = (
                sorted(part)[WARMUP_WINDOW // 2]
                for part in (times[-WARMUP_WINDOW:], times[-2 * WARMUP_WINDOW : -WARMUP_WINDOW])
            )
            if abs(now - before) <= job["warmup_tolerance_fraction"] * before:
                return True
        patience_s = job["warmup_maximum_s"] * (1 if len(times) >= 2 * WARMUP_WINDOW else 10)
        if end - begin >= patience_s:
            return False


def open_model(engine, job, path, optimise):
    """A session, a call that runs it once, and how long loading and the first run took."""
    start = time.perf_counter()
    session = engine.load(job, path, optimise)
    load_ms = (time.perf_counter() - start) * 1e3
    session = engine.inputs(job, session)
    start = time.perf_counter()
    run = engine.bind(session)
    first_ms = (time.perf_counter() - start) * 1e3
    return session, run, load_ms, first_ms


def timed(run):
    """Wall time and CPU time of one run in nanoseconds; both by the device's own clock where it has one."""
    cpu_start = time.thread_time_ns()
    wall_start = time.perf_counter_ns()
    told_ns = run()
    wall_end = time.perf_counter_ns()
    cpu_end = time.thread_time_ns()
    if isinstance(told_ns, int):  # what else an engine returns are results
        return told_ns, told_ns
    return wall_end - wall_start, cpu_end - cpu_start


def time_sentinel(run):
    return min(timed(run)[0] for _ in range(SENTINEL_RUNS)) / 1e6


def time_model(engine, job, model, run_sentinel):
    reset_peak_memory()
    load = Load()
    session, run, load_ms, first_ms = open_model(engine, job, model["path"], model["optimise"])
    is_warm = warm_up(job, run)

    wall_ns, cpu_ns = [], []
    sentinel_ms = [time_sentinel(run_sentinel)]
    timed_ns = since_ns = between = 0
    while len(wall_ns) < job["maximum_samples"]:
        if len(wall_ns) >= job["samples"] and timed_ns >= job["minimum_s"] * 1e9:
            break
        if len(wall_ns) >= FEWEST_SAMPLES and timed_ns >= job["maximum_s"] * 1e9:
            break
        if since_ns >= job["sentinel_every_s"] * 1e9 and between >= FEWEST_BETWEEN:
            sentinel_ms.append(time_sentinel(run_sentinel))
            since_ns = between = 0
        wall, cpu = timed(run)
        wall_ns.append(wall)
        cpu_ns.append(cpu)
        timed_ns += wall_ns[-1]
        since_ns += wall_ns[-1]
        between += 1
    sentinel_ms.append(time_sentinel(run_sentinel))
    load_fraction = load.fraction()
    say(
        type="timing",
        id=model["id"],
        wall_ms=[value / 1e6 for value in wall_ns],
        cpu_ms=[value / 1e6 for value in cpu_ns],
        sentinel_ms=sentinel_ms,
        first_ms=first_ms,
        load_ms=load_ms,
        peak_memory_mib=peak_memory_mib(),
        is_warm=is_warm,
        load_fraction=SINCE_START.fraction() if load_fraction is None else load_fraction,
        provider=engine.provider(session),
    )


def compute_model(engine, job, model):
    session = engine.inputs(job, engine.load(job, model["path"], True))
    with open(job["inputs"], "rb") as file:
        numbers = file.read()
    size = len(numbers) // job["calls"]
    path = model["path"] + ".outputs"
    with open(path, "wb") as file:
        for start in range(0, len(numbers), size):
            file.write(engine.compute(session, numbers[start : start + size]))
    say(type="outputs", id=model["id"], path=path)


def main(engine):
    with open(sys.argv[1]) as lines:
        job = json.load(lines)
    say(
        type="hello",
        protocol=PROTOCOL,
        runner=engine.name,
        engine_version=engine.version,
        providers=list(engine.providers),
        python=platform.python_version(),
        state=machine_state(),
    )
    run_sentinel = None
    done = 0
    for model in job["models"]:
        try:
            if job["mode"] == "time":
                if run_sentinel is None:
                    _, run_sentinel, _, _ = open_model(engine, job, job["sentinel"], True)
                    warm_up(job, run_sentinel)
                time_model(engine, {**job, "model": model}, model, run_sentinel)
            elif job["mode"] == "compute":
                compute_model(engine, {**job, "model": model}, model)
            else:
                say(type="graph", id=model["id"], **engine.lower({**job, "model": model}, model["path"]))
            done += 1
        except Unavailable as error:
            say(type="error", id=model["id"], message=str(error), unavailable=True)
        except Exception as error:  # one bad model must not end the others
            say(type="error", id=model["id"], message=engine.complaint(error))
    say(type="bye", models=done)
