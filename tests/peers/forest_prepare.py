#!/usr/bin/env python3
"""What the peers of forest.py compile from the reference models, made once: forest_prepare.py DIR

DIR holds the models. Each file made carries the versions that made it in its name, and is written under another name
first, so a half-made one is never taken for a whole one.
"""

import importlib.metadata
import subprocess
import sys
import time
from pathlib import Path

C_SOURCE = Path(__file__).with_name("forest.c")

XGBOOST, LIGHTGBM, DEEP = "xgboost_500x6", "lightgbm_500x63", "lightgbm_1000x255"
MODELS = {XGBOOST: "xgboost_500x6.json", LIGHTGBM: "lightgbm_500x63.txt", DEEP: "lightgbm_1000x255.txt"}

# Of a backend for a model, before anything of it is loaded.
LEFT_OUT = {
    (DEEP, "tl2cgen (C)"): "gcc takes about 15 minutes to compile this model (876 s when it was measured)",
    (DEEP, "lleaves (C)"): "not compiled: the model of an eighth of the leaves takes it a minute already",
}


def prepare(folder):
    make(folder / "X.csv", lambda path: write_rows(folder, path))
    make(calls_file(folder), lambda path: compile_c(C_SOURCE, path))
    for model in MODELS:
        for maker, compiled in ((make_onnx, onnx_file), (make_tl2cgen, tl2cgen_file), (make_lleaves, lleaves_file)):
            path = compiled(folder, model)
            why_absent(path).unlink(missing_ok=True)
            try:
                maker(folder, model, path)
            except Exception as error:  # a peer's own failure leaves it out, and the run says why
                print(f"setup: without {path.name}: {error}", flush=True)
                why_absent(path).write_text(str(error))


def why_absent(path):
    return path.with_name(f"{path.name}.why-absent")


def make(path, write):
    if not path.exists():
        half_made = path.with_name(f"half-made-{path.name}")
        half_made.unlink(missing_ok=True)
        start = time.monotonic()
        write(half_made)
        half_made.rename(path)
        if time.monotonic() - start > 1:
            print(f"setup: made {path} in {time.monotonic() - start:.0f} s", flush=True)


def write_rows(folder, path):
    import numpy

    with path.open("w") as file:
        for row in numpy.load(folder / "X.npy").tolist():
            file.write(",".join(map(repr, row)) + "\n")


def calls_file(folder):
    changed = int(C_SOURCE.stat().st_mtime)
    return folder / f"calls-{changed}.so"


def compile_c(source, path):
    options = "-O2 -std=c11 -D_POSIX_C_SOURCE=200809L -shared -fPIC".split()
    subprocess.run(["gcc", *options, "-o", path, source], check=True)


def onnx_file(folder, model):
    return folder / f"{model}-onnxmltools-{version('onnxmltools')}.onnx"


def make_onnx(folder, model, path):
    def write(half_made):
        from onnxmltools import convert_lightgbm, convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType

        booster, width = load_booster(folder, model)
        types = [("input", FloatTensorType([None, width]))]
        if model == XGBOOST:
            graph = convert_xgboost(booster, initial_types=types, target_opset=15)
        else:
            graph = convert_lightgbm(booster, initial_types=types, target_opset=15, zipmap=False)
        half_made.write_bytes(graph.SerializeToString())

    make(path, write)


def tl2cgen_file(folder, model):
    return folder / f"{model}-tl2cgen-{version('tl2cgen')}.so"


def make_tl2cgen(folder, model, path):
    def write(half_made):
        import tl2cgen
        import treelite

        file = folder / MODELS[model]
        if model == XGBOOST:
            forest = treelite.frontend.load_xgboost_model(file, format_choice="use_suffix")
        else:
            forest = treelite.frontend.load_lightgbm_model(file)
        # Its options for gcc say -O3 already.
        tl2cgen.export_lib(forest, toolchain="gcc", libpath=half_made, params={"parallel_comp": 1}, nthread=1)

    if (model, "tl2cgen (C)") not in LEFT_OUT:
        make(path, write)


def lleaves_file(folder, model):
    return folder / f"{model}-lleaves-{version('lleaves')}-llvmlite-{version('llvmlite')}.o"


def make_lleaves(folder, model, path):
    def write(half_made):
        import lleaves

        print("setup: compiling with lleaves (a minute or more)", flush=True)
        lleaves.Model(str(folder / MODELS[model])).compile(cache=str(half_made))

    if model != XGBOOST and (model, "lleaves (C)") not in LEFT_OUT:
        make(path, write)


def load_booster(folder, model):
    """The library's own model, on one thread, and its width."""
    if model == XGBOOST:
        import xgboost

        booster = xgboost.Booster({"nthread": 1}, model_file=folder / MODELS[model])
        booster.set_param({"nthread": 1})
        return booster, booster.num_features()
    import lightgbm

    booster = lightgbm.Booster(model_file=folder / MODELS[model])
    return booster, booster.num_feature()


class Absent(Exception):
    """Says why a peer is not measured."""


def existing(path):
    if not path.exists():
        why = why_absent(path)
        raise Absent(f"not compiled: {why.read_text() if why.exists() else path.name}")
    return path


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    prepare(Path(sys.argv[1]))
