"""An ONNX graph at standard input, the same with weights of 8 bits at standard output; what went wrong at standard error.

Made by ONNX Runtime's own quantizer: weights are int8, and each call's numbers are scaled to 8 bits by what they are
(dynamic quantization). Exit code 3: a package is missing.
"""

import os
import sys
import tempfile

# What libraries print must not get between the bytes of the graph.
output = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
try:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
except ImportError as error:
    print(f"{error}", file=sys.stderr)
    sys.exit(3)

graph = onnx.load_model_from_string(sys.stdin.buffer.read())
with tempfile.TemporaryDirectory() as folder:
    target = os.path.join(folder, "int8.onnx")
    quantize_dynamic(graph, target, weight_type=QuantType.QInt8)
    with open(target, "rb") as file:
        output.write(file.read())
output.flush()
