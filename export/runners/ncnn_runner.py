"""Times or lowers ncnn models, on the device that this file was copied to.

Usage: python ncnn_runner.py JOB.json, with mobilenas_runner.py beside it, which says what a job is. A model's path is that of
its .param, whose inputs tell their sizes; its .bin lies beside.

Needs Python 3.8, numpy and ncnn, nothing of mobilenas.
"""

import os

import mobilenas_runner
import ncnn
import numpy


def layers_of(path):
    """Of each line of a .param: the layer's type and name, its inputs, its outputs, its parameters."""
    with open(path) as lines:
        rows = [line.split() for line in lines][2:]
    for row in filter(None, rows):
        taken, made = int(row[2]), int(row[3])
        yield row[0], row[1], row[4 : 4 + taken], row[4 + taken : 4 + taken + made], row[4 + taken + made :]


def mat_of(array):
    borrowed = ncnn.Mat(array)  # the array's memory, which must be there until it is copied
    return borrowed.clone()


def random_inputs(path):
    generator = numpy.random.RandomState(0)
    inputs = []
    for kind, name, _, outputs, parameters in layers_of(path):
        if kind == "Input":
            sizes = dict(entry.split("=") for entry in parameters)
            shape = [int(sizes[key]) for key in ("2", "11", "1", "0") if key in sizes]
            if not shape:
                raise ValueError("the input %s does not tell its size" % name)
            inputs.append((outputs[0], mat_of(generator.standard_normal(shape).astype(numpy.float32))))
    return inputs


def shape_of(mat):
    return [(mat.w,), (mat.h, mat.w), (mat.c, mat.h, mat.w), (mat.c, mat.d, mat.h, mat.w)][mat.dims - 1]


class Ncnn(mobilenas_runner.Engine):
    name = "ncnn"
    version = ncnn.__version__
    providers = ("CPU",)

    def load(self, job, path, optimise, keeps_all=False):
        net = ncnn.Net()
        halves = job["precision"] == "fp16"
        net.opt.num_threads = job["threads"]
        net.opt.use_vulkan_compute = False
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = halves
        net.opt.use_bf16_packed = net.opt.use_bf16_storage = False
        net.opt.lightmode = not keeps_all
        if net.load_param(path) != 0:
            raise ValueError("ncnn cannot read the layers")
        if net.load_model(os.path.splitext(path)[0] + ".bin") != 0:
            raise ValueError("ncnn cannot read the weights")
        return net, random_inputs(path)

    def bind(self, session):
        net, inputs = session
        outputs = list(net.output_names())

        def run():
            extractor = net.create_extractor()
            for name, mat in inputs:
                if extractor.input(name, mat) != 0:
                    raise ValueError("ncnn takes no input %s" % name)
            for name in outputs:
                if extractor.extract(name)[0] != 0:
                    raise ValueError("ncnn cannot compute %s" % name)

        run()
        return run

    def compute(self, session, numbers):
        net, [(name, mat)] = session
        array = numpy.frombuffer(numbers, numpy.float32).reshape(shape_of(mat))
        extractor = net.create_extractor()
        extractor.input(name, mat_of(array.copy()))
        code, found = extractor.extract(net.output_names()[0])
        if code != 0:
            raise ValueError("ncnn cannot compute its output")
        return numpy.array(found, numpy.float32).tobytes()

    def lower(self, job, path):
        net, inputs = self.load(job, path, True, keeps_all=True)
        extractor = net.create_extractor()
        for name, mat in inputs:
            extractor.input(name, mat)
        nodes = []
        for kind, name, _, outputs, _ in layers_of(path):
            found = []
            for output in outputs:
                code, mat = extractor.extract(output)
                if code != 0:
                    raise ValueError("ncnn cannot compute %s, a %s" % (name, kind))
                found.append(["float", shape_of(mat)])
            nodes.append({"name": name, "provider": "CPU", "outputs": found})
        return {"nodes": nodes}


if __name__ == "__main__":
    mobilenas_runner.main(Ncnn())
