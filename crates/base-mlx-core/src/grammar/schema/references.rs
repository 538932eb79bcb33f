use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use serde_json::Value;

/// What `$ref` name. Each gets a name of ours, so that the compiler need not know of identifiers and anchors.
#[derive(Debug)]
pub(super) struct References<'a> {
    root: &'a Value,
    /// Places with an `$id` of their own and the URI that it makes, outer ones first.
    resources: Vec<(String, Rc<str>)>,
    /// The first place of each URI.
    by_uri: HashMap<Rc<str>, usize>,
    /// By the URI around it and its name.
    anchors: HashMap<(Rc<str>, String), String>,
    names: HashMap<String, String>,
    unwritten: VecDeque<String>,
    /// What is beside a reference is not looked at, as drafts before 2019-09 have it.
    is_alone: bool,
}

impl<'a> References<'a> {
    /// An error says why they are too many.
    pub(super) fn of(root: &'a Value) -> Result<Self, String> {
        let nowhere: Rc<str> = "".into();
        let mut references = Self {
            root,
            resources: vec![(String::new(), Rc::clone(&nowhere))],
            by_uri: HashMap::from([(Rc::clone(&nowhere), 0)]),
            anchors: HashMap::new(),
            names: HashMap::new(),
            unwritten: Default::default(),
            is_alone: false,
        };
        let draft = root.get("$schema").and_then(Value::as_str).unwrap_or_default();
        let id =
            if draft.contains("draft-04") || draft.contains("draft-03") { "id" } else { "$id" };
        references.is_alone = draft.contains("draft-0");
        references.collect(root, &mut String::new(), nowhere, id)?;
        Ok(references)
    }

    /// `place` is the value's, and so it is again in the end.
    fn collect(
        &mut self,
        value: &Value,
        place: &mut String,
        mut base: Rc<str>,
        id: &str,
    ) -> Result<(), String> {
        let length = place.len();
        match value {
            Value::Object(keywords) => {
                let string = |keyword| keywords.get(keyword).and_then(Value::as_str);
                let is_named = !self.is_alone || string("$ref").is_none();
                match string(id).filter(|_| is_named).map(|id| id.strip_suffix('#').unwrap_or(id)) {
                    Some(id) if id.starts_with('#') => self.anchor(&base, &id[1..], place)?,
                    Some(id) if !id.is_empty() => {
                        self.check_room(place, id)?;
                        base = joined(&base, id).into();
                        self.check_room(place, &base)?;
                        self.by_uri.entry(Rc::clone(&base)).or_insert(self.resources.len());
                        self.resources.push((place.clone(), Rc::clone(&base)));
                    }
                    _ => {}
                }
                for anchor in ["$anchor", "$dynamicAnchor"].into_iter().filter_map(string) {
                    self.anchor(&base, anchor, place)?;
                }
                for (keyword, value) in keywords {
                    // Values, not schemas.
                    let is_value =
                        ["enum", "const", "default", "examples"].contains(&keyword.as_str());
                    if is_value || !(value.is_object() || value.is_array()) {
                        continue;
                    }
                    place.push('/');
                    place.push_str(&escaped(keyword));
                    self.collect(value, place, Rc::clone(&base), id)?;
                    place.truncate(length);
                }
            }
            Value::Array(values) => {
                let values = values.iter().enumerate();
                for (index, value) in values.filter(|(_, of)| of.is_object() || of.is_array()) {
                    place.push('/');
                    place.push_str(&index.to_string());
                    self.collect(value, place, Rc::clone(&base), id)?;
                    place.truncate(length);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn anchor(&mut self, base: &Rc<str>, name: &str, place: &str) -> Result<(), String> {
        self.check_room(place, name)?;
        self.anchors.insert((Rc::clone(base), name.to_owned()), place.to_owned());
        Ok(())
    }

    /// Each reference is compared with all of them.
    fn check_room(&self, place: &str, name: &str) -> Result<(), String> {
        if place.len().max(name.len()) > MAX_NAME_BYTES {
            return Err(format!("an identifier or its place has more than {MAX_NAME_BYTES} bytes"));
        }
        match self.resources.len() + self.anchors.len() > MAX_NAMED {
            true => Err(format!("more than {MAX_NAMED} schemas have identifiers")),
            false => Ok(()),
        }
    }

    /// Our name of what a reference at this place leads to; `None` if that is not here.
    pub(super) fn resolve(&mut self, reference: &str, place: &str) -> Option<String> {
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
        let around = |(at, _): &&(String, Rc<str>)| {
            place
                .strip_prefix(at.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let (here, base) = self.resources.iter().filter(around).max_by_key(|(at, _)| at.len())?;
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let (resource, base) = match uri {
            "" => (here, base),
            uri => {
                let (place, uri) = &self.resources[*self.by_uri.get(&*joined(base, uri))?];
                (place, uri)
            }
        };
        let fragment = percent_decoded(fragment);
        if fragment.is_empty() || fragment.starts_with('/') {
            return Some(format!("{resource}{fragment}"));
        }
        self.anchors.get(&(Rc::clone(base), fragment.into_owned())).cloned()
    }

    /// The place of what a reference led to first, and that was not asked for yet.
    pub(super) fn next_unwritten(&mut self) -> Option<String> {
        self.unwritten.pop_front()
    }

    /// Of the reference with this number, in the order they are written.
    pub(super) fn name(number: usize) -> String {
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
        let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
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

/// Of an identifier, and of a pointer to who has it.
const MAX_NAME_BYTES: usize = 4 << 10;
const MAX_NAMED: usize = 1000;
