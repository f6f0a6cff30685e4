"""Times MNN models, on the device that this file was copied to.

Usage: python mnn_runner.py JOB.json, with mobilenas_runner.py beside it, which says what a job is. A model's weights lie beside
it, in a file of its name and ".weight".

Needs Python 3.8, numpy and MNN, nothing of mobilenas. Lowering is done on the host: MNN runs the graph that its converter made.
"""

import platform

import mobilenas_runner  # isort: skip  # first: from then on what an engine prints is kept out of the report
import MNN
import numpy

PRECISIONS = {"fp32": "high", "fp16": "low", "int8": "high"}  # of what is no integer


def computes_halves():
    """Whether this processor does: an ARM since version 8.2, as Linux tells; of other systems' it is taken for granted."""
    lines = [line.partition(":") for line in mobilenas_runner.read("/proc/cpuinfo").splitlines()]
    features = [value.split() for key, _, value in lines if key.strip() == "Features"]
    return platform.machine() in ("aarch64", "arm64") and all("asimdhp" in found for found in features)


def tensor_of(array):
    return MNN.Tensor(array.shape, MNN.Halide_Type_Float, array, MNN.Tensor_DimensionType_Caffe)


class Mnn(mobilenas_runner.Engine):
    name = "mnn"
    version = MNN.version()
    providers = ("CPU",)

    def load(self, job, path, optimise):
        if job["precision"] == "fp16" and not computes_halves():
            raise mobilenas_runner.Unavailable(
                "MNN computes in halves on ARM since version 8.2 only, and as in fp32 on this %s" % platform.machine()
            )
        interpreter = MNN.Interpreter(path)
        settings = {"backend": "CPU", "numThread": job["threads"], "precision": PRECISIONS[job["precision"]]}
        session = interpreter.createSession(settings)
        generator = numpy.random.RandomState(0)
        for tensor in interpreter.getSessionInputAll(session).values():
            tensor.copyFrom(tensor_of(generator.standard_normal(tensor.getShape()).astype(numpy.float32)))
        return interpreter, session

    def bind(self, session):
        interpreter, session = session

        def run():
            interpreter.runSession(session)

        run()
        return run

    def compute(self, session, numbers):
        interpreter, session = session
        [given] = interpreter.getSessionInputAll(session).values()
        array = numpy.frombuffer(numbers, numpy.float32).reshape(given.getShape()).copy()
        given.copyFrom(tensor_of(array))
        interpreter.runSession(session)
        found = interpreter.getSessionOutput(session)
        result = tensor_of(numpy.zeros(found.getShape(), numpy.float32))
        found.copyToHostTensor(result)
        return numpy.array(result.getNumpyData(), numpy.float32).tobytes()


if __name__ == "__main__":
    mobilenas_runner.main(Mnn())
