//! The tag `{% generation %}`, which only transformers knows, put into words that every Jinja knows.
//!
//! Training code marks the model's own words with it; a prompt is the same without. Jinja gives the block a
//! scope of its own, as `{% with %}` has.

/// `source` with each `generation` tag as a `with` tag, and every line end as `\n`, as jinja2 reads it.
///
/// Texts, comments and `raw` blocks stay as they are.
pub(super) fn prepare(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    if !source.contains("generation") {
        return source;
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    let mut raw = false;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let length = tag_length(tag, raw);
        let (tag, after) = tag.split_at(length);
        match word(tag) {
            Some("raw") => raw = true,
            Some("endraw") => raw = false,
            _ => {}
        }
        match word(tag).filter(|_| !raw) {
            Some("generation") => out.push_str(&tag.replacen("generation", "with", 1)),
            Some("endgeneration") => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

/// The only word of a tag like `{%- generation -%}`.
fn word(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let inner = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
    inner.chars().all(|c| c.is_ascii_alphabetic()).then_some(inner)
}

/// How many bytes from the start of `text`, which begins with `{`, belong together: a tag, an expression, a
/// comment or the bare bracket.
fn tag_length(text: &str, raw: bool) -> usize {
    let end = match text.as_bytes().get(1) {
        Some(b'#') if !raw => return text.find("#}").map_or(text.len(), |at| at + 2),
        Some(b'{') if !raw => "}}",
        Some(b'%') => "%}",
        _ => return 1,
    };
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if text[at..].starts_with(end) => return at + 2,
            None if !raw && (c == '"' || c == '\'') => quote = Some(c),
            None => {}
        }
    }
    // Nothing closes it, so nothing after it is a tag.
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_becomes_with_and_nothing_else_changes() {
        let cases = [
            ("{% generation %}x{% endgeneration %}", "{% with %}x{% endwith %}"),
            ("{%- generation -%}\nx{%-endgeneration-%}", "{%- with -%}\nx{%-endwith-%}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            ("{{ 'it\\'s {% generation %}' }}", "{{ 'it\\'s {% generation %}' }}"),
            ("{# {% generation %} #}é", "{# {% generation %} #}é"),
            ("{% raw %}{% generation %}{% endraw %}", "{% raw %}{% generation %}{% endraw %}"),
            (
                "{% set generation = 1 %}{{ generation }}",
                "{% set generation = 1 %}{{ generation }}",
            ),
            ("a { b {% generation %}", "a { b {% with %}"),
            ("generation\r\n{%", "generation\n{%"),
        ];
        for (source, prepared) in cases {
            assert_eq!(prepare(source), prepared);
        }
    }
}
