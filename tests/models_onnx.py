"""Makes the ONNX models of the tests and writes what ONNX Runtime's Python package says about rows held out of training.

usage: models_onnx.py OUT_DIR

Each OUT_DIR/onnx_NAME/ holds
    model.onnx       the graph
    rows.jsonl       one row of features a line, a JSON array; null is a missing value
    expected.jsonl   line i: the scores of row i, a JSON array
OUT_DIR/onnx_refused/NAME.onnx are graphs that forebay must refuse. OUT_DIR/index-onnx.json, written last, lists both:
models (name, features, outputs, rows, type f32 or f64, missing: whether rows hold missing values) and refused (file,
says: words of the message).

Seeds are fixed and every run is single-threaded. Float graphs get rows narrowed to f32, double graphs f64.
"""

import json
import math
import pathlib
import shutil
import sys

import lightgbm as lgb
import numpy as np
import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType as LightGbmFloats
from skl2onnx import to_onnx
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models import BASE, HIGGS_FEATURES, SEED, edge_rows, higgs, json_row, mass, mass_class, on_higgs, with_holes

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
OPSET = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    out = pathlib.Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("onnx_*"):
        shutil.rmtree(old)

    models = [write_model(out / f"onnx_{name}", *make()) for name, make in MODELS.items()]
    (out / "onnx_refused").mkdir()
    refused = [write_refused(out / "onnx_refused", name, *make()) for name, make in REFUSED.items()]
    (out / "index-onnx.json").write_text(json.dumps({"models": models, "refused": refused}, indent=1) + "\n")
    rows = sum(entry["rows"] for entry in models)
    version = onnxruntime.__version__
    print(f"ONNX models: {len(models)} and {len(refused)} to refuse in {out}, {rows} rows, ONNX Runtime {version}")
    return 0


# ---- what is made: each function gives (graph, scored output, rows held out, class labels of a zipmap or None) -----


def from_lightgbm(trained, output, zipmap=False, labels=None):
    booster, held_out = trained
    types = [("input", LightGbmFloats([None, held_out.shape[1]]))]
    graph = convert_lightgbm(booster, initial_types=types, target_opset=15, zipmap=zipmap)
    return graph, output, np.vstack([held_out, edge_rows(booster, held_out)]), labels


def named_regression():
    graph, *rest = from_lightgbm(on_higgs(objective="regression", label=mass, num_leaves=63), "variable")
    helper.set_model_props(graph, {"feature_names": json.dumps(HIGGS_FEATURES)})
    return graph, *rest


def on_multiclass():
    return on_higgs(objective="multiclass", num_class=3, label=mass_class, rounds=20)


def scaled_logistic(tensor, classes=None, **options):
    """Standard scaler and logistic regression, with zipmap or without; `classes` are its labels."""
    (rows, labels), (held_out, _) = higgs("train"), higgs("test")
    target = labels.astype(int) if classes is None else np.array(classes)[mass_class(rows, labels)]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(rows, target)
    graph = to_onnx(model, initial_types=[("X", tensor([None, 28]))], options=options_of(model, options))
    probabilities = model.predict_proba(held_out)
    names = [output.name for output in graph.graph.output]
    labels = sorted(classes) if classes else [0, 1]
    return graph, names[-1], held_out, labels if options.get("zipmap") else None, probabilities


def options_of(model, options):
    return {id(model): options}


def random_forest():
    (rows, labels), (held_out, _) = higgs("train"), higgs("test")
    model = RandomForestClassifier(60, max_depth=9, random_state=SEED, n_jobs=1).fit(rows, labels.astype(int))
    graph = to_onnx(model, initial_types=[("X", FloatTensorType([None, 28]))], options=options_of(model, {"zipmap": False}))
    return graph, "probabilities", held_out, None


def weights(*shape):
    return np.random.default_rng(SEED).normal(size=shape) / math.sqrt(shape[0])


def mlp(width=28, hidden=64, classes=3):
    """Gemm, Relu, Gemm, Relu, Gemm, Softmax, with made weights."""
    held_out = higgs("test")[0]
    sizes = [width, hidden, hidden // 2, classes]
    nodes, tensors, last = [], [], "x"
    for layer, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
        tensors += [constant(f"w{layer}", weights(inputs, outputs)), constant(f"b{layer}", weights(outputs))]
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"h{layer}"]))
        last = f"h{layer}"
        if outputs != classes:
            nodes.append(helper.make_node("Relu", [last], [f"r{layer}"]))
            last = f"r{layer}"
    nodes.append(helper.make_node("Softmax", [last], ["y"], axis=1))
    return build(nodes, [("x", FLOAT, ["N", width])], [("y", FLOAT, ["N", classes])], tensors), "y", held_out, None


def named_columns(kind, rank):
    """A logistic function of four inputs by name, each [N, 1] or [N]."""
    names = ["age", "income", "debt", "tenure"]
    shape = ["N", 1] if rank == 2 else ["N"]
    tensors = [constant("w", weights(4, 1), kind), constant("b", np.array([0.1]), kind)]
    nodes, columns = [], names
    if rank == 1:
        tensors.append(numpy_helper.from_array(np.array([1]), "axes"))
        nodes = [helper.make_node("Unsqueeze", [name, "axes"], [f"{name}_2"]) for name in names]
        columns = [f"{name}_2" for name in names]
    nodes += [
        helper.make_node("Concat", columns, ["x"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "b"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["score"]),
    ]
    inputs = [(name, kind, shape) for name in names]
    rows = np.random.default_rng(SEED).normal(size=(400, 4)) * [10, 3, 1, 0.1]
    return build(nodes, inputs, [("score", kind, ["N", 1])], tensors), "score", rows, None


def labels_only():
    graph, _, held_out, *_ = scaled_logistic(FloatTensorType, zipmap=False)
    keep(graph, "label")
    return graph, "label", held_out, None


MODELS = {
    "lgb_regression": lambda: named_regression(),
    "lgb_binary": lambda: from_lightgbm(on_higgs(objective="binary"), "probabilities"),
    "lgb_binary_zipmap": lambda: from_lightgbm(on_higgs(objective="binary"), "probabilities", True, [0, 1]),
    "lgb_multiclass": lambda: from_lightgbm(on_multiclass(), "probabilities"),
    "lgb_multiclass_zipmap": lambda: from_lightgbm(on_multiclass(), "probabilities", True, [0, 1, 2]),
    "lgb_missing": lambda: from_lightgbm(with_holes(), "variable"),
    "random_forest": random_forest,
    "logistic_float": lambda: scaled_logistic(FloatTensorType, zipmap=False),
    "logistic_double": lambda: scaled_logistic(DoubleTensorType, zipmap=False),
    "logistic_zipmap_text": lambda: scaled_logistic(FloatTensorType, ["low", "mid", "high"], zipmap=True),
    "mlp": mlp,
    "columns_float": lambda: named_columns(FLOAT, 2),
    "columns_double": lambda: named_columns(DOUBLE, 1),
    "labels": labels_only,
}


# ---- what must be refused: each function gives (bytes, words of the message) ---------------------------------------


def tiny(inputs, outputs=None, nodes=None, tensors=()):
    outputs = outputs or [("y", FLOAT, ["N", 2])]
    nodes = nodes or [helper.make_node("Identity", [inputs[0][0]], ["y"])]
    return build(nodes, inputs, outputs, list(tensors))


def external():
    graph = mlp()[0]
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return graph


def text_labels():
    graph = scaled_logistic(FloatTensorType, ["low", "mid", "high"], zipmap=False)[0]
    keep(graph, "label")
    return graph


def two_floats():
    inputs = [("x", FLOAT, ["N", 2])]
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Sigmoid", ["x"], ["b"])]
    return tiny(inputs, [("a", FLOAT, ["N", 2]), ("b", FLOAT, ["N", 2])], nodes)


def sequence_of_tensors():
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    graph = tiny([("x", FLOAT, ["N", 2])], nodes=[node])
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_sequence_value_info("y", FLOAT, None))
    return graph


def reduced():
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    return tiny([("x", FLOAT, ["N", 2])], [("y", FLOAT, [])], [node])


def misnamed():
    graph = tiny([("x", FLOAT, ["N", 2])])
    helper.set_model_props(graph, {"feature_names": '["a", "b", "c"]'})
    return graph


def unknown_operator():
    return tiny([("x", FLOAT, ["N", 2])], nodes=[helper.make_node("NoSuchThing", ["x"], ["y"], domain="nobody")])


REFUSED = {
    "features_open": lambda: (tiny([("x", FLOAT, ["N", "F"])]), ["x: ", "leaves the number of features open"]),
    "two_floats": lambda: (two_floats(), ["2 outputs could be the scores", "a: ", "b: "]),
    "text_labels": lambda: (text_labels(), ["no output holds numbers", "label: "]),
    "sequence": lambda: (sequence_of_tensors(), ["y: ", "is made by no ZipMap"]),
    "reduced": lambda: (reduced(), ["shape []", "not [rows, scores]"]),
    "external": lambda: (external(), ["w0", "is kept in another file"]),
    "misnamed": lambda: (misnamed(), ["feature_names", "3 names"]),
    "unknown_operator": lambda: (unknown_operator(), ["ONNX Runtime cannot read it", "NoSuchThing"]),
    "cut_short": lambda: (mlp()[0].SerializeToString()[:-100], ["cut short"]),
}


# ---- graphs by hand ------------------------------------------------------------------------------------------------


def constant(name, values, kind=FLOAT):
    return numpy_helper.from_array(values.astype(np.float64 if kind == DOUBLE else np.float32), name)


def build(nodes, inputs, outputs, tensors):
    def infos(values):
        return [helper.make_tensor_value_info(*value) for value in values]

    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), tensors)
    return helper.make_model(graph, opset_imports=OPSET, ir_version=9, producer_name="forebay-tests")


def keep(graph, name):
    """Drops all outputs but one."""
    kept = [output for output in graph.graph.output if output.name == name]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)


# ---- what is written -----------------------------------------------------------------------------------------------


def write_model(folder, graph, output, rows, labels, source_says=None):
    checker.check_model(graph)
    folder.mkdir()
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    session = open_session(folder / "model.onnx")
    wide = session.get_inputs()[0].type == "tensor(double)"
    limit = np.finfo(np.float64 if wide else np.float32).max
    rows = rows[(np.isnan(rows) | (np.abs(rows) <= limit)).all(axis=1)]
    # Rows go through their JSON text first, so that both sides start from the same numbers.
    lines = [json_row(row) for row in rows]
    rows = np.array([[math.nan if x is None else x for x in json.loads(line)] for line in lines])
    scores = score(session, output, rows.astype(np.float64 if wide else np.float32), labels)
    assert np.isfinite(scores).all(), folder
    if source_says is not None:
        assert np.allclose(scores, source_says, atol=1e-4), folder
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "expected.jsonl").write_text("".join(json_row(row) + "\n" for row in scores))
    return {
        "name": folder.name,
        "features": rows.shape[1],
        "outputs": scores.shape[1],
        "rows": len(rows),
        "type": "f64" if wide else "f32",
        "missing": bool(np.isnan(rows).any()),
    }


def open_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def score(session, output, rows, labels):
    """Scores in one batch, as f64; maps in the order of `labels`."""
    inputs = session.get_inputs()
    if len(inputs) == 1:
        feed = {inputs[0].name: rows}
    else:
        shape = [-1] if len(inputs[0].shape) == 1 else [-1, 1]
        feed = {one.name: np.ascontiguousarray(rows[:, place]).reshape(shape) for place, one in enumerate(inputs)}
    (scores,) = session.run([output], feed)
    if labels is not None:
        scores = [[row[label] for label in labels] for row in scores]
    return np.asarray(scores, dtype=np.float64).reshape(len(rows), -1)


def write_refused(folder, name, graph, says):
    file = folder / f"{name}.onnx"
    file.write_bytes(graph if isinstance(graph, bytes) else graph.SerializeToString())
    return {"file": f"{folder.name}/{file.name}", "says": says}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
