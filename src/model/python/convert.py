"""Makes an ONNX graph of a scikit-learn estimator, and rows to compare the two on.

In: the estimator as the runner found it. Out: the graph's bytes, and rows that look like what it was trained on. Inputs are
doubles where skl2onnx can, so that the graph sees the numbers that the estimator sees; outputs are those of the method
that is served.
"""

import json

ROWS = 512
# Opsets that the ONNX Runtime of the worker knows.
TARGET_OPSET = {"": 18, "ai.onnx.ml": 3}


def convert(served, refuse):
    try:
        from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
    except ImportError as error:
        raise refuse(f"the interpreter has no skl2onnx ({error}), which `compile_model = true` needs; install it there, or set "
                     "`compile_model = false`") from error
    errors = []
    # scikit-learn's trees decide on the nearest float of a number, so a graph with trees takes floats.
    for tensor in DoubleTensorType, FloatTensorType:
        for options in options_of(served):
            try:
                graph = graph_of(served, tensor, options)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
                continue
            has_trees = any(node.op_type.startswith("TreeEnsemble") for node in graph.graph.node)
            if tensor is FloatTensorType or not has_trees:
                return graph.SerializeToString(), rows_like_training(served)
    raise refuse(f"skl2onnx cannot convert it: {errors[-1]}; set `compile_model = false`")


def options_of(served):
    """A classifier's probabilities as a matrix, or its raw scores; not each has both options."""
    if served.method == "predict" and not hasattr(served.model, "classes_"):
        return [None]
    raw = {"raw_scores": True} if served.method == "decision_function" else {}
    return [{id(served.model): {"zipmap": False, **raw}}, {id(served.model): raw}]


def graph_of(served, tensor, options):
    from skl2onnx import to_onnx

    named = served.frames is not None
    if named:
        inputs = [(name, tensor([None, 1])) for name in served.features]
    else:
        inputs = [("X", tensor([None, len(served.features)]))]
    graph = to_onnx(served.model, initial_types=inputs, options=options, target_opset=TARGET_OPSET)
    if options is not None and served.method == "predict":
        # Labels are asked for, which come first.
        del graph.graph.output[1:]
    if not named:
        entry = graph.metadata_props.add()
        entry.key, entry.value = "feature_names", json.dumps(served.features)
    return graph


def rows_like_training(served):
    """Rows within the ranges that the estimator's own parts remember; between -3 and 3 where none does."""
    np = served.np
    lows, highs = np.full(len(served.features), -3.0), np.full(len(served.features), 3.0)
    edges = {}
    for part, columns in parts(served.model, list(range(len(served.features))), served.features):
        low, high, thresholds = remembered(part, len(columns), np)
        if low is not None:
            lows[columns], highs[columns] = low, high
        edges.update((columns[place], own) for place, own in thresholds.items())
    random = np.random.RandomState(11)
    rows = random.uniform(lows, highs, (ROWS, len(lows)))
    # Whole numbers too: what is counted was trained on them.
    rows[1::4] = np.round(rows[1::4])
    # On a tree's thresholds, and so little beside them that a float is the same.
    for column, own in edges.items():
        count = len(rows[2::4])
        rows[2::4, column] = random.choice(own, count) * (1 + random.choice([-1e-9, 0, 1e-9], count))
    return np.ascontiguousarray(rows)


def parts(model, columns, names):
    """The estimators that see features as they came, each with the features' places."""
    if hasattr(model, "steps") and model.steps:
        yield from parts(model.steps[0][1], columns, names)
    elif hasattr(model, "transformers_"):
        for _, part, chosen in model.transformers_:
            places = [names.index(name) if isinstance(name, str) else name for name in chosen] \
                if isinstance(chosen, (list, tuple)) else None
            if places and all(isinstance(place, int) for place in places) and not isinstance(part, str):
                yield from parts(part, [columns[place] for place in places], names)
    else:
        yield model, columns


def remembered(part, width, np):
    """The least and greatest value of each feature, as far as a part knows, and the thresholds of trees by feature."""
    if getattr(part, "mean_", None) is not None and getattr(part, "scale_", None) is not None:
        return part.mean_ - 3 * part.scale_, part.mean_ + 3 * part.scale_, {}
    if getattr(part, "data_min_", None) is not None:
        return part.data_min_, part.data_max_, {}
    trees = [part] if hasattr(part, "tree_") else getattr(part, "estimators_", [])
    trees = [tree.tree_ for tree in np.ravel(np.asarray(trees, dtype=object)) if hasattr(tree, "tree_")]
    if not trees:
        return None, None, {}
    lows, highs = np.full(width, -3.0), np.full(width, 3.0)
    thresholds = {}
    feature = np.concatenate([tree.feature for tree in trees])
    threshold = np.concatenate([tree.threshold for tree in trees])
    for place in range(width):
        own = threshold[feature == place]
        if own.size:
            margin = (own.max() - own.min()) * 0.1 + 1e-3
            lows[place], highs[place] = own.min() - margin, own.max() + margin
            thresholds[place] = own
    return lows, highs, thresholds
