//! An objective's name in; out, its link, and what its base score is as a margin.

use super::Version;
use crate::forest::Link;

/// How far from 0 and 1 a probability is kept, since 3.2.
const PROBABILITY_STEP: f32 = 1e-6;

pub(super) fn link(objective: &str) -> Option<Link> {
    Some(match objective {
        "reg:squarederror"
        | "reg:linear"
        | "reg:squaredlogerror"
        | "reg:pseudohubererror"
        | "reg:absoluteerror"
        | "reg:quantileerror"
        | "binary:logitraw"
        | "rank:pairwise"
        | "rank:ndcg"
        | "rank:map" => Link::Identity,
        "reg:logistic" | "binary:logistic" => Link::Sigmoid { slope: 1.0 },
        "count:poisson" | "reg:gamma" | "reg:tweedie" | "survival:cox" | "survival:aft" => Link::Exp,
        "binary:hinge" => Link::Hinge,
        "multi:softprob" => Link::Softmax,
        "multi:softmax" => Link::ArgMax,
        _ => return None,
    })
}

/// `ObjFunction::ProbToMargin` of the version that wrote the file; not finite for a score that it refuses. Before 1.0
/// the margin itself was saved.
pub(super) fn margin(objective: &str, version: Version, score: f32) -> f32 {
    if version.major == 0 {
        return score;
    }
    match objective {
        "reg:logistic" | "binary:logistic" if !(0.0..=1.0).contains(&score) => f32::NAN,
        "reg:logistic" | "binary:logistic" if version.is_before(3, 2) => logit(score),
        "reg:logistic" | "binary:logistic" => logit(score.clamp(PROBABILITY_STEP, 1.0 - PROBABILITY_STEP)),
        // It inherited this from the logistic regression until 1.3.
        "binary:logitraw" if version.is_before(1, 3) => logit(score),
        "count:poisson" | "reg:gamma" | "reg:tweedie" | "survival:cox" | "survival:aft" => score.ln(),
        _ => score,
    }
}

fn logit(probability: f32) -> f32 {
    -(1.0 / probability - 1.0).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_base_score_means_is_its_version_s() {
        let version = |major, minor| Version { major, minor, patch: 0 };
        let one_bit = |a: f32, b: f32| assert_eq!(a.to_bits(), b.to_bits());
        one_bit(margin("binary:logitraw", version(1, 2), 0.5), -0.0);
        one_bit(margin("binary:logitraw", version(1, 3), 0.5), 0.5);
        one_bit(margin("binary:logistic", version(0, 90), -1.5), -1.5);
        assert!(margin("binary:logistic", version(3, 1), 0.0).is_infinite());
        assert!(margin("binary:logistic", version(3, 2), 0.0).is_finite());
        one_bit(margin("survival:aft", version(2, 0), 0.5), 0.5_f32.ln());
    }
}
