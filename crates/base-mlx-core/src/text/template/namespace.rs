use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Kwargs, Object, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// What `namespace()` returns: the one thing that a template can change, and so the only one that could hold
/// itself, or grow deeper with every turn of a loop. Whoever then printed or dropped it would run out of stack.
/// So this one looks at what it is given; `set_attribute` is how templates give it, see [`rewrite`].
#[derive(Debug, Default)]
struct Namespace {
    values: Mutex<BTreeMap<String, Value>>,
}

/// The function `namespace`, with a mapping or names for its first values.
pub(super) fn namespace(mapping: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let namespace = Namespace::default();
    for mapping in mapping.iter() {
        for key in mapping.try_iter()?.checked() {
            let key = key?;
            namespace.set(&key.to_string(), mapping.get_item(&key)?)?;
        }
    }
    for name in named.args() {
        namespace.set(name, named.get(name)?)?;
    }
    Ok(Value::from_object(namespace))
}

/// `set NAME.ATTRIBUTE = VALUE` in the words that [`Namespace`] understands; None for any other tag. A way to set
/// that this does not know stays as it is, and fails, because the engine knows no namespaces of ours.
pub(super) fn rewrite(tag: &str) -> Option<String> {
    let rest = tag.strip_prefix("set")?;
    let (name, rest) = identifier(rest.strip_prefix(char::is_whitespace)?)?;
    let (attribute, rest) = identifier(rest.strip_prefix('.')?)?;
    let value = rest.strip_prefix('=').filter(|value| !value.starts_with('='))?;
    Some(format!("set __set = {name}.{SET}('{attribute}', ({value}))"))
}

fn identifier(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    (end > 0).then(|| (&text[..end], text[end..].trim_start()))
}

impl Namespace {
    /// Returns how many values it had to look at.
    fn set(&self, name: &str, value: Value) -> Result<u64, Error> {
        // What is computed on demand may hold on to what it is computed from.
        let value = match value.kind() {
            ValueKind::Iterable => {
                Value::from(value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?)
            }
            _ => value,
        };
        let mut seen = 0;
        inspect(&value, 0, &mut seen)?;
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.insert(name.to_owned(), value);
        Ok(seen)
    }
}

impl Object for Namespace {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.get(key.as_str()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        Enumerator::Values(values.keys().cloned().map(Value::from).collect())
    }

    fn call_method(
        self: &Arc<Self>,
        state: &mut State,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        match (method, args) {
            (SET, [name, value]) => {
                let seen = self.set(name.as_str().unwrap_or_default(), value.clone())?;
                state.consume_fuel(seen / VALUES_PER_FUEL)?;
                Ok(Value::UNDEFINED)
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// Refuses what is nested too deeply, and namespaces inside of namespaces.
fn inspect(value: &Value, depth: usize, seen: &mut u64) -> Result<(), Error> {
    *seen += 1;
    if *seen > MAX_VALUES {
        return Err(Error::from(ErrorKind::OutOfFuel));
    }
    let refuse = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, what.to_owned()));
    if depth > MAX_DEPTH {
        return refuse("a namespace cannot hold a value nested so deeply");
    }
    if value.downcast_object_ref::<Namespace>().is_some() {
        return refuse("a namespace cannot hold a namespace");
    }
    match value.kind() {
        ValueKind::Seq => {
            for item in value.try_iter()?.checked() {
                inspect(&item?, depth + 1, seen)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()?.checked() {
                let key = key?;
                inspect(&key, depth + 1, seen)?;
                inspect(&value.get_item(&key)?, depth + 1, seen)?;
            }
        }
        ValueKind::Iterable if depth > 0 => {
            return refuse("a namespace cannot hold a list of iterators");
        }
        _ => {}
    }
    Ok(())
}

const SET: &str = "set_attribute";
/// Far more than a conversation has, in depth and in number.
const MAX_DEPTH: usize = 64;
const MAX_VALUES: u64 = 200_000;
const VALUES_PER_FUEL: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_setting_an_attribute_is_rewritten() {
        let cases = [
            ("set ns.x = 1", Some("set __set = ns.set_attribute('x', ( 1))")),
            ("set  ns . x=a, b", Some("set __set = ns.set_attribute('x', (a, b))")),
            ("set x = ns.x", None),
            ("set ns.x == 1", None),
            ("set ns.x", None),
            ("set ns.x.y = 1", None),
            ("set a, ns.x = 1, 2", None),
            ("settle.x = 1", None),
            ("if ns.x == 1", None),
        ];
        for (tag, expected) in cases {
            assert_eq!(rewrite(tag).as_deref(), expected, "{tag}");
        }
    }
}
