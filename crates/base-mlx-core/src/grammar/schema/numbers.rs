use serde_json::{Number, Value};

/// The first number of a value that the compiler would write as another: it computes in 64-bit floats.
pub(super) fn inexact(value: &Value) -> Option<&Number> {
    match value {
        Value::Number(number) => (!is_exact(number)).then_some(number),
        Value::Array(values) => values.iter().find_map(inexact),
        Value::Object(values) => values.values().find_map(inexact),
        _ => None,
    }
}

fn is_exact(number: &Number) -> bool {
    match whole(number) {
        Some(whole) => whole as f64 as i128 == whole,
        None => number
            .as_f64()
            .is_some_and(|number| number.abs() <= MAX && number.abs() >= MIN || number == 0.0),
    }
}

/// A bound that keeps what the number keeps, and at most a little more: the compiler's floats are not as fine as JSON's
/// numbers, and what it writes has not so many digits. `None` if it lets nothing through.
pub(super) fn bound(number: &Number, is_upper: bool) -> Option<f64> {
    let mut bound = number.as_f64()?;
    if let Some(whole) = whole(number) {
        match is_upper {
            true if bound as i128 > whole => bound = bound.next_down(),
            false if (bound as i128) < whole => bound = bound.next_up(),
            _ => {}
        }
    }
    match is_upper {
        true => (bound >= -MAX).then_some(bound.min(MAX)),
        false => (bound <= MAX).then_some(bound.max(-MAX)),
    }
}

fn whole(number: &Number) -> Option<i128> {
    number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
}

/// A whole number that is not negative; `3.0` is one.
pub(super) fn count(value: &Value) -> Option<u64> {
    let float =
        || value.as_f64().filter(|count| *count >= 0.0 && *count <= MAX && count.fract() == 0.0);
    value.as_u64().or_else(|| float().map(|count| count as u64))
}

/// Its digits before the point are as many as numbers may have.
const MAX: f64 = 1e18;
const MIN: f64 = 1e-18;
