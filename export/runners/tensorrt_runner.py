"""Builds and times TensorRT engines of ONNX models, on the device that this file was copied to.

Usage: python tensorrt_runner.py JOB.json, with mobilenas_runner.py beside it, which says what a job is.

Needs Python 3.8, numpy and tensorrt or tensorrt-rtx, nothing of mobilenas; the CUDA runtime is called directly. An engine
is built when its model is first loaded and kept beside it, as is what tensorrt has timed while building; it never leaves the
device, since it fits no other. Runs are timed by CUDA events. Without an NVIDIA driver tensorrt-rtx still reads and builds each
model, for one kind of GPU, so that what it refuses is told.
"""

import ctypes
import glob
import os

import mobilenas_runner
import numpy

try:
    import tensorrt
except ImportError:
    import tensorrt_rtx as tensorrt

TO_DEVICE, FROM_DEVICE = 1, 2
BUILT_FOR = "SM86"  # where there is no GPU to build for
ENGINE, TIMING_CACHE = ".engine", "timing.cache"


class Cuda:
    """The calls of the CUDA runtime that are needed; raises ``Unavailable`` where it finds no GPU."""

    def __init__(self):
        packages = os.path.dirname(os.path.dirname(tensorrt.__file__))
        wheels = glob.glob(packages + "/nvidia/**/libcudart.so.*", recursive=True)
        for name in [*sorted(wheels, reverse=True), "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so"]:
            try:
                self.library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise mobilenas_runner.Unavailable("the CUDA runtime, libcudart.so, is not installed")
        self.library.cudaGetErrorString.restype = ctypes.c_char_p
        count = ctypes.c_int()
        code = self.library.cudaGetDeviceCount(ctypes.byref(count))
        if code != 0 or count.value == 0:
            words = self.library.cudaGetErrorString(code).decode()
            raise mobilenas_runner.Unavailable("no NVIDIA driver (cudaError %d: %s)" % (code, words))

    def __call__(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            raise ValueError("%s: %s" % (name, self.library.cudaGetErrorString(code).decode()))

    def made(self, name, *arguments):
        """The handle that a call makes: a stream, an event, memory."""
        handle = ctypes.c_void_p()
        self(name, ctypes.byref(handle), *arguments)
        return handle


class Log(tensorrt.ILogger):
    """Keeps what went wrong, to be told."""

    def __init__(self):
        tensorrt.ILogger.__init__(self)
        self.errors = []

    def log(self, severity, words):
        if severity in (tensorrt.ILogger.ERROR, tensorrt.ILogger.INTERNAL_ERROR):
            self.errors.append(words)


class Session:
    """A network that is ready to run, with a buffer on the device for each of its inputs and outputs."""

    def __init__(self, cuda, engine):
        self.cuda, self.engine = cuda, engine
        self.context = engine.create_execution_context()
        self.stream = cuda.made("cudaStreamCreate")
        self.begin, self.end = cuda.made("cudaEventCreate"), cuda.made("cudaEventCreate")
        self.arrays, self.buffers = {}, {}
        generator = numpy.random.RandomState(0)
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = tensorrt.nptype(engine.get_tensor_dtype(name))
            array = numpy.ascontiguousarray(generator.standard_normal(tuple(engine.get_tensor_shape(name))).astype(kind))
            self.arrays[name] = array
            self.buffers[name] = cuda.made("cudaMalloc", ctypes.c_size_t(array.nbytes))
            self.copy(name, TO_DEVICE)
            self.context.set_tensor_address(name, self.buffers[name].value)

    def names(self, mode):
        return [name for name in self.arrays if self.engine.get_tensor_mode(name) == mode]

    def copy(self, name, direction):
        array = self.arrays[name]
        ends = [self.buffers[name], array.ctypes.data_as(ctypes.c_void_p)]
        to, source = ends if direction == TO_DEVICE else reversed(ends)
        self.cuda("cudaMemcpy", to, source, ctypes.c_size_t(array.nbytes), direction)

    def run(self):
        """One run; how many nanoseconds it took on the device."""
        self.cuda("cudaEventRecord", self.begin, self.stream)
        if not self.context.execute_async_v3(self.stream.value):
            raise ValueError("TensorRT cannot run the network")
        self.cuda("cudaEventRecord", self.end, self.stream)
        self.cuda("cudaEventSynchronize", self.end)
        taken_ms = ctypes.c_float()
        self.cuda("cudaEventElapsedTime", ctypes.byref(taken_ms), self.begin, self.end)
        return int(taken_ms.value * 1e6)


def complaint(error):
    return "%s (the node %r, a %s)" % (error.desc(), error.node_name(), error.node_operator())


def kept(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def keep(path, content):
    """Whole or not at all."""
    with open(path + ".part", "wb") as file:
        file.write(content)
    os.replace(path + ".part", path)


def built(path, log, has_gpu):
    """The engine of an ONNX model as bytes."""
    builder = tensorrt.Builder(log)
    flags = getattr(tensorrt, "NetworkDefinitionCreationFlag", None)
    typed = getattr(flags, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = tensorrt.OnnxParser(network, log)
    with open(path, "rb") as file:
        if not parser.parse(file.read()):
            raise ValueError("; ".join(complaint(parser.get_error(index)) for index in range(parser.num_errors)))
    config = builder.create_builder_config()
    timings = None
    if not has_gpu:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(tensorrt.ComputeCapability, BUILT_FOR), 0)
    elif tensorrt.__name__ == "tensorrt":  # tensorrt-rtx times nothing while it builds
        timings = config.create_timing_cache(kept(TIMING_CACHE) or b"")
        config.set_timing_cache(timings, False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError("; ".join(log.errors[-3:]) or "TensorRT cannot build the network")
    if timings is not None:
        keep(TIMING_CACHE, timings.serialize())
    keep(path + ENGINE, engine)
    return engine


def loaded(path, log):
    """The engine that was kept, if it fits this device, or one that is built now."""
    runtime = tensorrt.Runtime(log)
    before = kept(path + ENGINE)
    engine = None if before is None else runtime.deserialize_cuda_engine(before)
    if engine is None:
        engine = runtime.deserialize_cuda_engine(built(path, log, has_gpu=True))
    if engine is None:
        raise ValueError("; ".join(log.errors[-3:]) or "TensorRT cannot load what it has built")
    return engine


class TensorRt(mobilenas_runner.Engine):
    name = tensorrt.__name__
    version = tensorrt.__version__
    providers = ("CUDA",)

    def load(self, job, path, optimise):
        log = Log()
        try:
            cuda = Cuda()
        except mobilenas_runner.Unavailable:
            if hasattr(tensorrt, "ComputeCapability") and kept(path + ENGINE) is None:
                built(path, log, has_gpu=False)
            raise
        return Session(cuda, loaded(path, log))

    def bind(self, session):
        session.run()
        return session.run

    def compute(self, session, numbers):
        [given] = session.names(tensorrt.TensorIOMode.INPUT)
        array = session.arrays[given]
        array[...] = numpy.frombuffer(numbers, numpy.float32).reshape(array.shape)
        session.copy(given, TO_DEVICE)
        session.run()
        found = session.names(tensorrt.TensorIOMode.OUTPUT)[0]
        session.copy(found, FROM_DEVICE)
        return session.arrays[found].astype(numpy.float32).tobytes()


if __name__ == "__main__":
    mobilenas_runner.main(TensorRt())
