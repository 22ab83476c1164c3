"""Trains the XGBoost models of the tests and writes what XGBoost's Python package says about rows they have not seen.

usage: models_xgboost.py OUT_DIR

Each OUT_DIR/xgb_NAME/ holds
    model.json       the model, and model.ubj, the same one as UBJSON
    rows.jsonl       one row of features a line, a JSON array; null is a missing value
    expected.jsonl   line i: the outputs for row i, a JSON array, from Booster.predict of the saved model.json read back
OUT_DIR/xgb_refused/NAME.json and NAME.ubj are models that forebay must refuse. OUT_DIR/index-xgboost.json, written
last, lists both: models (name, features, outputs, rows) and refused (file, says: words of the message).

Seeds are fixed and training is single-threaded. Rows are narrowed to f32, as XGBoost does itself.
"""

import json
import math
import pathlib
import shutil
import sys

import numpy as np
import xgboost as xgb

from models import HIGGS_FEATURES, SEED, counts, higgs, json_row, mass, mass_class

BASE = {"seed": SEED, "nthread": 1, "verbosity": 0, "eta": 0.1, "max_depth": 5}
# At the ends of what an f32 holds; infinities are an error in XGBoost itself.
EDGE_VALUES = [math.nan, 0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38]


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    out = pathlib.Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("xgb_*"):
        shutil.rmtree(old)

    models = [write_model(out / f"xgb_{name}", *make()) for name, make in MODELS.items()]
    (out / "xgb_refused").mkdir()
    refused = [entry for name, make in REFUSED.items() for entry in write_refused(out / "xgb_refused", name, *make())]
    (out / "index-xgboost.json").write_text(json.dumps({"models": models, "refused": refused}, indent=1) + "\n")
    rows = sum(entry["rows"] for entry in models)
    print(f"XGBoost models: {len(models)} and {len(refused)} to refuse in {out}, {rows} rows, XGBoost {xgb.__version__}")
    return 0


# ---- what is trained: each function gives (booster, held-out rows) ------------------------------------------------


def on_higgs(rounds=40, label=None, named=True, **parameters):
    """Trains on the HIGGS training rows; `label` maps (rows, labels) to the target."""
    rows, labels = higgs("train")
    target = labels if label is None else label(rows, labels)
    data = xgb.DMatrix(rows, target, feature_names=HIGGS_FEATURES if named else None)
    return train(data, rounds, **parameters), higgs("test")[0]


def train(data, rounds, **parameters):
    base = {key: value for key, value in BASE.items() if parameters.get("booster") != "gblinear" or key != "max_depth"}
    return xgb.train({**base, **parameters}, data, num_boost_round=rounds)


def ranked(objective):
    rows, labels = higgs("train")
    grades = labels if objective == "rank:map" else labels * 2 + (rows[:, 25] < 0.9)
    data = xgb.DMatrix(rows, grades, group=[20] * (len(rows) // 20), feature_names=HIGGS_FEATURES)
    return train(data, 30, objective=objective), higgs("test")[0]


def with_holes(**parameters):
    """Half of the columns with missing values, in training and in the held-out rows; zeros everywhere."""
    rng = np.random.default_rng(SEED)
    rows = rng.normal(size=(3000, 12))
    target = np.where(rows[:, 0] > 0, rows[:, 1], -2 * rows[:, 2]) + rows[:, 3] * rows[:, 8]
    rows[rng.random(rows.shape) < 0.15] = 0.0
    holes = rng.random(rows.shape) < 0.25
    holes[:, 6:] = False
    target = target + holes[:, 0] * 1.5 - holes[:, 3]
    rows[holes] = np.nan
    booster = train(xgb.DMatrix(rows[:2500], target[:2500]), 40, **parameters)
    held_out = rows[2500:].copy()
    # Missing where training saw none, and whole rows missing.
    held_out[::9, 6:] = np.nan
    held_out[0, :] = np.nan
    held_out[-1, :] = np.nan
    return booster, held_out


def early_stopped():
    """Booster.predict uses all trees, those after the best round too."""
    rows, labels = higgs("train")
    half = len(rows) // 2
    data, watched = xgb.DMatrix(rows[:half], labels[:half]), xgb.DMatrix(rows[half:], labels[half:])
    parameters = {**BASE, "objective": "binary:logistic", "eta": 0.5}
    booster = xgb.train(
        parameters, data, 200, evals=[(watched, "watched")], early_stopping_rounds=8, verbose_eval=False
    )
    assert booster.num_boosted_rounds() > booster.best_iteration + 1
    return booster, higgs("test")[0]


def aft():
    rows, labels = higgs("train")
    data = xgb.DMatrix(rows)
    time = mass(rows, labels)
    data.set_float_info("label_lower_bound", time)
    data.set_float_info("label_upper_bound", time * 1.5)
    return train(data, 20, objective="survival:aft"), higgs("test")[0]


def continued():
    """Trained in two runs, and with parameters of its own kinds of regularisation."""
    rows, labels = higgs("train")
    data = xgb.DMatrix(rows, labels)
    parameters = {**BASE, "objective": "binary:logistic", "subsample": 0.7, "colsample_bytree": 0.5, "alpha": 0.1}
    booster = xgb.train(parameters, data, 10)
    return xgb.train(parameters, data, 10, xgb_model=booster), higgs("test")[0]


def categorical():
    rng = np.random.default_rng(SEED)
    rows = rng.normal(size=(1000, 4))
    rows[:, 1] = rng.integers(0, 6, 1000)
    target = (rows[:, 1] % 2) * rows[:, 0]
    data = xgb.DMatrix(rows, target, feature_types=["q", "c", "q", "q"], enable_categorical=True)
    return train(data, 5), rows[:5]


def two_targets(**parameters):
    rows, labels = higgs("train")
    target = np.stack([mass(rows, labels), rows[:, 0]], axis=1)
    return train(xgb.DMatrix(rows, target), 5, **parameters), higgs("test")[0]


def logistic(**parameters):
    return on_higgs(objective="binary:logistic", **parameters)


MODELS = {
    "regression": lambda: on_higgs(label=mass),
    "exact": lambda: on_higgs(label=mass, tree_method="exact", gamma=5.0),
    "approx": lambda: on_higgs(label=mass, tree_method="approx", named=False),
    "base_score": lambda: on_higgs(label=mass, base_score=2.5),
    "deep": lambda: on_higgs(label=mass, tree_method="hist", max_depth=0, max_leaves=255, grow_policy="lossguide"),
    "logistic": logistic,
    "logistic_base_score": lambda: logistic(base_score=0.3),
    "reg_logistic": lambda: on_higgs(objective="reg:logistic"),
    "logitraw": lambda: on_higgs(objective="binary:logitraw"),
    "hinge": lambda: on_higgs(objective="binary:hinge"),
    "poisson": lambda: on_higgs(objective="count:poisson", label=counts),
    "gamma": lambda: on_higgs(objective="reg:gamma", label=mass),
    "tweedie": lambda: on_higgs(objective="reg:tweedie", label=mass, tweedie_variance_power=1.3),
    "squared_log": lambda: on_higgs(objective="reg:squaredlogerror", label=mass),
    "pseudo_huber": lambda: on_higgs(objective="reg:pseudohubererror", label=mass, huber_slope=2.0),
    "absolute": lambda: on_higgs(objective="reg:absoluteerror", label=mass),
    "quantile": lambda: on_higgs(objective="reg:quantileerror", label=mass, quantile_alpha=0.9),
    "cox": lambda: on_higgs(objective="survival:cox", label=mass),
    "aft": aft,
    "rank_pairwise": lambda: ranked("rank:pairwise"),
    "rank_ndcg": lambda: ranked("rank:ndcg"),
    "rank_map": lambda: ranked("rank:map"),
    "softprob": lambda: on_higgs(20, objective="multi:softprob", num_class=3, label=mass_class),
    "softmax": lambda: on_higgs(20, objective="multi:softmax", num_class=3, label=mass_class),
    "softprob_dart": lambda: on_higgs(
        10, objective="multi:softprob", num_class=3, label=mass_class, booster="dart", rate_drop=0.3
    ),
    "softprob_gblinear": lambda: on_higgs(
        10, objective="multi:softprob", num_class=3, label=mass_class, booster="gblinear"
    ),
    "softprob_base_score": lambda: on_higgs(
        20, objective="multi:softprob", num_class=3, label=mass_class, base_score=0.5
    ),
    "softmax_base_score": lambda: on_higgs(
        20, objective="multi:softmax", num_class=3, label=mass_class, base_score=0.5
    ),
    "dart": lambda: logistic(booster="dart", rate_drop=0.3),
    "dart_forest_normalised": lambda: on_higgs(
        label=mass, booster="dart", rate_drop=0.3, normalize_type="forest", sample_type="weighted"
    ),
    "gblinear": lambda: on_higgs(label=mass, booster="gblinear"),
    "gblinear_logistic": lambda: logistic(booster="gblinear", updater="coord_descent"),
    "gblinear_holes": lambda: with_holes(booster="gblinear"),
    "random_forest": lambda: logistic(rounds=3, num_parallel_tree=7, subsample=0.6, colsample_bynode=0.5, eta=1.0),
    "holes": with_holes,
    "holes_exact": lambda: with_holes(tree_method="exact"),
    "holes_dart": lambda: with_holes(booster="dart", rate_drop=0.3),
    "early_stopped": early_stopped,
    "continued": continued,
    "stump": lambda: logistic(rounds=1, max_depth=1),
    "constant": lambda: logistic(rounds=3, min_child_weight=1e9),
}

# What is trained, and words of the refusal.
REFUSED = {
    "categorical": lambda: (categorical(), "categorical features"),
    "vector_leaves": lambda: (two_targets(multi_strategy="multi_output_tree"), "2 targets"),
    "two_targets": lambda: (two_targets(), "2 targets"),
    "two_quantiles": lambda: (
        on_higgs(5, objective="reg:quantileerror", label=mass, quantile_alpha=[0.1, 0.9]),
        "2 targets",
    ),
}


# ---- what is written ---------------------------------------------------------------------------------------------


def write_model(folder, booster, held_out):
    folder.mkdir()
    booster.save_model(folder / "model.json")
    booster.save_model(folder / "model.ubj")
    booster = xgb.Booster({"nthread": 1}, model_file=folder / "model.json")
    # Rows go through their JSON text first, so that both sides start from the same numbers.
    lines = [json_row(row) for row in np.vstack([held_out, edge_rows(booster, held_out)])]
    rows = np.array([[math.nan if x is None else x for x in json.loads(line)] for line in lines]).astype(np.float32)
    outputs = booster.predict(xgb.DMatrix(rows, feature_names=booster.feature_names, nthread=1))
    assert outputs.dtype == np.float32 and np.isfinite(outputs).all(), folder
    outputs = outputs.reshape(len(rows), -1)
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "expected.jsonl").write_text("".join(json_row(output) + "\n" for output in outputs))
    return {
        "name": folder.name,
        "features": rows.shape[1],
        "outputs": outputs.shape[1],
        "rows": len(rows),
    }


def write_refused(folder, name, trained, says):
    booster, _ = trained
    for ending in ("json", "ubj"):
        path = folder / f"{name}.{ending}"
        booster.save_model(path)
        yield {"file": f"{folder.name}/{path.name}", "says": says}


def edge_rows(booster, held_out):
    """Held-out rows moved onto the model's own thresholds and one step of an f32 past them, and edge values."""
    rng = np.random.default_rng(SEED)
    thresholds = list(splits(booster))
    rows = held_out[rng.integers(0, len(held_out), 60)].copy()
    if thresholds:
        for row in rows[:40]:
            for _ in range(len(row)):
                feature, threshold = thresholds[rng.integers(len(thresholds))]
                step = rng.choice([-np.inf, np.inf, threshold])
                row[feature] = np.nextafter(np.float32(threshold), np.float32(step))
    # The largest values overflow a linear model's sum only where its weights are large.
    for row in rows[40:]:
        row[rng.integers(0, len(row), 3)] = rng.choice(EDGE_VALUES if thresholds else EDGE_VALUES[:6], 3)
    return rows


def splits(booster):
    """(feature, threshold) of every inner node."""
    model = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"]
    for tree in model.get("gbtree", model)["model"].get("trees", []):
        for feature, threshold, child in zip(tree["split_indices"], tree["split_conditions"], tree["left_children"]):
            if child != -1:
                yield feature, threshold


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
