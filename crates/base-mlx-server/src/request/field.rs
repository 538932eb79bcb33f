use serde_json::{Map, Value};

use crate::error::ApiError;

/// An object of the request's body, read field by field. A field that is null is absent; one of another type than
/// expected is an error that names its path.
#[derive(Clone, Debug)]
pub(crate) struct Object<'a> {
    /// Empty for the body itself.
    path: String,
    fields: &'a Map<String, Value>,
}

/// A value of the request's body, and the path that leads there: `messages[0].content`.
#[derive(Clone, Debug)]
pub(crate) struct Field<'a> {
    path: String,
    value: &'a Value,
}

impl<'a> Object<'a> {
    pub(crate) fn body(fields: &'a Map<String, Value>) -> Self {
        Self { path: String::new(), fields }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Field<'a>> {
        let value = self.fields.get(key).filter(|value| !value.is_null())?;
        Some(Field { path: self.path_of(key), value })
    }

    /// A field that must be there; `expected` is what the error asks for if it is not.
    pub(crate) fn need(&self, key: &str, expected: &str) -> Result<Field<'a>, ApiError> {
        self.get(key).ok_or_else(|| self.missing(key, expected))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ApiError> {
        self.get(key).map(|field| field.text()).transpose()
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        self.get(key).map(|field| field.flag()).transpose()
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ApiError> {
        self.get(key).map(|field| field.number()).transpose()
    }

    pub(crate) fn whole(&self, key: &str) -> Result<Option<i64>, ApiError> {
        self.get(key).map(|field| field.whole()).transpose()
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Object<'a>>, ApiError> {
        self.get(key).map(|field| field.object()).transpose()
    }

    pub(crate) fn list(&self, key: &str) -> Result<Option<Vec<Field<'a>>>, ApiError> {
        self.get(key).map(|field| field.list()).transpose()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, Field<'a>)> {
        self.fields.iter().map(|(key, value)| (&**key, Field { path: self.path_of(key), value }))
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn to_map(&self) -> Map<String, Value> {
        self.fields.clone()
    }

    pub(crate) fn missing(&self, key: &str, expected: &str) -> ApiError {
        let path = self.path_of(key);
        let message = format!("`{path}` is missing, expected {expected}");
        ApiError::invalid(path, message)
    }

    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl<'a> Field<'a> {
    pub(crate) fn text(&self) -> Result<&'a str, ApiError> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    pub(crate) fn flag(&self) -> Result<bool, ApiError> {
        self.value.as_bool().ok_or_else(|| self.wrong("true or false"))
    }

    pub(crate) fn number(&self) -> Result<f64, ApiError> {
        self.value.as_f64().ok_or_else(|| self.wrong("a number"))
    }

    pub(crate) fn whole(&self) -> Result<i64, ApiError> {
        self.value.as_i64().ok_or_else(|| match self.value.is_u64() {
            true => self.wrong("a smaller number"),
            false => self.wrong("a whole number"),
        })
    }

    pub(crate) fn object(&self) -> Result<Object<'a>, ApiError> {
        let fields = self.value.as_object().ok_or_else(|| self.wrong("an object"))?;
        Ok(Object { path: self.path.clone(), fields })
    }

    pub(crate) fn list(&self) -> Result<Vec<Field<'a>>, ApiError> {
        let items = self.value.as_array().ok_or_else(|| self.wrong("an array"))?;
        let items = items.iter().enumerate();
        let field = |(index, value)| Field { path: format!("{}[{index}]", self.path), value };
        Ok(items.map(field).collect())
    }

    pub(crate) fn value(&self) -> &'a Value {
        self.value
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// That the field is not what was expected.
    pub(crate) fn wrong(&self, expected: &str) -> ApiError {
        let found = match self.value {
            Value::String(_) => "a string".to_owned(),
            Value::Array(_) => "an array".to_owned(),
            Value::Object(_) => "an object".to_owned(),
            short => short.to_string(),
        };
        let message = format!("`{}` is {found}, expected {expected}", self.path);
        ApiError::invalid(self.path.clone(), message)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told<T: std::fmt::Debug>(result: Result<T, ApiError>) -> (String, String) {
        let envelope = result.unwrap_err().envelope();
        let text = |key: &str| envelope["error"][key].as_str().unwrap().to_owned();
        (text("param"), text("message"))
    }

    #[test]
    fn errors_name_the_path_and_say_what_was_found() {
        let body = json!({ "a": { "b": [{ "c": 1.5 }, 5] }, "d": "x", "e": null });
        let body = Object::body(body.as_object().unwrap());
        let list = body.object("a").unwrap().unwrap().list("b").unwrap().unwrap();
        let (param, message) = told(list[0].object().unwrap().whole("c"));
        assert_eq!(param, "a.b[0].c");
        assert_eq!(message, "`a.b[0].c` is 1.5, expected a whole number");
        assert_eq!(told(list[1].object()).1, "`a.b[1]` is 5, expected an object");
        assert_eq!(told(body.number("d")).1, "`d` is a string, expected a number");
        assert_eq!(told(body.text("a")).1, "`a` is an object, expected a string");
        assert!(body.flag("e").unwrap().is_none());
        let missing = list[0].object().unwrap().need("x", "a string").map(|field| field.path);
        assert_eq!(told(missing).1, "`a.b[0].x` is missing, expected a string");
    }

    #[test]
    fn an_array_is_no_object() {
        let body = json!({ "a": [true] });
        let body = Object::body(body.as_object().unwrap());
        assert_eq!(told(body.object("a")).1, "`a` is an array, expected an object");
    }
}
