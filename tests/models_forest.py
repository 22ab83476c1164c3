"""Trains the models that the compiled forest is held against, and writes what their own libraries say of rows.

usage: models_forest.py OUT_DIR [--only PREFIX]

Each OUT_DIR/NAME/ holds
    model.json, model.ubj    an XGBoost model twice, and for some model.bin, its old binary format, or
    model.txt                a LightGBM one
    rows.jsonl       one row of features a line, a JSON array; null is NaN, "inf" and "-inf" are infinities
    margins.hex      line i: row i's raw scores, each the hexadecimal digits of its bytes, highest first; 8 digits are
                     an f32 (XGBoost), 16 an f64 (LightGBM)
    predictions.hex  the same of its predictions
and OUT_DIR/index-forest.json, written last, lists them: name, library, files, features, outputs, predictions, rows,
trees, leaves (of the largest tree).

Expected numbers come from the saved file, read back. LightGBM's random forests divide their sum only for predictions;
here margins are divided too. XGBoost takes infinities only in `inplace_predict`, which for dart adds otherwise, so dart
and linear models have none. Seeds are fixed and one thread trains.
"""

import json
import math
import pathlib
import shutil
import sys
import time

import lightgbm as lgb
import numpy as np
import xgboost as xgb

from xgboost_binary import old_binary

SEED = 20240607
XGB = {"seed": SEED, "nthread": 1, "verbosity": 0, "eta": 0.2, "max_depth": 5}
LGB = {
    "seed": SEED,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
    "num_leaves": 15,
    "learning_rate": 0.2,
    "min_data_in_leaf": 5,
}
# At the ends of what each type holds, and around LightGBM's zero_threshold, 1e-35f.
EDGES_F32 = [math.nan, 0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 3e38, -3e38]
EDGES_F64 = [math.nan, 0.0, -0.0, 1e-35, -1e-35, 1.0000000180025095e-35, 1.000000018002510e-35, 1.1e-35, 5e-324]
EDGES_F64 += [-5e-324, 2.2e-308, 1e300, -1e300, 3.4028235677973366e38]
INFINITIES = [math.inf, -math.inf]
CATEGORIES_OUT = [-1.0, -0.5, 0.99, 2.7, 31.0, 32.0, 33.0, 63.0, 64.0, 99.0, 255.0, 1e6, 16777215.0, 16777216.0]
CATEGORIES_OUT += [16777217.0, 2147483647.0, 2147483648.0, 4294967296.0, 1e12, -1e12, -2147483649.0, math.nan]


def main(arguments):
    only = ""
    if len(arguments) == 3 and arguments[1] == "--only":
        arguments, only = arguments[:1], arguments[2]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    out = pathlib.Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    for kind in ("fx_*", "fl_*"):
        for old in out.glob(kind):
            shutil.rmtree(old)
    index, started = [], time.monotonic()
    for prefix, models, write in (("fx", XGBOOST, write_xgboost), ("fl", LIGHTGBM, write_lightgbm)):
        for name, make in models.items():
            if f"{prefix}_{name}".startswith(only):
                folder = out / f"{prefix}_{name}"
                folder.mkdir()
                index.append(write(folder, *make()))
    (out / "index-forest.json").write_text(json.dumps(index, indent=1) + "\n")
    rows, seconds = sum(entry["rows"] for entry in index), time.monotonic() - started
    print(f"forest models: {len(index)} in {out}, {rows} rows, {seconds:.0f} s")
    print(f"XGBoost {xgb.__version__}, LightGBM {lgb.__version__}")
    return 0


# ---- data --------------------------------------------------------------------------------------------------------


def table(count=800, width=8, holes=0.0, zeros=0.0, seed=SEED):
    """Rows of numbers and a target that trees can learn from them."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, width)).astype(np.float32).astype(np.float64)
    a, b, c = rows[:, 0], rows[:, 1 % width], rows[:, 2 % width]
    target = np.where(a > 0, 2 * b, -c) + 0.5 * rows[:, 3 % width] * rows[:, 4 % width]
    rows[rng.random(rows.shape) < zeros] = 0.0
    rows[rng.random(rows.shape) < holes] = np.nan
    return rows, target


def with_categories(counts, count=1500, seed=SEED):
    """The first columns are categories, as many as each count says; four plain columns follow."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, len(counts) + 4)).astype(np.float32).astype(np.float64)
    target = rows[:, -1].copy()
    for column, categories in enumerate(counts):
        rows[:, column] = rng.integers(0, categories, count)
        target += rng.normal(size=categories)[rows[:, column].astype(int)] * (1 + 0.3 * rows[:, -2])
    return rows, target


def positive(target):
    return np.exp(0.3 * target) + 0.01


def classes(target, count):
    return np.searchsorted(np.quantile(target, np.linspace(0, 1, count + 1)[1:-1]), target)


def half(target):
    return (target > np.median(target)).astype(float)


def held_out(rows, edges, thresholds, categories=(), infinities=True, count=40):
    """Rows as trained on, then some moved onto the model's own thresholds and beside them, and some with edges."""
    rng = np.random.default_rng(SEED + 1)
    single = edges is EDGES_F32
    rows = rows[rng.integers(0, len(rows), count)].copy()
    numeric = [column for column in range(rows.shape[1]) if column not in categories]
    for row in rows[10:20]:
        for _ in range(min(len(row), 50) if thresholds else 0):
            feature, threshold = thresholds[rng.integers(len(thresholds))]
            step = rng.choice([-np.inf, np.inf, threshold])
            kind = np.float32 if single else np.float64
            row[feature] = np.nextafter(kind(threshold), kind(step))
    for row in rows[20:32]:
        for _ in range(3 if numeric else 0):
            row[rng.choice(numeric)] = rng.choice(edges)
        for column in categories:
            row[column] = rng.choice(CATEGORIES_OUT)
    for row in rows[32:36]:
        if numeric and infinities:
            row[rng.choice(numeric)] = rng.choice(INFINITIES)
        for column in categories:
            row[column] = rng.choice(CATEGORIES_OUT)
    rows[36, :] = np.nan
    rows[37, :] = 0.0
    rows[38, :] = -0.0
    rows[39, : rows.shape[1] // 2] = np.nan
    return rows


# ---- XGBoost: each function gives (booster, rows, columns of categories) -------------------------------------------


def xgb_train(rows, target, rounds=10, categories=(), **parameters):
    kinds = ["c" if column in categories else "q" for column in range(rows.shape[1])]
    data = xgb.DMatrix(rows, target, feature_types=kinds if categories else None, enable_categorical=bool(categories))
    base = {key: value for key, value in XGB.items() if key != "max_depth" or parameters.get("booster") != "gblinear"}
    return xgb.train({**base, **parameters}, data, num_boost_round=rounds), rows, categories


def on_table(rounds=10, label=lambda target: target, data=None, **parameters):
    rows, target = table() if data is None else data
    return xgb_train(rows, label(target), rounds, **parameters)


def xgb_ranked(objective):
    rows, target = table()
    grades = half(target) if objective == "rank:map" else classes(target, 3)
    data = xgb.DMatrix(rows, grades, group=[20] * (len(rows) // 20))
    return xgb.train({**XGB, "objective": objective}, data, num_boost_round=8), rows, ()


def xgb_aft():
    rows, target = table()
    data = xgb.DMatrix(rows)
    data.set_float_info("label_lower_bound", positive(target))
    data.set_float_info("label_upper_bound", positive(target) * 1.5)
    return xgb.train({**XGB, "objective": "survival:aft"}, data, num_boost_round=8), rows, ()


def xgb_early_stopped():
    """Booster.predict scores all trees, those after the best round too."""
    rows, target = table()
    data, watched = xgb.DMatrix(rows[:300], half(target[:300])), xgb.DMatrix(rows[300:], half(target[300:]))
    parameters = {**XGB, "objective": "binary:logistic", "eta": 0.8}
    booster = xgb.train(
        parameters, data, 100, evals=[(watched, "watched")], early_stopping_rounds=5, verbose_eval=False
    )
    assert booster.num_boosted_rounds() > booster.best_iteration + 1
    return booster, rows, ()


def xgb_custom():
    """Three margins of an objective of the caller's own: the file names reg:squarederror."""
    rows, target = table()
    wanted = np.stack([target, -target, target**2], axis=1)

    def squares(raw, data):
        return raw.reshape(wanted.shape) - wanted, np.ones_like(wanted)

    data = xgb.DMatrix(rows, np.zeros(len(rows)))
    parameters = {**XGB, "num_class": 3, "disable_default_eval_metric": True, "base_score": 0.5}
    return xgb.train(parameters, data, 5, obj=squares), rows, ()


def targets(target, count=3):
    return np.stack([target * (1 + place) + place for place in range(count)], axis=1)


def logistic(rounds=10, **parameters):
    return on_table(rounds, half, objective="binary:logistic", **parameters)


def with_xgb_categories(counts, rounds=12, label=lambda target: target, **parameters):
    rows, target = with_categories(counts)
    return xgb_train(rows, label(target), rounds, tuple(range(len(counts))), **parameters)


def soft(count, rounds=4, objective="multi:softprob", **parameters):
    return on_table(rounds, lambda target: classes(target, count), objective=objective, num_class=count, **parameters)


DEEP = {"max_depth": 0, "grow_policy": "lossguide", "tree_method": "hist", "min_child_weight": 0, "lambda": 0}

XGBOOST = {
    "squared": on_table,
    "squared_base_score": lambda: on_table(base_score=-2.5),
    "exact": lambda: on_table(tree_method="exact", gamma=1.0),
    "approx": lambda: on_table(tree_method="approx"),
    "logistic": logistic,
    "logistic_base_score": lambda: logistic(base_score=0.3),
    "reg_logistic": lambda: on_table(5, half, objective="reg:logistic"),
    "logitraw": lambda: on_table(5, half, objective="binary:logitraw"),
    "hinge": lambda: on_table(5, half, objective="binary:hinge"),
    "poisson": lambda: on_table(8, lambda target: np.round(positive(target)), objective="count:poisson"),
    "gamma": lambda: on_table(8, positive, objective="reg:gamma"),
    "tweedie": lambda: on_table(8, positive, objective="reg:tweedie", tweedie_variance_power=1.3),
    "squared_log": lambda: on_table(8, positive, objective="reg:squaredlogerror"),
    "pseudo_huber": lambda: on_table(8, objective="reg:pseudohubererror", huber_slope=2.0),
    "absolute": lambda: on_table(8, objective="reg:absoluteerror"),
    "quantile": lambda: on_table(8, objective="reg:quantileerror", quantile_alpha=0.9),
    "quantiles": lambda: on_table(5, objective="reg:quantileerror", quantile_alpha=[0.1, 0.5, 0.9]),
    "cox": lambda: on_table(8, positive, objective="survival:cox"),
    "aft": xgb_aft,
    "rank_pairwise": lambda: xgb_ranked("rank:pairwise"),
    "rank_ndcg": lambda: xgb_ranked("rank:ndcg"),
    "rank_map": lambda: xgb_ranked("rank:map"),
    "softprob_3": lambda: soft(3),
    "softprob_20": lambda: soft(20, 2),
    "softprob_base_score": lambda: soft(3, base_score=0.5),
    "softmax_5": lambda: soft(5, objective="multi:softmax"),
    "softprob_dart": lambda: soft(3, booster="dart", rate_drop=0.3),
    "softprob_gblinear": lambda: soft(3, booster="gblinear"),
    "custom_3": xgb_custom,
    "dart": lambda: logistic(20, booster="dart", rate_drop=0.3),
    "dart_forest": lambda: on_table(20, booster="dart", rate_drop=0.3, normalize_type="forest", sample_type="weighted"),
    "gblinear": lambda: on_table(booster="gblinear"),
    "gblinear_logistic": lambda: logistic(booster="gblinear", updater="coord_descent"),
    "gblinear_holes": lambda: on_table(data=table(holes=0.2, zeros=0.2), booster="gblinear"),
    "random_forest": lambda: logistic(2, num_parallel_tree=7, subsample=0.6, colsample_bynode=0.5, eta=1.0),
    "random_forest_3": lambda: soft(3, 2, num_parallel_tree=4, subsample=0.6),
    "holes": lambda: on_table(data=table(holes=0.25, zeros=0.15)),
    "holes_dart": lambda: on_table(data=table(holes=0.25, zeros=0.15), booster="dart", rate_drop=0.3),
    "one_hot": lambda: with_xgb_categories([5, 3], max_cat_to_onehot=100),
    "one_hot_wide": lambda: with_xgb_categories([70], max_cat_to_onehot=100),
    "sets": lambda: with_xgb_categories([12, 80, 300], max_cat_to_onehot=1),
    "sets_softprob": lambda: with_xgb_categories(
        [12, 40], 5, lambda target: classes(target, 4), objective="multi:softprob", num_class=4, max_cat_to_onehot=1
    ),
    "sets_dart": lambda: with_xgb_categories([40], booster="dart", rate_drop=0.3, max_cat_to_onehot=1),
    "targets": lambda: on_table(5, targets),
    "vector_leaves": lambda: on_table(5, targets, multi_strategy="multi_output_tree", tree_method="hist"),
    "vector_leaves_holes": lambda: on_table(
        5, targets, data=table(holes=0.2), multi_strategy="multi_output_tree", tree_method="hist"
    ),
    "vector_leaves_softprob": lambda: soft(4, multi_strategy="multi_output_tree", tree_method="hist"),
    "early_stopped": xgb_early_stopped,
    "stump": lambda: logistic(1, max_depth=1),
    "constant": lambda: logistic(3, min_child_weight=1e9),
    "trees_2000": lambda: on_table(2000, eta=0.02, max_depth=2, tree_method="hist", max_bin=32),
    "leaves_4096": lambda: on_table(1, data=table(12000, 4), max_leaves=4096, max_bin=4096, **DEEP),
    "features_1": lambda: on_table(data=table(width=1)),
    "features_2000": lambda: on_table(5, data=table(300, 2000, holes=0.5), max_bin=16),
}


def write_xgboost(folder, booster, rows, categories):
    for ending in ("json", "ubj"):
        booster.save_model(folder / f"model.{ending}")
    booster = xgb.Booster({"nthread": 1}, model_file=folder / "model.json")
    learner = json.loads((folder / "model.json").read_text())["learner"]
    model, booster_name = learner["gradient_booster"], learner["gradient_booster"]["name"]
    trees = model.get("gbtree", model)["model"].get("trees", [])
    binary = old_binary(learner)
    if binary:
        (folder / "model.bin").write_bytes(binary)
    plain = booster_name == "gbtree"
    edges = EDGES_F32 if trees else EDGES_F32[:7]
    rows = held_out(rows, edges, xgb_thresholds(trees), categories, infinities=plain)
    rows = written_rows(folder, rows).astype(np.float32)
    finite = ~np.isinf(rows).any(axis=1)
    expected = []
    for margin in (True, False):
        outputs = np.asarray(xgb_predict(booster, rows[finite], margin), dtype=np.float32)
        whole = np.zeros((len(rows), *outputs.shape[1:]), dtype=np.float32)
        whole[finite] = outputs
        if not finite.all():
            kind = "margin" if margin else "value"
            whole[~finite] = booster.inplace_predict(rows[~finite], predict_type=kind, validate_features=False)
        expected.append(whole)
    outputs, predictions = write_expected(folder, *expected)
    largest = max((sum(child == -1 for child in tree["left_children"]) for tree in trees), default=0)
    return {
        "name": folder.name,
        "library": "xgboost",
        "files": ["model.json", "model.ubj"] + (["model.bin"] if binary else []),
        "features": rows.shape[1],
        "outputs": outputs,
        "predictions": predictions,
        "rows": len(rows),
        "trees": len(trees),
        "leaves": largest,
    }


def xgb_predict(booster, rows, margin):
    # Names and kinds of columns are not needed to score, and out-of-range categories only pass without them.
    return booster.predict(xgb.DMatrix(rows, nthread=1), output_margin=margin, validate_features=False)


def xgb_thresholds(trees):
    return [
        (feature, threshold)
        for tree in trees
        for feature, threshold, child, kind in zip(
            tree["split_indices"], tree["split_conditions"], tree["left_children"], tree["split_type"]
        )
        if child != -1 and kind == 0
    ]


# ---- LightGBM: each function gives (booster, rows, columns of categories) ------------------------------------------


def lgb_train(rows, target, rounds=10, categories=(), group=None, **parameters):
    parameters = {**LGB, **parameters}
    data = lgb.Dataset(rows, target, group=group, categorical_feature=list(categories), params=parameters)
    return lgb.train(parameters, data, num_boost_round=rounds), rows, categories


def lgb_on(objective, rounds=10, label=lambda target: target, data=None, **parameters):
    rows, target = table() if data is None else data
    return lgb_train(rows, label(target), rounds, objective=objective, **parameters)


def lgb_ranked(objective):
    rows, target = table()
    return lgb_train(rows, classes(target, 3), 8, group=[20] * (len(rows) // 20), objective=objective)


def lgb_custom(count=1):
    rows, target = table()
    wanted = np.stack([target, -target, target**2], axis=1)[:, :count]

    def squares(raw, _):
        return (raw.reshape(wanted.shape) - wanted).squeeze(), np.ones_like(wanted).squeeze()

    return lgb_train(rows, target, 6, objective=squares, num_class=count)


def lgb_categories(counts, rounds=12, label=lambda target: target, objective="regression", **parameters):
    rows, target = with_categories(counts)
    return lgb_train(rows, label(target), rounds, tuple(range(len(counts))), objective=objective, **parameters)


def lgb_holes(**parameters):
    return lgb_on("regression", 15, data=table(holes=0.25, zeros=0.15), **parameters)


def lgb_classes(count, rounds=4, objective="multiclass", **parameters):
    return lgb_on(objective, rounds, lambda target: classes(target, count), num_class=count, **parameters)


def lgb_linear(**parameters):
    return lgb_on("regression", 8, data=table(holes=0.03), linear_tree=True, num_leaves=6, **parameters)


FOREST = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6}

LIGHTGBM = {
    "regression": lambda: lgb_on("regression"),
    "regression_sqrt": lambda: lgb_on("regression", reg_sqrt=True),
    "regression_l1": lambda: lgb_on("regression_l1"),
    "regression_l1_sqrt": lambda: lgb_on("regression_l1", reg_sqrt=True),
    "huber": lambda: lgb_on("huber"),
    "fair": lambda: lgb_on("fair"),
    "quantile": lambda: lgb_on("quantile", alpha=0.9),
    "mape": lambda: lgb_on("mape", label=positive),
    "poisson": lambda: lgb_on("poisson", label=positive),
    "gamma": lambda: lgb_on("gamma", label=positive),
    "tweedie": lambda: lgb_on("tweedie", label=positive),
    "binary": lambda: lgb_on("binary", label=half),
    "binary_sigmoid": lambda: lgb_on("binary", label=half, sigmoid=2.3),
    "cross_entropy": lambda: lgb_on("cross_entropy", label=half),
    "cross_entropy_lambda": lambda: lgb_on("cross_entropy_lambda", label=half),
    "multiclass_3": lambda: lgb_classes(3),
    "multiclass_20": lambda: lgb_classes(20, 2),
    "multiclassova": lambda: lgb_classes(4, objective="multiclassova", sigmoid=1.7),
    "lambdarank": lambda: lgb_ranked("lambdarank"),
    "rank_xendcg": lambda: lgb_ranked("rank_xendcg"),
    "custom": lgb_custom,
    "custom_3": lambda: lgb_custom(3),
    "dart": lambda: lgb_on("binary", 20, half, boosting="dart", drop_rate=0.3),
    "random_forest": lambda: lgb_on("binary", 7, half, **FOREST),
    "random_forest_regression": lambda: lgb_on("regression", 7, **FOREST),
    "random_forest_3": lambda: lgb_classes(3, 5, **FOREST),
    "goss": lambda: lgb_on("regression", data_sample_strategy="goss"),
    "missing_nan": lgb_holes,
    "missing_zero": lambda: lgb_holes(zero_as_missing=True),
    "missing_none": lambda: lgb_holes(use_missing=False),
    "one_hot": lambda: lgb_categories([4, 3], max_cat_to_onehot=8),
    "sets": lambda: lgb_categories([12, 80, 300], max_cat_to_onehot=1, min_data_per_group=5),
    "sets_multiclass": lambda: lgb_categories(
        [12, 40], 4, lambda target: classes(target, 3), "multiclass", num_class=3, min_data_per_group=5
    ),
    "linear": lgb_linear,
    "linear_binary": lambda: lgb_on("binary", 6, half, linear_tree=True, num_leaves=5),
    "linear_categories": lambda: lgb_categories([10], 6, linear_tree=True, num_leaves=6),
    "stump": lambda: lgb_on("binary", 1, half, num_leaves=2),
    "constant": lambda: lgb_on("regression", 3, min_data_in_leaf=100_000),
    "trees_2000": lambda: lgb_on("regression", 2000, num_leaves=4, learning_rate=0.02, max_bin=31),
    "leaves_4096": lambda: lgb_on(
        "regression", 1, data=table(12000, 4), num_leaves=4096, min_data_in_leaf=1, max_bin=4095
    ),
    "features_1": lambda: lgb_on("regression", data=table(width=1)),
    "features_2000": lambda: lgb_on("regression", 5, data=table(300, 2000, holes=0.5), max_bin=15),
}


def write_lightgbm(folder, booster, rows, categories):
    booster.save_model(folder / "model.txt")
    booster = lgb.Booster(model_file=folder / "model.txt")
    dumped = booster.dump_model()
    rows = held_out(rows, EDGES_F64, lgb_thresholds(dumped), categories)
    rows = written_rows(folder, rows)
    margins = booster.predict(rows, raw_score=True, num_threads=1)
    if "average_output" in (folder / "model.txt").read_text().splitlines():
        margins = margins / (booster.num_trees() // booster.num_model_per_iteration())
    outputs, predictions = write_expected(folder, margins, booster.predict(rows, num_threads=1))
    return {
        "name": folder.name,
        "library": "lightgbm",
        "files": ["model.txt"],
        "features": rows.shape[1],
        "outputs": outputs,
        "predictions": predictions,
        "rows": len(rows),
        "trees": booster.num_trees(),
        "leaves": max(tree["num_leaves"] for tree in dumped["tree_info"]),
    }


def lgb_thresholds(dumped):
    stack, thresholds = [tree["tree_structure"] for tree in dumped["tree_info"]], []
    while stack:
        node = stack.pop()
        if "split_feature" in node:
            if node["decision_type"] == "<=":
                thresholds.append((node["split_feature"], node["threshold"]))
            stack += [node["left_child"], node["right_child"]]
    return thresholds


# ---- what is written -----------------------------------------------------------------------------------------------


def written_rows(folder, rows):
    """Rows go through their text first, so that both sides start from the same numbers."""
    lines = [json.dumps([json_value(x) for x in row]) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return np.array([[math.nan if x is None else float(x) for x in json.loads(line)] for line in lines])


def json_value(x):
    return None if math.isnan(x) else repr(float(x)) if math.isinf(x) else float(x)


def write_expected(folder, margins, predictions):
    widths = []
    for name, numbers in (("margins", margins), ("predictions", predictions)):
        numbers = np.asarray(numbers).reshape(len(numbers), -1)
        digits = numbers.itemsize * 2
        bits = np.ascontiguousarray(numbers).view(f"u{numbers.itemsize}")
        lines = (" ".join(f"{number:0{digits}x}" for number in row) for row in bits)
        (folder / f"{name}.hex").write_text("\n".join(lines) + "\n")
        widths.append(numbers.shape[1])
    return widths


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
