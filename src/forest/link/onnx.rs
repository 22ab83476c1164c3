//! ONNX Runtime's finish of a row: its margins in, scores out. Transforms are computed in f32 whatever the margins are,
//! and results are those of `TreeEnsemble*` with one thread.

use crate::forest::{After, OnnxLink, OnnxTransform, OnnxWidth};

/// Margins become scores.
pub(super) fn finish_f32(link: OnnxLink, margins: &mut [f32], scores: &mut [f32]) {
    let margin = margins[0];
    match link.width {
        OnnxWidth::Same => {
            transform(link.transform, margins, same, same);
            scores.copy_from_slice(margins);
        }
        OnnxWidth::Complement => scores.copy_from_slice(&[1.0 - margin, margin]),
        OnnxWidth::Negation => {
            scores.copy_from_slice(&[-margin, margin]);
            transform(link.transform, scores, same, same);
        }
    }
}

/// The same of f64 margins.
#[expect(clippy::cast_possible_truncation, reason = "the runtime narrows with the same cast")]
pub(super) fn finish_f64(link: OnnxLink, margins: &mut [f64], scores: &mut [f64]) {
    let margin = margins[0];
    match link.width {
        OnnxWidth::Same => scores.copy_from_slice(margins),
        OnnxWidth::Complement => scores.copy_from_slice(&[1.0 - margin, margin]),
        OnnxWidth::Negation => scores.copy_from_slice(&[-margin, margin]),
    }
    transform(link.transform, scores, |score| score as f32, f64::from);
    if link.results_are_f32 {
        for score in scores {
            *score = f64::from(*score as f32);
        }
    }
}

fn same(x: f32) -> f32 {
    x
}

/// Steps after the link.
#[expect(clippy::cast_possible_truncation, reason = "the graph's numbers are f32")]
pub(super) fn after_f32(after: &[After], scores: &mut [f32]) {
    for &step in after {
        for score in scores.iter_mut() {
            *score = match step {
                After::Exp => score.exp(),
                After::Add(number) => *score + number as f32,
                After::Multiply(number) => *score * number as f32,
                After::Divide(number) => *score / number as f32,
            };
        }
    }
}

/// The same of f64 scores.
pub(super) fn after_f64(after: &[After], scores: &mut [f64]) {
    for &step in after {
        for score in scores.iter_mut() {
            *score = match step {
                After::Exp => score.exp(),
                After::Add(number) => *score + number,
                After::Multiply(number) => *score * number,
                After::Divide(number) => *score / number,
            };
        }
    }
}

/// The same of f64 that hold f32.
#[expect(clippy::cast_possible_truncation, reason = "they are f32")]
pub(super) fn after_narrowed(after: &[After], scores: &mut [f64]) {
    for score in scores {
        let mut narrow = [*score as f32];
        after_f32(after, &mut narrow);
        *score = f64::from(narrow[0]);
    }
}

/// Transforms a row of any float type through f32.
fn transform<T: Copy>(transform: OnnxTransform, row: &mut [T], narrow: fn(T) -> f32, widen: fn(f32) -> T) {
    match transform {
        OnnxTransform::None => {}
        OnnxTransform::Logistic => row.iter_mut().for_each(|x| *x = widen(logistic(narrow(*x)))),
        OnnxTransform::Softmax => softmax(row, false, narrow, widen),
        OnnxTransform::SoftmaxZero => softmax(row, true, narrow, widen),
    }
}

/// `ComputeLogistic`.
fn logistic(x: f32) -> f32 {
    let v = 1.0 / (1.0 + (-x.abs()).exp());
    if x < 0.0 { 1.0 - v } else { v }
}

/// `ComputeSoftmax`, and `ComputeSoftmaxZero`, which keeps margins of about 0 out of the sum.
fn softmax<T: Copy>(row: &mut [T], keeps_zero: bool, narrow: fn(T) -> f32, widen: fn(f32) -> T) {
    // NaN is never the greater.
    let max = row.iter().fold(f32::MIN, |max, &x| if narrow(x) > max { narrow(x) } else { max });
    let mut sum = 0.0;
    for x in row.iter_mut() {
        let margin = narrow(*x);
        if keeps_zero && (margin.is_nan() || (-0.000_000_1..=0.000_000_1).contains(&margin)) {
            *x = widen(margin * (-max).exp());
        } else {
            let power = (margin - max).exp();
            sum += power;
            *x = widen(power);
        }
    }
    for x in row {
        *x = widen(narrow(*x) / sum);
    }
}
