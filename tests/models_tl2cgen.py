"""Compiles Treelite models into shared libraries with TL2cgen, and writes what `tl2cgen.Predictor` says of rows.

usage: models_tl2cgen.py OUT_DIR

Each OUT_DIR/NAME/ holds model.so, rows.jsonl as in `models_forest.py`, and scores.hex: a row's scores, each the
hexadecimal digits of its bytes, 8 of an f32, 16 of an f64. OUT_DIR/tc_refused/ holds libraries that are no models.
OUT_DIR/index-tl2cgen.json, written last, lists both: models (name, features, outputs, rows, wide: whether rows are f64)
and refused (file, says: words of the message). Needs gcc.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import tl2cgen
import treelite

import models_forest as forest
import models_treelite

MODELS = ["xgboost_logistic", "xgboost_softprob_3", "xgboost_holes", "xgboost_sets", "lightgbm_regression"]
MODELS += ["lightgbm_multiclass_3", "lightgbm_sets", "sklearn_forest", "sklearn_forest_classes", "sklearn_isolation"]
MODELS += ["sklearn_boosting_binary", "built_f32", "built_f64", "built_softmax_targets"]

HEAD = "#include <stdint.h>\n"
WHOLE = {
    "get_num_target": "int32_t get_num_target(void) { return 1; }",
    "get_num_class": "void get_num_class(int32_t* out) { out[0] = 1; }",
    "get_num_feature": "int32_t get_num_feature(void) { return 3; }",
    "get_threshold_type": 'const char* get_threshold_type(void) { return "float32"; }',
    "get_leaf_output_type": 'const char* get_leaf_output_type(void) { return "float32"; }',
    "predict": "void predict(void* data, int margin, float* result) { result[0] += 1; }",
}
REFUSED = {
    "no_predict": ({"predict": ""}, "it has no function predict"),
    "no_targets": ({"get_num_target": ""}, "it has no function get_num_target"),
    "other_types": (
        {"get_threshold_type": 'const char* get_threshold_type(void) { return "uint32"; }'},
        'thresholds are "uint32"',
    ),
    "no_features": ({"get_num_feature": "int32_t get_num_feature(void) { return -7; }"}, "-7 features"),
    "many_classes": ({"get_num_class": "void get_num_class(int32_t* out) { out[0] = 1 << 30; }"}, "1073741824 classes"),
}


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    out = pathlib.Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("tc_*"):
        shutil.rmtree(old)
    makers, started = models_treelite.models(), time.monotonic()
    models = []
    for name in MODELS:
        folder = out / f"tc_{name}"
        folder.mkdir()
        models.append(write(folder, *makers[name]()))
    (out / "tc_refused").mkdir()
    refused = [write_refused(out / "tc_refused", name, *made) for name, made in REFUSED.items()]
    (out / "index-tl2cgen.json").write_text(json.dumps({"models": models, "refused": refused}, indent=1) + "\n")
    rows, seconds = sum(entry["rows"] for entry in models), time.monotonic() - started
    print(f"TL2cgen libraries: {len(models)} and {len(refused)} to refuse in {out}, {rows} rows, {seconds:.0f} s")
    print(f"TL2cgen {tl2cgen.__version__}, Treelite {treelite.__version__}")
    return 0


def write(folder, model, rows, categories):
    # The `quantize` parameter makes the library write into the row that it is given.
    parameters = {"quantize": 1} if folder.name == "tc_xgboost_holes" else {}
    tl2cgen.export_lib(model, toolchain="gcc", libpath=folder / "model.so", params=parameters)
    single = model.input_type == "float32"
    edges = forest.EDGES_F32 if single else forest.EDGES_F64
    rows = forest.held_out(rows, edges, models_treelite.thresholds(model), categories, infinities=False)
    rows = forest.written_rows(folder, rows)
    rows = rows.astype(np.float32 if single else np.float64)
    predictor = tl2cgen.Predictor(folder / "model.so", nthread=1)
    scores = predictor.predict(tl2cgen.DMatrix(rows)).reshape(len(rows), -1)
    digits = scores.itemsize * 2
    bits = np.ascontiguousarray(scores).view(f"u{scores.itemsize}")
    lines = (" ".join(f"{number:0{digits}x}" for number in row) for row in bits)
    (folder / "scores.hex").write_text("\n".join(lines) + "\n")
    return {
        "name": folder.name,
        "features": rows.shape[1],
        "outputs": scores.shape[1],
        "rows": len(rows),
        "wide": not single,
    }


def write_refused(folder, name, changed, says):
    source = HEAD + "\n".join({**WHOLE, **changed}.values()) + "\n"
    library = folder / f"{name}.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-o", library, "-"], input=source.encode(), check=True)
    return {"file": f"{folder.name}/{library.name}", "says": says}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
