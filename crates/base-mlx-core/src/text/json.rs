use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// JSON that strangers wrote, at most 128 levels deep. `serde_json`'s own `Value` gives a meaning to some keys by which
/// the library talks to itself; one of them names a text that is parsed in the object's place, its depth counted anew.
pub fn parse_json(bytes: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(bytes).map(|Plain(value)| value)
}

/// A value in which every key is a key.
struct Plain(Value);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue).map(Plain)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Plain(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Plain(value))) = entries.next_entry::<String, Plain>()? {
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_key_is_a_key() {
        for key in ["$serde_json::private::RawValue", "$serde_json::private::Number"] {
            let expected = json!({ "a": [1] });
            let mut object = Map::new();
            object.insert(key.to_owned(), "[1]".into());
            let text = Value::Object(object.clone()).to_string();
            assert_eq!(parse_json(text.as_bytes()).unwrap(), Value::Object(object));
            let nested = format!(r#"{{"{key}":{expected}}}"#);
            assert_eq!(parse_json(nested.as_bytes()).unwrap()[key], expected);
        }
    }

    #[test]
    fn everything_else_is_what_the_library_reads() {
        let texts = [
            r#"{"z":1,"a":{"b":[null,true,-5,18446744073709551615,0.1,-0.0,1e300,"ü\n\ud83d\ude00"]},"z":2}"#,
            " [ ] ",
            "12345678901234567890123",
        ];
        for text in texts {
            let library: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse_json(text.as_bytes()).unwrap().to_string(), library.to_string());
        }
        let levels = |count: usize| format!("{}{}", "[".repeat(count), "]".repeat(count));
        for text in ["", "{", "1 2", "NaN", "1e999", r#""\ud83d""#, &levels(128), &levels(100_000)]
        {
            assert!(parse_json(text.as_bytes()).is_err());
        }
        assert!(parse_json(levels(127).as_bytes()).is_ok());
    }
}
