"""Forward passes of single operations as ONNX models, for ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from cases import Case, Inputs

OPSET, IR_VERSION = 21, 10


@dataclass(frozen=True)
class Node:
    """One ONNX operator on `inputs`.

    From number `constants` on, inputs are weights: known when the session starts, which may then
    reorder them once for all calls.
    """

    op: str
    inputs: Inputs
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: int = 1


def pairs(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def window(kernel_size: Any, stride: Any = None, padding: Any = 0) -> dict[str, Any]:
    """Attributes of ONNX's pooling from PyTorch's arguments."""
    return {
        "kernel_shape": pairs(kernel_size),
        "strides": pairs(stride or kernel_size),
        "pads": pairs(padding) * 2,
    }


SAME = "Relu Exp Tanh Sigmoid Gelu Elu Softplus Add MatMul".split()
# cases' op -> operator and attributes from the case's keyword arguments. What is missing has no
# operator of its own, or (batch norm, dropout) none for training.
OPERATORS: dict[str, Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    **{name.lower(): lambda _, name=name: (name, {}) for name in SAME},  # type: ignore[misc]
    "sum": lambda _: ("ReduceSum", {"keepdims": 0}),
    "linear": lambda _: ("Gemm", {"transB": 1}),
    "layer_norm": lambda _: ("LayerNormalization", {}),
    "group_norm": lambda given: (
        ("GroupNormalization", given) if given else ("InstanceNormalization", {})
    ),
    "max_pool2d": lambda given: ("MaxPool", window(**given)),
    "avg_pool2d": lambda given: ("AveragePool", window(**given) | {"count_include_pad": 1}),
    "softmax": lambda given: ("Softmax", {"axis": given["dim"]}),
    "log_softmax": lambda given: ("LogSoftmax", {"axis": given["dim"]}),
    "embedding": lambda _: ("Gather", {}),
}


def node_of(case: Case) -> Node | None:
    """The operator of a case of tests/cases.py, or None."""
    if case.op not in OPERATORS or (case.op == "sum" and case.kwargs):  # axes are an input there
        return None
    op, attributes = OPERATORS[case.op](case.kwargs)
    inputs = case.inputs
    if op == "Gather":
        inputs = lambda rng: list(case.inputs(rng))[::-1]
    return Node(op, inputs, attributes, 2 if op in ("MatMul", "Add", "Gather") else 1)


def prepare(node: Node, runtime: ModuleType) -> Callable[[], Any]:
    """A session that runs `node`, with the threads that OMP_NUM_THREADS says."""
    from onnx import TensorProto, helper, numpy_helper

    drawn = node.inputs(np.random.default_rng(0))
    arrays = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in drawn]
    names = [f"x{i}" for i in range(len(arrays))]
    types = [helper.np_dtype_to_tensor_dtype(a.dtype) for a in arrays]
    variable = range(node.constants)
    constant = range(node.constants, len(arrays))
    graph = helper.make_graph(
        [helper.make_node(node.op, names, ["y"], **node.attributes)],
        node.op,
        [helper.make_tensor_value_info(names[i], types[i], arrays[i].shape) for i in variable],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(arrays[i], names[i]) for i in constant],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {names[i]: arrays[i] for i in variable}
    return lambda: session.run(None, feeds)
