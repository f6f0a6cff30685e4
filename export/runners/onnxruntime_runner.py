"""Times or lowers ONNX models with ONNX Runtime, on the device that this file was copied to.

Usage: python onnxruntime_runner.py JOB.json, with mobilenas_runner.py beside it, which says what a job is.

Needs Python 3.8, numpy and onnxruntime, nothing of mobilenas.

A job's "provider" is one, which then executes everything, or several with commas between, of which each takes what those before
it leave. Left to itself ONNX Runtime falls back to its CPU provider without a word.
"""

import json
import os

import mobilenas_runner
import numpy

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by the import: it would send data on its use
import onnxruntime

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
CPU = "CPUExecutionProvider"
COMPLAINTS = {
    "fallback to CPU EP has been explicitly disabled": "%s leaves some of the model to the CPU: "
    "say %s,CPUExecutionProvider to let it",
    "contains compiled nodes": "%s compiles the model as a whole and shows no kernels: networks by %s are "
    "measured whole, as profile --transfer --measure-networks 10 does",
}


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


class OnnxRuntime(mobilenas_runner.Engine):
    name = "onnxruntime"
    version = onnxruntime.__version__
    providers = tuple(onnxruntime.get_available_providers())

    def load(self, job, path, optimise):
        return session_of(job, path, session_options(job, optimise))

    def bind(self, session):
        binding = session.io_binding()
        for name, array in random_inputs(session).items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for value in session.get_outputs():
            binding.bind_output(value.name)
        session.run_with_iobinding(binding)
        for value, output in zip(session.get_outputs(), binding.get_outputs()):
            binding.bind_ortvalue_output(value.name, output)
        return lambda: session.run_with_iobinding(binding)

    def provider(self, session):
        return session.get_providers()[0]

    def compute(self, session, numbers):
        given = session.get_inputs()[0]
        array = numpy.frombuffer(numbers, numpy.float32).reshape(given.shape)
        return session.run(None, {given.name: array})[0].astype(numpy.float32).tobytes()

    def lower(self, job, path):
        stem = os.path.splitext(path)[0]
        options = session_options(job, True)
        options.optimized_model_filepath = stem + ".optimised.onnx"
        options.enable_profiling = True
        options.profile_file_prefix = stem
        session = session_of(job, path, options)
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
        return {"path": options.optimized_model_filepath, "nodes": nodes}


if __name__ == "__main__":
    mobilenas_runner.main(OnnxRuntime())
