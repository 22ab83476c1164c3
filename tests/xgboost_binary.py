"""XGBoost's old binary format, which versions since 3.1 neither read nor write, from a model's JSON."""

import json
import struct


def old_binary(learner):
    """The model as XGBoost before 3.1 wrote it in its own binary format, which no later version can write; None for
    what that format cannot hold. XGBoost 1.6 to 3.0 read it as the same model."""
    sizes, booster = learner["learner_model_param"], learner["gradient_booster"]
    base_scores = json.loads(sizes["base_score"])
    base_scores = base_scores if isinstance(base_scores, list) else [base_scores]
    model = booster.get("gbtree", booster)["model"]
    trees = model.get("trees", [])
    if len(set(base_scores)) > 1 or any(tree["categories_nodes"] or "leaf_weights" in tree for tree in trees):
        return None

    def text(string):
        return struct.pack("<Q", len(string)) + string.encode()

    features, outputs = int(sizes["num_feature"]), int(sizes["num_class"])
    out = b"binf" + struct.pack("<fIiiiIII", base_scores[0], features, outputs, 1, 0, 2, 1, int(sizes["num_target"]))
    out += bytes(26 * 4) + text(learner["objective"]["name"]) + text(booster["name"])
    if trees:
        out += struct.pack("<iiiiqii", len(trees), 1, features, 0, 0, outputs, 0) + bytes(32 * 4)
        out += b"".join(old_binary_tree(tree, features) for tree in trees)
        out += struct.pack(f"<{len(trees)}i", *model["tree_info"])
        drops = booster.get("weight_drop", [])
        out += struct.pack(f"<Q{len(drops)}f", len(drops), *drops) if drops else b""
    else:
        weights = model["weights"]
        out += struct.pack("<Ii", features, outputs) + bytes(32 * 4)
        out += struct.pack(f"<Q{len(weights)}f", len(weights), *weights)
    attributes = learner["attributes"]
    return out + struct.pack("<Q", len(attributes)) + b"".join(text(x) for pair in attributes.items() for x in pair)


def old_binary_tree(tree, features):
    count = len(tree["left_children"])
    deleted = sum(index == 2**31 - 1 for index in tree["split_indices"])
    out = struct.pack("<iiiiIi", 1, count, deleted, 0, features, 0) + bytes(31 * 4)
    names = ("parents", "left_children", "right_children", "split_indices", "default_left", "split_conditions")
    for parent, left, right, index, default, condition in zip(*(tree[name] for name in names)):
        out += struct.pack("<iiiIf", parent, left, right, index | default << 31, condition)
    return out + bytes(count * 4 * 4)
