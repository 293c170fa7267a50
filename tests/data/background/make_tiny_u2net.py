"""Writes tiny_u2net.onnx beside itself: a network with U2-Net's interface and one layer.

    pip install onnx && python tests/data/background/make_tiny_u2net.py

Inputs and outputs are U2-Net's: one [1, 3, 320, 320], several [1, 1, 320, 320], the first of which
is the answer. It is red / 2 - blue / 4 of the normalised picture: with powers of two float32 rounds
once, in whichever order it adds, so that a test can expect equal pixels. The other output is its
negative: whoever takes that one gets the background.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EDGE = 320
# Read by every onnxruntime that the project allows.
OPSET, IR_VERSION = 13, 8


def tensor(name: str, channels: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, EDGE, EDGE])


def main() -> None:
    weights = np.array([0.5, 0.0, -0.25], np.float32).reshape(1, 3, 1, 1)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input.1", "weights"], ["answer"]),
            helper.make_node("Neg", ["answer"], ["negative"]),
        ],
        "tiny_u2net",
        [tensor("input.1", 3)],
        [tensor("answer", 1), tensor("negative", 1)],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, Path(__file__).with_name("tiny_u2net.onnx"))


if __name__ == "__main__":
    main()
