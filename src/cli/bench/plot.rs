//! Tokens per second over depth, as an SVG picture.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::record::{Record, Test};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 6] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf"];

/// One line for each kind of test and setting.
pub(super) fn svg(records: &[Record]) -> String {
    let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for r in records {
        let test = Test { n_prompt: r.n_prompt, n_gen: r.n_gen, n_depth: 0 };
        let name = format!("{} {} {} threads", test.name(), r.format, r.n_threads);
        lines.entry(name).or_default().push((r.n_depth as f64, r.median_ts));
    }
    let points = || lines.values().flatten();
    let (max_x, max_y) =
        points().fold((1.0, 1.0), |(x, y): (f64, f64), p| (x.max(p.0), y.max(p.1)));
    let max_y = max_y * 1.1;
    let x = |depth: f64| LEFT + depth / max_x * (WIDTH - LEFT - RIGHT);
    let y = |ts: f64| HEIGHT - BOTTOM - ts / max_y * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    for step in 0..=4 {
        let part = f64::from(step) / 4.0;
        let (ts, depth) = (part * max_y, part * max_x);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{ts:.1}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{depth:.0}</text>",
            WIDTH - RIGHT,
            y(ts),
            y(ts),
            LEFT - 6.0,
            y(ts) + 4.0,
            x(depth),
            HEIGHT - BOTTOM + 18.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"18\">tokens per second</text><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">tokens in the cache</text>",
        WIDTH - RIGHT,
        HEIGHT - 10.0
    );
    for (i, (name, mut line)) in lines.into_iter().enumerate() {
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
        let colour = COLOURS[i % COLOURS.len()];
        let points: Vec<String> =
            line.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        for p in &line {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                x(p.0),
                y(p.1)
            );
        }
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
            WIDTH - RIGHT + 10.0,
            TOP + 16.0 * (i as f64 + 1.0)
        );
    }
    out + "</svg>\n"
}
