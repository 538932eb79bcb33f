use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::Value;

/// What `$ref` name. Each gets a name of ours, so that the compiler need not know of identifiers and anchors.
#[derive(Debug)]
pub(super) struct References<'a> {
    root: &'a Value,
    /// Places with an `$id` of their own and the URI that it makes, outer ones first.
    resources: Vec<(String, String)>,
    /// By the URI around it and its name.
    anchors: HashMap<(String, String), String>,
    names: HashMap<String, String>,
    unwritten: std::collections::VecDeque<String>,
}

impl<'a> References<'a> {
    pub fn of(root: &'a Value) -> Self {
        let mut references = Self {
            root,
            resources: vec![(String::new(), String::new())],
            anchors: HashMap::new(),
            names: HashMap::new(),
            unwritten: Default::default(),
        };
        let draft = root.get("$schema").and_then(Value::as_str).unwrap_or_default();
        let id =
            if draft.contains("draft-04") || draft.contains("draft-03") { "id" } else { "$id" };
        references.collect(root, String::new(), String::new(), id);
        references
    }

    fn collect(&mut self, value: &Value, place: String, mut base: String, id: &str) {
        match value {
            Value::Object(keywords) => {
                let string = |keyword| keywords.get(keyword).and_then(Value::as_str);
                match string(id).map(|id| id.strip_suffix('#').unwrap_or(id)) {
                    Some(id) if id.starts_with('#') => {
                        self.anchors.insert((base.clone(), id[1..].to_owned()), place.clone());
                    }
                    Some(id) if !id.is_empty() => {
                        base = joined(&base, id);
                        self.resources.push((place.clone(), base.clone()));
                    }
                    _ => {}
                }
                for anchor in ["$anchor", "$dynamicAnchor"].into_iter().filter_map(string) {
                    self.anchors.insert((base.clone(), anchor.to_owned()), place.clone());
                }
                for (keyword, value) in keywords {
                    // Values, not schemas.
                    if !["enum", "const", "default", "examples"].contains(&keyword.as_str()) {
                        self.collect(
                            value,
                            format!("{place}/{}", escaped(keyword)),
                            base.clone(),
                            id,
                        );
                    }
                }
            }
            Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    self.collect(value, format!("{place}/{index}"), base.clone(), id);
                }
            }
            _ => {}
        }
    }

    /// Our name of what a reference at this place leads to; `None` if that is not here.
    pub fn resolve(&mut self, reference: &str, place: &str) -> Option<String> {
        let target = self.target(reference, place)?;
        self.root.pointer(&target)?;
        if let Some(name) = self.names.get(&target) {
            return Some(name.clone());
        }
        let name = Self::name(self.names.len());
        self.names.insert(target.clone(), name.clone());
        self.unwritten.push_back(target);
        Some(name)
    }

    fn target(&self, reference: &str, place: &str) -> Option<String> {
        let around = |(at, _): &&(String, String)| {
            place
                .strip_prefix(at.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let (here, base) =
            self.resources.iter().rev().filter(around).max_by_key(|(at, _)| at.len())?;
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let (resource, base) = match uri {
            "" => (here, base),
            uri => {
                let uri = joined(base, uri);
                let (place, uri) = self.resources.iter().find(|(_, of)| of == &uri)?;
                (place, uri)
            }
        };
        let fragment = percent_decoded(fragment);
        if fragment.is_empty() || fragment.starts_with('/') {
            return Some(format!("{resource}{fragment}"));
        }
        self.anchors.get(&(base.clone(), fragment.into_owned())).cloned()
    }

    /// The place of what a reference led to first, and that was not asked for yet.
    pub fn next_unwritten(&mut self) -> Option<String> {
        self.unwritten.pop_front()
    }

    /// Of the reference with this number, in the order they are written.
    pub fn name(number: usize) -> String {
        format!("{number}")
    }
}

/// One step of a JSON pointer.
pub(super) fn escaped(step: &str) -> Cow<'_, str> {
    match step.contains(['~', '/']) {
        true => step.replace('~', "~0").replace('/', "~1").into(),
        false => step.into(),
    }
}

/// The URI that a reference means where `base` is around it: enough of RFC 3986 for what schemas have.
fn joined(base: &str, reference: &str) -> String {
    let scheme = |uri: &str| uri.find(':').filter(|end| !uri[..*end].contains(['/', '?', '#']));
    if scheme(reference).is_some() || base.is_empty() {
        return reference.to_owned();
    }
    let path = match base.find("://") {
        Some(authority) => {
            base[authority + 3..].find('/').map_or(base.len(), |at| authority + 3 + at)
        }
        None => scheme(base).map_or(0, |end| end + 1),
    };
    if reference.starts_with("//") {
        return format!("{}{reference}", &base[..scheme(base).map_or(0, |end| end + 1)]);
    }
    let folder = match reference.starts_with('/') {
        true => "",
        false => &base[path..base.rfind('/').map_or(path, |at| (at + 1).max(path))],
    };
    let mut steps: Vec<&str> = Vec::new();
    let whole = format!("{folder}{reference}");
    for step in whole.split('/') {
        match step {
            "." => {}
            ".." => {
                steps.pop();
            }
            step => steps.push(step),
        }
    }
    let separator = if base.contains("://") && !whole.starts_with('/') { "/" } else { "" };
    format!("{}{separator}{}", &base[..path], steps.join("/"))
}

fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let mut decoded = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(value) if byte == b'%' => {
                decoded.push(value);
                rest = &after[2..];
            }
            _ => {
                decoded.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned().into()
}
