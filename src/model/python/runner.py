"""Serves one model to forebay, batch after batch, until the socket closes.

In: frames on the socket, rows in shared memory. Out: frames, scores in the same memory. A frame is HEAD and a body:

    (nothing) the model is loaded as `spec` says                       -> READY (JSON), or REFUSED (text)
    MEMORY    sizes; a byte follows that carries the batches' file      -> nothing
    SCORE     `count` rows lie in the memory                            -> SCORED (pauses), or FAILED (text)
    CONVERT                                                             -> CONVERTED (a graph of `nanos` bytes, then
                                                                           `count` rows of doubles), or REFUSED

The model sees the memory itself: numpy views without a
copy, used again for the next batch. What the model prints goes to the worker's log and nowhere else.
"""

import fcntl
import gc
import json
import mmap
import os
import socket
import struct
import sys
import time
import traceback
import types
import warnings

import forebay_convert
import forebay_sandbox
from forebay_loading import Bytes, Refusal, import_or_refuse, load

HEAD = struct.Struct("<IIQIIQ")  # kind, bytes of the body, number, count, code, nanoseconds
SIZES = struct.Struct("<QQQ")  # bytes of the memory, rows it has room for, where the scores begin
PAUSE = struct.Struct("<QQ")  # generation, nanoseconds
MEMORY, SCORE, CONVERT = 2, 3, 4
READY, REFUSED, SCORED, FAILED, CONVERTED = 16, 17, 18, 19, 20
RAISED, NO_MEMORY, WRONG_ANSWER = 1, 2, 3

TEXT_CHARS_MAX = 2000
PAUSES_MAX = 256
WARNINGS_MAX = 10
LABELS_SHOWN = 20
# Rows of the trial at load: a number that no model is likely to give columns of.
TRIAL_ROWS = 7
# f64 holds whole numbers exactly up to here.
WHOLE_MAX = 1 << 53


class Answer(Exception):
    """What `predict` returned is no scores of those rows."""


# ---- the socket ------------------------------------------------------------------------------------------------------


class Channel:
    """Frames both ways. The socket is moved out of the way of a model that closes what it finds open."""

    def __init__(self, inherited):
        moved = fcntl.fcntl(inherited, fcntl.F_DUPFD_CLOEXEC, 100)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, inherited)
        os.close(null)
        self.socket = socket.socket(fileno=moved)
        self.head = bytearray(HEAD.size)
        self.view = memoryview(self.head)

    def receive(self):
        """The next frame's head, or None when the worker has gone."""
        if self.socket.recv_into(self.view, HEAD.size, socket.MSG_WAITALL) != HEAD.size:
            return None
        return HEAD.unpack(self.head)

    def body(self, size):
        body = bytearray(size)
        if size and self.socket.recv_into(body, size, socket.MSG_WAITALL) != size:
            raise EOFError
        return body

    def file(self):
        _, files, _, _ = socket.recv_fds(self.socket, 1, 1)
        return files[0]

    def send(self, kind, number=0, body=b"", count=0, code=0, nanos=0):
        self.socket.sendall(HEAD.pack(kind, len(body), number, count, code, nanos) + body)


# ---- the model as it is asked ----------------------------------------------------------------------------------------


class Served:
    """A model with everything found out that scoring a batch needs."""

    def __init__(self, spec, model, np):
        self.np = np
        self.model = model
        self.dtype = np.dtype(spec["row_type"])
        self.features = feature_names(model, spec["features"])
        self.method = choose_method(model, spec["method"], spec["kind"])
        self.predict = getattr(model, self.method)
        self.frames = self.frame_maker(spec["input"])
        self.outputs = 0

    def frame_maker(self, wanted):
        """pandas, where the model is given DataFrames."""
        named = getattr(self.model, "feature_names_in_", None) is not None
        if wanted == "array" or (wanted == "auto" and not named):
            return None
        if wanted == "auto" and not has_module("pandas"):
            return None
        pandas = import_or_refuse("pandas", "pandas", "makes the DataFrames that the model is given")
        self.columns = pandas.Index(self.features)
        return pandas.DataFrame

    def answer(self, rows):
        """What the model says of rows. Columns of text would join the DataFrame here."""
        if self.frames is not None:
            rows = self.frames(rows, columns=self.columns, copy=False)
        return self.predict(rows)

    def numbers(self, answer, count):
        """The answer as [rows, outputs] numbers, or what is wrong with it."""
        np = self.np
        try:
            array = answer if type(answer) is np.ndarray else np.asarray(answer)
        except ValueError:
            raise Answer(f"{self.method} returned rows of different lengths; it must return a number, or as many "
                         "numbers, a row") from None
        if array.dtype.kind not in "fiub":
            raise Answer(f"{self.method} returned {described(array, answer)}, no numbers{self.remedy(array)}")
        if array.shape[:1] != (count,) or array.ndim > 2 or array.size == 0:
            raise Answer(f"{self.method} returned {described(array, answer)} for {count} rows; it must return a number, or "
                         "as many numbers, a row")
        if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and (np.abs(array.astype("f8")) >= WHOLE_MAX).any():
            raise Answer(f"{self.method} returned whole numbers of 2^53 and more, which a score cannot hold")
        return array.reshape(count, -1)

    def remedy(self, array):
        if array.dtype.kind in "OUS" and self.method == "predict":
            for method in "predict_proba", "decision_function":
                if callable(getattr(self.model, method, None)):
                    return f"; a score is a number: set `method = \"{method}\"` in [model.python]"
        return "; a score is a number"

    def score(self, rows, scores):
        """Scores rows into `scores`; returns the nanoseconds that the model took."""
        start = time.perf_counter_ns()
        answer = self.answer(rows)
        nanos = time.perf_counter_ns() - start
        array = self.numbers(answer, len(rows))
        if array.shape[1] != self.outputs:
            raise Answer(f"{self.method} returned {array.shape[1]} numbers a row, and {self.outputs} when it was loaded")
        scores[...] = array
        return nanos

    def try_out(self):
        """Finds how many scores a row has, with the first made-up rows that the model takes."""
        np, shape = self.np, (TRIAL_ROWS, len(self.features))
        random = np.random.RandomState(7)
        trials = np.zeros(shape), np.ones(shape), random.uniform(size=shape), random.normal(size=shape)
        first = None
        for trial in trials:
            try:
                answer = self.answer(trial.astype(self.dtype))
                self.outputs = self.numbers(answer, TRIAL_ROWS).shape[1]
                return
            except Answer as error:
                raise Refusal(str(error)) from error
            except Exception as error:
                first = first or error
        raise Refusal(f"{self.method} refuses rows of {shape[1]} numbers: {told(first)}")

    def scores_missing(self):
        rows = self.np.full((1, len(self.features)), float("nan"), self.dtype)
        try:
            answer = self.answer(rows)
            return bool(self.np.isfinite(self.numbers(answer, 1)).all())
        except Exception:
            return False


def has_module(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None


def described(array, answer):
    kind = type(answer).__name__
    if array.dtype.kind in "OUS":
        some = ", ".join(repr(value) for value in array.ravel()[:2].tolist())
        return f"{kind} of {array.dtype}, shape {list(array.shape)} ({some[:200]})"
    return f"{kind} of {array.dtype}, shape {list(array.shape)}"


def feature_names(model, configured):
    """The features in the model's order: its own names, else the config's, else f0, f1, ..."""
    names = next((value for name in ("feature_names_in_", "feature_names")
                  if (value := plain_value(model, name)) is not None), None)
    count = next((value for name in ("n_features_in_", "n_features")
                  if (value := plain_value(model, name)) is not None), None)
    names = None if names is None else [str(name) for name in names]
    if configured:
        known = len(names) if names is not None else None if count is None else int(count)
        if names is not None and names != configured:
            raise Refusal(f"`features` in [model.python] differ from the model's own: {', '.join(names[:20])}; leave the "
                          "key out")
        if known is not None and known != len(configured):
            raise Refusal(f"`features` in [model.python] are {len(configured)}, the model takes {known}")
        return list(configured)
    if names is not None:
        return names
    if count is None or int(count) < 1:
        raise Refusal("it does not say how many features a row has; give it an attribute `n_features` or `feature_names`, or "
                      "set `features = [...]` in [model.python]")
    return [f"f{place}" for place in range(int(count))]


def plain_value(model, name):
    try:
        value = getattr(model, name, None)
    except Exception:
        # Some estimators raise other errors than AttributeError where a step has no such property.
        return None
    return None if callable(value) else value


def is_classifier(model):
    try:
        from sklearn.base import is_classifier as asked

        return bool(asked(model))
    except Exception:
        return getattr(model, "_estimator_type", None) == "classifier"


def choose_method(model, wanted, kind):
    has = lambda name: callable(getattr(model, name, None))
    if wanted != "auto":
        if not has(wanted):
            raise Refusal(f"it has no method {wanted}; change `method` in [model.python]")
        return wanted
    if kind in ("pickle", "skops") and is_classifier(model):
        for name in "predict_proba", "decision_function":
            if has(name):
                return name
    if not has("predict"):
        raise Refusal(f"a {type(model).__name__} has no method `predict`")
    return "predict"


def told(error):
    """An exception in a line: its kind, its words, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    words = " ".join(str(error).split())[:TEXT_CHARS_MAX]
    return f"{type(error).__name__}: {words}{where}"


# ---- serving ---------------------------------------------------------------------------------------------------------


class Pauses:
    """Times the collector's runs; keeps those that are long enough."""

    def __init__(self, least_nanos):
        self.least_nanos, self.start, self.kept = least_nanos, 0, []

    def __call__(self, phase, info):
        if phase == "start":
            self.start = time.perf_counter_ns()
            return
        nanos = time.perf_counter_ns() - self.start
        if nanos >= self.least_nanos and len(self.kept) < PAUSES_MAX:
            self.kept.append((info["generation"], nanos))

    def take(self):
        if not self.kept:
            return 0, b""
        kept, self.kept = self.kept, []
        return len(kept), b"".join(PAUSE.pack(*pause) for pause in kept)


class Runner:
    """One process's life: start, then batches."""

    def __init__(self, channel):
        self.channel = channel
        self.served = self.memory = self.rows = self.scores = None

    def run(self):
        while (head := self.channel.receive()) is not None:
            kind, size, number, count, _, _ = head
            if kind == SCORE:
                self.score(number, count)
            elif kind == CONVERT:
                self.convert(number)
            elif kind == MEMORY:
                self.map(*SIZES.unpack(self.channel.body(size)), self.channel.file())
            else:
                raise ValueError(f"a frame of kind {kind}")

    def start(self, spec, data):
        """Loads the model; whether it can be scored."""
        try:
            self.channel.send(READY, body=json.dumps(self.load(spec, data)).encode())
            return True
        except Refusal as refusal:
            self.channel.send(REFUSED, body=str(refusal).encode())
        except MemoryError:
            said = f"it does not load within `memory_max` in [model.python] ({spec['memory_max']} bytes)"
            self.channel.send(REFUSED, body=said.encode())
        except BaseException as error:
            traceback.print_exc()
            self.channel.send(REFUSED, body=f"it does not load: {told(error)}".encode())
        return False

    def load(self, spec, data):
        sys.path[:0] = spec["import_paths"]
        started = time.perf_counter()
        missing = []
        if spec["sandbox"] != "off":
            readable = [*spec["import_paths"], *([spec["folder"]] if spec["folder"] else [])]
            missing = forebay_sandbox.enter(readable, spec["memory_max"])
            if missing and spec["sandbox"] == "required":
                raise Refusal("`sandbox = \"required\"` in [model.python], and this kernel refuses " + "; ".join(missing))
        np = import_or_refuse("numpy", "numpy", "holds the rows")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.model = load(spec, data)
        served = Served(spec, self.model, np)
        served.try_out()
        takes_missing = served.scores_missing()
        self.served = served
        # What was loaded lives for ever: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        self.pauses = Pauses(spec["gc_pause_min_ns"])
        gc.callbacks.append(self.pauses)
        return {
            "features": served.features,
            "outputs": served.outputs,
            "missing": takes_missing,
            "sandbox_missing": missing,
            "warnings": [f"{w.category.__name__}: {' '.join(str(w.message).split())}"[:TEXT_CHARS_MAX]
                         for w in caught[:WARNINGS_MAX]],
            "details": self.details(started),
        }

    def details(self, started):
        served = self.served
        kind = type(self.model)
        named = "functions" if kind is types.ModuleType else f"{kind.__module__}.{kind.__name__}"
        details = [["class", named], ["method", served.method]]
        details.append(["input", "DataFrame" if served.frames is not None else f"array of {served.dtype}"])
        classes = plain_value(self.model, "classes_")
        if classes is not None and served.method != "predict":
            shown = [str(value) for value in list(classes)[:LABELS_SHOWN]]
            shown += [f"and {len(classes) - LABELS_SHOWN} more"] if len(classes) > LABELS_SHOWN else []
            details.append(["classes", ", ".join(shown)])
        versions = [f"Python {'.'.join(map(str, sys.version_info[:3]))}"]
        for name in "numpy", "sklearn", "pandas":
            if name in sys.modules:
                versions.append(f"{name} {sys.modules[name].__version__}")
        details.append(["interpreter", f"{sys.executable}: {', '.join(versions)}"])
        details.append(["loaded in", f"{time.perf_counter() - started:.1f} s"])
        return details

    def map(self, size, capacity, scores_at, file):
        np, served = self.served.np, self.served
        self.rows = self.scores = None
        self.memory = mmap.mmap(file, size)
        os.close(file)
        width, outputs = len(served.features), served.outputs
        rows = np.frombuffer(self.memory, served.dtype, capacity * width)
        scores = np.frombuffer(self.memory, np.float64, capacity * outputs, scores_at)
        self.rows, self.scores = rows.reshape(capacity, width), scores.reshape(capacity, outputs)

    def convert(self, number):
        try:
            graph, rows = forebay_convert.convert(self.served, Refusal)
            self.channel.send(CONVERTED, number, graph + rows.tobytes(), count=len(rows), nanos=len(graph))
        except Refusal as refusal:
            self.channel.send(REFUSED, number, str(refusal).encode())
        except Exception as error:
            traceback.print_exc()
            self.channel.send(REFUSED, number, f"it is not converted: {told(error)}".encode())

    def score(self, number, count):
        try:
            nanos = self.served.score(self.rows[:count], self.scores[:count])
        except Answer as error:
            return self.channel.send(FAILED, number, str(error).encode(), code=WRONG_ANSWER)
        except MemoryError:
            return self.channel.send(FAILED, number, code=NO_MEMORY)
        except BaseException as error:
            return self.channel.send(FAILED, number, told(error).encode(), code=RAISED)
        pauses, body = self.pauses.take()
        self.channel.send(SCORED, number, body, count=pauses, nanos=nanos)


def main(spec, file):
    forebay_sandbox.die_with_parent(spec["parent"])
    runner = Runner(Channel(0))
    if runner.start(spec, Bytes(file)):
        runner.run()
