"""Makes the scikit-learn and custom Python models of the tests and writes what Python itself says about held-out rows.

usage: models_python.py OUT_DIR

Each OUT_DIR/python_NAME/ holds
    model.pkl, .joblib, .skops, .py or .npz    the model
    rows.jsonl       one row of features a line, a JSON array; null is a missing value
    expected.jsonl   line i: the scores of row i, a JSON array
OUT_DIR/python_refused/ holds files that forebay must refuse. OUT_DIR/index-python.json, written last, lists both: models
(name, file, type, features, outputs, rows, row_type, missing, trusted, options of [model.python]) and refused (file, type,
options, says: words of the message).

Seeds are fixed and every run is single-threaded. The scores are those of the saved file, read back, for all rows at once.
"""

import json
import math
import os
import pathlib
import pickle
import shutil
import sys

for library in "OMP", "OPENBLAS", "MKL":
    os.environ[f"{library}_NUM_THREADS"] = "1"

import joblib
import numpy as np
import pandas as pd
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC

from models import HIGGS_FEATURES, SEED, higgs, json_row, mass, mass_class


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    out = pathlib.Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("python_*"):
        shutil.rmtree(old)
    models = [write_model(out / f"python_{name}", make) for name, make in MODELS.items()]
    (out / "python_refused").mkdir()
    refused = [write_refused(out / "python_refused", name, *make()) for name, make in REFUSED.items()]
    (out / "index-python.json").write_text(json.dumps({"models": models, "refused": refused}, indent=1) + "\n")
    rows = sum(entry["rows"] for entry in models)
    print(f"Python models: {len(models)} and {len(refused)} to refuse in {out}, {rows} rows")
    return 0


# ---- what is made: each function gives (file, how it is scored, rows held out, options) ------------------------------


def classes():
    rows, labels = higgs("train")
    return rows, mass_class(rows, labels)


def texts(labels):
    return np.array(["low", "mid", "high"])[labels]


def linear(folder):
    rows, labels = higgs("train")
    return save(folder, LinearRegression().fit(rows, mass(rows, labels)), "pkl"), "predict", {}


def logistic(folder):
    rows, labels = higgs("train")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(rows, labels.astype(int))
    return save(folder, model, "joblib"), "predict_proba", {}


def logistic_texts(folder):
    rows, labels = classes()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(rows, texts(labels))
    return save(folder, model, "skops"), "predict_proba", {}


def forest(folder, ending="skops"):
    rows, labels = higgs("train")
    model = RandomForestClassifier(40, max_depth=8, random_state=SEED, n_jobs=1).fit(rows, labels.astype(int))
    return save(folder, model, ending), "predict_proba", {}


def boosting(folder):
    rows, labels = higgs("train")
    model = GradientBoostingRegressor(n_estimators=30, max_depth=4, random_state=SEED)
    return save(folder, model.fit(rows, mass(rows, labels)), "joblib"), "predict", {}


def hist_boosting(folder):
    """Trained on rows with holes."""
    rows, labels = higgs("train")
    model = HistGradientBoostingRegressor(max_iter=40, random_state=SEED)
    return save(folder, model.fit(holes(rows), mass(rows, labels)), "pkl"), "predict", {}


def mlp(folder):
    rows, labels = classes()
    model = make_pipeline(StandardScaler(), MLPClassifier((32,), max_iter=30, random_state=SEED)).fit(rows, labels)
    return save(folder, model, "joblib"), "predict_proba", {"row_type": "f32"}


def svc(folder):
    rows, labels = higgs("train")
    return save(folder, LinearSVC(random_state=SEED).fit(rows, labels.astype(int)), "pkl"), "decision_function", {}


def labels(folder):
    rows, labels = classes()
    model = LogisticRegression(max_iter=300).fit(rows, labels)
    return save(folder, model, "pkl"), "predict", {"method": "predict"}


def columns(folder):
    """Wants a DataFrame: its columns are chosen by name, in another order, and some are left out."""
    rows, labels = higgs("train")
    frame = pd.DataFrame(rows, columns=HIGGS_FEATURES)
    prepare = ColumnTransformer([
        ("scaled", StandardScaler(), ["m_wwbb", "m_bb", "jet_1_pt"]),
        ("logs", FunctionTransformer(np.log1p), ["missing_energy_magnitude", "lepton_pT"]),
    ])
    model = make_pipeline(prepare, LogisticRegression(max_iter=500)).fit(frame, labels.astype(int))
    return save(folder, model, "joblib"), "predict_proba", {}


FUNCTION = '''
import numpy as np

feature_names = ["age", "income", "debt"]


def predict(rows):
    """Two scores a row."""
    assert type(rows) is np.ndarray and rows.dtype == np.float64
    return np.stack([rows @ [0.1, 2.0, -3.0], np.tanh(rows[:, 0])], axis=1)
'''

CLASS = '''
import os

import numpy as np


class Helper:
    pass


class Weighted:
    def __init__(self, weights):
        self.weights = weights
        self.n_features = len(weights)

    @classmethod
    def load(cls, path):
        return cls(np.load(os.path.join(os.path.dirname(path), "weights.npy")))

    def predict(self, rows):
        return (rows * self.weights).sum(axis=1)
'''

MODULE = '''
import numpy as np
import pandas as pd


class Scored:
    feature_names = ["age", "income", "debt"]

    def load(self, path):
        self.weights = np.load(path)["weights"]

    def predict(self, frame):
        assert list(frame.columns) == self.feature_names
        return frame["age"] * self.weights[0] + frame["income"] * self.weights[1] - frame["debt"] ** 2
'''


def function(folder):
    (folder / "model.py").write_text(FUNCTION)
    return folder / "model.py", "predict", {}


def own_class(folder):
    (folder / "model.py").write_text(CLASS)
    np.save(folder / "weights.npy", np.array([0.5, -0.25, 3.0]))
    return folder / "model.py", "predict", {}


def module_class(folder):
    package = folder / "lib/shop_models"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(MODULE)
    np.savez(folder / "model.npz", weights=np.array([0.5, -0.25]))
    options = {"class": "shop_models:Scored", "import_paths": [str(folder / "lib")], "input": "dataframe"}
    return folder / "model.npz", "predict", options


MODELS = {
    "linear": linear,
    "logistic": logistic,
    "logistic_texts": logistic_texts,
    "forest": forest,
    "forest_packed": lambda folder: forest(folder, "packed.joblib"),
    "boosting": boosting,
    "hist_boosting": hist_boosting,
    "mlp": mlp,
    "svc": svc,
    "labels": labels,
    "columns": columns,
    "function": function,
    "class": own_class,
    "module": module_class,
}


# ---- what must be refused: each function gives (bytes, ending, options, words of the message) ------------------------


def pickled(model):
    return pickle.dumps(model)


def text_labels():
    rows, labels = classes()
    model = LogisticRegression(max_iter=300).fit(rows[:500], texts(labels[:500]))
    says = ["predict returned ndarray", "'low'", 'method = "predict_proba"', "[model.python]"]
    return pickled(model), "pkl", {"method": "predict"}, says


def no_width():
    says = ["does not say how many features", "`n_features`", "features = [...]"]
    return b"def predict(rows):\n    return rows[:, 0]\n", "py", {}, says


def untrusted_skops():
    model = make_pipeline(FunctionTransformer(json_row), StandardScaler())
    return skops.io.dumps(model), "skops", {}, ["does not trust", "models.json_row", "`trusted = true`", "`sha256`"]


def other_names():
    frame = pd.DataFrame(np.random.default_rng(SEED).normal(size=(50, 2)), columns=["a", "b"])
    model = LinearRegression().fit(frame, frame["a"])
    return pickled(model), "pkl", {"features": ["b", "a"]}, ["`features`", "differ", "a, b"]


def source(text, says, options=None):
    return lambda: (text.encode(), "py", options or {}, says)


def regression():
    rows, labels = higgs("train")
    return LinearRegression().fit(rows[:100], labels[:100])


TWO = "class A:\n    n_features = 1\n    def predict(self, rows): return rows\n"

REFUSED = {
    "text_labels": text_labels,
    "no_width": no_width,
    "untrusted": untrusted_skops,
    "other_names": other_names,
    "count_differs": lambda: (pickled(regression()), "pkl", {"features": ["a"]}, ["`features`", "are 1", "takes 28"]),
    "no_method": lambda: (pickled(regression()), "pkl", {"method": "predict_proba"}, ["no method predict_proba"]),
    "no_estimator": lambda: (pickled({"a": 1}), "pkl", {}, ["does not say how many features"]),
    "cut_short": lambda: (pickled(regression())[:-20] + b".", "pkl", {}, ["does not load: "]),
    "no_predict": source("def score(rows): pass\n", ["no function `predict(rows)`", "found: none"]),
    "two_classes": source(TWO + TWO.replace("A", "B"), ["found: A, B", "class = "]),
    "no_class": source(TWO, ["no class C", "`class`"], {"class": "C"}),
    "no_syntax": source("def predict(rows:\n", ["does not load: SyntaxError"]),
    "no_package": source("import no_such_package\n", ["does not load: ModuleNotFoundError", "no_such_package"]),
    "empty": lambda: (b"", "py", {}, ["the file is empty"]),
    "no_module": lambda: (b"weights", "bin", {"class": "no_such:Thing"}, ["ModuleNotFoundError", "no_such"]),
    "wrong_length": source("n_features = 2\ndef predict(rows): return rows.sum(axis=0)\n",
                           ["predict returned ndarray", "shape [2] for 7 rows"]),
    "three_axes": source("n_features = 2\ndef predict(rows): return rows[:, :, None]\n", ["shape [7, 2, 1]"]),
    "ragged": source("n_features = 1\ndef predict(rows): return [[1, 2]] + [[1]] * (len(rows) - 1)\n",
                     ["rows of different lengths"]),
    "too_whole": source("n_features = 1\ndef predict(rows): return rows[:, 0].astype(int) + 2**53\n", ["2^53"]),
    "raises": source("n_features = 1\ndef predict(rows): raise KeyError('age')\n",
                     ["predict refuses rows of 1 numbers", "KeyError: 'age' (", ":2)"]),
    "exits": source("import os\nos._exit(3)\n", ["ended while it loaded the model", "exit status: 3"]),
    "last_words": source("import sys, os\nprint('out of luck', file=sys.stderr)\nos.abort()\n",
                         ["SIGABRT", "out of luck"]),
}


# ---- what is written -------------------------------------------------------------------------------------------------


def save(folder, model, ending):
    file = folder / f"model.{ending}"
    if ending == "skops":
        skops.io.dump(model, file)
    elif ending == "pkl":
        file.write_bytes(pickle.dumps(model))
    else:
        joblib.dump(model, file, compress=3 if ending.startswith("packed") else 0)
    return file


def holes(rows):
    rows = rows.copy()
    rows[np.random.default_rng(SEED).random(rows.shape) < 0.1] = math.nan
    return rows


def write_model(folder, make):
    folder.mkdir()
    file, method, options = make(folder)
    custom = file.suffix in (".py", ".npz")
    held_out = np.random.default_rng(SEED).normal(size=(400, 3)) * [10, 3, 1] if custom else higgs("test")[0]
    if "hist" in folder.name:
        held_out = holes(held_out)
    # Rows go through their JSON text first, so that both sides start from the same numbers.
    lines = [json_row(row) for row in held_out]
    rows = np.array([[math.nan if x is None else x for x in json.loads(line)] for line in lines])
    rows = rows.astype(np.float32 if options.get("row_type") == "f32" else np.float64)
    scores = score(file, method, rows, options)
    assert np.isfinite(scores).all() and scores.shape[0] == len(rows), folder
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "expected.jsonl").write_text("".join(json_row(row) + "\n" for row in scores))
    return {
        "name": folder.name,
        "file": f"{folder.name}/{file.name}",
        "type": "python" if custom else "sklearn",
        "features": rows.shape[1],
        "outputs": scores.shape[1],
        "rows": len(rows),
        "row_type": options.get("row_type", "f64"),
        "missing": "hist" in folder.name,
        # skops does not trust trees either: their nodes could point anywhere.
        "trusted": file.suffix != ".skops" or bool(skops.io.get_untrusted_types(file=file)),
        "options": {key: value for key, value in options.items() if key != "row_type"},
    }


def load_skops(file):
    return skops.io.load(file, trusted=skops.io.get_untrusted_types(file=file))


def score(file, method, rows, options):
    """What Python says, all rows in one call."""
    if file.suffix == ".py":
        names = {"__name__": "model"}
        exec(file.read_text(), names)
        model = names["Weighted"].load(str(file)) if "Weighted" in names else None
        predict = names["predict"] if model is None else model.predict
    elif file.suffix == ".npz":
        names = {}
        exec(MODULE, names)
        model = names["Scored"]()
        model.load(file)
        predict, rows = model.predict, pd.DataFrame(rows, columns=model.feature_names)
    else:
        model = load_skops(file) if file.suffix == ".skops" else joblib.load(file)
        predict = getattr(model, method)
        if hasattr(model, "feature_names_in_"):
            rows = pd.DataFrame(rows, columns=model.feature_names_in_)
    return np.asarray(predict(rows), dtype=np.float64).reshape(len(rows), -1)


def write_refused(folder, name, data, ending, options, says):
    file = folder / f"{name}.{ending}"
    file.write_bytes(data)
    kind = "python" if ending in ("py", "bin") else "sklearn"
    return {"file": f"{folder.name}/{file.name}", "type": kind, "options": options, "says": says}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
