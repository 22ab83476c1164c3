"""The model object, from the bytes that were hashed.

In: what kind of file it is, and its bytes. Out: what the file holds, or why it must not be scored (`Refusal`). A pickle and
a file of source run code of their own here; the process has given up its rights before.
"""

import io
import mmap
import os
import sys
import types


class Refusal(Exception):
    """Why the model must not be scored, with its remedy."""


def import_or_refuse(name, package, why):
    try:
        return __import__(name, fromlist=["_"])
    except ImportError as error:
        raise Refusal(f"the interpreter {sys.executable} cannot import {name} ({error}), which {why}; "
                      f"install {package} there, or name another `interpreter` in [model.python]") from error


def load(spec, data):
    """The model object, from the bytes that were hashed."""
    kind = spec["kind"]
    if kind == "pickle":
        return load_pickle(data)
    if kind == "skops":
        return load_skops(data, spec["trusted"])
    if kind == "file":
        return load_file(spec, data)
    return load_class(spec, data)


def load_pickle(data):
    import pickle

    try:
        import joblib
    except ImportError:
        joblib = None
    if joblib is None:
        return pickle.loads(data)
    return joblib.load(io.BytesIO(data))


def load_skops(data, trusted):
    skops = import_or_refuse("skops.io", "skops", "reads .skops files")
    unknown = skops.get_untrusted_types(data=bytes(data))
    if unknown and not trusted:
        raise Refusal("the file holds types that skops does not trust: " + ", ".join(sorted(unknown)) +
                      "; if you trust who made it, set `trusted = true` and `sha256`")
    return skops.loads(bytes(data), trusted=unknown)


def load_file(spec, data):
    path = spec["path"]
    module = types.ModuleType("model")
    module.__file__ = path
    sys.modules["model"] = module
    exec(compile(bytes(data), path, "exec", dont_inherit=True), module.__dict__)
    wanted = spec["class"]
    if wanted is not None:
        if not isinstance(getattr(module, wanted, None), type):
            raise Refusal(f"there is no class {wanted} in it; change `class` in [model.python]")
        return make(getattr(module, wanted), path)
    if callable(getattr(module, "predict", None)):
        if callable(getattr(module, "load", None)):
            loaded = module.load(path)
            if callable(getattr(loaded, "predict", None)):
                return loaded
        return module
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == "model"]
    classes = [value for value in own if callable(getattr(value, "predict", None))]
    if len(classes) != 1:
        found = ", ".join(value.__name__ for value in classes) or "none"
        raise Refusal(f"it has no function `predict(rows)`, and not one class with that method (found: {found}); "
                      "name one: `class = \"NAME\"` in [model.python]")
    return make(classes[0], path)


def load_class(spec, data):
    import importlib

    module, _, name = spec["class"].partition(":")
    found = getattr(importlib.import_module(module), name, None)
    if not isinstance(found, type):
        raise Refusal(f"module {module} has no class {name}; change `class` in [model.python]")
    return make(found, f"/proc/self/fd/{data.file}")


def make(made, path):
    """An instance: from `load`, if the class has one, else made without arguments."""
    if not callable(getattr(made, "load", None)):
        return made()
    own = next(vars(base)["load"] for base in made.__mro__ if "load" in vars(base))
    if isinstance(own, (classmethod, staticmethod)):
        return made.load(path)
    instance = made()
    loaded = instance.load(path)
    return instance if loaded is None else loaded


class Bytes(mmap.mmap):
    """The model's bytes, mapped from the file that was passed, which stays open."""

    def __new__(cls, file):
        size = os.fstat(file).st_size
        mapped = super().__new__(cls, file, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        mapped.file = file
        return mapped
