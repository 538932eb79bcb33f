/// How strings of a format are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// It says nothing about the characters.
    Any,
    /// As the compiler knows it.
    OfCompiler,
    /// The compiler does not know it, or lets through what is not of the format.
    Regex(String),
}

pub(super) fn find(name: &str) -> Option<Format> {
    Some(match name {
        "password" | "unknown" => Format::Any,
        "date" => Format::Regex(DATE.to_owned()),
        "time" => Format::Regex(TIME.to_owned()),
        "date-time" => Format::Regex(format!("(?:{DATE})T{TIME}")),
        "json-pointer" => Format::Regex("(?:/(?:[^~/]|~[01])*)*".to_owned()),
        "duration" | "email" | "hostname" | "ipv4" | "ipv6" | "uuid" | "uri" => Format::OfCompiler,
        _ => return None,
    })
}

/// Of the Gregorian calendar: 29 February only where it is one.
const DATE: &str = concat!(
    "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29",
);

/// Without leap seconds, which come at one time of day and seldom.
const TIME: &str = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
