//! `forebay score` on lines of the Open Inference Protocol: the scores of the native lines of the same rows.

use serde_json::{Value, json};

use super::{feature_names, rows, run_with, score};

const ROWS: usize = 3;

#[test]
fn tensors_are_scored_as_native_rows_are() {
    let (rows, names) = (rows(), feature_names());
    let numbers = |row: &Vec<String>| row.iter().map(|cell| cell.parse().unwrap()).collect::<Vec<f64>>();
    let rows: Vec<Vec<f64>> = rows.iter().take(ROWS).map(numbers).collect();
    let tensor = |data: Value| json!([{"name": "x", "shape": [ROWS, names.len()], "datatype": "FP64", "data": data}]);
    let by_name: Vec<Value> = (names.iter().enumerate().rev())
        .map(|(column, name)| {
            let data: Vec<f64> = rows.iter().map(|row| row[column]).collect();
            json!({"name": name, "shape": [ROWS], "datatype": "FP64", "data": data})
        })
        .collect();
    let lines = [
        json!({"id": "native", "features": rows}),
        json!({"id": "flat", "inputs": tensor(json!(rows.concat()))}),
        json!({"inputs": tensor(json!(rows)), "outputs": [{"name": "predict"}]}),
        json!({"id": "by name", "inputs": by_name, "parameters": {"priority": 1}}),
        json!({"id": "wrong", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}),
    ];
    let text = lines.map(|line| line.to_string()).join("\n");
    let replies = run_with(&mut score(&["--name", "higgs", "--metadata", "short"]), &text).expect(1).json_lines();

    let scores: Vec<Value> = replies[0]["prediction"].as_array().unwrap().iter().map(|row| row[0].clone()).collect();
    assert_eq!(scores.len(), ROWS);
    for (reply, id) in replies[1..4].iter().zip(["flat", "line/3", "by name"]) {
        let output = json!([{"name": "predict", "datatype": "FP64", "shape": [ROWS, 1], "data": scores}]);
        assert_eq!((&reply["id"], &reply["outputs"]), (&json!(id), &output), "{reply}");
        assert_eq!((&reply["model_name"], &reply["model_version"]), (&json!("higgs"), &json!("1")), "{reply}");
        assert_eq!(reply["parameters"]["cache_hit"], json!(false), "{reply}");
    }
    let message = "inputs[0].shape: got [1, 2], model higgs wants [rows, 28]";
    assert_eq!(replies[4], json!({"id": "wrong", "error": message, "parameters": {"code": "bad_request"}}));
}
