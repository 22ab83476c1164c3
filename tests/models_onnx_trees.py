"""Makes ONNX graphs of tree ensembles, exported and built node by node, and writes what ONNX Runtime says of rows.

usage: models_onnx_trees.py OUT_DIR [--only PREFIX]

Each OUT_DIR/NAME/ holds model.onnx, rows.jsonl as in `models_forest.py`, and scores.hex: a row's scores, each the
hexadecimal digits of its bytes, 8 of an f32, 16 of an f64. OUT_DIR/index-onnx_trees.json, written last, lists them:
models (name, features, outputs, rows, wide: whether rows are f64) and left (name, says: words of why the compiled
forest leaves the graph to the runtime).

The runtime works with one thread, as forebay lets it. Seeds are fixed.
"""

import json
import pathlib
import shutil
import sys
import time
import warnings

import lightgbm as lgb
import numpy as np
import onnx
import onnxmltools
import onnxruntime
import xgboost as xgb
from onnx import TensorProto, helper, numpy_helper
from onnxmltools.convert.common.data_types import FloatTensorType as Floats
from skl2onnx import to_onnx
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

import models_forest as forest
from models_onnx import open_session

SEED = forest.SEED
SMALL = {"n_estimators": 7, "max_depth": 5, "random_state": SEED}
MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]


def main(arguments):
    only = ""
    if len(arguments) == 3 and arguments[1] == "--only":
        arguments, only = arguments[:1], arguments[2]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore")
    out = pathlib.Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("fo_*"):
        shutil.rmtree(old)
    models, left, started = [], [], time.monotonic()
    for name, make in MODELS.items():
        if f"fo_{name}".startswith(only):
            models.append(write(out / f"fo_{name}", *make()))
    for name, (make, says) in LEFT.items():
        folder = out / f"fo_left_{name}"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(make()[0].SerializeToString())
        left.append({"name": folder.name, "says": says})
    (out / "index-onnx_trees.json").write_text(json.dumps({"models": models, "left": left}, indent=1) + "\n")
    rows, seconds = sum(entry["rows"] for entry in models), time.monotonic() - started
    print(f"ONNX tree ensembles: {len(models)} and {len(left)} others in {out}, {rows} rows, {seconds:.0f} s")
    print(f"ONNX Runtime {onnxruntime.__version__}, ONNX {onnx.__version__}")
    return 0


# ---- exported: each function gives (graph, rows, columns of categories) -------------------------------------------


def of_sklearn(estimator, label=lambda target: target, double=False, zipmap=False):
    rows, target = forest.table()
    estimator.fit(rows, label(target))
    kind = DoubleTensorType if double else FloatTensorType
    types = [("X", kind([None, rows.shape[1]]))]
    options = {id(estimator): {"zipmap": zipmap}} if hasattr(estimator, "predict_proba") else None
    opset = {"": 17, "ai.onnx.ml": 3}
    graph = to_onnx(estimator, initial_types=types, options=options, target_opset=opset)
    for output in graph.graph.output:
        # The operators give floats for doubles too, which the exporter does not know.
        if output.type.tensor_type.elem_type == TensorProto.DOUBLE:
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    return graph, rows, ()


def threes(target):
    return forest.classes(target, 3)


def halves(target):
    return forest.half(target).astype(int)


def of_xgboost(estimator, label=lambda target: target, holes=0.0):
    rows, target = forest.table(holes=holes)
    estimator.fit(rows, label(target))
    types = [("X", Floats([None, rows.shape[1]]))]
    return onnxmltools.convert_xgboost(estimator, initial_types=types, target_opset=15), rows, ()


def of_lightgbm(estimator, label=lambda target: target, holes=0.0, counts=(), **options):
    rows, target = forest.with_categories(counts) if counts else forest.table(holes=holes)
    estimator.fit(rows, label(target), categorical_feature=list(range(len(counts))))
    types = [("X", Floats([None, rows.shape[1]]))]
    graph = onnxmltools.convert_lightgbm(estimator, initial_types=types, target_opset=15, **options)
    return graph, rows, tuple(range(len(counts)))


XGB = {"n_estimators": 7, "max_depth": 4, "random_state": SEED, "n_jobs": 1}
LGB = {"n_estimators": 7, "num_leaves": 12, "random_state": SEED, "n_jobs": 1, "verbosity": -1}


# ---- built ---------------------------------------------------------------------------------------------------------


class Nodes:
    """A random ensemble: its nodes in the lists that the operators take."""

    def __init__(self, outputs, per_leaf, modes, trees=8, width=5, positive=False):
        self.rng = np.random.default_rng(SEED)
        self.outputs, self.per_leaf, self.modes, self.width, self.positive = outputs, per_leaf, modes, width, positive
        self.nodes, self.weights, self.roots = [], [], []
        for tree in range(trees):
            self.roots.append(len(self.nodes))
            self.grow(tree)

    def grow(self, tree):
        first, waiting, left = len(self.nodes), [0], int(self.rng.integers(1, 16))
        count = 1
        while waiting:
            name = waiting.pop(0)
            if left > 0:
                left -= 1
                children = (count, count + 1)
                waiting += children
                count += 2
                value = float(np.round(self.rng.normal() * 4) / 4)
                mode = str(self.rng.choice(self.modes))
                self.nodes.append([tree, name, mode, int(self.rng.integers(self.width)), value, *children])
                self.nodes[-1].append(int(self.rng.integers(2)))
            else:
                self.nodes.append([tree, name, "LEAF", 0, 0.0, 0, 0, 0])
                for output in self.per_leaf(tree):
                    weight = self.rng.normal()
                    self.weights.append([tree, name, output, abs(weight) if self.positive else weight])
        assert len(self.nodes) == first + count

    def rows(self):
        return np.round(self.rng.normal(size=(300, self.width)) * 4) / 4


def attributes_of(nodes, what, tensors=None, missing=True):
    """`tensors`: the type of numbers, given as tensors."""
    columns = list(zip(*nodes.nodes))
    trees, names, modes, features, values, on_true, on_false, tracks = columns
    given = {
        "nodes_treeids": trees,
        "nodes_nodeids": names,
        "nodes_modes": modes,
        "nodes_featureids": features,
        "nodes_truenodeids": on_true,
        "nodes_falsenodeids": on_false,
    }
    if missing:
        given["nodes_missing_value_tracks_true"] = tracks
    tree_ids, node_ids, outputs, weights = zip(*nodes.weights)
    given |= {f"{what}_treeids": tree_ids, f"{what}_nodeids": node_ids, f"{what}_ids": outputs}
    if tensors is None:
        return given | {"nodes_values": values, f"{what}_weights": weights}
    numbers = {"nodes_values_as_tensor": values, f"{what}_weights_as_tensor": weights}
    return given | {name: numpy_helper.from_array(np.array(x, dtype=tensors), name) for name, x in numbers.items()}


def graph_of(nodes, operator, given, kind=TensorProto.FLOAT, out=TensorProto.FLOAT, ml=3, before=(), after=()):
    """One ensemble between nodes: its input is `x` (or `t`, made by `before`), its scores `y` (or `s`)."""
    scores = "s" if after else "y"
    outputs = ["label", scores] if operator == "TreeEnsembleClassifier" else [scores]
    ensemble = helper.make_node(operator, ["t" if before else "x"], outputs, domain="ai.onnx.ml", **given)
    graph = helper.make_graph(
        [*before, ensemble, *after],
        "g",
        [helper.make_tensor_value_info("x", kind, [None, nodes.width])],
        [helper.make_tensor_value_info("y", out, [None, None])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", ml)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9), nodes.rows(), ()


def regressor(outputs=1, modes=MODES, per_leaf=None, **given):
    nodes = Nodes(outputs, per_leaf or (lambda tree: range(outputs)), modes)
    return graph_of(nodes, "TreeEnsembleRegressor", attributes_of(nodes, "target") | {"n_targets": outputs} | given)


def classifier(classes, per_leaf=None, modes=MODES, positive=False, **given):
    nodes = Nodes(classes, per_leaf or (lambda tree: range(classes)), modes, positive=positive)
    labels = {"classlabels_int64s": list(range(classes))}
    return graph_of(nodes, "TreeEnsembleClassifier", attributes_of(nodes, "class") | labels | given)


def doubles(operator, what, given, after_type=TensorProto.FLOAT, per_leaf=lambda tree: range(3)):
    nodes = Nodes(3, per_leaf, MODES)
    given = attributes_of(nodes, what, tensors=np.float64) | given
    return graph_of(nodes, operator, given, kind=TensorProto.DOUBLE, out=after_type)


def with_steps():
    nodes = Nodes(1, lambda tree: [0], ["BRANCH_LT"])
    number = helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2.5)))
    steps = [
        number,
        helper.make_node("Div", ["s", "two"], ["a"]),
        helper.make_node("Sub", ["a", "two"], ["b"]),
        helper.make_node("Exp", ["b"], ["c"]),
        helper.make_node("Mul", ["c", "two"], ["d"]),
        helper.make_node("Add", ["d", "two"], ["y"]),
    ]
    return graph_of(nodes, "TreeEnsembleRegressor", attributes_of(nodes, "target") | {"n_targets": 1}, after=steps)


def narrowed():
    """Doubles that the graph itself narrows."""
    nodes = Nodes(1, lambda tree: [0], ["BRANCH_LEQ"])
    given = attributes_of(nodes, "target") | {"n_targets": 1}
    cast = helper.make_node("Cast", ["x"], ["t"], to=TensorProto.FLOAT)
    return graph_of(nodes, "TreeEnsembleRegressor", given, kind=TensorProto.DOUBLE, before=[cast])


def columns():
    """An input a feature, put side by side in another order."""
    graph, rows, _ = regressor(3)
    names, order = ["age", "income", "debt", "tenure", "dues"], [3, 0, 4, 1, 2]
    del graph.graph.input[:]
    graph.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in names)
    graph.graph.node[0].input[0] = "t"
    graph.graph.node.insert(0, helper.make_node("Concat", [names[place] for place in order], ["t"], axis=1))
    return graph, rows, ()


def newest(outputs=1, dtype=np.float32, modes=range(6), per_leaf=None, **given):
    """`TreeEnsemble` of ai.onnx.ml 5: splits and leaves numbered apart."""
    names = {mode: place for place, mode in enumerate(MODES)}
    nodes = Nodes(outputs, per_leaf or (lambda tree: [tree % outputs]), [MODES[mode] for mode in modes])
    split_of, leaf_of, splits, leaves = {}, {}, [], []
    weights = {(tree, name): (output, weight) for tree, name, output, weight in nodes.weights}
    for node in nodes.nodes:
        place, ends = (leaf_of, leaves) if node[2] == "LEAF" else (split_of, splits)
        place[node[0], node[1]] = len(ends)
        ends.append(node)

    def children(side):
        ids = [(node[0], node[side]) for node in splits]
        is_leaf = [int(id in leaf_of) for id in ids]
        return [leaf_of[id] if id in leaf_of else split_of[id] for id in ids], is_leaf

    (on_true, true_leaf), (on_false, false_leaf) = children(5), children(6)
    tensor = lambda name, values, kind: numpy_helper.from_array(np.array(values, dtype=kind), name)
    found = [weights[node[0], node[1]] for node in leaves]
    attributes = {
        "n_targets": outputs,
        "tree_roots": [split_of[tree, 0] for tree in range(len(nodes.roots))],
        "nodes_featureids": [node[3] for node in splits],
        "nodes_truenodeids": on_true,
        "nodes_falsenodeids": on_false,
        "nodes_trueleafs": true_leaf,
        "nodes_falseleafs": false_leaf,
        "nodes_missing_value_tracks_true": [node[7] for node in splits],
        "nodes_modes": tensor("modes", [names[node[2]] for node in splits], np.uint8),
        "nodes_splits": tensor("splits", [node[4] for node in splits], dtype),
        "leaf_targetids": [output for output, _ in found],
        "leaf_weights": tensor("weights", [weight for _, weight in found], dtype),
    }
    kind = TensorProto.DOUBLE if dtype == np.float64 else TensorProto.FLOAT
    return graph_of(nodes, "TreeEnsemble", attributes | given, kind=kind, out=kind, ml=5)


def one(_):
    return [0]


MODELS = {
    "forest": lambda: of_sklearn(RandomForestRegressor(**SMALL)),
    "forest_targets": lambda: of_sklearn(RandomForestRegressor(**SMALL), forest.targets),
    "forest_binary": lambda: of_sklearn(RandomForestClassifier(**SMALL), halves),
    "forest_zipmap": lambda: of_sklearn(RandomForestClassifier(**SMALL), halves, zipmap=True),
    "forest_classes": lambda: of_sklearn(RandomForestClassifier(**SMALL), threes),
    "forest_double": lambda: of_sklearn(RandomForestRegressor(**SMALL), double=True),
    "forest_binary_double": lambda: of_sklearn(RandomForestClassifier(**SMALL), halves, double=True),
    "extra": lambda: of_sklearn(ExtraTreesRegressor(**SMALL)),
    "boosting": lambda: of_sklearn(GradientBoostingRegressor(**SMALL)),
    "boosting_double": lambda: of_sklearn(GradientBoostingRegressor(**SMALL), double=True),
    "boosting_binary": lambda: of_sklearn(GradientBoostingClassifier(**SMALL), halves),
    "boosting_binary_double": lambda: of_sklearn(GradientBoostingClassifier(**SMALL), halves, double=True),
    "boosting_classes": lambda: of_sklearn(GradientBoostingClassifier(**SMALL), threes),
    "boosting_classes_double": lambda: of_sklearn(GradientBoostingClassifier(**SMALL), threes, double=True),
    "tree": lambda: of_sklearn(DecisionTreeRegressor(max_depth=5)),
    "tree_classes": lambda: of_sklearn(DecisionTreeClassifier(max_depth=5), threes),
    "xgboost": lambda: of_xgboost(xgb.XGBRegressor(**XGB)),
    "xgboost_holes": lambda: of_xgboost(xgb.XGBRegressor(**XGB), holes=0.2),
    "xgboost_binary": lambda: of_xgboost(xgb.XGBClassifier(**XGB), halves),
    "xgboost_classes": lambda: of_xgboost(xgb.XGBClassifier(**XGB), threes),
    "xgboost_poisson": lambda: of_xgboost(
        xgb.XGBRegressor(objective="count:poisson", **XGB), lambda target: np.round(forest.positive(target))
    ),
    "lightgbm": lambda: of_lightgbm(lgb.LGBMRegressor(**LGB)),
    "lightgbm_holes": lambda: of_lightgbm(lgb.LGBMRegressor(**LGB), holes=0.2),
    "lightgbm_binary": lambda: of_lightgbm(lgb.LGBMClassifier(**LGB), halves, zipmap=False),
    "lightgbm_zipmap": lambda: of_lightgbm(lgb.LGBMClassifier(**LGB), halves),
    "lightgbm_classes": lambda: of_lightgbm(lgb.LGBMClassifier(**LGB), threes, zipmap=False),
    "lightgbm_poisson": lambda: of_lightgbm(lgb.LGBMRegressor(objective="poisson", **LGB), forest.positive),
    "lightgbm_forest": lambda: of_lightgbm(
        lgb.LGBMRegressor(boosting_type="rf", bagging_freq=1, bagging_fraction=0.6, **LGB)
    ),
    "lightgbm_one_hot": lambda: of_lightgbm(lgb.LGBMRegressor(max_cat_to_onehot=9, **LGB), counts=[4, 3]),
    "every_mode": regressor,
    **{mode.lower(): lambda mode=mode: regressor(modes=[mode]) for mode in MODES},
    "average": lambda: regressor(aggregate_function="AVERAGE", base_values=[0.3]),
    "average_targets": lambda: regressor(3, aggregate_function="AVERAGE", base_values=[0.3, -0.1, 7.0]),
    "target_a_tree": lambda: regressor(3, per_leaf=lambda tree: [tree % 3], base_values=[0.3, -0.1, 7.0]),
    "ignored_transform": lambda: regressor(post_transform="LOGISTIC"),
    "targets_logistic": lambda: regressor(3, post_transform="LOGISTIC"),
    "targets_softmax": lambda: regressor(3, post_transform="SOFTMAX"),
    "targets_softmax_zero": lambda: regressor(3, post_transform="SOFTMAX_ZERO", per_leaf=lambda tree: [tree % 2]),
    "binary_positive": lambda: classifier(2, one, positive=True),
    "binary_positive_logistic": lambda: classifier(2, one, positive=True, post_transform="LOGISTIC"),
    "binary_positive_softmax": lambda: classifier(2, one, positive=True, post_transform="SOFTMAX"),
    "binary_positive_base": lambda: classifier(2, one, positive=True, base_values=[-0.25]),
    "binary_mixed": lambda: classifier(2, one, base_values=[0.25]),
    "binary_mixed_logistic": lambda: classifier(2, one, base_values=[0.25], post_transform="LOGISTIC"),
    "binary_mixed_softmax": lambda: classifier(2, one, post_transform="SOFTMAX"),
    "two_classes": lambda: classifier(2),
    "two_classes_logistic": lambda: classifier(2, post_transform="LOGISTIC"),
    "two_classes_softmax": lambda: classifier(2, post_transform="SOFTMAX"),
    "classes_base": lambda: classifier(3, base_values=[0.1, 0.2, 0.3]),
    "classes_softmax": lambda: classifier(3, lambda tree: [tree % 3], post_transform="SOFTMAX"),
    "classes_logistic": lambda: classifier(4, post_transform="LOGISTIC"),
    "classes_softmax_zero": lambda: classifier(3, lambda tree: [tree % 2], post_transform="SOFTMAX_ZERO"),
    "doubles": lambda: doubles("TreeEnsembleRegressor", "target", {"n_targets": 3}),
    "doubles_softmax": lambda: doubles(
        "TreeEnsembleRegressor", "target", {"n_targets": 3, "post_transform": "SOFTMAX"}
    ),
    "doubles_classes": lambda: doubles(
        "TreeEnsembleClassifier", "class", {"classlabels_int64s": [0, 1, 2], "post_transform": "SOFTMAX"}
    ),
    "doubles_binary": lambda: doubles(
        "TreeEnsembleClassifier",
        "class",
        {"classlabels_strings": ["no", "yes"], "post_transform": "LOGISTIC"},
        per_leaf=one,
    ),
    "steps": with_steps,
    "narrowed": narrowed,
    "columns": columns,
    "newest": newest,
    "newest_targets": lambda: newest(3),
    "newest_average": lambda: newest(3, aggregate_function=0),
    # The runtime takes 1 for LOGISTIC and 2 for SOFTMAX, other than the operator's text.
    "newest_logistic": lambda: newest(3, post_transform=1),
    "newest_softmax": lambda: newest(3, post_transform=2),
    "newest_softmax_zero": lambda: newest(3, post_transform=3),
    "newest_doubles": lambda: newest(dtype=np.float64),
    "newest_doubles_logistic": lambda: newest(3, dtype=np.float64, post_transform=1),
}


# ---- what is left to the runtime: (function, words of the reason) --------------------------------------------------


def scaled():
    rows, target = forest.table()
    model = make_pipeline(StandardScaler(), RandomForestRegressor(**SMALL)).fit(rows, target)
    return to_onnx(model, rows[:1].astype(np.float32), target_opset={"": 17, "ai.onnx.ml": 3}), rows, ()


def sigmoid_after():
    nodes = Nodes(1, one, ["BRANCH_LT"])
    given = attributes_of(nodes, "target") | {"n_targets": 1}
    return graph_of(nodes, "TreeEnsembleRegressor", given, after=[helper.make_node("Sigmoid", ["s"], ["y"])])


def linear():
    node = helper.make_node("Exp", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3]) for name in "xy"]
    return helper.make_model(helper.make_graph([node], "g", values[:1], values[1:])), None, ()


LEFT = {
    "minimum": (lambda: regressor(aggregate_function="MIN"), "an aggregate function"),
    "probit": (lambda: regressor(post_transform="PROBIT"), "PROBIT"),
    "scaled": (scaled, "Scaler before the trees"),
    "sigmoid": (sigmoid_after, "Sigmoid between the trees and the output"),
    "bagging": (
        lambda: of_sklearn(BaggingClassifier(DecisionTreeClassifier(max_depth=3), n_estimators=3), halves),
        "between the trees and the output",
    ),
    "no_trees": (linear, "nothing makes"),
    "some_rows": (lambda: classifier(2, lambda tree: [tree % 2]), "not every row"),
}


# ---- what is written -----------------------------------------------------------------------------------------------


def write(folder, graph, rows, categories):
    folder.mkdir()
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    session = open_session(folder / "model.onnx")
    inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
    wide = inputs[0].type == "tensor(double)"
    narrows = any(node.op_type == "Cast" and node.input[0] == "x" for node in graph.graph.node)
    single = not wide or narrows
    edges = forest.EDGES_F32 if single else forest.EDGES_F64
    rows = forest.held_out(rows, edges, thresholds(graph), categories)
    rows = forest.written_rows(folder, rows)
    if single:
        # What a row holds beyond f32 is its own matter: forebay refuses such a number for a float model.
        rows = rows.astype(np.float32).astype(np.float64)
        rows = forest.written_rows(folder, rows)
    name = next(name for name in ("probabilities", "output_probability", "variable", "y") if name in outputs)
    scores = score(session, name, rows.astype(np.float64 if wide else np.float32))
    digits = scores.itemsize * 2
    bits = np.ascontiguousarray(scores).view(f"u{scores.itemsize}")
    lines = (" ".join(f"{number:0{digits}x}" for number in row) for row in bits)
    (folder / "scores.hex").write_text("\n".join(lines) + "\n")
    return {
        "name": folder.name,
        "features": rows.shape[1],
        "outputs": scores.shape[1],
        "rows": len(rows),
        "wide": wide,
    }


def score(session, output, rows):
    inputs = session.get_inputs()
    feed = {inputs[0].name: rows}
    if len(inputs) > 1:
        feed = {one.name: np.ascontiguousarray(rows[:, [place]]) for place, one in enumerate(inputs)}
    (scores,) = session.run([output], feed)
    if isinstance(scores, list):
        scores = np.array([[row[label] for label in sorted(row)] for row in scores], dtype=np.float32)
    return scores.reshape(len(rows), -1)


def thresholds(graph):
    found = []
    for node in graph.graph.node:
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        values = given.get("nodes_values", given.get("nodes_values_as_tensor", given.get("nodes_splits")))
        if values is not None:
            values = numpy_helper.to_array(values) if hasattr(values, "dims") else values
            modes = given["nodes_modes"] if isinstance(given["nodes_modes"], list) else [b""] * len(values)
            found += [
                (feature, float(value))
                for feature, value, mode in zip(given["nodes_featureids"], values, modes)
                if mode != b"LEAF"
            ]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
