//! The live page: one file without anything from elsewhere, and a policy that lets the browser run nothing but it.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

const PAGE: &str = include_str!("page.html");

/// Its script and its style by their hashes; nothing else is run, and nothing is asked but this port.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag| STANDARD.encode(Sha256::digest(inside(PAGE, tag)));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    )
});

pub(super) async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, PAGE)
}

/// The text of the page's one element of that name.
fn inside<'a>(page: &'a str, tag: &str) -> &'a str {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let text = page.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
    text.map_or("", |(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style_and_takes_nothing_from_elsewhere() {
        for tag in ["script", "style"] {
            assert!(inside(PAGE, tag).len() > 1_000, "{tag}");
            assert_eq!(PAGE.matches(&format!("<{tag}")).count(), 1, "{tag}");
        }
        for foreign in ["http:", "https:", "@import", "url(", "src=", " style=\"", "innerHTML", "onclick="] {
            assert!(!PAGE.replace("http://www.w3.org/2000/svg", "").contains(foreign), "{foreign}");
        }
        assert!(PAGE.len() < 64 << 10, "{} bytes", PAGE.len());
        assert!(!POLICY.contains("unsafe"), "{}", *POLICY);
    }
}
