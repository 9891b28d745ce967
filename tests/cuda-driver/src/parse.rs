//! PTX text → statements: entries with their parameters, shared variables, registers and instructions.
//!
//! Only the shape of the text is read here; [`crate::decode`] gives instructions their meaning. The subset
//! is what NVIDIA's compiler writes for our kernels: one module, `.entry` functions, no calls, no local
//! memory. Anything else is an error that names the line.

use std::collections::HashMap;

/// A module text that cannot be loaded: the line and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// Line in the PTX text, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ParseError {}

/// Which register file a name lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// One bit for each lane.
    Pred,
    /// Up to 32 bits for each lane.
    Word,
    /// 64 bits for each lane.
    Wide,
}

/// A kernel parameter: its place in the parameter buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Name in the PTX text.
    pub name: String,
    /// Offset in the parameter buffer, bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
}

/// One instruction as text.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub(crate) line: usize,
    /// Guard register and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    pub(crate) opcode: String,
    pub(crate) args: Vec<String>,
}

/// One kernel as text.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    /// Most threads in a block that `.maxntid` or `.reqntid` allows.
    pub(crate) max_threads: Option<u32>,
    /// Registers: name → class and index in the class.
    pub(crate) registers: HashMap<String, (Class, u16)>,
    /// Registers of each class, in the order of [`Class`].
    pub(crate) counts: [u16; 3],
    /// Static shared variables: name → offset.
    pub(crate) shared: HashMap<String, u32>,
    /// Bytes of static shared memory.
    pub(crate) shared_bytes: u32,
    pub(crate) code: Vec<Statement>,
    /// Labels: name → index of the instruction they precede.
    pub(crate) labels: HashMap<String, usize>,
}

/// Reads all entries of a module.
pub(crate) fn parse(text: &str) -> Result<Vec<Entry>, ParseError> {
    let clean = strip_comments(text);
    let mut scanner = Scanner { text: &clean, at: 0, line: 1 };
    let mut entries = Vec::new();
    let mut module_shared: Vec<(String, u32, u32)> = Vec::new();
    loop {
        scanner.skip_space();
        if scanner.rest().is_empty() {
            return Ok(entries);
        }
        let line = scanner.line;
        let head = scanner.until(&[';', '{', '\n']);
        let words: Vec<&str> = head.split_whitespace().collect();
        if words.contains(&".entry") {
            scanner.rewind_to(head.len());
            entries.push(parse_entry(&mut scanner, &module_shared)?);
        } else if words.contains(&".shared") {
            module_shared.push(shared_variable(head, line)?);
            scanner.skip_char();
        } else if matches!(words.first(), Some(&(".version" | ".target" | ".address_size"))) {
            scanner.skip_char();
        } else {
            return Err(ParseError { line, what: format!("`{}` is not supported", head.trim()) });
        }
    }
}

/// Replaces comments by spaces, keeping line breaks.
fn strip_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(i) = rest.find('/') {
        out.push_str(&rest[..i]);
        rest = &rest[i..];
        if rest.starts_with("//") {
            let end = rest.find('\n').unwrap_or(rest.len());
            rest = &rest[end..];
        } else if rest.starts_with("/*") {
            let end = rest.find("*/").map_or(rest.len(), |e| e + 2);
            out.extend(rest[..end].chars().filter(|&c| c == '\n'));
            rest = &rest[end..];
        } else {
            out.push('/');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

/// A place in the text, with its line.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn advance(&mut self, n: usize) -> &'a str {
        let n = n.min(self.rest().len());
        let taken = &self.rest()[..n];
        self.line += taken.matches('\n').count();
        self.at += n;
        taken
    }

    fn skip_space(&mut self) {
        let n = self.rest().len() - self.rest().trim_start().len();
        self.advance(n);
    }

    fn skip_char(&mut self) {
        self.advance(1);
    }

    /// Text up to one of `stops`, which is not consumed.
    fn until(&mut self, stops: &[char]) -> &'a str {
        let n = self.rest().find(stops).unwrap_or(self.rest().len());
        self.advance(n)
    }

    /// Steps back over the last `n` bytes, which hold no line break.
    fn rewind_to(&mut self, n: usize) {
        self.at -= n;
    }
}

fn error<T>(line: usize, what: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError { line, what: what.into() })
}

/// Bytes of a PTX type such as `.b32`.
pub(crate) fn type_size(name: &str) -> Option<usize> {
    Some(match name {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}

/// `.shared .align 16 .b8 name[512]` → name, alignment, bytes.
fn shared_variable(text: &str, line: usize) -> Result<(String, u32, u32), ParseError> {
    let mut align = 1;
    let mut size = 1;
    let mut name = "";
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            ".extern" | ".visible" | ".shared" | ".static" => {}
            ".align" => align = words.next().and_then(|n| n.parse().ok()).unwrap_or(1),
            w if w.starts_with('.') => match type_size(&w[1..]) {
                Some(n) => size = n as u32,
                None => return error(line, format!("unknown type `{w}` of a shared variable")),
            },
            w => name = w,
        }
    }
    let (name, count) = match name.split_once('[') {
        Some((n, c)) => (n, c.trim_end_matches(']').parse().unwrap_or(0)),
        None => (name, 1),
    };
    Ok((name.to_owned(), align.max(size), size * count))
}

/// Reads one `.entry`: parameters, performance directives, body.
fn parse_entry(s: &mut Scanner<'_>, module: &[(String, u32, u32)]) -> Result<Entry, ParseError> {
    let line = s.line;
    let head = s.until(&['(', '{']);
    let Some(name) = head.split_whitespace().last() else {
        return error(line, "an entry has no name");
    };
    let mut entry = Entry { name: name.to_owned(), ..Entry::default() };
    if s.rest().starts_with('(') {
        s.skip_char();
        let line = s.line;
        entry.params = parameters(s.until(&[')']), line)?;
        s.skip_char();
    }
    let line = s.line;
    let directives = s.until(&['{']);
    entry.max_threads = max_threads(directives, line)?;
    for (name, align, size) in module {
        declare_shared(&mut entry, name, *align, *size);
    }
    s.skip_char();
    body(s, &mut entry)?;
    // The dynamic variable begins where the static ones end.
    entry.shared_bytes = entry.shared_bytes.next_multiple_of(DYNAMIC_ALIGN);
    for (name, _, size) in module.iter().filter(|v| v.2 == 0) {
        entry.shared.insert(name.clone(), entry.shared_bytes + size);
    }
    Ok(entry)
}

/// Alignment of dynamic shared memory, bytes.
const DYNAMIC_ALIGN: u32 = 128;

fn parameters(text: &str, line: usize) -> Result<Vec<Param>, ParseError> {
    let mut params = Vec::new();
    let mut offset = 0;
    for text in text.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        let (name, align, size) = shared_variable(&text.replace(".param", ".shared"), line)?;
        offset = (offset as u32).next_multiple_of(align.max(1)) as usize;
        params.push(Param { name, offset, size: size as usize });
        offset += size as usize;
    }
    Ok(params)
}

/// The product of the numbers after `.maxntid` or `.reqntid`.
fn max_threads(directives: &str, line: usize) -> Result<Option<u32>, ParseError> {
    let words: Vec<&str> =
        directives.split([' ', ',', '\n', '\t']).filter(|w| !w.is_empty()).collect();
    let Some(i) = words.iter().position(|w| matches!(*w, ".maxntid" | ".reqntid")) else {
        return Ok(None);
    };
    let numbers = words[i + 1..].iter().map_while(|w| w.parse::<u32>().ok());
    match numbers.reduce(|a, b| a * b) {
        Some(n) => Ok(Some(n)),
        None => error(line, "`.maxntid` has no number"),
    }
}

/// Gives a shared variable its place: static ones one after another, the dynamic one (size 0) last.
fn declare_shared(entry: &mut Entry, name: &str, align: u32, size: u32) {
    let offset = entry.shared_bytes.next_multiple_of(align.max(1));
    entry.shared.insert(name.to_owned(), offset);
    entry.shared_bytes = offset + size;
}

fn body(s: &mut Scanner<'_>, entry: &mut Entry) -> Result<(), ParseError> {
    let mut scopes: Vec<HashMap<String, String>> = vec![HashMap::new()];
    let mut scope_count = 0;
    loop {
        s.skip_space();
        let line = s.line;
        match s.rest().chars().next() {
            None => return error(line, format!("`{}` does not end", entry.name)),
            Some('{') => {
                s.skip_char();
                scope_count += 1;
                scopes.push(HashMap::new());
            }
            Some('}') => {
                s.skip_char();
                scopes.pop();
                if scopes.is_empty() {
                    return Ok(());
                }
            }
            Some(';') => s.skip_char(),
            Some(_) => {
                if let Some(label) = label(s.rest()) {
                    entry.labels.insert(label.to_owned(), entry.code.len());
                    s.advance(label.len() + 1);
                    continue;
                }
                let text = s.until(&[';']).trim();
                s.skip_char();
                statement(text, line, entry, &mut scopes, scope_count)?;
            }
        }
    }
}

/// The label at the start of `text`, if there is one.
fn label(text: &str) -> Option<&str> {
    let n = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))?;
    (n > 0 && text[n..].starts_with(':') && !text[n..].starts_with("::")).then(|| &text[..n])
}

fn statement(
    text: &str,
    line: usize,
    entry: &mut Entry,
    scopes: &mut [HashMap<String, String>],
    scope_count: usize,
) -> Result<(), ParseError> {
    if let Some(rest) = text.strip_prefix(".reg") {
        return registers(rest, line, entry, scopes, scope_count);
    }
    if text.starts_with(".shared") {
        let (name, align, size) = shared_variable(text, line)?;
        declare_shared(entry, &name, align, size);
        return Ok(());
    }
    if text.starts_with(".pragma") {
        return Ok(());
    }
    if text.starts_with('.') {
        return error(line, format!("`{text}` is not supported"));
    }
    let (guard, text) = match text.strip_prefix('@') {
        Some(rest) => {
            let (name, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let negated = name.starts_with('!');
            (Some((rename(name.trim_start_matches('!'), scopes), negated)), rest.trim())
        }
        None => (None, text),
    };
    let (opcode, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let args = split_args(rest).into_iter().map(|a| rename(a, scopes)).collect();
    entry.code.push(Statement { line, guard, opcode: opcode.to_owned(), args });
    Ok(())
}

/// `.reg .b32 %r<10>` or `.reg .b16 l,h`.
fn registers(
    text: &str,
    line: usize,
    entry: &mut Entry,
    scopes: &mut [HashMap<String, String>],
    scope_count: usize,
) -> Result<(), ParseError> {
    let Some((kind, names)) = text.trim().split_once(char::is_whitespace) else {
        return error(line, "a register declaration has no names");
    };
    let class = match kind {
        ".pred" => Class::Pred,
        ".b64" | ".u64" | ".s64" | ".f64" => Class::Wide,
        _ if type_size(&kind[1..]).is_some() || kind == ".f16x2" => Class::Word,
        _ => return error(line, format!("registers of type `{kind}` are not supported")),
    };
    for name in names.split(',').map(str::trim) {
        let (base, count) = match name.split_once('<') {
            Some((base, n)) => (base, n.trim_end_matches('>').parse::<u16>().ok()),
            None => (name, None),
        };
        for i in 0..count.unwrap_or(1) {
            let plain = if count.is_some() { format!("{base}{i}") } else { base.to_owned() };
            // Names inside braces hide those outside: give them a name of their own.
            let own =
                if scopes.len() > 1 { format!("{plain}@{scope_count}") } else { plain.clone() };
            let slot = &mut entry.counts[class as usize];
            entry.registers.insert(own.clone(), (class, *slot));
            *slot += 1;
            if let Some(scope) = scopes.last_mut() {
                scope.insert(plain, own);
            }
        }
    }
    Ok(())
}

/// Replaces names of inner scopes in one operand by their own names.
fn rename(arg: &str, scopes: &[HashMap<String, String>]) -> String {
    if scopes.len() == 1 {
        return arg.to_owned();
    }
    let mut out = String::new();
    let mut word = String::new();
    for c in arg.chars().chain(std::iter::once('\0')) {
        if c.is_alphanumeric() || matches!(c, '_' | '$' | '%' | '.') {
            word.push(c);
            continue;
        }
        let own = scopes.iter().rev().find_map(|s| s.get(&word));
        out.push_str(own.unwrap_or(&word));
        word.clear();
        if c != '\0' {
            out.push(c);
        }
    }
    out
}

/// Splits operands at commas outside braces and brackets.
fn split_args(text: &str) -> Vec<&str> {
    let mut args = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                args.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    if !last.is_empty() {
        args.push(last);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = ".version 7.4\n.target sm_80\n.address_size 64\n\
        .extern .shared .align 16 .b8 dyn[];\n\
        .visible .entry f(\n .param .u64 f_0,\n .param .u32 f_1, .param .u64 f_2)\n.maxntid 64, 2, 1\n{\n\
        .reg .pred %p<2>; .reg .b32 %r<3>;\n.shared .align 4 .b8 tile[100];\n\
        @!%p1 bra $L1; // away\n{ .reg .b16 l; mov.b32 %r1, {l, l}; }\n$L1: ret;\n}\n";

    #[test]
    fn reads_parameters_registers_labels_and_scopes() {
        let entries = parse(SMALL).unwrap();
        let f = &entries[0];
        assert_eq!((f.name.as_str(), f.max_threads), ("f", Some(128)));
        assert_eq!(f.params.iter().map(|p| p.offset).collect::<Vec<_>>(), [0, 8, 16]);
        assert_eq!(f.counts, [2, 4, 0]);
        assert_eq!(f.labels["$L1"], 2);
        assert_eq!(f.code[0].guard, Some(("%p1".to_owned(), true)));
        assert_eq!(f.code[1].args[1], "{l@1, l@1}");
        assert_eq!(f.code[2].opcode, "ret");
        assert_eq!(f.code[2].line, 14);
        assert_eq!(f.shared["tile"], 0);
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_line() {
        let e = parse(".version 7.4\n.global .b8 t[4];\n").unwrap_err();
        assert_eq!(e.line, 2);
        let e = parse(".version 7.4\n.entry f()\n{\n.local .b8 depot[8];\nret;\n}").unwrap_err();
        assert_eq!(e.line, 4);
    }
}
