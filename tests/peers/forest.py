#!/usr/bin/env python3
"""What a row costs in each library that scores forests, beside forebay's compiled forest: `make bench-forest`.

    forest.py DIR FOREBAY JSON

measures the models in DIR, prints tables, writes JSON. DIR is as tests/setup/bench-forest leaves it. Everything runs on
one thread of one core. The backends of a model take turns in rounds; a cell is the median over the rounds of the best
pass in each, so that a noisy machine hits all alike. Peers with a C call are timed in C (forest.c), the others as near
to it as their binding goes; all go through the same 20,000 rows. Before a backend is timed, the call that is timed must
give the library's own predictions.
"""

import ctypes
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from forest_prepare import DEEP, LEFT_OUT, LIGHTGBM, MODELS, XGBOOST
from forest_prepare import Absent, calls_file, existing, lleaves_file, load_booster, onnx_file, tl2cgen_file, version

BATCHES = (1, 8, 64, 1024)
ROUNDS = 5
# Of a peer in a round; `forebay bench kernel` has its own, of the same kind.
PASSES = 3
PASS_S = 0.04
# Calls between two looks at the clock take at least so many rows; as in forest.c.
ROWS_PER_LOOK = 64
# At least so many of the rows are compared, in whole batches.
CHECKED_ROWS = 2048
# Scores in f32, whatever the order of the sums, are as close to each other as this; those in f64 as the other.
NEAR_F32 = 1e-5
NEAR_F64 = 1e-12
# forebay's margins are the library's to the bit, so its f32 scores are 2 ulp off at most.
TWO_ULP_F32 = 2.0**-23

PACKAGES = """
    xgboost-cpu lightgbm onnxruntime onnxmltools tl2cgen treelite lleaves llvmlite scikit-learn-intelex
""".split()

# The backends. Each has `score(first, count)`, which gives the scores of rows, and `pass_us(batch)`.


class CallInC:
    """A peer that forest.c calls."""

    LLEAVES, TL2CGEN_F32, TL2CGEN_F64, LIGHTGBM_FAST, LIGHTGBM_MAT, XGBOOST_DENSE = range(6)

    class Peer(ctypes.Structure):
        _fields_ = [
            ("kind", ctypes.c_int),
            ("call", ctypes.c_void_p),
            ("handle", ctypes.c_void_p),
            ("parameter", ctypes.c_char_p),
            ("rows", ctypes.c_void_p),
            ("row_count", ctypes.c_int64),
            ("columns", ctypes.c_int32),
        ]

    def __init__(self, bench, kind, call, handle=None, parameter=b"", keep=None):
        import numpy

        singles = kind in (self.TL2CGEN_F32, self.XGBOOST_DENSE)
        self.near = NEAR_F32 if singles else NEAR_F64
        self.rows = bench.singles if singles else bench.doubles
        # What the pointers point into must live as long as they do.
        self.keep = (keep, call)
        address = call if isinstance(call, int) else ctypes.cast(call, ctypes.c_void_p).value
        self.peer = self.Peer(kind, address, handle, parameter, self.rows.ctypes.data, *self.rows.shape)
        self.calls = ctypes.CDLL(str(calls_file(bench.folder)))
        self.calls.pass_us.restype = ctypes.c_double
        self.calls.score.argtypes = (ctypes.POINTER(self.Peer), ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p)
        self.calls.pass_us.argtypes = (ctypes.POINTER(self.Peer), ctypes.c_int32, ctypes.c_double, ctypes.c_void_p)
        self.out = numpy.zeros(max(BATCHES))

    def score(self, first, count):
        if self.calls.score(self.peer, first, count, self.out.ctypes.data):
            raise Absent("its C call failed")
        return self.out[:count].copy()

    def pass_us(self, batch):
        us = self.calls.pass_us(self.peer, batch, PASS_S, self.out.ctypes.data)
        if us < 0:
            raise Absent("its C call failed")
        return us


class CallInPython:
    """A peer whose binding is its closest call. `call` takes rows, `scores` makes what it returned comparable."""

    def __init__(self, rows, near, call, scores=lambda result: result):
        self.rows, self.near, self.call, self.scores = rows, near, call, scores

    def score(self, first, count):
        return self.scores(self.call(self.rows[first : first + count]))

    def pass_us(self, batch):
        batches = len(self.rows) // batch
        parts = [self.rows[number * batch : (number + 1) * batch] for number in range(batches)]
        looks, call, calls = -(-ROWS_PER_LOOK // batch), self.call, 0
        start = time.perf_counter()
        while True:
            for number in range(calls, calls + looks):
                call(parts[number % batches])
            calls += looks
            took = time.perf_counter() - start
            if took >= PASS_S:
                return took * 1e6 / (calls * batch)


def xgboost_c(bench, model, booster):
    from xgboost.core import _LIB

    settings = {"type": 0, "training": False, "iteration_begin": 0, "iteration_end": 0, "strict_shape": False}
    # As inplace_predict has it: no cache, and NaN is what is missing.
    parameter = json.dumps({**settings, "missing": float("nan"), "cache_id": 0}).encode()
    call = _LIB.XGBoosterPredictFromDense
    return CallInC(bench, CallInC.XGBOOST_DENSE, call, booster.handle.value, parameter, booster)


def xgboost_python(bench, model, booster):
    return CallInPython(bench.singles, NEAR_F32, lambda rows: booster.inplace_predict(rows, validate_features=False))


def lightgbm_c(bench, model, booster):
    from lightgbm.basic import _LIB

    call = _LIB.LGBM_BoosterPredictForMat
    return CallInC(bench, CallInC.LIGHTGBM_MAT, call, booster._handle.value, b"num_threads=1", booster)


def lightgbm_fast(bench, model, booster):
    from lightgbm.basic import _LIB

    fast = ctypes.c_void_p()
    normal, first, all_trees, doubles = 0, 0, -1, 1
    failed = _LIB.LGBM_BoosterPredictForMatSingleRowFastInit(
        booster._handle, normal, first, all_trees, doubles, bench.doubles.shape[1], b"num_threads=1", ctypes.byref(fast)
    )
    if failed:
        raise Absent("LGBM_BoosterPredictForMatSingleRowFastInit failed")
    call = _LIB.LGBM_BoosterPredictForMatSingleRowFast
    return CallInC(bench, CallInC.LIGHTGBM_FAST, call, fast.value, keep=booster)


def lightgbm_python(bench, model, booster):
    return CallInPython(bench.doubles, NEAR_F64, lambda rows: booster.predict(rows, num_threads=1))


def onnxruntime_python(bench, model, booster):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    file = existing(onnx_file(bench.folder, model))
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    run = session.run
    return CallInPython(
        bench.singles, NEAR_F32, lambda rows: run(["probabilities"], {"input": rows})[0], lambda result: result[:, 1]
    )


def tl2cgen_c(bench, model, booster):
    library = ctypes.CDLL(str(existing(tl2cgen_file(bench.folder, model))))
    library.get_threshold_type.restype = ctypes.c_char_p
    singles = library.get_threshold_type() == b"float32"
    return CallInC(bench, CallInC.TL2CGEN_F32 if singles else CallInC.TL2CGEN_F64, library.predict, keep=library)


def lleaves_c(bench, model, booster):
    import lleaves

    forest = lleaves.Model(str(bench.folder / MODELS[model]))
    forest.compile(cache=str(existing(lleaves_file(bench.folder, model))))
    call = forest._execution_engine.get_function_address("forest_root")
    return CallInC(bench, CallInC.LLEAVES, call, keep=forest)


def onedal_python(bench, model, booster):
    import daal4py

    daal4py.daalinit(1)
    forest = daal4py.mb.convert_model(booster).daal_model_
    algorithms = {}

    def call(rows):
        # One keeps its result, so it is for one number of rows.
        if len(rows) not in algorithms:
            algorithms[len(rows)] = daal4py.gbt_classification_prediction(
                nClasses=2, fptype="float", resultsToEvaluate="computeClassProbabilities"
            )
        return algorithms[len(rows)].compute(rows, forest).probabilities

    # The result is the one array again in the next call.
    return CallInPython(bench.singles, NEAR_F32, call, lambda result: result[:, 1].copy())


OF_ANY = {"onnxruntime": onnxruntime_python, "tl2cgen (C)": tl2cgen_c, "oneDAL": onedal_python}
OF_XGBOOST = {"xgboost": xgboost_python, "xgboost (C)": xgboost_c, **OF_ANY}
OF_LIGHTGBM = {
    "lightgbm": lightgbm_python,
    "lightgbm (C)": lightgbm_c,
    "lightgbm single row (C)": lightgbm_fast,
    **OF_ANY,
    "lleaves (C)": lleaves_c,
}
# It takes one row a call, so a batch of more is the same figure.
ONLY_SINGLE = "lightgbm single row (C)"


class Forebay:
    """The binary: the compiled forest, the libraries and ONNX Runtime through its own bindings in C."""

    def __init__(self, binary, bench):
        self.binary, self.data = binary, str(bench.folder / "X.csv")

    def kernel(self, file):
        """{(backend, batch): us} of one run."""
        batches = ",".join(map(str, BATCHES))
        report = json.loads(self.run("bench", "kernel", "-m", file, "--data", self.data, "--batch", batches, "--json"))
        return {(self.name(row["backend"]), row["batch"]): row["us_per_row"] for row in report["rows"]}

    def scores(self, file, backend):
        import numpy

        text = self.run("score", "-m", file, "--backend", backend, "--output", "csv", "--threads", "1", self.data)
        header, *lines = text.splitlines()
        # A binary classifier in ONNX gives both probabilities; the last is of the class that the others score.
        last = len(header.split(",")) - 2
        return numpy.array([float(line.split(",")[last]) for line in lines])

    def run(self, *arguments):
        done = subprocess.run(
            [self.binary, *map(str, arguments), "--no-header"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Absent(f"forebay {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    @staticmethod
    def name(backend):
        return backend if backend == "forebay" else f"{NAMES.get(backend, backend)} in forebay"


NAMES = {"onnx": "onnxruntime"}


class Bench:
    def __init__(self, folder, binary):
        import numpy

        self.folder = folder
        self.singles = numpy.ascontiguousarray(numpy.load(folder / "X.npy"), dtype=numpy.float32)
        self.doubles = self.singles.astype(numpy.float64)
        self.forebay = Forebay(binary, self)
        self.left_out, self.differences, self.cells = [], [], {}

    def leave_out(self, model, backend, why):
        why = str(why).strip() or type(why).__name__
        print(f"left out: {model}: {backend}: {why.splitlines()[-1]}", flush=True)
        self.left_out.append({"model": model, "backend": backend, "why": why})

    def check(self, model, backend, scores, expected, near):
        """Whether these are the library's scores; notes how far off they are."""
        import numpy

        difference = float(numpy.max(numpy.abs(scores - expected)))
        self.differences.append({"model": model, "backend": backend, "largest_difference": difference})
        right = len(scores) == len(expected) and difference <= near
        if not right:
            self.leave_out(model, backend, f"its scores are not the library's: off by up to {difference:.3g}")
        return right

    def peers(self, model):
        """The peers that load and score right."""
        booster, _ = load_booster(self.folder, model)
        expected = own_predictions(model, booster, self)
        found = {}
        for name, load in (OF_XGBOOST if model == XGBOOST else OF_LIGHTGBM).items():
            if (model, name) in LEFT_OUT:
                self.leave_out(model, name, LEFT_OUT[model, name])
                continue
            try:
                peer = load(self, model, booster)
                if self.scores_right(model, name, peer, expected):
                    found[name] = peer
            except ModuleNotFoundError as error:
                self.leave_out(model, name, f"{error}{not_installed()}")
            except Exception as error:  # whatever stops a peer leaves it out, by its own words
                self.leave_out(model, name, error)
        return found, expected

    def scores_right(self, model, name, peer, expected):
        import numpy

        for batch in BATCHES:
            count = -(-min(CHECKED_ROWS, batch * 256) // batch) * batch
            scores = numpy.concatenate([peer.score(first, batch) for first in range(0, count, batch)])
            if not self.check(model, f"{name}, batch {batch}", scores, expected[:count], peer.near):
                return False
        return True

    def forebay_files(self, model, expected):
        """Files to give `forebay bench kernel`, where each of its backends scores right."""
        own = self.folder / MODELS[model]
        near = TWO_ULP_F32 if model == XGBOOST else NEAR_F64
        files = []
        try:
            right = [
                self.check(model, name, self.forebay.scores(own, backend), expected, near)
                for name, backend in (("forebay", "compiled"), ("its library in forebay", "reference"))
            ]
            files += [own] if all(right) else []
        except Absent as why:
            self.leave_out(model, "forebay", why)
        try:
            graph = existing(onnx_file(self.folder, model))
            if self.check(model, "onnxruntime in forebay", self.forebay.scores(graph, "compiled"), expected, NEAR_F32):
                files.append(graph)
        except Exception as why:  # without ONNX Runtime it is left out
            self.leave_out(model, "onnxruntime in forebay", why)
        return files

    def measure(self, model):
        peers, expected = self.peers(model)
        files = self.forebay_files(model, expected)
        for _ in range(ROUNDS):
            for file in files:
                for cell, us in self.forebay.kernel(file).items():
                    self.cells.setdefault((model, *cell), []).append(us)
            for batch in BATCHES:
                self.round_of_peers(model, batch, peers)

    def round_of_peers(self, model, batch, peers):
        best = {}
        for number in range(PASSES + 1):
            for name, peer in peers.items():
                if name == ONLY_SINGLE and batch > 1:
                    continue
                us = peer.pass_us(batch)
                # The first only warms up.
                if number > 0:
                    best[name] = min(us, best.get(name, us))
        for name, us in best.items():
            self.cells.setdefault((model, name, batch), []).append(us)


def measure(folder, binary, report):
    core = pin()
    ort = next(iter(Path(package_folder("onnxruntime")).glob("capi/libonnxruntime.so.*")), None)
    if ort:
        os.environ.setdefault("ORT_DYLIB_PATH", str(ort))
    bench = Bench(folder, binary)
    start = time.monotonic()
    versions = {package: found for package in PACKAGES if (found := version(package)) != "none"}
    print(f"microseconds per row, one thread on core {core}, {ROUNDS} rounds")
    print(", ".join(f"{package} {number}" for package, number in versions.items()), flush=True)
    figures = {}
    for model in MODELS:
        bench.measure(model)
        figures = {cell: statistics.median(rounds) for cell, rounds in bench.cells.items()}
        print_table(model, figures)
    goals = list(judge(figures))
    told = {
        "rows": [
            {"model": model, "backend": backend, "batch": batch, "us_per_row": us}
            for (model, backend, batch), us in figures.items()
        ],
        "goals": goals,
        "left_out": bench.left_out,
        "checked": bench.differences,
        "versions": versions,
        "rounds": ROUNDS,
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(told, indent=1) + "\n")
    print(f"\n{time.monotonic() - start:.0f} s; written: {report}")
    return 0 if all((model, "forebay", 1) in figures for model in MODELS) else 1


def pin():
    """One core for this process and what it starts; before any library looks at how many there are."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    return core


def print_table(model, figures):
    backends = sorted({b for m, b, _ in figures if m == model}, key=lambda b: (b != "forebay", b))
    width = max(map(len, backends), default=0) + 2
    print(f"{model:{width}}" + "".join(f"{batch:>10}" for batch in BATCHES))
    for backend in backends:
        cells = (figures.get((model, backend, batch)) for batch in BATCHES)
        print(f"{backend:{width}}" + "".join(f"{us:10.2f}" if us else f"{'':10}" for us in cells))
    ratios, names = [], []
    for batch in BATCHES:
        best, ratio = best_beside(figures, model, batch)
        ratios.append(f"{ratio:9.2f}x" if ratio else f"{'':10}")
        names.append(f"{batch}: {best}")
    print(f"{'best library / forebay':{width}}" + "".join(ratios))
    print(f"  best at {', '.join(names)}\n", flush=True)


def best_beside(figures, model, batch, start=""):
    """The quickest library whose name so starts, and how many times what forebay takes it takes."""
    ours = figures.get((model, "forebay", batch))
    others = {
        backend: us
        for (m, backend, b), us in figures.items()
        if (m, b) == (model, batch) and backend != "forebay" and backend.startswith(start)
    }
    if not ours or not others:
        return "-", None
    best = min(others, key=others.get)
    return best, others[best] / ours


# The portable kernel's: model, batch, at least so many times as quick, as whom.
GOALS = (
    (XGBOOST, 1, 2.0, ""),
    (XGBOOST, 8, 2.0, ""),
    (LIGHTGBM, 1, 1.4, "lightgbm"),
    (LIGHTGBM, 8, 1.2, ""),
    (DEEP, 1, 1.5, ""),
    (DEEP, 8, 2.5, ""),
)


def judge(figures):
    for model, batch, goal, start in GOALS:
        best, ratio = best_beside(figures, model, batch, start)
        verdict = "not measured" if ratio is None else "holds" if ratio >= goal else "MISSED"
        whom = f"the best library ({best})" if not start else f"its own library's best call ({best})"
        reached = f"{ratio:.2f}x" if ratio else "-"
        print(f"goal: {model}, batch {batch}: >= {goal}x {whom}: {reached}, {verdict}")
        yield {"model": model, "batch": batch, "at_least": goal, "library": best, "ratio": ratio, "verdict": verdict}


def own_predictions(model, booster, bench):
    if model == XGBOOST:
        import xgboost

        return booster.predict(xgboost.DMatrix(bench.singles, nthread=1))
    return booster.predict(bench.doubles, num_threads=1)


def not_installed():
    """What pip said of the requirements that it could not install."""
    failed = Path(f"{sys.prefix}.failed")
    return f"; not installed: {' | '.join(failed.read_text().splitlines())}" if failed.exists() else ""


def package_folder(package):
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent if found and found.origin else Path()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(measure(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
