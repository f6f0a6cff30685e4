"""Times or lowers ONNX models with onnx.reference; runs on the device. Needs numpy and onnx, nothing of mobilenas but what
mobilenas puts beside it.
"""

import mobilenas_runner
import numpy
import onnx
from onnx.reference import ReferenceEvaluator

DTYPES = {onnx.TensorProto.FLOAT: "float", onnx.TensorProto.INT64: "int64"}


def read(path):
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


class Reference(mobilenas_runner.Engine):
    name = "onnx-reference"
    version = onnx.__version__
    providers = ("reference",)

    def load(self, job, path, optimise):
        model = read(path)
        return ReferenceEvaluator(model), inputs_of(model)

    def bind(self, session):
        evaluator, inputs = session
        evaluator.run(None, inputs)
        return lambda: evaluator.run(None, inputs)

    def compute(self, session, numbers):
        evaluator, inputs = session
        [(name, array)] = inputs.items()
        given = numpy.frombuffer(numbers, numpy.float32).reshape(array.shape)
        return evaluator.run(None, {name: given})[0].astype(numpy.float32).tobytes()

    def lower(self, job, path):
        model = read(path)
        lowered = path + ".lowered"
        onnx.save(model, lowered)
        known = {value.name: value.type.tensor_type for value in [*model.graph.value_info, *model.graph.output]}
        nodes = []
        for node in model.graph.node:
            types = [known.get(name) for name in node.output]
            outputs = [t and [DTYPES[t.elem_type], [dim.dim_value for dim in t.shape.dim]] for t in types]
            nodes.append({"name": node.name, "provider": "reference", "outputs": outputs})
        return {"path": lowered, "nodes": nodes}


if __name__ == "__main__":
    mobilenas_runner.main(Reference())
