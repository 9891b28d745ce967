//! Every chat template renders every conversation as Hugging Face transformers does.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use tramontane::ErrorKind;
use tramontane::chat::{ChatRequest, ChatTemplate};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/chat");

/// One line of `renders.jsonl`: a conversation, a template and what transformers made of them.
fn render(line: &Value) -> tramontane::Result<String> {
    let file = format!("{FOLDER}/{}", line["template_file"].as_str().unwrap());
    let text = std::fs::read_to_string(file).unwrap();
    let token = |name| (name, line[name].as_str().unwrap_or_default());
    let template = ChatTemplate::from_source(&text, &[token("bos_token"), token("eos_token")])?
        .at_time(line["now"].as_str().unwrap())?;
    let mut request = ChatRequest::from_json(line["messages"].clone())?;
    request.tools = Some(line["tools"].clone()).filter(|tools| !tools.is_null());
    request.add_generation_prompt = line["add_generation_prompt"] == true;
    request.continue_final_message = line["continue_final_message"] == true;
    request.template_kwargs = line["extra"].as_object().unwrap().clone();
    template.render(&request)
}

#[test]
fn renders_are_those_of_transformers() {
    let lines = std::fs::read_to_string(format!("{FOLDER}/renders.jsonl")).unwrap();
    let (mut equal, mut refused, mut wrong) = (0, 0, Vec::new());
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let case = format!("{} {}", line["template"], line["conversation"]);
        match (render(&line), line["expected"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => equal += 1,
            (Err(e), None) if e.kind() == ErrorKind::Template => refused += 1,
            (Ok(text), expected) => {
                wrong.push(format!("{case}\n  found    {text:?}\n  expected {expected:?}"))
            }
            (Err(e), expected) => {
                wrong.push(format!("{case}\n  found    error {e}\n  expected {expected:?}"))
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!((equal, refused), (515, 25));
}

/// Renders `text` for a small conversation.
fn run(text: &str) -> tramontane::Result<String> {
    let messages = serde_json::json!([{"role": "user", "content": "  Salut <b>é</b>  "}]);
    let template = ChatTemplate::from_source(text, &[("eos_token", "</s>")])?;
    template.at_time("2026-01-15T12:34:56")?.render(&ChatRequest::from_json(messages)?)
}

/// Each row: a template that would take all time, memory or stack, and words of the refusal.
#[test]
fn hostile_templates_end() {
    let rows = [
        ("{% for i in range(10**9) %}x{% endfor %}", "range"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "too many steps",
        ),
        (
            "{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}",
            "too many steps",
        ),
        (
            "{% set ns = namespace(s='xx') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
            "too many steps",
        ),
        ("{{ 'x' * 10**12 }}", "too many steps"),
        ("{{ 'x' * 5000000 }}", "writes too much"),
        ("{{ messages[0].content.replace('', 'x' * 100000) * 1000 }}", "too"),
        ("{{ [1] * 10**9 }}", "too large"),
        ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "recursion"),
        (
            "{% macro a(x) %}{{ b(x) }}{% endmacro %}{% macro b(x) %}{{ a(x) }}{% endmacro %}{{ a(1) }}",
            "recursion",
        ),
        ("{% for i in [[[1]]] recursive %}{{ loop([i]) }}{% endfor %}", "recursion"),
        (
            "{% set ns = namespace(x=[]) %}{% for i in range(20000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
            "deep",
        ),
        (
            "{% set ns = namespace(x=[]) %}{% for i in range(20000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
            "",
        ),
        (
            "{% set ns = namespace(x={}) %}{% for i in range(20000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}{{ ns.x == ns.x }}",
            "",
        ),
        ("{{ '{:1000000000}'.format('x') }}", "wider"),
        ("{{ '{:>{}}'.format('x', 10**9) }}", ""),
        ("{{ '%1000000000d' | format(1) }}", ""),
        ("{{ 'a'.zfill(10**12) ~ 'b' * 10**12 }}", "too many steps"),
        ("{{ 'x' | indent(10**12) }}", ""),
        ("{{ messages | tojson(indent=10**9) }}", "indents"),
        ("{{ 'x'.center(10**12) }}", ""),
        ("{{ 2 ** 10 ** 9 }}", ""),
    ];
    for (text, words) in rows {
        match run(text) {
            Ok(out) => {
                assert!(words.is_empty() && out.len() < 5 << 20, "{text}: {} bytes", out.len())
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Template, "{text}: {e}");
                assert!(e.to_string().contains(words), "{text}: {e}");
            }
        }
    }
}

#[test]
fn templates_reach_nothing_outside() {
    for text in [
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as p %}{{ p }}",
        "{% extends '/etc/passwd' %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ self._TemplateReference__context }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ debug() }}",
    ] {
        match run(text) {
            Ok(out) => assert_eq!(out, "", "{text}"),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Template, "{text}: {e}"),
        }
    }
}

#[test]
fn a_broken_template_is_named_with_its_line() {
    let e = run("a\nb\n{% if x %}\nc").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Template);
    assert!(e.to_string().contains("syntax error in line 4"), "{e}");
    let e = run("a\n{{ messages[3].content }}").unwrap_err();
    assert!(e.to_string().contains("in line 2"), "{e}");
    let e = run("{{ raise_exception('Conversation roles must alternate') }}").unwrap_err();
    assert_eq!(e.what(), "Conversation roles must alternate");
}

#[test]
fn what_templates_expect_of_python_is_there() {
    let rows = [
        ("{{ strftime_now('%d %b %Y, %-d %B %H:%M:%S') }}", "15 Jan 2026, 15 January 12:34:56"),
        ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": "  Salut <b>é</b>  "}"#),
        (
            "{{ {'a': [1, 2.0], 'b': {}} | tojson(indent=1) }}",
            "{\n \"a\": [\n  1,\n  2.0\n ],\n \"b\": {}\n}",
        ),
        ("{% generation %}{% set x = 1 %}a{% endgeneration %}{{ x is defined }}", "aFalse"),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("{{ messages[0].content | trim }}{{ eos_token }}{{ bos_token }}", "Salut <b>é</b></s>"),
        ("{{ tools is none }}{{ documents is none }}{{ none }}{{ 'x' | int }}", "TrueTrueNone0"),
        ("{% if true %}\n  a\n{% endif %}\nb\n", "  a\nb"),
    ];
    for (text, expected) in rows {
        assert_eq!(run(text).unwrap(), expected, "{text}");
    }
}
