"""Times or lowers ONNX models with onnx.reference; runs on the device. Needs numpy and onnx, nothing of mobilenas."""

import json
import platform
import sys
import time

import numpy
import onnx
from onnx.reference import ReferenceEvaluator

DTYPES = {onnx.TensorProto.FLOAT: "float", onnx.TensorProto.INT64: "int64"}


def say(**report):
    print(json.dumps(report), flush=True)


def load(path):
    model = onnx.load(path)
    for index, node in enumerate(model.graph.node):
        node.name = "node%d" % index
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def inputs_of(model):
    generator = numpy.random.RandomState(0)
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name not in constants
    }
    return {name: generator.standard_normal(shape).astype("float32") for name, shape in shapes.items()}


def run_s(evaluator, inputs):
    start = time.perf_counter()
    evaluator.run(None, inputs)
    return time.perf_counter() - start


def time_model(job, request):
    sentinel = load(job["sentinel"])
    sentinel = ReferenceEvaluator(sentinel), inputs_of(sentinel)
    start = time.perf_counter()
    model = load(request["path"])
    evaluator = ReferenceEvaluator(model)
    load_ms = 1e3 * (time.perf_counter() - start)
    inputs = inputs_of(model)
    first_ms = 1e3 * run_s(evaluator, inputs)
    wall_ms, cpu_ms, sentinel_ms = [], [], [1e3 * run_s(*sentinel)]
    for _ in range(job["samples"]):
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        evaluator.run(None, inputs)
        wall_ms.append((time.perf_counter_ns() - wall) / 1e6)
        cpu_ms.append((time.thread_time_ns() - cpu) / 1e6)
    sentinel_ms.append(1e3 * run_s(*sentinel))
    say(
        type="timing",
        id=request["id"],
        wall_ms=wall_ms,
        cpu_ms=cpu_ms,
        sentinel_ms=sentinel_ms,
        first_ms=first_ms,
        load_ms=load_ms,
        peak_memory_mib=None,
        provider="reference",
    )


def lower_model(job, request):
    model = load(request["path"])
    path = request["path"] + ".lowered"
    onnx.save(model, path)
    known = {value.name: value.type.tensor_type for value in [*model.graph.value_info, *model.graph.output]}
    nodes = []
    for node in model.graph.node:
        types = [known.get(name) for name in node.output]
        outputs = [t and [DTYPES[t.elem_type], [dim.dim_value for dim in t.shape.dim]] for t in types]
        nodes.append({"name": node.name, "provider": "reference", "outputs": outputs})
    say(type="graph", id=request["id"], path=path, nodes=nodes)


def main():
    with open(sys.argv[1]) as file:
        job = json.load(file)
    say(
        type="hello",
        protocol=3,
        runner="onnx-reference",
        engine_version=onnx.__version__,
        providers=["reference"],
        python=platform.python_version(),
    )
    work = {"time": time_model, "lower": lower_model}[job["mode"]]
    done = 0
    for request in job["models"]:
        try:
            work(job, request)
            done += 1
        except Exception as error:  # one bad model must not end the others
            say(type="error", id=request["id"], message="%s: %s" % (type(error).__name__, error))
    say(type="bye", models=done)


if __name__ == "__main__":
    main()
