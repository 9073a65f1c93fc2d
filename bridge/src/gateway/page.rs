//! The built-in page: one file without external resources, and the policy that keeps it so.
//!
//! Payloads are hostile text. The page never turns data into markup, and the content security policy lets no
//! script run but its own.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;

use super::encode;
use super::reply;

const PAGE: &str = include_str!("page.html");
/// Replaced in the page by a word that is new each time, and allowed by the policy.
const NONCE: &str = "{{nonce}}";

/// `GET /` for a browser.
pub(super) fn page() -> Response {
    let nonce = encode::random_uuid();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = reply::typed(StatusCode::OK, "text/html; charset=utf-8", PAGE.replace(NONCE, &nonce));
    let policy = HeaderValue::try_from(policy).expect("the policy is plain ASCII");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_makes_no_markup_of_data() {
        for forbidden in
            ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "src=", "@import", "url("]
        {
            assert!(!PAGE.contains(forbidden), "the page contains {forbidden}");
        }
        assert_eq!(PAGE.matches(NONCE).count(), 2, "one style and one script");
        assert!(!PAGE.contains(" style=") && !PAGE.contains(" onclick="), "the policy would refuse it");
    }
}
