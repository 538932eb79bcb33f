//! `x-base-mlx-warning`: what of a request could not be honoured to the letter.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

const NAME: HeaderName = HeaderName::from_static("x-base-mlx-warning");

/// Tells the client of them, if there are any.
pub(super) fn tell(response: &mut Response, warnings: &[String]) {
    if let Some(value) = value(warnings) {
        response.headers_mut().insert(NAME, value);
    }
}

/// All in one line of a length that every client takes.
fn value(warnings: &[String]) -> Option<HeaderValue> {
    if warnings.is_empty() {
        return None;
    }
    let mut text = String::new();
    for char in warnings.join("; ").chars() {
        match char {
            '\n' | '\t' => text.push(' '),
            ' '..='~' => text.push(char),
            // As JSON would have it.
            char => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    text += &format!("\\u{unit:04x}");
                }
            }
        }
        if text.len() > MOST_BYTES {
            text.truncate(MOST_BYTES);
            text += "...";
            break;
        }
    }
    HeaderValue::from_str(&text).ok()
}

const MOST_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_one_short_line_of_ascii() {
        let text = |warnings: &[&str]| {
            let warnings: Vec<String> = warnings.iter().map(|text| (*text).to_owned()).collect();
            value(&warnings).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(text(&[]), None);
        assert_eq!(text(&["/a: `not`", "line\nline"]).unwrap(), "/a: `not`; line line");
        assert_eq!(text(&["gr\u{fc}n \u{1f642}\r"]).unwrap(), r"gr\u00fcn \ud83d\ude42\u000d");
        let long = text(&[&"\u{fc}".repeat(5000)]).unwrap();
        assert!(long.len() == MOST_BYTES + 3 && long.ends_with("..."));
    }
}
