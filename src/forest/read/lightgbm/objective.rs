//! The `objective` line in, its link out.

use crate::forest::Link;

/// The link of an objective with its parameters, such as `binary sigmoid:1`; of none, the identity.
pub(super) fn link(objective: Option<&str>, outputs: u32) -> Result<Link, String> {
    let mut words = objective.unwrap_or("custom").split_ascii_whitespace();
    let name = words.next().unwrap_or_default();
    let (mut sigmoid, mut classes, mut root) = (None, None, false);
    for word in words {
        match word.split_once(':') {
            Some(("sigmoid", value)) => sigmoid = value.parse::<f64>().ok(),
            Some(("num_class", value)) => classes = value.parse::<u32>().ok(),
            None if word == "sqrt" => root = true,
            _ => {}
        }
    }
    let sigmoid = || match sigmoid {
        Some(slope) if slope > 0.0 && slope.is_finite() => Ok(Link::Sigmoid { slope }),
        _ => Err(format!("the objective {name} has no `sigmoid` above 0")),
    };
    let (link, wanted) = match name {
        "regression"
        | "regression_l2"
        | "mean_squared_error"
        | "mse"
        | "l2"
        | "l2_root"
        | "root_mean_squared_error"
        | "rmse"
        | "regression_l1"
        | "l1"
        | "mean_absolute_error"
        | "mae"
        | "fair"
        | "quantile"
        | "mape"
        | "mean_absolute_percentage_error"
            if root =>
        {
            (Link::SignedSquare, Some(1))
        }
        "regression"
        | "regression_l2"
        | "mean_squared_error"
        | "mse"
        | "l2"
        | "l2_root"
        | "root_mean_squared_error"
        | "rmse"
        | "regression_l1"
        | "l1"
        | "mean_absolute_error"
        | "mae"
        | "fair"
        | "quantile"
        | "mape"
        | "mean_absolute_percentage_error"
        | "huber"
        | "lambdarank"
        | "rank_xendcg"
        | "xendcg"
        | "xe_ndcg"
        | "xe_ndcg_mart"
        | "xendcg_mart"
        | "custom"
        | "none"
        | "null"
        | "na" => (Link::Identity, None),
        "poisson" | "gamma" | "tweedie" => (Link::Exp, Some(1)),
        "binary" => (sigmoid()?, Some(1)),
        "cross_entropy" | "xentropy" => (Link::Sigmoid { slope: 1.0 }, Some(1)),
        "cross_entropy_lambda" | "xentlambda" => (Link::Log1pExp, Some(1)),
        "multiclass" | "softmax" => (Link::Softmax, classes),
        "multiclassova" | "multiclass_ova" | "ova" | "ovr" => (sigmoid()?, classes),
        other => {
            let shown = super::lines::clip(other);
            return Err(format!("the objective {shown:?} is not one of LightGBM's up to 4.7"));
        }
    };
    if matches!(name, "multiclass" | "softmax" | "multiclassova" | "multiclass_ova" | "ova" | "ovr") && wanted.is_none()
    {
        return Err(format!("the objective {name} has no `num_class`"));
    }
    match wanted {
        Some(wanted) if wanted != outputs => {
            Err(format!("the objective {name} is one of {wanted} outputs, the file has {outputs}"))
        }
        _ => Ok(link),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_read_with_their_parameters() {
        assert_eq!(link(Some("binary sigmoid:2"), 1), Ok(Link::Sigmoid { slope: 2.0 }));
        assert_eq!(link(Some("regression_l1 sqrt"), 1), Ok(Link::SignedSquare));
        assert_eq!(link(Some("huber sqrt"), 1), Ok(Link::Identity));
        assert_eq!(link(None, 3), Ok(Link::Identity));
        assert!(link(Some("multiclass num_class:3"), 2).unwrap_err().contains("3 outputs"));
        assert!(link(Some("binary"), 1).unwrap_err().contains("sigmoid"));
        assert!(link(Some("survival"), 1).unwrap_err().contains("survival"));
    }
}
