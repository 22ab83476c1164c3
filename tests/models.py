"""Trains the models of the tests and writes what LightGBM itself says about rows they have not seen.

usage: models.py OUT_DIR     every model, for one run of the tests
       models.py --demo      the committed demo model and its scores, in tests/data/higgs

Each OUT_DIR/NAME/ holds
    model.txt        LightGBM's text format
    rows.jsonl       one row of features a line, a JSON array; null is a missing value
    expected.jsonl   line i: the outputs for row i, a JSON array, from the saved model.txt read back
and OUT_DIR/index.json, written last, lists them: name, features, outputs, rows, trees, seed. OUT_DIR/higgs-scores.txt
is tests/data/higgs/higgs.scores.txt made again, from the committed model.

Seeds are fixed and training is single-threaded, so equal library versions on equal processors give equal files.
Numbers are written as Python's repr, which reads back as the same f64.
"""

import json
import math
import pathlib
import shutil
import sys

import lightgbm as lgb
import numpy as np

HIGGS = pathlib.Path(__file__).resolve().parent / "data/higgs"
HIGGS_FEATURES = (
    ["lepton_pT", "lepton_eta", "lepton_phi", "missing_energy_magnitude", "missing_energy_phi"]
    + [f"jet_{jet}_{part}" for jet in range(1, 5) for part in ("pt", "eta", "phi", "b_tag")]
    + ["m_jj", "m_jjj", "m_lv", "m_jlv", "m_bb", "m_wbb", "m_wwbb"]
)
SEED = 20240607
BASE = {
    "seed": SEED,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
    "num_leaves": 31,
    "learning_rate": 0.1,
    "min_data_in_leaf": 20,
}
# Around LightGBM's zero_threshold, 1e-35, and at the ends of what an f64 holds.
EDGE_VALUES = [math.nan, 0.0, -0.0, 1e-35, -1e-35, 1.1e-35, 5e-324, 1e300, -1e300, 3.4028235677973366e38]


def main(arguments):
    if arguments == ["--demo"]:
        return make_demo()
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    out = pathlib.Path(arguments[0])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    index = [write_committed_higgs(out)]
    index += [write_model(out, name, *make()) for name, make in MODELS.items()]
    write_higgs_scores(out / "higgs-scores.txt")
    (out / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    print(f"models: {len(index)} in {out}, {sum(entry['rows'] for entry in index)} rows, LightGBM {lgb.__version__}")
    return 0


# ---- what is trained: each function gives (booster, held-out rows) ------------------------------------------------


def higgs(part):
    table = np.loadtxt(HIGGS / f"higgs.{part}.tsv", delimiter="\t")
    assert table.shape[1] == 1 + len(HIGGS_FEATURES), table.shape
    return table[:, 1:], table[:, 0]


def on_higgs(rounds=40, label=None, **parameters):
    """Trains on the HIGGS training rows; `label` maps (rows, labels) to the target."""
    rows, labels = higgs("train")
    target = labels if label is None else label(rows, labels)
    data = lgb.Dataset(rows, target, feature_name=HIGGS_FEATURES)
    booster = lgb.train({**BASE, **parameters}, data, num_boost_round=rounds)
    return booster, higgs("test")[0]


def mass(rows, _labels):
    """A positive number to regress on: m_wwbb and a product, so that trees go deep."""
    return rows[:, 27] * 3 + rows[:, 0] * rows[:, 25]


def mass_class(rows, labels):
    return np.digitize(mass(rows, labels), [4.0, 5.5])


def counts(rows, _labels):
    return np.random.default_rng(SEED).poisson(np.exp(0.5 * rows[:, 0] - 0.3 * rows[:, 3]))


def lambdarank():
    rows, labels = higgs("train")
    grades = (labels * 2 + (rows[:, 25] < 0.9)).astype(int)
    data = lgb.Dataset(rows, grades, group=[20] * (len(rows) // 20), feature_name=HIGGS_FEATURES)
    booster = lgb.train({**BASE, "objective": "lambdarank"}, data, num_boost_round=30)
    return booster, higgs("test")[0]


def custom_objective():
    """The gradient comes from the caller, so the file names no objective and the output is the raw sum."""

    def log_loss(raw, data):
        probability = 1.0 / (1.0 + np.exp(-raw))
        return probability - data.get_label(), probability * (1.0 - probability)

    return on_higgs(objective=log_loss)


def with_holes(**parameters):
    """Half of the columns with missing values, in training and in the held-out rows; zeros and near-zeros too."""
    rng = np.random.default_rng(SEED)
    rows = rng.normal(size=(3000, 12))
    target = np.where(rows[:, 0] > 0, rows[:, 1], -2 * rows[:, 2]) + rows[:, 3] * rows[:, 8]
    rows[rng.random(rows.shape) < 0.15] = 0.0
    holes = rng.random(rows.shape) < 0.25
    holes[:, 6:] = False
    target = target + holes[:, 0] * 1.5 - holes[:, 3]
    rows[holes] = np.nan
    data = lgb.Dataset(rows[:2500], target[:2500], params=parameters)
    booster = lgb.train({**BASE, "objective": "regression", **parameters}, data, num_boost_round=40)
    held_out = rows[2500:].copy()
    # Missing where training saw none, and whole rows missing.
    held_out[::9, 6:] = np.nan
    held_out[0, :] = np.nan
    return booster, held_out


def categorical():
    """Two categorical columns (one of 6 values, one of 80) and four plain ones."""
    rng = np.random.default_rng(SEED)
    rows = rng.normal(size=(4000, 6))
    rows[:, 1] = rng.integers(0, 6, 4000)
    rows[:, 4] = rng.integers(0, 80, 4000)
    effect = rng.normal(size=80)
    target = effect[rows[:, 4].astype(int)] + (rows[:, 1] % 2) * rows[:, 0] + 0.3 * rows[:, 2]
    data = lgb.Dataset(rows[:3500], target[:3500], categorical_feature=[1, 4])
    parameters = {**BASE, "objective": "regression", "max_cat_to_onehot": 4, "min_data_per_group": 10}
    booster = lgb.train(parameters, data, num_boost_round=40)
    held_out = rows[3500:].copy()
    # Never seen, negative, missing, with a fraction, and far beyond the bit set.
    for column in (1, 4):
        held_out[:6, column] = [99.0, -1.0, np.nan, 2.7, 1e9, -0.5]
    return booster, held_out


def linear_tree():
    rng = np.random.default_rng(SEED)
    rows = rng.normal(size=(3000, 8))
    rows[rng.random(rows.shape) < 0.03] = np.nan
    filled = np.nan_to_num(rows)
    target = np.where(filled[:, 0] > 0, 3 * filled[:, 1], -filled[:, 2]) + filled[:, 3]
    data = lgb.Dataset(rows[:2500], target[:2500], params={"linear_tree": True})
    parameters = {**BASE, "objective": "regression", "linear_tree": True, "num_leaves": 8}
    return lgb.train(parameters, data, num_boost_round=30), rows[2500:]


def constant():
    """No split is allowed, so each tree is one leaf."""
    return on_higgs(rounds=3, objective="regression", label=mass, min_data_in_leaf=100_000)


MODELS = {
    "binary": lambda: on_higgs(objective="binary", sigmoid=2.0, is_unbalance=True),
    "cross_entropy": lambda: on_higgs(objective="cross_entropy"),
    "cross_entropy_lambda": lambda: on_higgs(objective="cross_entropy_lambda"),
    "regression": lambda: on_higgs(objective="regression", label=mass, num_leaves=63),
    "regression_sqrt": lambda: on_higgs(objective="regression", reg_sqrt=True, label=mass),
    "quantile": lambda: on_higgs(objective="quantile", alpha=0.9, label=mass),
    "poisson": lambda: on_higgs(objective="poisson", label=counts),
    "gamma": lambda: on_higgs(objective="gamma", label=mass),
    "tweedie": lambda: on_higgs(objective="tweedie", label=mass),
    "multiclass": lambda: on_higgs(objective="multiclass", num_class=3, label=mass_class, rounds=20),
    "multiclassova": lambda: on_higgs(objective="multiclassova", num_class=3, label=mass_class, rounds=20),
    "lambdarank": lambdarank,
    "custom_objective": custom_objective,
    "dart": lambda: on_higgs(objective="binary", boosting="dart", drop_rate=0.3),
    "random_forest": lambda: on_higgs(objective="binary", boosting="rf", bagging_freq=1, bagging_fraction=0.6),
    "missing_nan": with_holes,
    "missing_zero": lambda: with_holes(zero_as_missing=True),
    "missing_unused": lambda: with_holes(use_missing=False),
    "categorical": categorical,
    "linear_tree": linear_tree,
    "stump": lambda: on_higgs(rounds=1, objective="binary", num_leaves=2),
    "constant": constant,
}


# ---- what is written ---------------------------------------------------------------------------------------------


def write_model(out, name, booster, held_out):
    folder = out / name
    folder.mkdir()
    booster.save_model(folder / "model.txt")
    return write_expected(folder, np.vstack([held_out, edge_rows(booster, held_out)]))


def write_committed_higgs(out):
    folder = out / "higgs"
    folder.mkdir()
    shutil.copyfile(HIGGS / "higgs.model.txt", folder / "model.txt")
    rows = higgs("test")[0]
    return write_expected(folder, np.vstack([rows, edge_rows(read_back(folder / "model.txt"), rows)]))


def write_expected(folder, rows):
    """Rows go through their JSON text first, so that both sides start from the same numbers."""
    lines = [json_row(row) for row in rows]
    rows = np.array([[math.nan if x is None else x for x in json.loads(line)] for line in lines], dtype=np.float64)
    booster = read_back(folder / "model.txt")
    outputs = np.asarray(booster.predict(rows, num_threads=1), dtype=np.float64).reshape(len(rows), -1)
    assert np.isfinite(outputs).all(), folder
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "expected.jsonl").write_text("".join(json_row(output) + "\n" for output in outputs))
    return {
        "name": folder.name,
        "features": rows.shape[1],
        "outputs": outputs.shape[1],
        "rows": len(rows),
        "trees": booster.num_trees(),
        "seed": SEED,
    }


def edge_rows(booster, held_out):
    """Held-out rows moved onto the model's own thresholds and one step of an f64 past them, and edge values."""
    rng = np.random.default_rng(SEED)
    thresholds = [(node["split_feature"], node["threshold"]) for node in numeric_splits(booster)]
    rows = held_out[rng.integers(0, len(held_out), 60)].copy()
    if thresholds:
        for row in rows[:40]:
            for _ in range(len(row)):
                feature, threshold = thresholds[rng.integers(len(thresholds))]
                row[feature] = rng.choice([threshold, np.nextafter(threshold, np.inf), np.nextafter(threshold, -np.inf)])
    for row in rows[40:]:
        row[rng.integers(0, len(row), 3)] = rng.choice(EDGE_VALUES, 3)
    return rows


def numeric_splits(booster):
    stack = [tree["tree_structure"] for tree in booster.dump_model()["tree_info"]]
    while stack:
        node = stack.pop()
        if "split_feature" in node:
            if node["decision_type"] == "<=":
                yield node
            stack += [node["left_child"], node["right_child"]]


def make_demo():
    booster, _ = on_higgs(rounds=100, objective="binary", learning_rate=0.05, feature_fraction=0.8)
    booster.save_model(HIGGS / "higgs.model.txt")
    write_higgs_scores(HIGGS / "higgs.scores.txt")
    test, labels = higgs("test")
    correct = np.mean((read_back(HIGGS / "higgs.model.txt").predict(test) > 0.5) == labels)
    print(f"demo: {booster.num_trees()} trees, {correct:.1%} of the test rows right")
    return 0


def write_higgs_scores(path):
    """Line i is the score of row i: the test rows, then the training rows, in their files' order."""
    rows = np.vstack([higgs("test")[0], higgs("train")[0]])
    scores = read_back(HIGGS / "higgs.model.txt").predict(rows, num_threads=1)
    path.write_text("".join(f"{float(score)!r}\n" for score in scores))


def read_back(path):
    return lgb.Booster(model_file=path)


def json_row(values):
    return json.dumps([None if math.isnan(x) else float(x) for x in values])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
