//! Templates are foreign code: whatever they try, they end soon, in an error or in a text.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base_mlx_core::text::{ChatInput, ChatTemplate, SpecialTokens, TemplateError};
use serde_json::{Map, json};

use crate::files;
use crate::support::dice::Dice;

/// Compiling probes what a template can do, so it runs too.
fn run(source: &str) -> Result<String, TemplateError> {
    let sources = BTreeMap::from([("default".to_owned(), source.to_owned())]);
    let template =
        ChatTemplate::compile(sources, SpecialTokens::new(), Arc::new(jiff::Zoned::now))?;
    let messages = json!([
        { "role": "system", "content": "Be kind." },
        { "role": "user", "content": "hello" },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "abcdef123", "type": "function", "function": { "name": "f", "arguments": "{\"a\":1}" } },
        ] },
        { "role": "tool", "tool_call_id": "abcdef123", "content": "1" },
    ]);
    template.render(&ChatInput {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        kwargs: &Map::new(),
    })
}

#[test]
fn greedy_templates_end_in_an_error() {
    let sources = [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ ('x' * 1000000) * 1000000 }}",
        "{{ [0] * 1000000000 }}",
        "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s=[1]) %}{% for i in range(64) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s=[1]) %}{% for i in range(64) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s | tojson }}",
        "{% set n = namespace(s=[1]) %}{% for i in range(64) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ ','.join(n.s) }}",
        "{% set n = namespace(s='xx') %}{% for i in range(64) %}{% set n.s = n.s.replace('x', n.s) %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='xx') %}{% for i in range(64) %}{% set n.s = n.s.replace('', n.s) %}{% endfor %}{{ n.s }}",
        "{% set s = 'x' * 100000 %}{{ s.join(s) }}",
        "{{ '{:>1000000000}'.format('x') }}",
        "{{ '{:>{w}}'.format('x', w=1000000000) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'x' | indent(1000000000) }}{{ 'x' | center(1000000000) }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{{ [[1]] | tojson(indent='x' * 1000000) }}{{ 1 // 0 }}",
        "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
        "{% macro m(x) %}{{ m(x ~ x) }}{{ m(x ~ x) }}{% endmacro %}{{ m('x') }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% include 'default' %}",
        "{% import 'default' as x %}",
        "{% extends 'default' %}",
    ];
    for source in sources {
        let start = Instant::now();
        let result = run(source);
        assert!(start.elapsed() < Duration::from_secs(10), "{source}");
        assert!(result.is_err(), "{source}");
    }
}

#[test]
fn twisted_templates_do_no_harm() {
    let sources = [
        // Values that hold themselves, and values nested as deeply as the budget allows.
        "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
        "{% set n = namespace() %}{% set n.n = [n] %}{{ n ~ n }}",
        "{% set n = namespace() %}{% set n.n, x = n, 1 %}{{ n }}",
        "{% set n = namespace() %}{% for n.n in [n] %}{% endfor %}{{ n }}",
        "{% set n = namespace(s=[]) %}{% for i in range(9999) %}{% set n.s = n.s | reverse %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s=[]) %}{% for i in range(9999) %}{% set n.s = [n.s | reverse] %}{% endfor %}{{ n.s }}",
        "{% set n = namespace() %}{% set n.n = n %}{{ n }}{{ n | tojson }}",
        "{% set n = namespace(s=[]) %}{% for i in range(9999) %}{% for j in range(99) %}{% set n.s = [n.s] %}{% endfor %}{% endfor %}",
        "{% set n = namespace(s=[]) %}{% for i in range(20000) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s=[]) %}{% for i in range(20000) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s == [n.s] }}",
        "{% set n = namespace(s=[]) %}{% for i in range(20000) %}{% set n.s = {'a': n.s} %}{% endfor %}{{ n.s | tojson }}",
        "{{ strftime_now('%Y' * 100000) }}{{ strftime_now('%!%Q%') }}",
        "{{ messages[-99999999999999999999] }}{{ messages[::0] }}",
        "{{ (9223372036854775807 + 1) * 9223372036854775807 }}{{ 2 ** 99999999 }}",
    ];
    for source in sources {
        let start = Instant::now();
        let _ = run(source);
        assert!(start.elapsed() < Duration::from_secs(10), "{source}");
    }
    let straight =
        format!("{}{{{{ x }}}}{{{{ x == [x] }}}}{{{{ x ~ x }}}}", "{%set x=[x]%}".repeat(9_900));
    run(&straight).unwrap();
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("{{ ", ""),
        ("{% if x %}", "{% endif %}"),
        ("-", ""),
        ("not ", ""),
    ] {
        let deep = format!("{}1{}", open.repeat(50_000), close.repeat(50_000));
        let _ = run(&deep);
        let _ = run(&format!("{{{{ {deep} }}}}"));
    }
}

#[test]
fn damaged_templates_never_panic_and_end_soon() {
    let mut dice = Dice(1);
    let sources = files::template_sources();
    let mut compiled = 0;
    for (_, source) in &sources {
        for _ in 0..12 {
            let mut bytes = source.clone().into_bytes();
            for _ in 0..1 + dice.below(4) {
                let at = dice.below(bytes.len());
                let end = (at + 1 + dice.below(12)).min(bytes.len());
                match dice.below(5) {
                    0 => drop(bytes.drain(at..end)),
                    1 => bytes[at] = b"{}%'\"()[]|-~. \n"[dice.below(15)],
                    2 => {
                        let piece = bytes[at..end].to_vec();
                        let to = dice.below(bytes.len());
                        drop(bytes.splice(to..to, piece));
                    }
                    3 => {
                        let other = sources[dice.below(sources.len())].1.as_bytes();
                        let from = dice.below(other.len());
                        let piece = other[from..(from + 80).min(other.len())].to_vec();
                        drop(bytes.splice(at..end, piece));
                    }
                    _ => bytes.truncate(at.max(1)),
                }
                if bytes.is_empty() {
                    bytes.push(b'{');
                }
            }
            let damaged = String::from_utf8_lossy(&bytes).into_owned();
            let start = Instant::now();
            compiled += usize::from(run(&damaged).is_ok());
            assert!(start.elapsed() < Duration::from_secs(10), "{damaged}");
        }
    }
    // Damage that nothing survives would test only the parser.
    assert!(compiled > sources.len(), "{compiled}");
}
