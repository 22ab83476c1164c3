"""Makes ONNX graphs of several inputs, of text, whole numbers and small floats, and writes what ONNX Runtime's Python
package says about made rows.

usage: models_onnx_full.py OUT_DIR

Each OUT_DIR/onnxfull_NAME/ holds
    model.onnx       the graph
    rows.jsonl       one row of features a line, a JSON array in the order of the graph's inputs; null is a missing value
    expected.jsonl   line i: the scores of row i, a JSON array
    expected_int8.jsonl   of one graph: the same with weights of 8 bits, as ONNX Runtime's quantizer makes them
OUT_DIR/onnxfull_refused/NAME.onnx are graphs that forebay must refuse. OUT_DIR/index-onnx_full.json, written last, lists
both: models (name, features: their names, kinds: number, integer or text, outputs, type f32 or f64, output: those that
are scored, rows_a_call, missing: whether rows with missing values have scores, bad: a row that the graph has no score
for, or none) and refused (file, says: words of the message).

Seeds are fixed and every run is single-threaded.
"""

import json
import math
import pathlib
import shutil
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
import pandas as pd
from onnx import TensorProto, checker, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

SEED = 20261123
ROWS = 200
FLOAT, DOUBLE, INT64, COMPLEX = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.COMPLEX64
OPSET = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
CITIES = ["Zürich", "Genève", "Basel", "Bern", "Lugano, \"TI\""]
PLANS = ["free", "gold", ""]
NUMPY = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    out = pathlib.Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("onnxfull_*"):
        shutil.rmtree(old)
    models = [write_model(out / f"onnxfull_{name}", **make()) for name, make in MODELS.items()]
    (out / "onnxfull_refused").mkdir()
    refused = [write_refused(out / "onnxfull_refused", name, *make()) for name, make in REFUSED.items()]
    index = {"models": models, "refused": refused}
    (out / "index-onnx_full.json").write_text(json.dumps(index, indent=1) + "\n")
    version = onnxruntime.__version__
    print(f"ONNX models of several inputs: {len(models)} and {len(refused)} to refuse in {out}, ONNX Runtime {version}")
    return 0


# ---- what is made: each function gives the graph, the rows, and what is not usual ----------------------------------


def visits(count, seed):
    random = np.random.default_rng(SEED + seed)
    return pd.DataFrame({
        "age": random.normal(40, 15, count).astype(np.float32),
        "city": random.choice(CITIES, count),
        "count": random.integers(-5, 90, count),
        "plan": random.choice(PLANS, count),
        "wage": random.normal(5e3, 2e3, count).astype(np.float32),
    })


def on_visits(unknown):
    """One-hot encoded text, scaled numbers and whole numbers, logistic regression."""
    train, held_out = visits(2000, 0), visits(ROWS, 1)
    target = (train["city"].isin(CITIES[:2]) ^ (train["age"] + train["count"] > 75)).astype(int)
    columns = ColumnTransformer([
        ("text", OneHotEncoder(handle_unknown=unknown), ["city", "plan"]),
        ("numbers", StandardScaler(), ["age", "count", "wage"]),
    ])
    model = make_pipeline(columns, LogisticRegression(max_iter=500)).fit(train, target)
    types = {"age": FloatTensorType, "city": StringTensorType, "count": Int64TensorType, "plan": StringTensorType}
    types = [(name, types.get(name, FloatTensorType)([None, 1])) for name in train.columns]
    graph = to_onnx(model, initial_types=types, options={id(model): {"zipmap": False}}, target_opset=18)
    rows = held_out.astype({"age": float, "wage": float}).values.tolist()
    if unknown == "ignore":
        rows += [[41.0, "nowhere", 3, "free", 1.0], [41.0, "a" * 300, 3, "FREE", 1.0]]
    probabilities = model.predict_proba(pd.DataFrame(rows, columns=train.columns))
    bad = [41.0, None, 3, "free", 1.0] if unknown == "ignore" else [41.0, "nowhere", 3, "free", 1.0]
    return {"graph": graph, "rows": rows, "output": ["probabilities"], "bad": bad, "source_says": probabilities}


def weights(*shape, seed=0):
    return np.random.default_rng(SEED + seed).normal(size=shape) / math.sqrt(shape[0])


def embeddings():
    """As PyTorch exports a network of two inputs: rows of a table by their numbers, joined to floats."""
    tensors = [
        constant("table", weights(40, 6)),
        constant("w1", weights(16, 32, seed=1)),
        constant("b1", weights(32, seed=2)),
        constant("w2", weights(32, 3, seed=3)),
        numpy_helper.from_array(np.array([0, -1]), "flat"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "item"], ["embedded"]),
        helper.make_node("Reshape", ["embedded", "flat"], ["embedded_flat"]),
        helper.make_node("Concat", ["numeric", "embedded_flat"], ["x"], axis=1),
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["shares"], axis=1),
        helper.make_node("Sigmoid", ["embedded"], ["gates"]),
    ]
    inputs = [("numeric", FLOAT, ["N", 4]), ("item", INT64, ["N", 2])]
    outputs = [("shares", FLOAT, ["N", 3]), ("logits", FLOAT, ["N", 3]), ("gates", FLOAT, ["N", 2, 6])]
    random = np.random.default_rng(SEED)
    rows = [[*random.normal(size=4).tolist(), *random.integers(0, 40, 2).tolist()] for _ in range(ROWS)]
    graph = build(nodes, inputs, outputs, tensors)
    bad = [0.5, 0.5, 0.5, 0.5, 3, 40]
    return {"graph": graph, "rows": rows, "output": ["gates", "shares"], "bad": bad}


def mlp():
    """As PyTorch exports a network of linear layers; also quantized, where a call of one row scales its own numbers."""
    sizes, nodes, tensors, last = [20, 64, 32, 3], [], [], "features"
    for layer, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
        tensors += [constant(f"l{layer}.weight", weights(inputs, outputs, seed=layer).T)]
        tensors += [constant(f"l{layer}.bias", weights(outputs, seed=9 + layer))]
        nodes.append(helper.make_node("Gemm", [last, f"l{layer}.weight", f"l{layer}.bias"], [f"h{layer}"], transB=1))
        last = f"h{layer}"
        if outputs != sizes[-1]:
            nodes.append(helper.make_node("Relu", [last], [f"r{layer}"]))
            last = f"r{layer}"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=1))
    rows = np.random.default_rng(SEED).normal(size=(ROWS, sizes[0])).tolist()
    graph = build(nodes, [("features", FLOAT, ["N", 20])], [("probabilities", FLOAT, ["N", 3])], tensors)
    return {"graph": graph, "rows": rows, "output": ["probabilities"], "bad": None, "missing": None, "int8": True}


def every_number():
    """An input of each type of number, weighed and summed in double."""
    kinds = ["DOUBLE", "FLOAT", "INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8", "BOOL", "FLOAT16"]
    shapes = [["N"], ["N", 1], ["N", 2]]
    inputs, nodes, parts, limits = [], [], [], []
    flat = numpy_helper.from_array(np.array([0, -1]), "flat")
    column = numpy_helper.from_array(np.array([-1, 1]), "column")
    for place, kind in enumerate(kinds):
        shape = shapes[place % 3]
        inputs.append((kind.lower(), getattr(TensorProto, kind), shape))
        nodes.append(helper.make_node("Cast", [kind.lower()], [f"{kind}_d"], to=DOUBLE))
        nodes.append(helper.make_node("Reshape", [f"{kind}_d", "column" if len(shape) == 1 else "flat"], [f"{kind}_r"]))
        parts.append(f"{kind}_r")
        limits += [kind] * (shape[1] if len(shape) == 2 else 1)
    nodes += [
        helper.make_node("Concat", parts, ["x"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    tensors = [flat, column, constant("w", weights(len(limits), 2), DOUBLE)]
    random = np.random.default_rng(SEED)

    def cell(kind):
        if kind == "BOOL":
            return int(random.integers(0, 2))
        if "INT" in kind:
            info = np.iinfo(kind.lower())
            least, most = max(info.min, -(2**53)), min(info.max, 2**53)
            return int(random.choice([least, most, 0, int(random.integers(least, most, endpoint=True))]))
        return float(random.normal() * 100)

    rows = [[cell(kind) for kind in limits] for _ in range(ROWS)]
    graph = build(nodes, inputs, [("y", DOUBLE, ["N", 2])], tensors)
    bad = [None if kind == "INT8" else 0 for kind in limits]
    return {"graph": graph, "rows": rows, "output": ["y"], "bad": bad}


def half_mlp():
    """Two layers in 16-bit floats, from float16 to float16."""
    half = TensorProto.FLOAT16
    tensors = [
        numpy_helper.from_array(weights(8, 16).astype(np.float16), "w1"),
        numpy_helper.from_array(weights(16, 2, seed=1).astype(np.float16), "w2"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    rows = np.random.default_rng(SEED).normal(size=(ROWS, 8)).tolist()
    graph = build(nodes, [("x", half, ["N", 8])], [("y", half, ["N", 2])], tensors)
    return {"graph": graph, "rows": rows, "output": ["y"], "bad": [1e5] * 8}


def linear(batch, kind=FLOAT, width=5):
    """A logistic function of a matrix whose number of rows is fixed, or free."""
    dtype = np.float64 if kind == DOUBLE else np.float32
    tensors = [constant("w", weights(width, 3), kind), numpy_helper.from_array(np.array([0.1], dtype), "b")]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "b"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["score"]),
    ]
    rows = np.random.default_rng(SEED).normal(size=(ROWS + 1, width)).tolist()
    graph = build(nodes, [("x", kind, [batch, width])], [("score", kind, [batch, 3])], tensors)
    fixed = batch if isinstance(batch, int) else None
    bad = [0.0] * (width - 1) + [None]
    return {"graph": graph, "rows": rows, "output": ["score"], "rows_a_call": fixed, "bad": bad}


def image():
    """A convolution over rows of three dimensions, to labels of truth."""
    tensors = [constant("w", weights(2, 1, 3, 3)), numpy_helper.from_array(np.array([0.2], np.float32), "edge")]
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["c"]),
        helper.make_node("GlobalMaxPool", ["c"], ["m"]),
        helper.make_node("Greater", ["m", "edge"], ["above"]),
    ]
    rows = np.random.default_rng(SEED).normal(size=(ROWS, 16)).tolist()
    outputs = [("above", TensorProto.BOOL, ["N", 2, 1, 1])]
    graph = build(nodes, [("pixels", FLOAT, ["N", 1, 4, 4])], outputs, tensors)
    return {"graph": graph, "rows": rows, "output": [], "scored": ["above"], "missing": True}


def logarithm():
    """Has no score for a row that is not above -1."""
    nodes = [
        helper.make_node("Add", ["x", "one"], ["x1"]),
        helper.make_node("Log", ["x1"], ["l"]),
        helper.make_node("ReduceSum", ["l", "axes"], ["score"], keepdims=0),
    ]
    tensors = [numpy_helper.from_array(np.array([1], np.float32), "one"), numpy_helper.from_array(np.array([1]), "axes")]
    rows = np.abs(np.random.default_rng(SEED).normal(size=(ROWS, 3))).tolist()
    graph = build(nodes, [("x", FLOAT, ["N", 3])], [("score", FLOAT, ["N"])], tensors)
    return {"graph": graph, "rows": rows, "output": ["score"], "bad": [0.5, -1.5, 0.5]}


def quantized():
    """Weights of 8 bits; the scale of a call's numbers is taken from all of its rows."""
    made = linear("N", width=24)
    made["graph"] = to_int8(made["graph"])
    return {**made, "rows_a_call": 1, "bad": None, "missing": None}


MODELS = {
    "text": lambda: on_visits("ignore"),
    "text_strict": lambda: on_visits("error"),
    "embeddings": embeddings,
    "mlp": mlp,
    "every_number": every_number,
    "half_mlp": half_mlp,
    "linear": lambda: linear("N"),
    "fixed_1": lambda: linear(1),
    "fixed_3": lambda: linear(3),
    "fixed_4": lambda: linear(4, DOUBLE),
    "image": image,
    "logarithm": logarithm,
    "quantized": quantized,
}


# ---- what must be refused: each function gives (graph, words of the message) ---------------------------------------


def flat(*inputs):
    """The inputs, each laid out flat, one after the other."""
    shape = numpy_helper.from_array(np.array([-1]), "flat")
    nodes = [helper.make_node("Reshape", [name, "flat"], [f"{name}_flat"]) for name, *_ in inputs]
    nodes.append(helper.make_node("Concat", [f"{name}_flat" for name, *_ in inputs], ["y"], axis=0))
    return build(nodes, list(inputs), [("y", FLOAT, None)], [shape])


REFUSED = {
    "rows_differ": lambda: (
        flat(("a", FLOAT, [3, 1]), ("b", FLOAT, [4, 1])),
        ["fixed to different numbers of rows", "a: f32 [3, 1]", "b: f32 [4, 1]"],
    ),
    "one_value": lambda: (flat(("x", FLOAT, [])), ["x: ", "has no dimension for rows"]),
    "open_inside": lambda: (flat(("x", FLOAT, ["N", 2, "L"])), ["x: ", "leaves the number of features open"]),
    "names_clash": lambda: (
        flat(("x", FLOAT, ["N", 2]), ("x[0]", FLOAT, ["N", 1])),
        ["must name each of the 3 features once", "metadata `feature_names`"],
    ),
    "complex": lambda: (
        build([helper.make_node("Identity", ["x"], ["y"])], [("x", COMPLEX, ["N", 2])], [("y", COMPLEX, ["N", 2])], []),
        # The runtime's own word for it, before the inputs are looked at.
        ["ONNX Runtime cannot read it", "complex64"],
    ),
}


# ---- graphs by hand ------------------------------------------------------------------------------------------------


def constant(name, values, kind=FLOAT):
    return numpy_helper.from_array(values.astype(np.float64 if kind == DOUBLE else np.float32), name)


def build(nodes, inputs, outputs, tensors):
    def infos(values):
        return [helper.make_tensor_value_info(*value) for value in values]

    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), tensors)
    return helper.make_model(graph, opset_imports=OPSET, ir_version=9, producer_name="forebay-tests")


def to_int8(graph):
    with tempfile.TemporaryDirectory() as folder:
        source, target = (pathlib.Path(folder) / name for name in ["float.onnx", "int8.onnx"])
        onnx.save(graph, source)
        quantize_dynamic(source, target, weight_type=QuantType.QInt8)
        return onnx.load(target)


# ---- what is written -----------------------------------------------------------------------------------------------


def write_model(
    folder, graph, rows, output, scored=None, rows_a_call=None, bad=None, missing=False, source_says=None, int8=False
):
    checker.check_model(graph)
    folder.mkdir()
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    session = open_session(graph)
    # Rows go through their JSON text first, so that both sides start from the same numbers.
    lines = [json.dumps(row) for row in rows]
    rows = [json.loads(line) for line in lines]
    scores = np.vstack([score(session, scored or output, part) for part in parts_of(rows, rows_a_call)])[: len(rows)]
    assert np.isfinite(scores).all(), folder
    if source_says is not None:
        assert np.allclose(scores, source_says, atol=1e-5), folder
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "expected.jsonl").write_text("".join(json.dumps(row.tolist()) + "\n" for row in scores))
    if int8:
        quantized = open_session(to_int8(graph))
        moved = np.vstack([score(quantized, output, part) for part in parts_of(rows, 1)])
        assert not np.allclose(moved, scores, atol=1e-6), folder
        (folder / "expected_int8.jsonl").write_text("".join(json.dumps(row.tolist()) + "\n" for row in moved))
    names, kinds = features(session)
    wide = any(one.type not in ("tensor(float)", "tensor(string)") for one in session.get_inputs())
    return {
        "name": folder.name,
        "features": names,
        "kinds": kinds,
        "outputs": scores.shape[1],
        "type": "f64" if wide else "f32",
        "output": output,
        "rows_a_call": rows_a_call,
        "missing": missing,
        "bad": bad,
    }


def write_refused(folder, name, graph, says):
    file = folder / f"{name}.onnx"
    file.write_bytes(graph.SerializeToString())
    return {"file": f"{folder.name}/{file.name}", "says": says}


def open_session(graph):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def parts_of(rows, size):
    """Calls of `size` rows, the last filled up by its last row; all rows in one where any number will do."""
    if size is None:
        return [rows]
    return [(part + part[-1:] * size)[:size] for part in (rows[at : at + size] for at in range(0, len(rows), size))]


def width(one):
    return math.prod(one.shape[1:])


def features(session):
    inputs, names, kinds = session.get_inputs(), [], []
    for one in inputs:
        count = width(one)
        matrix = "f{}" if len(inputs) == 1 else one.name + "[{}]"
        names += [one.name] if count == 1 else [matrix.format(place) for place in range(count)]
        whole = "int" in one.type or "bool" in one.type
        kinds += ["text" if "string" in one.type else "integer" if whole else "number"] * count
    return names, kinds


def score(session, outputs, rows):
    """Scores in one call, as f64, the outputs joined."""
    feed, at = {}, 0
    for one in session.get_inputs():
        cells = [row[at : at + width(one)] for row in rows]
        at += width(one)
        shape = [len(rows), *one.shape[1:]]
        if "string" in one.type:
            feed[one.name] = np.array(cells, dtype=object).reshape(shape)
        else:
            cells = [[math.nan if cell is None else cell for cell in row] for row in cells]
            feed[one.name] = np.array(cells).astype(NUMPY[one.type]).reshape(shape)
    scored = session.run(outputs, feed)
    return np.hstack([np.asarray(part, dtype=np.float64).reshape(len(rows), -1) for part in scored])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
