use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::request::{JsonObject, in_range};

/// How much a model is to think before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Reasoning {
    effort: Option<Effort>,
    /// Most tokens of thoughts, as the request says it; without a number they are as many as the model likes.
    budget: Option<Option<usize>>,
}

/// `reasoning_effort`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    XHigh,
    Max,
}

/// What it comes to with one model's chat template.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Thoughts {
    /// For the template.
    pub kwargs: Map<String, Value>,
    pub may_think: bool,
    /// Most tokens of them.
    pub tokens: Option<usize>,
}

impl Reasoning {
    pub(crate) fn parse(body: &JsonObject) -> Result<Self, ApiError> {
        let fields = body.fields();
        let effort = fields.get("reasoning_effort").map(|given| {
            Effort::named(given.text()?).ok_or_else(|| {
                let known = Effort::ALL.map(|(name, _)| format!("`{name}`")).join(", ");
                let message =
                    format!("`reasoning_effort` is {}, expected one of {known}", given.value());
                ApiError::invalid("reasoning_effort", message)
            })
        });
        let budget = |key| in_range(key, fields.whole(key)?, -1..=i64::MAX);
        let (budget, alias) = (budget("reasoning_budget")?, budget("thinking_budget")?);
        if budget.is_some() && alias.is_some() && budget != alias {
            let message = "`thinking_budget` and `reasoning_budget` mean the same, and differ";
            return Err(ApiError::invalid("thinking_budget", message));
        }
        // Less than 0 is no limit.
        let budget = budget.or(alias).map(|tokens| usize::try_from(tokens).ok());
        Ok(Self { effort: effort.transpose()?, budget })
    }

    /// `mentions` says which words the model's template has in it; `given` are the request's own variables for it, which
    /// count more.
    pub(crate) fn thoughts(
        &self,
        mentions: impl Fn(&str) -> bool,
        given: &Map<String, Value>,
    ) -> Thoughts {
        let has_value =
            |value: &str| mentions(&format!("'{value}'")) || mentions(&format!("\"{value}\""));
        let (takes_effort, takes_switch) = (mentions(EFFORT), mentions(SWITCH));
        let mut thoughts = Thoughts { kwargs: Map::new(), may_think: true, tokens: None };
        if let Some(effort) = self.effort {
            if takes_effort {
                thoughts.kwargs.insert(EFFORT.to_owned(), effort.value(has_value).into());
            }
            if takes_switch {
                thoughts.kwargs.insert(SWITCH.to_owned(), (effort != Effort::None).into());
            }
            match effort {
                // The template says it to the model.
                Effort::None if takes_switch || takes_effort && has_value("none") => {}
                Effort::None => {
                    thoughts.may_think = false;
                    // For a prompt that opens them.
                    thoughts.tokens = Some(0);
                }
                _ if takes_effort => {}
                effort => thoughts.tokens = effort.tokens(),
            }
        }
        if let Some(tokens) = self.budget {
            thoughts.tokens = tokens;
        }
        thoughts.kwargs.extend(given.clone());
        thoughts
    }
}

impl Effort {
    const ALL: [(&str, Self); 7] = [
        ("none", Self::None),
        ("minimal", Self::Minimal),
        ("low", Self::Low),
        ("medium", Self::Medium),
        ("high", Self::High),
        ("xhigh", Self::XHigh),
        ("max", Self::Max),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, effort)| effort)
    }

    /// In the words of a template: of what it may not know, the nearest that all of them know.
    fn value(self, has_value: impl Fn(&str) -> bool) -> &'static str {
        let (known, else_known, otherwise) = match self {
            Self::None => ("none", "minimal", "low"),
            Self::Minimal => ("minimal", "minimal", "low"),
            Self::Low => return "low",
            Self::Medium => return "medium",
            Self::High => return "high",
            Self::XHigh => ("xhigh", "max", "high"),
            Self::Max => ("max", "xhigh", "high"),
        };
        [known, else_known].into_iter().find(|value| has_value(value)).unwrap_or(otherwise)
    }

    /// For models that cannot be told it in words.
    fn tokens(self) -> Option<usize> {
        match self {
            Self::None => Some(0),
            Self::Minimal => Some(256),
            Self::Low => Some(1024),
            Self::Medium => Some(4096),
            Self::High | Self::XHigh | Self::Max => None,
        }
    }
}

/// Variables of templates.
const EFFORT: &str = "reasoning_effort";
const SWITCH: &str = "enable_thinking";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: &Value) -> Result<Reasoning, ApiError> {
        Reasoning::parse(&JsonObject::parse(body.to_string().as_bytes()).unwrap())
    }

    fn thoughts(body: Value, source: &str) -> (Value, bool, Option<usize>) {
        let given = body["chat_template_kwargs"].as_object().cloned().unwrap_or_default();
        let thoughts = parse(&body).unwrap().thoughts(|word| source.contains(word), &given);
        (thoughts.kwargs.into(), thoughts.may_think, thoughts.tokens)
    }

    fn effort(effort: &str) -> Value {
        json!({ "reasoning_effort": effort })
    }

    const SWITCHED: &str =
        "{% if enable_thinking is defined and not enable_thinking %}x{% endif %}";
    const THREE: &str = "{% set e = reasoning_effort or 'medium' %}{{ 'low' if e == 'low' }}";
    const ALL: &str = "{{ reasoning_effort in ['none', 'minimal', 'xhigh', \"max\"] }}";

    #[test]
    fn point_49_the_template_is_told_what_it_knows() {
        for (given, three, all) in [
            ("minimal", "low", "minimal"),
            ("low", "low", "low"),
            ("medium", "medium", "medium"),
            ("high", "high", "high"),
            ("xhigh", "high", "xhigh"),
            ("max", "high", "max"),
        ] {
            let told = |value: &str| (json!({ "reasoning_effort": value }), true, None);
            assert_eq!(thoughts(effort(given), THREE), told(three), "{given}");
            assert_eq!(thoughts(effort(given), ALL), told(all), "{given}");
        }
        let none = (json!({ "reasoning_effort": "none" }), true, None);
        assert_eq!(thoughts(effort("none"), ALL), none);
        let none = (json!({ "reasoning_effort": "low" }), false, Some(0));
        assert_eq!(thoughts(effort("none"), THREE), none);
    }

    #[test]
    fn point_49_a_template_that_knows_no_effort_is_helped_by_a_budget() {
        for (given, tokens) in [
            ("minimal", Some(256)),
            ("low", Some(1024)),
            ("medium", Some(4096)),
            ("high", None),
            ("xhigh", None),
            ("max", None),
        ] {
            let on = json!({ "enable_thinking": true });
            assert_eq!(thoughts(effort(given), SWITCHED), (on, true, tokens), "{given}");
            assert_eq!(thoughts(effort(given), "{{ x }}"), (json!({}), true, tokens), "{given}");
        }
        let off = json!({ "enable_thinking": false });
        assert_eq!(thoughts(effort("none"), SWITCHED), (off, true, None));
        assert_eq!(thoughts(effort("none"), "{{ x }}"), (json!({}), false, Some(0)));
        assert_eq!(thoughts(json!({}), SWITCHED), (json!({}), true, None));
    }

    #[test]
    fn point_49_what_the_request_says_itself_counts_more() {
        let kwargs = json!({ "enable_thinking": false, "x": 1 });
        let body = json!({ "reasoning_effort": "high", "chat_template_kwargs": kwargs });
        assert_eq!(thoughts(body, SWITCHED), (kwargs, true, None));
        for (budget, tokens) in [(7, Some(7)), (0, Some(0)), (-1, None)] {
            for key in ["reasoning_budget", "thinking_budget"] {
                let body = json!({ "reasoning_effort": "low", key: budget });
                assert_eq!(thoughts(body, "{{ x }}"), (json!({}), true, tokens), "{key} {budget}");
            }
        }
    }

    #[test]
    fn point_49_an_effort_that_nobody_knows_is_refused() {
        for (body, param) in [
            (json!({ "reasoning_effort": "huge" }), "reasoning_effort"),
            (json!({ "reasoning_effort": 3 }), "reasoning_effort"),
            (json!({ "reasoning_budget": -2 }), "reasoning_budget"),
            (json!({ "thinking_budget": 1.5 }), "thinking_budget"),
            (json!({ "thinking_budget": 1, "reasoning_budget": 2 }), "thinking_budget"),
        ] {
            let error = parse(&body).unwrap_err();
            assert_eq!(error.status(), 400);
            assert_eq!(error.envelope()["error"]["param"], param, "{body}");
        }
    }
}
