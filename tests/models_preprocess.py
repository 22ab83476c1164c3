"""Models behind scikit-learn's transformers, and the same steps as worker.toml says them.

usage: models_preprocess.py OUT_DIR

OUT_DIR/preprocess_NAME/ holds
    model.txt        LightGBM, trained on what the transformers gave
    steps.toml       the [[model.preprocess]] tables, their numbers read off the fitted transformers
    rows.jsonl       raw rows that none was trained on: numbers, texts, null for a missing value
    expected.jsonl   what LightGBM says of them behind the transformers themselves
and OUT_DIR/index-preprocess.json, written last, lists them.
"""

import json
import math
import pathlib
import sys

import lightgbm as lgb
import numpy as np
import sklearn
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import MinMaxScaler, OrdinalEncoder, StandardScaler

from models import BASE, higgs

COLOURS = ["red", "dark green", "Ünï", "a \"quoted\" one"]
NUMBERS = 4


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    out = pathlib.Path(arguments[0])
    index = [write(out, name, scaler) for name, scaler in (("standard", StandardScaler()), ("minmax", MinMaxScaler()))]
    (out / "index-preprocess.json").write_text(json.dumps(index, indent=1) + "\n")
    print(f"preprocessed models: {len(index)} in {out}, scikit-learn {sklearn.__version__}, LightGBM {lgb.__version__}")
    return 0


def raw(part, seed):
    """Four features of HIGGS with holes; a colour; a code that is a number."""
    table, labels = higgs(part)
    random = np.random.RandomState(seed)
    numbers = table[:, :NUMBERS].copy()
    numbers[random.uniform(size=numbers.shape) < 0.1] = np.nan
    colours = np.array(COLOURS, dtype=object)[random.randint(len(COLOURS), size=len(table))]
    codes = np.array([10.0, 20.0, -5.5])[random.randint(3, size=len(table))]
    return numbers, colours, codes, labels


class Steps:
    def __init__(self, scaler):
        self.imputer, self.scaler = SimpleImputer(strategy="median"), scaler
        self.colours = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
        self.codes = OrdinalEncoder()

    def fit(self, numbers, colours, codes):
        filled = self.imputer.fit_transform(numbers)
        self.scaler.fit(filled)
        self.colours.fit(colours[:, None])
        self.codes.fit(codes[:, None])
        return self

    def transform(self, numbers, colours, codes):
        scaled = np.clip(self.scaler.transform(self.imputer.transform(numbers)), -2.5, 2.5)
        encoded = [self.colours.transform(colours[:, None]), np.log1p(self.codes.transform(codes[:, None]))]
        return np.hstack([scaled, *encoded])

    def toml(self, names):
        scaler = self.scaler
        scale = {"mean": scaler.mean_, "std": scaler.scale_} if isinstance(scaler, StandardScaler) else \
            {"min": scaler.data_min_, "max": scaler.data_max_}
        steps = [
            ("impute", names[:NUMBERS], {"values": self.imputer.statistics_}),
            ("standard" if "mean" in scale else "minmax", names[:NUMBERS], scale),
            ("clip", names[:NUMBERS], {"min": [-2.5], "max": [2.5]}),
            ("categories", ["colour"], {"codes": self.colours.categories_[0], "unknown": -1}),
            ("categories", ["code"], {"codes": self.codes.categories_[0], "codes_of": "number"}),
            ("log1p", ["code"], {}),
        ]
        return "".join(step_toml(*step) for step in steps)


def step_toml(step, features, keys):
    lines = ["[[model.preprocess]]", f"step = {json.dumps(step)}", f"features = {json.dumps(list(features))}"]
    for key, value in keys.items():
        if key == "codes":
            text = lambda category: category if isinstance(category, str) else repr(float(category))
            codes = (f"{json.dumps(text(category), ensure_ascii=False)} = {place}" for place, category in enumerate(value))
            lines.append(f"codes = {{ {', '.join(codes)} }}")
        elif isinstance(value, (str, int)):
            lines.append(f"{key} = {json.dumps(value)}")
        else:
            lines.append(f"{key} = {[float(number) for number in value]!r}")
    return "\n".join(lines) + "\n"


def write(out, name, scaler):
    names = [f"n{place}" for place in range(NUMBERS)] + ["colour", "code"]
    *train, labels = raw("train", 1)
    steps = Steps(scaler).fit(*train)
    data = lgb.Dataset(steps.transform(*train), labels, feature_name=names)
    booster = lgb.train({**BASE, "objective": "binary", "num_leaves": 15}, data, num_boost_round=30)
    folder = out / f"preprocess_{name}"
    folder.mkdir(parents=True, exist_ok=True)
    booster.save_model(folder / "model.txt")
    (folder / "steps.toml").write_text(steps.toml(names))
    numbers, colours, codes, _ = raw("test", 2)
    colours[::17] = "never seen"
    rows = [[*row, colour, code] for row, colour, code in zip(numbers.tolist(), colours, codes.tolist())]
    null = lambda value: None if isinstance(value, float) and math.isnan(value) else value
    dump = lambda row: json.dumps([null(value) for value in row], ensure_ascii=False)
    (folder / "rows.jsonl").write_text("".join(dump(row) + "\n" for row in rows))
    saved = lgb.Booster(model_file=folder / "model.txt")
    scores = saved.predict(steps.transform(numbers, colours, codes))
    (folder / "expected.jsonl").write_text("".join(f"[{float(score)!r}]\n" for score in scores))
    return {"name": f"preprocess_{name}", "rows": len(rows)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
