//! Changes of PTX text that plant bugs.

/// The text without the `n`-th line that holds `needle`.
pub(crate) fn without(ptx: &str, needle: &str, n: usize) -> String {
    edited(ptx, needle, n, |_| String::new())
}

pub(crate) fn replaced(ptx: &str, from: &str, to: &str, n: usize) -> String {
    edited(ptx, from, n, |line| line.replace(from, to))
}

/// The `n`-th line that holds `needle`, for every second lane only.
pub(crate) fn halved(ptx: &str, needle: &str, n: usize) -> String {
    let odd = "{ .reg .pred odd; .reg .b32 t; mov.u32 t, %tid.x; and.b32 t, t, 1; setp.eq.s32 odd, t, 0; @odd ";
    edited(ptx, needle, n, |line| format!("{odd}{line} }}"))
}

/// A parameter that is off by `by`: a bound that is one too large, say.
pub(crate) fn nudged(ptx: &str, param: usize, by: i32) -> String {
    nudged_where(ptx, &format!("_param_{param}];"), by)
}

/// The same for a field of the structure that is the first parameter, `offset` bytes from its start.
pub(crate) fn nudged_field(ptx: &str, offset: usize, by: i32) -> String {
    nudged_where(ptx, &format!("_param_0+{offset}];"), by)
}

fn nudged_where(ptx: &str, needle: &str, by: i32) -> String {
    edited(ptx, needle, 0, |line| {
        let register = line.split_whitespace().nth(1).expect("an operand").trim_end_matches(',');
        let bits = if register.starts_with("%rd") { 64 } else { 32 };
        format!("{line} add.s{bits} {register}, {register}, {by};")
    })
}

/// Copies that read also where they should fill up with zeros, from where the next row would be.
pub(crate) fn unguarded_copies(ptx: &str) -> String {
    let line = |line: &str| {
        if line.contains("selp.b32") && line.contains(", 16, 0, ") {
            let register = line.split_whitespace().nth(1).expect("an operand");
            return format!("mov.b32 {register} 16;");
        }
        let choice = line.contains("selp.b32") && line.contains(", 0, %p");
        if choice {
            let words: Vec<&str> = line.split_whitespace().collect();
            return format!("mov.b32 {} {};", words[1], words[2].trim_end_matches(','));
        }
        line.to_owned()
    };
    ptx.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Causal masks that let the next key pass: `query >= key` becomes `query + 1 >= key`.
pub(crate) fn next_key_passes(ptx: &str) -> String {
    // The mask of each score is a pair of comparisons; the first of a pair is the causal one.
    let (head, tail) = ptx.split_at(ptx.rfind("wait_group").expect("a wait"));
    let (tail, rest) = tail.split_at(tail.rfind("bar.sync").expect("a barrier"));
    // One comparison before them asks whether a mask is needed at all.
    let mut first = false;
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first() != Some(&"setp.ge.u32") {
            return line.to_owned();
        }
        first = !first;
        if first {
            return line.to_owned();
        }
        let (query, key) = (words[2].trim_end_matches(','), words[3].trim_end_matches(';'));
        format!(
            "{{ .reg .b32 next; add.s32 next, {query}, 1; setp.ge.u32 {} next, {key}; }}",
            words[1]
        )
    };
    head.to_owned() + &tail.lines().map(line).collect::<Vec<_>>().join("\n") + rest
}

/// Changes the `n`-th line that holds `needle`.
fn edited(ptx: &str, needle: &str, n: usize, change: impl Fn(&str) -> String) -> String {
    let at = ptx.lines().enumerate().filter(|(_, l)| l.contains(needle)).nth(n);
    let at = at.unwrap_or_else(|| panic!("no {n}-th `{needle}`")).0;
    let line = |(i, l): (usize, &str)| if i == at { change(l) } else { l.to_owned() };
    ptx.lines().enumerate().map(line).collect::<Vec<_>>().join("\n")
}
