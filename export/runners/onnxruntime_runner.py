"""Times or lowers ONNX models with ONNX Runtime, on the device that this file was copied to.

Usage: python onnxruntime_runner.py JOB.json

Needs Python 3.8, numpy and onnxruntime, nothing of mobilenas. Prints one JSON object per line: "hello", one per model,
"bye" (export/protocol/report.schema.json). A model that fails prints its error and the others go on.

A job:
  {"mode": "time" | "lower", "threads": 1, "provider": "CPUExecutionProvider",
   "models": [{"id": "m1", "path": "m1.onnx", "optimise": true}], "sentinel": "sentinel.onnx", "sentinel_every_s": 0.001,
   "samples": 50, "maximum_samples": 200, "minimum_s": 0.01, "maximum_s": 1.0,
   "warmup_runs": 3, "warmup_s": 0.005, "warmup_maximum_s": 0.1, "warmup_tolerance_fraction": 0.02}

"time" runs every model on one fixed random input, in the order given, and prints wall and CPU time of every sample. Between
them, every so often, it runs the sentinel, one and the same small model, which tells how fast the device is at that moment.
"lower" prints where the engine's optimised graph was written, and for each of its nodes the provider and output shapes.
"""

import glob
import json
import os
import platform
import sys
import time

import numpy
import onnxruntime

PROTOCOL = 3
WARMUP_WINDOW = 5  # runs whose median is compared with that of as many before them
FEWEST_SAMPLES = 10  # of a model that takes so long that "maximum_s" ends it
SENTINEL_RUNS = 4  # at a time, of which the least counts
FEWEST_BETWEEN = 3  # samples between two times of the sentinel
DTYPES = {
    "tensor(float)": numpy.float32,
    "tensor(float16)": numpy.float16,
    "tensor(double)": numpy.float64,
    "tensor(int64)": numpy.int64,
    "tensor(int32)": numpy.int32,
    "tensor(uint8)": numpy.uint8,
    "tensor(int8)": numpy.int8,
    "tensor(bool)": numpy.bool_,
}


def say(**report):
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


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


def session_options(job, optimise):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    return options


def random_inputs(session):
    generator = numpy.random.RandomState(0)
    inputs = {}
    for value in session.get_inputs():
        if any(not isinstance(size, int) for size in value.shape):
            raise ValueError("input %s has the dynamic shape %s; fix it before timing" % (value.name, value.shape))
        dtype = DTYPES[value.type]
        if numpy.issubdtype(dtype, numpy.floating):
            inputs[value.name] = generator.standard_normal(value.shape).astype(dtype)
        else:
            inputs[value.name] = numpy.zeros(value.shape, dtype)
    return inputs


def bind(session, inputs):
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for value in session.get_outputs():
        binding.bind_output(value.name)
    session.run_with_iobinding(binding)
    for value, output in zip(session.get_outputs(), binding.get_outputs()):
        binding.bind_ortvalue_output(value.name, output)
    return binding


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


def open_model(job, path, optimise):
    """A session of a model with a call that runs it once, on one fixed input, and how long loading and the first run took."""
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(path, session_options(job, optimise), providers=[job["provider"]])
    load_ms = (time.perf_counter() - start) * 1e3
    inputs = random_inputs(session)
    start = time.perf_counter()
    binding = bind(session, inputs)
    first_ms = (time.perf_counter() - start) * 1e3
    return session, lambda: session.run_with_iobinding(binding), load_ms, first_ms


def time_sentinel(run):
    times = []
    for _ in range(SENTINEL_RUNS):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return min(times) / 1e6


def time_model(job, model, run_sentinel):
    reset_peak_memory()
    session, run, load_ms, first_ms = open_model(job, model["path"], model["optimise"])
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
        cpu_start = time.thread_time_ns()
        wall_start = time.perf_counter_ns()
        run()
        wall_end = time.perf_counter_ns()
        cpu_end = time.thread_time_ns()
        wall_ns.append(wall_end - wall_start)
        cpu_ns.append(cpu_end - cpu_start)
        timed_ns += wall_ns[-1]
        since_ns += wall_ns[-1]
        between += 1
    sentinel_ms.append(time_sentinel(run_sentinel))
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
        provider=session.get_providers()[0],
    )


def lower_model(job, model):
    stem = os.path.splitext(model["path"])[0]
    options = session_options(job, True)
    options.optimized_model_filepath = stem + ".optimised.onnx"
    options.enable_profiling = True
    options.profile_file_prefix = stem
    session = onnxruntime.InferenceSession(model["path"], options, providers=[job["provider"]])
    session.run(None, random_inputs(session))
    profile = session.end_profiling()
    with open(profile) as lines:
        events = json.load(lines)
    os.remove(profile)
    suffix = "_kernel_time"
    nodes = [
        {
            "name": event["name"][: -len(suffix)],
            "provider": event["args"]["provider"],
            "outputs": [list(output.items())[0] if output else None for output in event["args"]["output_type_shape"]],
        }
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith(suffix)
    ]
    say(type="graph", id=model["id"], path=options.optimized_model_filepath, nodes=nodes)


def main():
    with open(sys.argv[1]) as lines:
        job = json.load(lines)
    say(
        type="hello",
        protocol=PROTOCOL,
        runner="onnxruntime",
        engine_version=onnxruntime.__version__,
        providers=onnxruntime.get_available_providers(),
        python=platform.python_version(),
        state=machine_state(),
    )
    if job["mode"] == "time" and job["models"]:
        _, run_sentinel, _, _ = open_model(job, job["sentinel"], True)
        warm_up(job, run_sentinel)
    done = 0
    for model in job["models"]:
        try:
            if job["mode"] == "time":
                time_model(job, model, run_sentinel)
            else:
                lower_model(job, model)
            done += 1
        except Exception as error:  # one bad model must not end the others
            say(type="error", id=model["id"], message="%s: %s" % (type(error).__name__, error))
    say(type="bye", models=done)


if __name__ == "__main__":
    main()
