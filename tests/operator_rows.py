"""One use after another of every operator that torch has a reading of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass(frozen=True)
class Row:
    """One use of an operator: shapes are float inputs, arrays are constants, None is an input left out."""

    op: str
    inputs: tuple[tuple[int, ...] | np.ndarray | None, ...] = ((2, 3, 4),)
    attrs: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    positive: bool = False

    def __str__(self) -> str:
        return "-".join([self.op, *(f"{k}={v}" for k, v in self.attrs.items()), str(self.opset)])


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


X, Y, IMAGE = (2, 3, 4), (3, 4), (2, 4, 7, 8)
BOOLS = np.array([[True, False, True, False], [False, True, True, False], [True, True, False, False]])

PLAIN = (
    "Abs Asinh Atan Ceil Cos Cosh Erf Exp Floor HardSwish Identity IsNaN Mish Neg Reciprocal Relu Round Sigmoid Sign Sin Sinh "
    "Softplus Softsign Tan Tanh LeakyRelu ThresholdedRelu Elu Celu Selu HardSigmoid Flatten Shape Size Transpose Dropout"
)
REDUCTIONS = "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSumSquare"

ROWS = [
    *(Row(op, opset=18 if op == "Mish" else 17) for op in PLAIN.split()),
    *(Row(op, positive=True) for op in ("Log", "Sqrt")),
    *(Row(op, (floats(-0.9, 0.1, 0.7),)) for op in ("Acos", "Asin", "Atanh")),
    Row("Acosh", (floats(1.1, 2.0, 3.0),)),
    Row("ReduceSum", (np.arange(-6, 18, dtype=np.int32).reshape(2, 3, 4), ints(1))),
    Row("CumSum", (np.arange(-6, 18, dtype=np.int32).reshape(2, 3, 4), ints(1)), {"exclusive": 1}),
    *(Row(op, (X, Y)) for op in ("Add", "Sub", "Mul", "Div", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "PRelu")),
    Row("Div", (ints(7, -7, 5), ints(2, 2, -3))),
    Row("Equal", (ints(1, 2, 3), ints(1, 5, 3))),
    Row("Mod", (ints(7, -7, 5), ints(2, 2, -3))),
    Row("Mod", (X, Y), {"fmod": 1}),
    Row("Pow", (X, floats(2.0))),
    Row("Pow", (ints(2, 3), floats(2.0))),
    *(Row(op, (BOOLS, BOOLS[::-1].copy())) for op in ("And", "Or", "Xor")),
    Row("Not", (BOOLS,)),
    Row("Where", (BOOLS, Y, (1, 4))),
    *(Row(op, (X, Y, (1, 4))) for op in ("Max", "Mean", "Min", "Sum")),
    *(Row(op, (X,), {"axes": [1, -1], "keepdims": 0}) for op in REDUCTIONS.split()),
    Row("ReduceMean"),
    Row("ReduceMean", (X, ints(1)), {"keepdims": 0}, 18),
    Row("ReduceMean", (X, ints()), {"noop_with_empty_axes": 1}, 18),
    Row("ReduceSum", (X, ints(0, 2))),
    Row("ReduceProd", (X,), {"axes": [0, -1]}),
    Row("ReduceProd", (np.arange(1, 5), ), {"keepdims": 0}),
    Row("ReduceLogSum", (X,), {"axes": [1]}, positive=True),
    Row("Clip", (X, floats(-0.5).reshape(()), floats(0.5).reshape(()))),
    Row("Clip", (X, None, floats(0.5).reshape(()))),
    Row("Clip", (X,), {"min": 0.0, "max": 6.0}, 10),
    Row("Clip"),
    Row("Gelu", opset=20),
    Row("Gelu", (X,), {"approximate": "tanh"}, 20),
    Row("Swish", (X,), {"alpha": 1.5}, 24),
    *(Row(op, (X,), {"axis": 1}, opset) for op in ("Softmax", "LogSoftmax") for opset in (11, 17)),
    *(Row(op, (X,), {"axis": 1, "keepdims": keep}) for op in ("ArgMax", "ArgMin") for keep in (0, 1)),
    *(Row("CumSum", (X, ints(1)), {"exclusive": e, "reverse": r}) for e in (0, 1) for r in (0, 1)),
    Row("MatMul", (X, (2, 4, 5))),
    Row("Gemm", ((3, 4), weights(5, 4), weights(5)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Row("Gemm", ((4, 3), weights(4, 5)), {"transA": 1}),
    Row("Einsum", (X, (2, 4, 5)), {"equation": "bij,bjk->bik"}),
    Row("Cast", (X,), {"to": onnx.TensorProto.INT64}),
    Row("Cast", (ints(1, 0),), {"to": onnx.TensorProto.BOOL}),
    Row("CastLike", (X, ints(1))),
    # layers
    Row("Conv", (IMAGE, weights(6, 4, 3, 3), weights(6)), {"pads": [1, 2, 0, 1], "strides": [2, 1]}),
    Row("Conv", (IMAGE, weights(6, 2, 3, 3)), {"group": 2, "pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    *(Row("Conv", (IMAGE, weights(4, 4, 3, 2)), {"auto_pad": f"SAME_{p}", "strides": [2, 2]}) for p in ("UPPER", "LOWER")),
    Row("Conv", (IMAGE, weights(4, 4, 3, 2)), {"auto_pad": "VALID"}),
    Row("Conv", ((2, 4, 9), weights(3, 4, 3), weights(3)), {"pads": [1, 1]}),
    Row("Conv", ((1, 2, 5, 6, 7), weights(3, 2, 3, 3, 3)), {"strides": [2, 2, 2]}),
    Row("ConvTranspose", (IMAGE, weights(4, 3, 3, 3), weights(3)), {"strides": [2, 2], "pads": [1, 0, 1, 2]}),
    Row("ConvTranspose", (IMAGE, weights(4, 3, 2, 2)), {"strides": [2, 2], "output_padding": [1, 1], "group": 2}),
    Row("ConvTranspose", (IMAGE, weights(4, 3, 3, 3), weights(3)),
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1], "dilations": [1, 2]}),
    Row("ConvTranspose", (IMAGE, weights(4, 3, 3, 3), weights(3)),
        {"strides": [3, 2], "pads": [1, 0, 1, 0], "output_padding": [2, 1]}),
    Row("MaxPool", (IMAGE,), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    Row("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Row("MaxPool", (IMAGE,), {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [0, 0, 1, 1]}),
    Row("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Row("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "auto_pad": "VALID", "strides": [2, 2], "ceil_mode": 1}),
    Row("MaxPool", ((2, 4, 9),), {"kernel_shape": [3], "dilations": [2]}),
    Row("MaxPool", ((1, 2, 5, 6, 7),), {"kernel_shape": [2, 2, 2]}),
    *(
        Row("AveragePool", (IMAGE,),
            {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "count_include_pad": include, "ceil_mode": ceil}, 19)
        for include in (0, 1) for ceil in (0, 1)
    ),
    Row("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Row("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "auto_pad": "VALID", "strides": [2, 2], "ceil_mode": 1}),
    Row("AveragePool", ((2, 4, 9),), {"kernel_shape": [3]}),
    Row("GlobalAveragePool", (IMAGE,)),
    Row("GlobalMaxPool", (IMAGE,)),
    Row("BatchNormalization", (IMAGE, weights(4), weights(4), weights(4), np.abs(weights(4))), {"epsilon": 1e-3}),
    Row("InstanceNormalization", (IMAGE, weights(4), weights(4))),
    Row("GroupNormalization", (IMAGE, weights(4), weights(4)), {"num_groups": 2}, 21),
    Row("GroupNormalization", (IMAGE, weights(2), weights(2)), {"num_groups": 2}, 18),
    Row("LayerNormalization", (X, weights(4), weights(4))),
    Row("LayerNormalization", (X, weights(3, 4)), {"axis": 1}),
    Row("RMSNormalization", (X, weights(4)), opset=23),
    Row("LRN", (IMAGE,), {"size": 3, "alpha": 0.1}),
    Row("LpNormalization", (X,), {"p": 1, "axis": 1}),
    # shapes
    Row("Constant", (), {"value": numpy_helper.from_array(weights(2, 3))}),
    Row("Constant", (), {"value_floats": [1.0, 2.0]}),
    Row("ConstantOfShape", (ints(2, 3),), {"value": numpy_helper.from_array(ints(7))}),
    Row("ConstantOfShape", (ints(2, 3),)),
    Row("Shape", (X,), {"start": 1, "end": -1}),
    Row("Range", (ints(1).reshape(()), ints(9).reshape(()), ints(3).reshape(()))),
    Row("Reshape", (X, ints(0, -1))),
    Row("Flatten", (X,), {"axis": -1}),
    Row("Transpose", (X,), {"perm": [2, 0, 1]}),
    Row("Squeeze", ((2, 1, 3, 1),)),
    Row("Squeeze", ((2, 1, 3, 1), ints(-1))),
    Row("Squeeze", ((2, 1, 3, 1),), {"axes": [1]}, 11),
    Row("Unsqueeze", (X, ints(0, -1))),
    Row("Unsqueeze", (X,), {"axes": [1]}, 11),
    Row("Concat", (X, X), {"axis": -2}),
    Row("Split", (X, ints(1, 3)), {"axis": -1}, outputs=2),
    Row("Split", (X,), {"axis": 2}, 13, outputs=2),
    Row("Split", (X,), {"axis": 1, "num_outputs": 2}, 18, outputs=2),
    Row("Slice", (X, ints(1, 3), ints(9, -99), ints(1, -1), ints(1, -1))),
    Row("Slice", (X, ints(-2), ints(-1), ints(2))),
    Row("Slice", (X,), {"starts": [1], "ends": [3], "axes": [2]}, 9),
    Row("Slice", (X, ints(3), ints(1), ints(2))),
    Row("Gather", (X, ints(1, -1)), {"axis": 1}),
    Row("Gather", (ints(2, 3, 4), ints(1).reshape(()))),
    Row("GatherElements", (Y, ints(0, -1, 1, 1).reshape(2, 2)), {"axis": 1}),
    Row("GatherND", (X, ints(0, 1, 1, 2).reshape(2, 2))),
    Row("ScatterND", (Y, ints(0, 2).reshape(2, 1), weights(2, 4))),
    Row("Expand", ((3, 1), ints(2, 1, 4))),
    Row("Tile", (Y, ints(2, 1))),
    Row("Trilu", (Y, ints(1).reshape(()))),
    Row("Trilu", (Y,), {"upper": 0}),
    Row("Pad", (Y, ints(1, -1, 0, 2), floats(0.5).reshape(()))),
    Row("Pad", (Y, ints(1, 1), None, ints(-1)), opset=18),
    Row("Pad", (Y,), {"pads": [0, 1, 1, 0], "value": 2.0}, 10),
    *(Row("Pad", (Y, ints(1, 2, 1, 0)), {"mode": mode}, 19) for mode in ("reflect", "edge", "wrap")),
    *(Row("DepthToSpace", ((1, 8, 2, 3),), {"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")),
    Row("SpaceToDepth", ((1, 2, 4, 6),), {"blocksize": 2}),
    *(
        Row("Resize", ((1, 2, 4, 5), None, floats(1, 1, 2, 1.5)), {"mode": mode, "coordinate_transformation_mode": kind})
        for mode in ("nearest", "linear") for kind in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ),
    *(
        Row("Resize", ((1, 2, 4, 5), None, None, ints(1, 2, 7, 3)), {"mode": "nearest", "nearest_mode": nearest})
        for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    Row("Resize", ((1, 2, 4, 5), None, None, ints(1, 2, 7, 3)),
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}, 19),
    Row("Resize", ((1, 2, 4, 5), floats(1, 1, 2, 2)), {"mode": "nearest"}, 10),
    Row("Resize", ((1, 2, 4, 5), floats(), floats(1, 1, 2, 3)),
        {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"}, 11),
    *(
        Row("Resize", ((1, 2, 10, 10), None, floats(1, 1, scale, scale)), {"mode": mode})
        for scale in (0.7, 1.1, 1.9) for mode in ("nearest", "linear")
    ),
    Row("ReduceSumSquare", ((2, 3),), {"noop_with_empty_axes": 1}, 18),
    Row("ReduceL1", ((2, 3),), {"noop_with_empty_axes": 1}, 18),
    Row("Upsample", ((1, 2, 4, 5), floats(1, 1, 2, 2)), {"mode": "linear"}, 9),
    Row("Upsample", ((1, 2, 4, 5),), {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 2.0]}, 7),
]  # fmt: skip
