"""Times or lowers ONNX models with ONNX Runtime, on the device that this file was copied to.

Usage: python onnxruntime_runner.py JOB.json, with mobilenas_runner.py beside it, which says what a job is.

Needs Python 3.8, numpy and onnxruntime, nothing of mobilenas.

A job's "provider" is one, which then executes everything, or several with commas between, of which each takes what those before
it leave. Left to itself ONNX Runtime falls back to its CPU provider without a word.

On the CPU the memory of a model is limited: what the process uses once the engine is imported, four times the model with its
weights and its largest input or output, and 2 GiB. MOBILENAS_RUNNER_MEMORY sets another limit of the process, in MiB, or "off".
"""

import json
import os
import time

import mobilenas_runner
import numpy

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by the import: it would send data on its use
import onnxruntime

try:
    import resource
except ImportError:  # not a Unix
    resource = None

MEMORY = "MOBILENAS_RUNNER_MEMORY"
SPARE_BYTES = 2 * 2**30
TIMES = 4
NO_MEMORY = ("bad_alloc", "bad allocation", "ailed to allocate", "MemoryError", "Cannot allocate memory", "Unable to allocate")
DTYPES = {
    "tensor(float)": numpy.float32,
    "tensor(float16)": numpy.float16,
    "tensor(double)": numpy.float64,
    "tensor(int64)": numpy.int64,
    "tensor(int32)": numpy.int32,
    "tensor(int16)": numpy.int16,
    "tensor(int8)": numpy.int8,
    "tensor(uint64)": numpy.uint64,
    "tensor(uint32)": numpy.uint32,
    "tensor(uint16)": numpy.uint16,
    "tensor(uint8)": numpy.uint8,
    "tensor(bool)": numpy.bool_,
}
# types that numpy lacks: ONNX's number of the type, that of numpy with as many bits, and the bits that numbers below 2 have
FOREIGN = {
    "tensor(bfloat16)": (16, numpy.uint16, 0x3FFF),
    "tensor(float8e4m3fn)": (17, numpy.uint8, 0x3F),
    "tensor(float8e4m3fnuz)": (18, numpy.uint8, 0x3F),
    "tensor(float8e5m2)": (19, numpy.uint8, 0x3F),
    "tensor(float8e5m2fnuz)": (20, numpy.uint8, 0x3F),
    "tensor(uint4)": (21, numpy.uint8, 0x77),
    "tensor(int4)": (22, numpy.int8, 0x77),
}
TEXT = "tensor(string)"
PROFILED_S, FEWEST_PROFILED = 1.0, 3  # a profile of several runs ends after so many seconds, and so many runs
CPU = "CPUExecutionProvider"
COMPLAINTS = {
    "fallback to CPU EP has been explicitly disabled": "%s leaves some of the model to the CPU: "
    "say %s,CPUExecutionProvider to let it",
    "contains compiled nodes": "%s compiles the model as a whole and shows no kernels: networks by %s are "
    "measured whole, as profile --transfer --measure-networks 10 does",
}


def used_bytes():
    """Return the bytes that count toward the limit now, or None where the system does not report them."""
    for line in mobilenas_runner.read("/proc/self/status").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return None


BASE_BYTES = used_bytes()


def limit_memory(job, path, tensor_bytes=0):
    """Limit what this process may allocate for a model, as far as the system can."""
    asked = os.environ.get(MEMORY, "").strip()
    if resource is None or BASE_BYTES is None or providers_of(job) != [CPU] or asked in ("0", "off"):
        return
    if asked and not asked.isdigit():
        raise ValueError("%s is %r: it must be a number of MiB, or off" % (MEMORY, asked))
    files = [path]
    folder = job.get("model", {}).get("weights_folder")
    if folder:
        files += [os.path.join(folder, name) for name in os.listdir(folder)]
    model_bytes = sum(os.path.getsize(file) for file in files if os.path.isfile(file))
    limit = int(asked) * 2**20 if asked else BASE_BYTES + TIMES * (model_bytes + tensor_bytes) + SPARE_BYTES
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def largest_bytes(session, inputs):
    """Return the bytes of the largest input or output tensor whose shape is known."""
    sizes = [array.nbytes for _, array in inputs.values()]
    for value in session.get_outputs():
        if value.type in DTYPES and all(isinstance(size, int) for size in value.shape):
            sizes.append(int(numpy.prod(value.shape, dtype=float)) * numpy.dtype(DTYPES[value.type]).itemsize)
    return max(sizes or [0])


def providers_of(job):
    return job["provider"].split(",")


def starts(session, wanted):
    return session.get_providers()[: len(wanted)] == wanted


def session_of(job, path, options):
    """A session by the job's providers and no other."""
    wanted, known = providers_of(job), onnxruntime.get_available_providers()
    missing = [name for name in wanted if name not in known]
    if missing:
        words = "this build of ONNX Runtime has no %s, only %s" % (", ".join(missing), ", ".join(known))
        raise mobilenas_runner.Unavailable(words)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=wanted)
    except Exception as error:
        if CPU not in wanted and not starts(onnxruntime.InferenceSession(path, providers=[*wanted, CPU]), wanted):
            raise mobilenas_runner.Unavailable("%s cannot start here" % job["provider"]) from None
        for said, meant in COMPLAINTS.items():
            if said in str(error):
                raise ValueError(meant % (job["provider"], job["provider"])) from None
        raise
    if not starts(session, wanted):  # it says why on the standard output
        raise mobilenas_runner.Unavailable("%s cannot start here" % job["provider"])
    session.disable_fallback()  # to the CPU, after an error while running
    return session


def session_options(job, optimise):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if CPU not in providers_of(job):
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    return options


def source_of(job, path, options):
    """Return what a session is created from: the model's path, or its bytes where the weights are in another folder."""
    folder = job.get("model", {}).get("weights_folder", ".")
    if folder == ".":
        return path
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    with open(path, "rb") as file:
        return file.read()


def given(name, kind, shape, path):
    """Read the values of an input from a file, as numbers of its type."""
    array = numpy.load(path, allow_pickle=False)
    if list(array.shape) != list(shape):
        raise ValueError("the values given for the input %s are %s, it takes %s" % (name, list(array.shape), list(shape)))
    if kind == TEXT:
        return array.astype(object)
    return numpy.ascontiguousarray(array.astype(FOREIGN[kind][1] if kind in FOREIGN else DTYPES[kind], copy=False))


def drawn(name, kind, shape, generator, limit):
    """Draw values: normal numbers, any value of a small integer type, indices below ``limit``, else 0."""
    if kind == TEXT:
        return numpy.full(shape, "text", object)
    if kind in FOREIGN:
        _, dtype, bits = FOREIGN[kind]
        if kind == "tensor(bfloat16)":
            numbers = generator.standard_normal(shape).astype(numpy.float32)
            return (numbers.view(numpy.uint32) >> 16).astype(dtype)
        return generator.randint(1, bits + 1, shape).astype(dtype)
    dtype = DTYPES[kind]
    if dtype == numpy.bool_:
        return generator.randint(0, 2, shape).astype(dtype)
    if numpy.issubdtype(dtype, numpy.floating):
        return generator.standard_normal(shape).astype(dtype)
    if limit is not None:
        return generator.randint(0, max(1, min(limit, numpy.iinfo(dtype).max)), shape).astype(dtype)
    if numpy.dtype(dtype).itemsize <= 2:  # images; larger types hold sizes and indices, for which only 0 is safe
        return generator.randint(numpy.iinfo(dtype).min, int(numpy.iinfo(dtype).max) + 1, shape).astype(dtype)
    return numpy.zeros(shape, dtype)


def inputs_of(session, model):
    """Return type and values of each input, by name; the same each time."""
    generator = numpy.random.RandomState(0)
    files, limits = model.get("inputs", {}), model.get("index_limits", {})
    inputs = {}
    for value in session.get_inputs():
        name, kind = value.name, value.type
        if any(not isinstance(size, int) for size in value.shape):
            raise ValueError("input %s has the dynamic shape %s; fix it before timing" % (name, value.shape))
        if kind not in DTYPES and kind not in FOREIGN and kind != TEXT:
            raise ValueError("the input %s is of type %s, of which this runner can give no values" % (name, kind))
        if name in files:
            inputs[name] = kind, given(name, kind, value.shape, files[name])
        else:
            inputs[name] = kind, drawn(name, kind, value.shape, generator, limits.get(name))
    return inputs


def value_of(kind, array):
    """Wrap ``array`` for the engine; the array must outlive the result."""
    if kind not in FOREIGN:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, FOREIGN[kind][0])


class OnnxRuntime(mobilenas_runner.Engine):
    name = "onnxruntime"
    version = onnxruntime.__version__
    providers = tuple(onnxruntime.get_available_providers())

    def load(self, job, path, optimise):
        limit_memory(job, path)
        options = session_options(job, optimise)
        return session_of(job, source_of(job, path, options), options)

    def inputs(self, job, session):
        inputs = inputs_of(session, job.get("model", {}))
        if "path" in job.get("model", {}):
            limit_memory(job, job["model"]["path"], largest_bytes(session, inputs))
        return session, inputs

    def complaint(self, error):
        words = super().complaint(error)
        if resource is None or not any(part in words for part in NO_MEMORY):
            return words
        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if limit == resource.RLIM_INFINITY:
            return words
        return "it needs more than the %d MiB of memory that a runner may use here: set %s to more MiB, or to off (%s)" % (
            limit // 2**20,
            MEMORY,
            words,
        )

    def bind(self, session):
        session, inputs = session
        if any(kind == TEXT for kind, _ in inputs.values()):  # which cannot be bound
            feed = {name: array for name, (_, array) in inputs.items()}
            session.run(None, feed)
            return lambda: session.run(None, feed) and None
        binding = session.io_binding()
        for name, (kind, array) in inputs.items():
            binding.bind_ortvalue_input(name, value_of(kind, array))
        for value in session.get_outputs():
            binding.bind_output(value.name)
        session.run_with_iobinding(binding)
        for value, output in zip(session.get_outputs(), binding.get_outputs()):
            binding.bind_ortvalue_output(value.name, output)

        def run(kept=inputs):  # whose memory the binding only points to
            session.run_with_iobinding(binding)

        return run

    def provider(self, session):
        return session[0].get_providers()[0]

    def compute(self, session, numbers):
        session = session[0]
        given = session.get_inputs()[0]
        array = numpy.frombuffer(numbers, numpy.float32).reshape(given.shape)
        return session.run(None, {given.name: array})[0].astype(numpy.float32).tobytes()

    def lower(self, job, path):
        stem = os.path.splitext(path)[0]
        limit_memory(job, path)
        options = session_options(job, True)
        options.optimized_model_filepath = stem + ".optimised.onnx"
        apart = stem + ".optimised.weights"
        if "weights_folder" in job.get("model", {}):
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", apart)
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        options.enable_profiling = True
        options.profile_file_prefix = stem
        session = session_of(job, source_of(job, path, options), options)
        wanted = job.get("model", {}).get("profiled_runs", 1)
        run = self.bind(self.inputs(job, session))
        runs, end = 1, time.perf_counter() + PROFILED_S
        while runs < wanted and (runs < FEWEST_PROFILED or time.perf_counter() < end):
            run()
            runs += 1
        profile = session.end_profiling()
        with open(profile) as lines:
            events = json.load(lines)
        os.remove(profile)
        if os.path.exists(apart):
            os.remove(apart)
        return {"path": options.optimized_model_filepath, "nodes": nodes_of(events, runs)}


def nodes_of(events, runs):
    """Return the executed nodes; after several runs, with the milliseconds that each takes in one run."""
    suffix = "_kernel_time"
    by_name = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(suffix):
            by_name.setdefault(event["name"][: -len(suffix)], []).append(event)
    nodes = []
    for name, found in by_name.items():
        shapes = found[0]["args"]["output_type_shape"]
        node = {
            "name": name,
            "provider": found[0]["args"]["provider"],
            "outputs": [list(output.items())[0] if output else None for output in shapes],
        }
        if runs > 1:
            node["ms"] = time_of([event["dur"] for event in found], runs) / 1e3
        nodes.append(node)
    return nodes


def time_of(taken, runs):
    """Return the mean of the faster half of the runs after the first; of all runs for a node in a loop or branch."""
    if len(taken) != runs:
        return sum(taken) / runs
    fastest = sorted(taken[1:])[: max(1, (runs - 1) // 2)]
    return sum(fastest) / len(fastest)


if __name__ == "__main__":
    mobilenas_runner.main(OnnxRuntime())
