/// A regex of JavaScript as the compiler's regexes have it: the same texts, or fewer. An error says what cannot be.
pub(super) fn translated(regex: &str) -> Result<String, String> {
    let mut written = String::with_capacity(regex.len());
    let mut rest = regex;
    let mut in_class = false;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match first {
            '\\' => {
                let (escape, after) = escape(rest, in_class)?;
                written.push_str(&escape);
                rest = after;
            }
            ']' if in_class => {
                in_class = false;
                written.push(']');
            }
            // Sets in sets, and operations on them, are the compiler's own.
            '[' | '&' | '~' if in_class => written.extend(['\\', first]),
            '-' if in_class && rest.starts_with('-') => written.push_str("\\-"),
            '[' => {
                in_class = true;
                if let Some(after) = rest.strip_prefix("^]") {
                    written.push_str("(?s:.)");
                    (rest, in_class) = (after, false);
                } else if rest.starts_with(']') {
                    return Err("`[]` is matched by nothing".to_owned());
                } else {
                    written.push('[');
                    if let Some(after) = rest.strip_prefix('^') {
                        written.push('^');
                        rest = after;
                    }
                }
            }
            '.' if !in_class => written.push_str("[^\\n\\r\\u{2028}\\u{2029}]"),
            '(' if !in_class && rest.starts_with('?') => {
                let marks = ["?:", "?<"];
                if !marks.iter().any(|mark| rest.starts_with(mark))
                    || rest.starts_with("?<=")
                    || rest.starts_with("?<!")
                {
                    return Err("look-around is not supported".to_owned());
                }
                written.push('(');
            }
            // Only as a count is it more than itself.
            '{' if !in_class && !is_count(rest) => written.push_str("\\{"),
            '}' if !in_class && !closes_count(&regex[..regex.len() - rest.len()]) => {
                written.push_str("\\}")
            }
            other => written.push(other),
        }
    }
    Ok(written)
}

/// What comes after a backslash, and the rest of the regex.
fn escape(rest: &str, in_class: bool) -> Result<(String, &str), String> {
    let Some(escaped) = rest.chars().next() else {
        return Err("a backslash ends the regex".to_owned());
    };
    let after = &rest[escaped.len_utf8()..];
    let hex = |digits: &str| u32::from_str_radix(digits, 16).ok();
    Ok(match escaped {
        'd' | 'D' | 'w' | 'W' | 's' | 'S' | 'n' | 'r' | 't' | 'f' | 'v' => {
            (format!("\\{escaped}"), after)
        }
        'b' if in_class => ("\\x08".to_owned(), after),
        'b' | 'B' => return Err("word boundaries are not supported".to_owned()),
        '0' if !after.starts_with(|next: char| next.is_ascii_digit()) => {
            ("\\x00".to_owned(), after)
        }
        '0'..='9' | 'k' => return Err("back references are not supported".to_owned()),
        'c' => match after.chars().next().filter(char::is_ascii_alphabetic) {
            Some(letter) => (format!("\\x{:02x}", letter as u32 % 32), &after[1..]),
            None => return Err("`\\c` without a letter".to_owned()),
        },
        'x' => match after.get(..2).and_then(hex) {
            Some(code) => (format!("\\x{code:02x}"), &after[2..]),
            None => ("x".to_owned(), after),
        },
        'u' if after.starts_with('{') => (String::from("\\u"), after),
        'u' => {
            let Some(code) = after.get(..4).and_then(hex) else {
                return Ok(("u".to_owned(), after));
            };
            let after = &after[4..];
            let low = after.strip_prefix("\\u").and_then(|low| low.get(..4)).and_then(hex);
            match (code, low) {
                (0xd800..0xdc00, Some(low @ 0xdc00..0xe000)) if !in_class => {
                    let code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    (format!("\\u{{{code:x}}}"), &after[6..])
                }
                (0xd800..0xe000, _) => return Err("half a character".to_owned()),
                _ => (format!("\\u{{{code:x}}}"), after),
            }
        }
        'p' | 'P' if after.starts_with('{') => (format!("\\{escaped}"), after),
        letter if letter.is_ascii_alphanumeric() => (letter.to_string(), after),
        '<' | '>' => (escaped.to_string(), after),
        mark if mark.is_ascii() => (format!("\\{mark}"), after),
        other => (other.to_string(), after),
    })
}

/// Whether a count and its `}` follow a `{`.
fn is_count(rest: &str) -> bool {
    let Some((count, _)) = rest.split_once('}') else { return false };
    let (least, most) = count.split_once(',').unwrap_or((count, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    !least.is_empty() && are_digits(least) && are_digits(most)
}

/// Whether the `}` that ends `before` ends a count, or the name of a property of characters.
fn closes_count(before: &str) -> bool {
    let Some((head, count)) = before[..before.len() - 1].rsplit_once('{') else { return false };
    let is_name = ["\\p", "\\P", "\\u"].iter().any(|escape| head.ends_with(escape));
    is_name || is_count(&format!("{count}}}"))
}
