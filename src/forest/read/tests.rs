//! Small files by hand: what is refused, by which name and at which place, and what hostile sizes cost.

use super::{Format, Place, ReadError, format_of, read};
use crate::forest::{Body, Link};

/// A model of one stump; `CHANGES` are replaced in its text.
const JSON: &str = r#"{"learner":{"attributes":{"best_iteration":"3"},"feature_names":["a","b"],"gradient_booster":{"model":
{"gbtree_model_param":{"num_parallel_tree":"1","num_trees":"1"},"iteration_indptr":[0,1],"tree_info":[0],"trees":[{"id":0,
"base_weights":[0E0,1E0,2E0],"categories":[],"categories_nodes":[],"categories_segments":[],"categories_sizes":[],
"default_left":[1,0,0],"left_children":[1,-1,-1],"right_children":[2,-1,-1],"split_conditions":[5E-1,-1E0,1E0],
"split_indices":[1,0,0],"split_type":[0,0,0],"tree_param":{"num_nodes":"3","size_leaf_vector":"1"}}]},"name":"gbtree"},
"learner_model_param":{"base_score":"[5E-1]","num_class":"0","num_feature":"2","num_target":"1"},
"objective":{"name":"binary:logistic","reg_loss_param":{}}},"version":[3,2,0]}"#;

const TEXT: &str = "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\nmax_feature_idx=1\n\
objective=binary sigmoid:1\nfeature_names=a b\nfeature_infos=[0:1] [0:1]\n\nTree=0\nnum_leaves=2\nnum_cat=0\n\
split_feature=1\nsplit_gain=1\nthreshold=0.5\ndecision_type=2\nleft_child=-1\nright_child=-2\nleaf_value=-1 1\n\
is_linear=0\nshrinkage=1\n\n\nend of trees\n";

fn changed(format: Format, text: &str, from: &str, to: &str) -> ReadError {
    assert!(text.contains(from), "{from}");
    read(format, text.replace(from, to).as_bytes()).expect_err("refused")
}

#[test]
fn small_files_are_read() {
    let model = read(Format::XGBoost, JSON.as_bytes()).expect("a model");
    assert_eq!(model.best_iteration, Some(3));
    assert_eq!(model.feature_names.iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(model.forest.parts().link, Link::Sigmoid { slope: 1.0 });
    assert_eq!(model.forest.parts().base, [0.0]);
    let model = read(Format::LightGbm, TEXT.as_bytes()).expect("a model");
    assert!(matches!(&model.forest.parts().body, Body::Trees(trees) if trees.len() == 1));
    assert_eq!(
        (format_of(JSON.as_bytes()), format_of(TEXT.as_bytes())),
        (Some(Format::XGBoost), Some(Format::LightGbm))
    );
}

#[test]
fn spaces_do_not_matter_in_json() {
    let spaced = JSON.replace(',', " ,\r\n ").replace(':', " : ").replace("binary : logistic", "binary:logistic");
    let same = read(Format::XGBoost, spaced.as_bytes()).expect("a model");
    assert_eq!(same, read(Format::XGBoost, JSON.as_bytes()).expect("a model"));
}

#[test]
fn xgboost_is_refused_by_name() {
    let refusals = [
        ("[3,2,0]", "[3,3,0]", "written by XGBoost 3.3.0"),
        ("[3,2,0]", "[0,9,0]", "before 1.0"),
        ("binary:logistic", "binary:future", "\"binary:future\""),
        ("\"name\":\"gbtree\"", "\"name\":\"gbforest\"", "\"gbforest\""),
        ("\"[5E-1]\"", "\"[5E-1,5E-1]\"", "2 numbers for 1 outputs"),
        ("\"[5E-1]\"", "\"half\"", "`base_score` \"half\""),
        ("\"[5E-1]\"", "\"2E0\"", "`base_score` 2 is not one of binary:logistic"),
        ("\"num_class\":\"0\"", "\"num_class\":\"4000000000\"", "too few trees"),
        ("\"id\":0", "\"id\":1", "`id`"),
        ("[0,1]", "[0,2]", "`iteration_indptr`"),
        ("\"num_trees\":\"1\"", "\"num_trees\":\"2\"", "holds 1 trees"),
        ("[1,-1,-1]", "[0,-1,-1]", "reached twice"),
        ("[1,-1,-1]", "[9,-1,-1]", "child 9"),
        ("[1,-1,-1]", "[1,-1]", "`left_children` has 2"),
        ("[5E-1,-1E0,1E0]", "[NaN,-1E0,1E0]", "NaN"),
        ("\"split_type\":[0,0,0]", "\"split_type\":[1,0,0]", "no set"),
        ("\"size_leaf_vector\":\"1\"", "\"size_leaf_vector\":\"4294967295\"", "leaf values"),
        ("\"split_indices\":[1,0,0],", "", "`split_indices`"),
        ("\"tree_info\":[0],", "\"tree_info\":[0],\"tree_info\":[0],", "stands twice"),
        ("[\"a\",\"b\"]", "[\"a\",\"a\"]", "\"a\" twice"),
        ("[\"a\",\"b\"]", "[\"a\"]", "1 names"),
        ("\"version\":[3,2,0]", "\"x\":0", "`version` is missing"),
    ];
    for (from, to, says) in refusals {
        let error = changed(Format::XGBoost, JSON, from, to);
        assert!(error.to_string().contains(says), "{from} -> {to}: {error}");
    }
}

#[test]
fn lightgbm_is_refused_by_name() {
    let refusals = [
        ("version=v4", "version=v5", "\"v5\""),
        ("binary sigmoid:1", "binary", "`sigmoid`"),
        ("binary sigmoid:1", "future", "\"future\""),
        ("num_leaves=2", "num_leaves=4000000", "`leaf_value` has 2 numbers"),
        ("leaf_value=-1 1", "leaf_value=-1 x", "\"x\" in `leaf_value`"),
        ("decision_type=2", "decision_type=3", "category set"),
        ("decision_type=2", "decision_type=12", "`decision_type` 12"),
        ("left_child=-1", "left_child=0", "tree 0"),
        ("num_class=1\nnum_tree_per_iteration=1", "num_class=2\nnum_tree_per_iteration=2", "2"),
        ("max_feature_idx=1", "max_feature_idx=4294967295", "features"),
        ("feature_names=a b", "feature_names=a b c", "3 names"),
        ("feature_names=a b", "feature_names=a b\ntree_sizes=10", "`tree_sizes`"),
        ("num_cat=0", "num_cat=2", "`num_cat`"),
        ("end of trees\n", "", "cut short"),
        ("Tree=0", "Tree 0", "0 trees"),
    ];
    for (from, to, says) in refusals {
        let error = changed(Format::LightGbm, TEXT, from, to);
        assert!(error.to_string().contains(says), "{from} -> {to}: {error}");
    }
}

#[test]
fn errors_have_their_place() {
    let at = |error: ReadError| error.place;
    let cut = read(Format::XGBoost, &JSON.as_bytes()[..200]).expect_err("cut short");
    assert!(matches!(at(cut), Place::Byte(150..=200)));
    assert_eq!(at(changed(Format::LightGbm, TEXT, "num_cat=0", "num_cat")), Place::Line(13));
    assert_eq!(at(read(Format::XGBoost, b"binf").expect_err("cut short")), Place::Byte(4));
}

#[test]
fn nesting_is_bounded() {
    for open in ["[", "{\"a\":"] {
        let deep = format!("{{\"x\":{}", open.repeat(100_000));
        assert!(read(Format::XGBoost, deep.as_bytes()).expect_err("refused").reason.contains("nested"));
    }
    let deep = [b"{i\x01x".to_vec(), b"[".repeat(100_000)].concat();
    assert!(read(Format::XGBoost, &deep).expect_err("refused").reason.contains("nested"));
}
