from mobilenas.core.workload import Kernel, TensorSpec


def test_weights_of_a_kernel_are_its_constant_numbers() -> None:
    spec = TensorSpec((256, 512), "float32", is_constant=True)
    shape = TensorSpec((2,), "int64", is_constant=True, values=(1, 2))
    kernel = Kernel(
        "Gemm", "{}", (TensorSpec((1, 512), "float32"), spec, shape, None), (TensorSpec((1, 256), "float32"),), "CPU"
    )
    assert kernel.weight_mib == 0.5
