"""Makes Treelite checkpoints of models from every library that Treelite imports, and of its own model builder, and
writes what `treelite.gtil.predict` says of rows.

usage: models_treelite.py OUT_DIR [--only PREFIX]

Each OUT_DIR/NAME/ holds model.tl, for models that version 3.9 could write model.v3.tl, and rows.jsonl, margins.hex and
predictions.hex as in `models_forest.py`, with 8 hexadecimal digits where the model's numbers are f32 and 16 where f64.
OUT_DIR/index-treelite.json, written last, lists them: as index-forest.json, and numbers ("f32" or "f64").

The 3.9 files are written here, structure by structure, and read by today's Treelite. For several classes it then reads
base scores that 3.9 does not have, so those are expected to score as the same model of version 4.
"""

import json
import math
import pathlib
import shutil
import struct
import sys
import time

import numpy as np
import sklearn
import treelite
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from treelite.model_builder import Metadata, ModelBuilder, PostProcessorFunc, TreeAnnotation

import models_forest as forest

SEED = forest.SEED
OPERATORS = ["<", "<=", "==", ">", ">="]
XGBOOST = ["squared", "logistic", "logistic_base_score", "hinge", "gamma", "rank_ndcg", "softprob_3", "softmax_5"]
XGBOOST += ["dart", "random_forest_3", "holes", "one_hot", "sets", "sets_softprob", "targets", "vector_leaves"]
XGBOOST += ["constant", "features_1"]
LIGHTGBM = ["regression", "regression_sqrt", "poisson", "binary_sigmoid", "cross_entropy_lambda", "multiclass_3"]
LIGHTGBM += ["multiclassova", "lambdarank", "dart", "random_forest", "missing_nan", "one_hot", "sets", "features_1"]


def main(arguments):
    only = ""
    if len(arguments) == 3 and arguments[1] == "--only":
        arguments, only = arguments[:1], arguments[2]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    out = pathlib.Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("ft_*"):
        shutil.rmtree(old)
    index, started = [], time.monotonic()
    for name, make in models().items():
        if f"ft_{name}".startswith(only):
            folder = out / f"ft_{name}"
            folder.mkdir()
            index.append(write(folder, *make()))
    (out / "index-treelite.json").write_text(json.dumps(index, indent=1) + "\n")
    rows, seconds = sum(entry["rows"] for entry in index), time.monotonic() - started
    print(f"Treelite models: {len(index)} in {out}, {rows} rows, {seconds:.0f} s")
    print(f"Treelite {treelite.__version__}, scikit-learn {sklearn.__version__}")
    return 0


def models():
    """Each gives (model, rows, columns of categories)."""
    made = {f"xgboost_{name}": lambda name=name: of_xgboost(name) for name in XGBOOST}
    made |= {f"lightgbm_{name}": lambda name=name: of_lightgbm(name) for name in LIGHTGBM}
    made |= {f"sklearn_{name}": make for name, make in SKLEARN.items()}
    made |= {f"built_{name}": make for name, make in BUILT.items()}
    return made


# ---- imported ------------------------------------------------------------------------------------------------------


def of_xgboost(name):
    booster, rows, categories = forest.XGBOOST[name]()
    return treelite.frontend.from_xgboost(booster), rows, categories


def of_lightgbm(name):
    booster, rows, categories = forest.LIGHTGBM[name]()
    return treelite.frontend.from_lightgbm(booster), rows, categories


def of_sklearn(estimator, label=lambda target: target, data=None, categories=()):
    rows, target = forest.table() if data is None else data
    estimator.fit(rows, label(target))
    return treelite.sklearn.import_model(estimator), rows, categories


def two_labels(target):
    """Targets of different numbers of classes."""
    return np.stack([forest.classes(target, 3), forest.classes(-target, 2)], axis=1)


def hist(kind, label, **parameters):
    rows, target = forest.with_categories([6, 40])
    estimator = kind(max_iter=8, categorical_features=[0, 1], random_state=SEED, **parameters)
    return of_sklearn(estimator, label, (rows, target), (0, 1))


SMALL = {"n_estimators": 9, "max_depth": 6, "random_state": SEED}

SKLEARN = {
    "forest": lambda: of_sklearn(RandomForestRegressor(**SMALL)),
    "forest_targets": lambda: of_sklearn(RandomForestRegressor(**SMALL), forest.targets),
    "forest_binary": lambda: of_sklearn(RandomForestClassifier(**SMALL), forest.half),
    "forest_classes": lambda: of_sklearn(RandomForestClassifier(**SMALL), lambda target: forest.classes(target, 4)),
    "forest_labels": lambda: of_sklearn(RandomForestClassifier(**SMALL), two_labels),
    "forest_holes": lambda: of_sklearn(RandomForestRegressor(**SMALL), data=forest.table(holes=0.2)),
    "extra": lambda: of_sklearn(ExtraTreesRegressor(**SMALL)),
    "extra_classes": lambda: of_sklearn(ExtraTreesClassifier(**SMALL), lambda target: forest.classes(target, 3)),
    "boosting": lambda: of_sklearn(GradientBoostingRegressor(**SMALL)),
    "boosting_binary": lambda: of_sklearn(GradientBoostingClassifier(**SMALL), forest.half),
    "boosting_classes": lambda: of_sklearn(
        GradientBoostingClassifier(**SMALL), lambda target: forest.classes(target, 3)
    ),
    "isolation": lambda: of_sklearn(IsolationForest(n_estimators=20, random_state=SEED)),
    "hist": lambda: of_sklearn(HistGradientBoostingRegressor(max_iter=8, random_state=SEED)),
    "hist_holes": lambda: of_sklearn(
        HistGradientBoostingRegressor(max_iter=8, random_state=SEED), data=forest.table(holes=0.2)
    ),
    "hist_categories": lambda: hist(HistGradientBoostingRegressor, lambda target: target),
    "hist_binary": lambda: hist(HistGradientBoostingClassifier, forest.half),
    "hist_classes": lambda: hist(HistGradientBoostingClassifier, lambda target: forest.classes(target, 3)),
}


# ---- built ---------------------------------------------------------------------------------------------------------


def build(
    numbers="float32",
    targets=1,
    classes=(1,),
    per_tree=None,
    postprocessor=("identity", 1.0, 1.0),
    average=False,
    categories=0,
    base=None,
    trees=12,
    task="kRegressor",
    leaf=None,
):
    """A random model. `per_tree(i)` gives a tree's target and class, -1 for all."""
    rng = np.random.default_rng(SEED)
    per_tree = per_tree or (lambda place: (0, 0))
    ids = [per_tree(place) for place in range(trees)]
    wide, long = ids[0][1] == -1, ids[0][0] == -1
    shape = (targets if long else 1, max(classes) if wide else 1)
    width = 6 + categories
    name, alpha, ratio = postprocessor
    builder = ModelBuilder(
        threshold_type=numbers,
        leaf_output_type=numbers,
        metadata=Metadata(width, task, average, targets, list(classes), shape),
        tree_annotation=TreeAnnotation(trees, [target for target, _ in ids], [kind for _, kind in ids]),
        postprocessor=PostProcessorFunc(name, alpha, ratio),
        base_scores=base or [0.0] * (targets * max(classes)),
    )
    for _ in range(trees):
        builder.start_tree()
        grow(builder, rng, width, categories, shape, leaf or (lambda: rng.normal()))
        builder.end_tree()
    rows = np.round(rng.normal(size=(300, width)) * 4) / 4
    rows[:, :categories] = rng.integers(0, 40, (300, categories))
    return builder.commit(), rows, tuple(range(categories))


def grow(builder, rng, width, categories, shape, leaf):
    """A tree of up to 30 splits whose thresholds are values that rows have."""
    waiting, next_key, splits = [0], 1, int(rng.integers(0, 30))
    while waiting:
        key = waiting.pop(0)
        builder.start_node(key)
        if splits > 0:
            splits -= 1
            sides = {"left_child_key": next_key, "right_child_key": next_key + 1}
            waiting += [next_key, next_key + 1]
            next_key += 2
            feature, default_left = int(rng.integers(width)), bool(rng.integers(2))
            if feature < categories:
                count = int(rng.integers(0, 12))
                chosen = sorted(int(x) for x in rng.choice(40, count, replace=False))
                if rng.random() < 0.2:
                    chosen.append(int(rng.choice([16777215, 16777216, 16777217, 4294967293])))
                builder.categorical_test(
                    feature,
                    default_left=default_left,
                    category_list=chosen,
                    category_list_right_child=bool(rng.integers(2)),
                    **sides,
                )
            else:
                threshold = float(np.round(rng.normal() * 4) / 4) + (0.1 if rng.random() < 0.3 else 0.0)
                builder.numerical_test(
                    feature, threshold, default_left=default_left, opname=str(rng.choice(OPERATORS)), **sides
                )
        elif shape == (1, 1):
            builder.leaf(leaf())
        else:
            builder.leaf([leaf() for _ in range(shape[0] * shape[1])])
        builder.end_node()


def vectors(_):
    return (-1, -1)


def by_class(count):
    return lambda place: (0, place % count)


BUILT = {
    "f32": build,
    "f64": lambda: build("float64"),
    "categories_f32": lambda: build(categories=3),
    "categories_f64": lambda: build("float64", categories=3),
    "base_f32": lambda: build(base=[0.1], average=True),
    "base_f64": lambda: build("float64", base=[1e-9], average=True),
    "sigmoid": lambda: build(postprocessor=("sigmoid", 2.5, 1.0), task="kBinaryClf"),
    "sigmoid_far": lambda: build(postprocessor=("sigmoid", 30.0, 1.0), leaf=lambda: -3.0, task="kBinaryClf"),
    "sigmoid_f64": lambda: build("float64", postprocessor=("sigmoid", 0.7, 1.0), task="kBinaryClf"),
    "exponential": lambda: build(postprocessor=("exponential", 1.0, 1.0)),
    "exponential_f64": lambda: build("float64", postprocessor=("exponential", 1.0, 1.0)),
    "ratio": lambda: build(postprocessor=("exponential_standard_ratio", 1.0, 3.3), average=True),
    "ratio_f64": lambda: build("float64", postprocessor=("exponential_standard_ratio", 1.0, 3.3), average=True),
    "log1p": lambda: build(postprocessor=("logarithm_one_plus_exp", 1.0, 1.0)),
    "log1p_f64": lambda: build("float64", postprocessor=("logarithm_one_plus_exp", 1.0, 1.0)),
    "hinge": lambda: build(postprocessor=("hinge", 1.0, 1.0), task="kBinaryClf"),
    "square": lambda: build(postprocessor=("signed_square", 1.0, 1.0)),
    "square_f64": lambda: build("float64", postprocessor=("signed_square", 1.0, 1.0)),
    "softmax": lambda: classifier("float32", "softmax"),
    "softmax_f64": lambda: classifier("float64", "softmax"),
    "ova": lambda: classifier("float32", "multiclass_ova"),
    "ova_f64": lambda: classifier("float64", "multiclass_ova"),
    "softmax_vectors": lambda: classifier("float32", "softmax", vectors, average=True),
    "softmax_targets": lambda: build(
        targets=2,
        classes=(3, 3),
        per_tree=vectors,
        postprocessor=("softmax", 1.0, 1.0),
        base=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        task="kMultiClf",
    ),
    "rows_of_targets": lambda: build(
        "float64", targets=2, classes=(3, 2), per_tree=lambda place: (place % 2, -1), average=True, task="kMultiClf"
    ),
    "columns_of_targets": lambda: build(
        targets=3, classes=(2, 2, 2), per_tree=lambda place: (-1, place % 2), base=[0.5] * 6, task="kMultiClf"
    ),
    "one_output_a_tree": lambda: build(
        targets=3,
        classes=(2, 1, 2),
        per_tree=lambda place: [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)][place % 5],
        average=True,
        base=[0.5, 0.25, 0.125, 0.75, 1.5, 2.5],
        task="kMultiClf",
    ),
    "edges": lambda: with_thresholds([math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-45]),
}


def classifier(numbers, postprocessor, per_tree=None, average=False):
    return build(
        numbers,
        classes=(3,),
        per_tree=per_tree or by_class(3),
        postprocessor=(postprocessor, 1.7, 1.0),
        base=[0.1, -0.2, 0.3],
        average=average,
        task="kMultiClf",
    )


def with_thresholds(edges):
    """The builder takes no such thresholds, but a tree's field does."""
    model, rows, categories = build()
    for place in range(model.num_tree):
        tree = model.get_tree_accessor(place)
        thresholds = np.array(tree.get_field("threshold"))
        for node in range(len(thresholds)):
            if (node + place) % 3 == 0:
                thresholds[node] = edges[(node + place) // 3 % len(edges)]
        tree.set_field("threshold", thresholds)
    return model, rows, categories


# ---- version 3.9 ---------------------------------------------------------------------------------------------------


def v3(model):
    """The model as Treelite 3.9 would have written it, or None where it could not."""
    header = model.get_header_accessor()
    get = header.get_field
    classes, shape = [int(x) for x in get("num_class")], [int(x) for x in get("leaf_vector_shape")]
    base, ids = get("base_scores"), [int(x) for x in get("class_id")]
    if len(classes) != 1 or len(set(base)) != 1 or float(np.float32(base[0])) != base[0]:
        return None
    if classes == [1]:
        task = 0
    elif shape == [1, 1] and ids == [place % classes[0] for place in range(len(ids))]:
        task = 1
    elif shape == [1, classes[0]] and set(ids) == {-1}:
        task = 2
    else:
        return None
    single = model.input_type == "float32"
    kind = 2 if single else 3
    parts = [struct.pack("<3i2BQ", 3, 9, 1, kind, kind, model.num_tree)]
    parts.append(struct.pack("<iBB", model.num_feature, task, int(get("average_tree_output")[0])))
    parts.append(struct.pack("<BB2xII", 0, int(task == 1), classes[0], shape[0] * shape[1]))
    alpha, ratio = float(get("sigmoid_alpha")[0]), float(get("ratio_c")[0])
    parts.append(struct.pack("<256sfff", get("postprocessor").encode(), alpha, ratio, float(base[0])))
    parts.append(struct.pack("<i", 0))
    for place in range(model.num_tree):
        parts.append(v3_tree(model.get_tree_accessor(place).get_field, single))
    return b"".join(parts)


def v3_tree(get, single):
    count = int(get("num_nodes")[0])
    node = struct.Struct("<iiIfQdd6B2x" if single else "<iiI4xdQdd6B2x")
    parts = [struct.pack("<iBQ", count, int(get("has_categorical_split")[0]), count)]
    left, right, features = get("cleft"), get("cright"), get("split_index")
    default_left, kinds, operators = get("default_left"), get("node_type"), get("cmp")
    values, thresholds, lists = get("leaf_value"), get("threshold"), get("category_list_right_child")
    for i in range(count):
        feature = (int(features[i]) & 0x7FFFFFFF) | (0x80000000 if default_left[i] else 0)
        info = float(values[i] if left[i] == -1 else thresholds[i])
        flags = [int(kinds[i]), int(operators[i]), 0, 0, 0, int(lists[i])]
        parts.append(node.pack(int(left[i]), int(right[i]), feature, info, 0, 0.0, 0.0, *flags))
    assert node.size == (48 if single else 56)
    numbers = "<f4" if single else "<f8"
    for name, dtype in (("leaf_vector", numbers), ("leaf_vector_begin", "<u8"), ("leaf_vector_end", "<u8")):
        parts.append(array(get(name), dtype))
    starts, ends = get("category_list_begin"), get("category_list_end")
    category_list, offsets, gathered = get("category_list"), [0], []
    for i in range(count):
        gathered += [int(x) for x in category_list[int(starts[i]) : int(ends[i])]]
        offsets.append(len(gathered))
    parts += [array(gathered, "<u4"), array(offsets, "<u8"), struct.pack("<ii", 0, 0)]
    return b"".join(parts)


def array(values, dtype):
    values = np.asarray(values).astype(dtype)
    return struct.pack("<Q", len(values)) + values.tobytes()


# ---- what is written -----------------------------------------------------------------------------------------------


def write(folder, model, rows, categories):
    model.serialize(folder / "model.tl")
    model = treelite.Model.deserialize(folder / "model.tl")
    single = model.input_type == "float32"
    rows = forest.held_out(rows, forest.EDGES_F32 if single else forest.EDGES_F64, thresholds(model), categories)
    rows = forest.written_rows(folder, rows)
    margins, predictions = (treelite.gtil.predict(model, rows, nthread=1, pred_margin=margin) for margin in (True, False))
    files = ["model.tl"]
    old = v3(model)
    if old is not None:
        files.append("model.v3.tl")
        (folder / files[-1]).write_bytes(old)
        read = treelite.Model.deserialize(folder / files[-1])
        assert read.num_tree == model.num_tree
        if list(model.get_header_accessor().get_field("num_class")) == [1]:
            same = treelite.gtil.predict(read, rows, nthread=1, pred_margin=True)
            assert same.tobytes() == margins.tobytes(), folder.name
    outputs, written = forest.write_expected(folder, margins, predictions)
    trees = [model.get_tree_accessor(place).get_field("cleft") for place in range(model.num_tree)]
    return {
        "name": folder.name,
        "library": "treelite",
        "numbers": "f32" if single else "f64",
        "files": files,
        "features": rows.shape[1],
        "outputs": outputs,
        "predictions": written,
        "rows": len(rows),
        "trees": len(trees),
        "leaves": max(int((tree == -1).sum()) for tree in trees),
    }


def thresholds(model):
    found = []
    for place in range(model.num_tree):
        get = model.get_tree_accessor(place).get_field
        kinds, features, values = get("node_type"), get("split_index"), get("threshold")
        found += [(int(features[i]), float(values[i])) for i in range(len(kinds)) if kinds[i] == 1]
    return [(feature, value) for feature, value in found if math.isfinite(value)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
