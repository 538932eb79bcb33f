//! `x-base-mlx-cache`: how much of a request's prompts was cached, and why no more.

use axum::http::{HeaderName, HeaderValue};
use base_mlx_core::engine::{Cached, Uncached};

pub(super) const NAME: HeaderName = HeaderName::from_static("x-base-mlx-cache");

/// `hit=1532/1600`, `hit=412/1600 reason=first-difference@412 (system message)`, `miss reason=new`. Of several prompts the
/// sum, with the reason of the first that has one to tell. `place` tells people where in its prompt a token is.
pub(super) async fn value(
    cached: &[Cached],
    place: impl AsyncFnOnce(usize) -> Option<String>,
) -> HeaderValue {
    let tokens: usize = cached.iter().map(|found| found.tokens).sum();
    let of: usize = cached.iter().map(|found| found.prompt_tokens).sum();
    let told = cached.iter().find(|found| found.why != Uncached::New);
    let reason = match told.map(|found| (found.why, found.tokens)) {
        Some((Uncached::Differs, at)) => {
            let place = place(at).await.map(|place| format!(" ({place})")).unwrap_or_default();
            Some(format!("first-difference@{at}{place}"))
        }
        Some((Uncached::Scored, _)) => Some("prompt-is-scored".to_owned()),
        Some((Uncached::Off, _)) => Some("off".to_owned()),
        Some((Uncached::New, _)) | None => None,
    };
    let text = match (tokens, reason) {
        (0, reason) => format!("miss reason={}", reason.as_deref().unwrap_or("new")),
        (_, Some(reason)) => format!("hit={tokens}/{of} reason={reason}"),
        (_, None) => format!("hit={tokens}/{of}"),
    };
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_says_how_much_and_why_no_more() {
        let cached = |tokens, why| Cached { tokens, prompt_tokens: 1600, why };
        let at = async |found: &[Cached]| {
            let value =
                value(found, async |token| (token > 0).then(|| "system message".to_owned()));
            value.await.to_str().unwrap().to_owned()
        };
        assert_eq!(at(&[cached(1532, Uncached::New)]).await, "hit=1532/1600");
        assert_eq!(
            at(&[cached(412, Uncached::Differs)]).await,
            "hit=412/1600 reason=first-difference@412 (system message)"
        );
        assert_eq!(at(&[cached(0, Uncached::Differs)]).await, "miss reason=first-difference@0");
        assert_eq!(at(&[cached(0, Uncached::New)]).await, "miss reason=new");
        assert_eq!(at(&[cached(0, Uncached::Off)]).await, "miss reason=off");
        let both = [cached(800, Uncached::New), cached(0, Uncached::Scored)];
        assert_eq!(at(&both).await, "hit=800/3200 reason=prompt-is-scored");
    }
}
