/// A regex of JavaScript as the compiler's regexes have it: the same texts, or fewer. An error says what cannot be.
pub(super) fn translated(regex: &str) -> Result<String, String> {
    let mut written = String::with_capacity(regex.len());
    let mut rest = regex;
    let mut in_class = false;
    let mut in_count = false;
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
            '{' if !in_class => {
                in_count = is_count(rest);
                written.push_str(if in_count { "{" } else { "\\{" });
            }
            '}' if !in_class => {
                written.push_str(if in_count { "}" } else { "\\}" });
                in_count = false;
            }
            control if !in_class && is_dropped(control as u32) => return Err(CONTROL.to_owned()),
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
    // Of a sign the standard library thinks nothing.
    let hex = |digits: &str| {
        let are_digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(digits, 16).ok().filter(|_| are_digits)
    };
    if let ('p' | 'P' | 'u', Some((name, after))) = (escaped, braced(after)) {
        if escaped == 'u' && !in_class && hex(name).is_some_and(is_dropped) {
            return Err(CONTROL.to_owned());
        }
        return Ok((format!("\\{escaped}{{{name}}}"), after));
    }
    Ok(match escaped {
        'v' | '0' | 'c' if !in_class => return Err(CONTROL.to_owned()),
        // White space is not quite what it is elsewhere.
        's' => ("[^\\S\\u{85}]".to_owned(), after),
        'S' => ("[^\\s\\u{feff}]".to_owned(), after),
        'd' | 'D' | 'w' | 'W' | 'n' | 'r' | 't' | 'f' | 'v' => (format!("\\{escaped}"), after),
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
            Some(code) if is_dropped(code) && !in_class => return Err(CONTROL.to_owned()),
            Some(code) => (format!("\\x{code:02x}"), &after[2..]),
            None => ("x".to_owned(), after),
        },
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
                _ if is_dropped(code) && !in_class => return Err(CONTROL.to_owned()),
                _ => (format!("\\u{{{code:x}}}"), after),
            }
        }
        letter if letter.is_ascii_alphanumeric() => (letter.to_string(), after),
        '<' | '>' => (escaped.to_string(), after),
        mark if mark.is_ascii() => (format!("\\{mark}"), after),
        other => (other.to_string(), after),
    })
}

/// Whether a count and its `}` follow a `{`: `3}`, `3,}` or `3,5}`.
fn is_count(rest: &str) -> bool {
    let past_digits = |text: &'_ str| text.trim_start_matches(|of: char| of.is_ascii_digit()).len();
    let after = &rest[rest.len() - past_digits(rest)..];
    let end = match after.strip_prefix(',') {
        Some(most) => &most[most.len() - past_digits(most)..],
        None => after,
    };
    rest.starts_with(|of: char| of.is_ascii_digit()) && end.starts_with('}')
}

/// Whether the compiler drops a character that JSON spells by its number.
fn is_dropped(code: u32) -> bool {
    matches!(code, 0..32 | 0x7f) && ![0x9, 0xa, 0xc, 0xd].contains(&code)
}

/// What is in the braces that a text begins with, and the rest.
fn braced(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('{')?.split_once('}')
}

/// The compiler would drop them.
const CONTROL: &str = "control characters are not supported";
