"""Models whose features are rounded, and what Python says of rows that NumPy rounded.

usage: models_quantize.py OUT_DIR

OUT_DIR/quantize_NAME/ holds
    model.onnx, model.skops       the model
    calibration.csv, .jsonl       training rows, which ranges are taken from; one feature of them is constant
    rows.jsonl                    rows held out of training, some far beyond those ranges; null is a missing value
    expected_FORM.jsonl           the library's scores of them: off (as they are), f16 and u8 (rounded by NumPy)
    steps.toml                    of quantize_steps: the [[model.preprocess]] tables, behind which rows are rounded
and OUT_DIR/index-quantize.json, written last, lists them: name, file, calibration, tolerance, rows.
"""

import json
import math
import os
import pathlib
import shutil
import sys

for library in "OMP", "OPENBLAS", "MKL":
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np
import onnxruntime
import skops.io
from skl2onnx.common.data_types import DoubleTensorType
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

from models import HIGGS_FEATURES, higgs, json_row, mass
from models_onnx import mlp, scaled_logistic
from models_preprocess import step_toml

CONSTANT = 5
HALF_MAX = 65504.0


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    out = pathlib.Path(arguments[0])
    for old in out.glob("quantize_*"):
        shutil.rmtree(old)
    index = [write(out, name, *make) for name, make in MODELS.items()]
    write_steps(out / "quantize_steps")
    (out / "index-quantize.json").write_text(json.dumps(index, indent=1) + "\n")
    print(f"models of rounded features: {len(index)} in {out}, NumPy {np.__version__}")
    return 0


# ---- what is made: each function saves a model and gives its file and its scores of rows of f64 ----------------------


def graph(made, dtype):
    def save(folder):
        proto, output = made()[:2]
        path = folder / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return path, lambda rows: session.run([output], {name: rows.astype(dtype)})[0]
    return save


def linear(folder):
    rows, labels = higgs("train")
    path = folder / "model.skops"
    skops.io.dump(LinearRegression().fit(rows, mass(rows, labels)), path)
    return path, skops.io.load(path).predict


MODELS = {
    "mlp": (graph(mlp, np.float32), "csv", 1e-6),
    "logistic": (graph(lambda: scaled_logistic(DoubleTensorType, zipmap=False), np.float64), "jsonl", 1e-6),
    "linear": (linear, "jsonl", 1e-9),
}


# ---- rounding ----------------------------------------------------------------------------------------------------------


def to_f16(rows, _):
    return np.clip(rows, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float64)


def to_u8(rows, calibration):
    low, high = calibration.min(axis=0), calibration.max(axis=0)
    step = np.where(high > low, (high - low) / 255, 1.0)
    level = np.clip(np.rint((rows - low) / step), 0, 255).astype(np.uint8)
    return np.where(high > low, low + level * step, rows)


FORMS = {"off": lambda rows, _: rows, "f16": to_f16, "u8": to_u8}


def write(out, name, save, ending, tolerance):
    folder = out / f"quantize_{name}"
    folder.mkdir(parents=True)
    path, score = save(folder)
    calibration, rows = higgs("train")[0].copy(), higgs("test")[0].copy()
    calibration[:, CONSTANT] = 1.25
    # Beyond all ranges, and beyond what 16 bits hold or tell from zero.
    rows[::7, 0] *= 50
    rows[1::7, 3] = 70000.0
    rows[2::7, 9] = -1e6
    rows[3::7, 21] = 3e-8
    write_rows(folder / f"calibration.{ending}", calibration, ending == "csv")
    (folder / "rows.jsonl").write_text("".join(json_row(row) + "\n" for row in rows))
    for form, rounded in FORMS.items():
        scores = np.asarray(score(rounded(rows, calibration)), dtype=np.float64).reshape(len(rows), -1)
        assert all(math.isfinite(value) for value in scores.ravel()), (name, form)
        (folder / f"expected_{form}.jsonl").write_text("".join(json_row(row) + "\n" for row in scores))
    return {
        "name": folder.name, "file": path.name, "calibration": f"calibration.{ending}", "tolerance": tolerance,
        "rows": len(rows), "calibration_rows": len(calibration), "rounded_u8": len(HIGGS_FEATURES) - 1,
    }


# What f16 and u8 would both move, and no other colour has.
COLOURS = {"red": 0.1, "green": 1.3, "blue": -7.7}


def write_steps(folder):
    """A linear model behind a scaler, and the codes of a text, which stay as they are."""
    folder.mkdir(parents=True)
    (train, labels), (rows, _) = higgs("train"), higgs("test")
    scaler = StandardScaler().fit(train)

    def coloured(rows, seed):
        return np.array(list(COLOURS))[np.random.RandomState(seed).randint(len(COLOURS), size=len(rows))]

    def prepared(rows, colours):
        return scaler.transform(rows), np.array([[COLOURS[colour]] for colour in colours])

    train_colours, colours = coloured(train, 1), coloured(rows, 2)
    scaled, codes = prepared(train, train_colours)
    model = LinearRegression().fit(np.hstack([scaled, codes]), mass(train, labels) + 3 * codes[:, 0])
    skops.io.dump(model, folder / "model.skops")
    names = [f"f{place}" for place in range(train.shape[1] + 1)]
    steps = [
        ("standard", names[:-1], {"mean": scaler.mean_, "std": scaler.scale_}),
        ("categories", names[-1:], {}),
    ]
    codes_toml = ", ".join(f"{colour} = {code}" for colour, code in COLOURS.items())
    toml = "".join(step_toml(*step) for step in steps) + f"codes = {{ {codes_toml} }}\n"
    (folder / "steps.toml").write_text(toml)
    for name, table, colour in ("calibration", train, train_colours), ("rows", rows, colours):
        lines = (json.dumps([*row, str(text)]) + "\n" for row, text in zip(table.tolist(), colour))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    own, own_codes = prepared(rows, colours)
    for form, rounded in FORMS.items():
        scores = model.predict(np.hstack([rounded(own, scaled), own_codes]))
        (folder / f"expected_{form}.jsonl").write_text("".join(f"[{float(score)!r}]\n" for score in scores))


def write_rows(path, rows, is_table):
    if is_table:
        header = ",".join(f"f{place}" for place in range(rows.shape[1]))
        lines = (",".join(repr(float(value)) for value in row) for row in rows)
        path.write_text("\n".join([header, *lines]) + "\n")
    else:
        path.write_text("".join(json_row(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
