//! Margins of one row in, its predictions out, in place, by the formula and in the float type of the model's own library.
//! The functions are the C library's, as theirs are, so that results agree to within 2 units in the last place.

use super::{After, Link, OnnxLink};

mod onnx;

/// Turns a row's margins, which are overwritten, into its predictions.
pub(super) fn predict_f32(link: Link, after: &[After], margins: &mut [f32], predictions: &mut [f32]) {
    if let Link::Onnx(link) = link {
        onnx::finish_f32(link, margins, predictions);
    } else {
        apply_f32(link, margins);
        predictions.copy_from_slice(&margins[..predictions.len()]);
    }
    onnx::after_f32(after, predictions);
}

/// The same in f64.
pub(super) fn predict_f64(link: Link, after: &[After], margins: &mut [f64], predictions: &mut [f64]) {
    if let Link::Onnx(link) = link {
        onnx::finish_f64(link, margins, predictions);
    } else {
        apply_f64(link, margins);
        predictions.copy_from_slice(&margins[..predictions.len()]);
    }
    if matches!(link, Link::Onnx(OnnxLink { results_are_f32: true, .. })) {
        onnx::after_narrowed(after, predictions);
    } else {
        onnx::after_f64(after, predictions);
    }
}

/// [`Link::ArgMax`] leaves its one number in the first place.
fn apply_f32(link: Link, row: &mut [f32]) {
    match link {
        Link::Identity | Link::Onnx(_) => {}
        Link::Sigmoid { .. } => row.iter_mut().for_each(|x| *x = sigmoid_f32(*x)),
        #[expect(clippy::cast_possible_truncation, reason = "the file holds an f32")]
        Link::Logistic { slope } => row.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-(slope as f32) * *x).exp())),
        Link::Softmax => softmax_f32(row),
        Link::SoftmaxSingle { group } => row.chunks_exact_mut(group as usize).for_each(softmax_single_f32),
        #[expect(clippy::cast_possible_truncation, reason = "the file holds an f32")]
        Link::Exp2Ratio { ratio } => row.iter_mut().for_each(|x| *x = (-*x / ratio as f32).exp2()),
        Link::ArgMax => {
            let best = arg_max(row);
            row[0] = best as f32;
        }
        Link::Exp => row.iter_mut().for_each(|x| *x = x.exp()),
        Link::Log1pExp => row.iter_mut().for_each(|x| *x = x.exp().ln_1p()),
        Link::Hinge => row.iter_mut().for_each(|x| *x = f32::from(u8::from(*x > 0.0))),
        Link::SignedSquare => row.iter_mut().for_each(|x| *x = sign_f32(*x) * *x * *x),
        Link::ExpectileSteps => {
            for i in 1..row.len() {
                row[i] = row[i - 1] + (1e-6 + softplus_f32(row[i]));
            }
        }
        Link::Ascending => sort(row),
    }
}

/// The same in f64.
fn apply_f64(link: Link, row: &mut [f64]) {
    match link {
        Link::Identity | Link::ExpectileSteps | Link::Onnx(_) => {}
        Link::Sigmoid { slope } | Link::Logistic { slope } => {
            for x in row {
                *x = 1.0 / (1.0 + (-slope * *x).exp());
            }
        }
        Link::Softmax => softmax_f64(row),
        Link::SoftmaxSingle { group } => row.chunks_exact_mut(group as usize).for_each(softmax_single_f64),
        Link::Exp2Ratio { ratio } => row.iter_mut().for_each(|x| *x = (-*x / ratio).exp2()),
        Link::ArgMax => {
            let best = arg_max(row);
            row[0] = best as f64;
        }
        Link::Exp => row.iter_mut().for_each(|x| *x = x.exp()),
        Link::Log1pExp => row.iter_mut().for_each(|x| *x = x.exp().ln_1p()),
        Link::Hinge => row.iter_mut().for_each(|x| *x = f64::from(u8::from(*x > 0.0))),
        Link::SignedSquare => row.iter_mut().for_each(|x| *x = sign_f64(*x) * *x * *x),
        Link::Ascending => sort(row),
    }
}

/// XGBoost's `common::Sigmoid`.
fn sigmoid_f32(x: f32) -> f32 {
    // Not `min`, which would make a number of NaN.
    let exponent = if 88.7 < -x { 88.7 } else { -x };
    1.0 / (exponent.exp() + 1.0 + 1e-16)
}

/// XGBoost's `common::SoftPlus`.
fn softplus_f32(x: f32) -> f32 {
    if x > 0.0 { x + (-x).exp().ln_1p() } else { x.exp().ln_1p() }
}

/// XGBoost's `common::Softmax`: the sum is f64, its quotient f32.
#[expect(clippy::cast_possible_truncation, reason = "the library rounds the sum to f32")]
fn softmax_f32(row: &mut [f32]) {
    let max = row.iter().copied().fold(row[0], f32::max);
    let mut sum = 0.0_f64;
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        sum += f64::from(*x);
    }
    let sum = sum as f32;
    for x in row {
        *x /= sum;
    }
}

/// `LightGBM`'s `Common::Softmax`.
fn softmax_f64(row: &mut [f64]) {
    // `std::max(x, max)`: NaN wins, unlike `f64::max`.
    let max = row[1..].iter().fold(row[0], |max, &x| if x < max { max } else { x });
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        sum += *x;
    }
    for x in row {
        *x /= sum;
    }
}

/// Treelite's `softmax` of an f32 model: NaN is never the greater.
#[expect(clippy::cast_possible_truncation, reason = "the library rounds the sum to f32")]
fn softmax_single_f32(row: &mut [f32]) {
    let max = row[1..].iter().fold(row[0], |max, &x| if x > max { x } else { max });
    let mut sum = 0.0_f64;
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        sum += f64::from(*x);
    }
    for x in row {
        *x /= sum as f32;
    }
}

/// Treelite's `softmax` of an f64 model: the greatest margin, each power and the sum are rounded to f32.
#[expect(clippy::cast_possible_truncation, reason = "the library rounds them to f32")]
fn softmax_single_f64(row: &mut [f64]) {
    let max = row[1..].iter().fold(row[0] as f32, |max, &x| if x > f64::from(max) { x as f32 } else { max });
    let mut sum = 0.0_f64;
    for x in row.iter_mut() {
        *x = f64::from((*x - f64::from(max)).exp() as f32);
        sum += *x;
    }
    for x in row {
        *x /= f64::from(sum as f32);
    }
}

fn arg_max<T: PartialOrd>(row: &[T]) -> usize {
    let mut best = 0;
    for (index, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = index;
        }
    }
    best
}

fn sign_f32(x: f32) -> f32 {
    f32::from(i8::from(x > 0.0) - i8::from(x < 0.0))
}

fn sign_f64(x: f64) -> f64 {
    f64::from(i8::from(x > 0.0) - i8::from(x < 0.0))
}

/// By insertion, as XGBoost does: rows are short, and NaN stays where it is.
fn sort<T: PartialOrd + Copy>(row: &mut [T]) {
    for i in 1..row.len() {
        let value = row[i];
        let mut place = i;
        while place > 0 && row[place - 1] > value {
            row[place] = row[place - 1];
            place -= 1;
        }
        row[place] = value;
    }
}
