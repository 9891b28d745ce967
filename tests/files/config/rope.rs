//! D09 to D12: how positions turn, and how they are stretched.

use serde_json::json;

use super::{CONFIG, valid};
use crate::tiny::Folder;
use crate::{Case, bad, good};

/// A configuration with this `rope_scaling`.
fn scaling(folder: &Folder, value: serde_json::Value) {
    folder.set("rope_scaling", value);
}

pub(super) fn rope() -> Vec<Case> {
    vec![
        good("D09a", "yarn", |f| scaling(f, json!({"rope_type": "yarn", "factor": 4.0})), &[]),
        good("D09b", "linear", |f| scaling(f, json!({"type": "linear", "factor": 2.0})), &[]),
        good("D09c", "dynamic", |f| scaling(f, json!({"type": "dynamic", "factor": 2.0})), &[]),
        bad(
            "D09d",
            "longrope",
            |f| scaling(f, json!({"type": "longrope"})),
            &["\"longrope\"", CONFIG],
        ),
        bad("D09e", "su", |f| scaling(f, json!({"type": "su"})), &["\"su\"", CONFIG]),
        bad("D09f", "mrope", |f| scaling(f, json!({"type": "mrope"})), &["\"mrope\"", CONFIG]),
        bad(
            "D09g",
            "foo",
            |f| scaling(f, json!({"rope_type": "foo"})),
            &["\"foo\"", "yarn", CONFIG],
        ),
        bad(
            "D09h",
            "a key that this type does not have",
            |f| scaling(f, json!({"type": "linear", "factor": 2.0, "long_factor": [1.0]})),
            &["`rope_scaling.long_factor`", CONFIG],
        ),
        bad(
            "D10a",
            "factor 0",
            |f| scaling(f, json!({"type": "linear", "factor": 0.0})),
            &["`rope_scaling.factor`", "0"],
        ),
        bad(
            "D10b",
            "no factor",
            |f| scaling(f, json!({"type": "yarn"})),
            &["`rope_scaling.factor`", "missing"],
        ),
        bad(
            "D10c",
            "llama3 with equal borders",
            |f| {
                scaling(
                    f,
                    json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                        "high_freq_factor": 4.0, "original_max_position_embeddings": 256}),
                );
            },
            &["low_freq_factor", "high_freq_factor", CONFIG],
        ),
        bad(
            "D10d",
            "an infinite factor",
            |f| {
                f.write(
                    CONFIG,
                    valid().replacen(
                        '{',
                        r#"{"rope_scaling": {"type": "linear", "factor": Infinity},"#,
                        1,
                    ),
                )
            },
            &["`rope_scaling.factor`", "finite", CONFIG],
        ),
        good(
            "D11a",
            "the base inside rope_parameters",
            |f| {
                f.config(|c| {
                    c.remove("rope_theta");
                    c.insert(
                        "rope_parameters".to_owned(),
                        json!({"rope_type": "default", "rope_theta": 1e6}),
                    );
                });
            },
            &[],
        ),
        bad(
            "D11b",
            "two bases that disagree",
            |f| f.set("rope_parameters", json!({"rope_type": "default", "rope_theta": 1e6})),
            &["`rope_theta` is 10000", "1000000", CONFIG],
        ),
        bad("D12a", "rope_theta 0", |f| f.set("rope_theta", json!(0)), &["`rope_theta`", CONFIG]),
        bad(
            "D12b",
            "rope_theta −1",
            |f| f.set("rope_theta", json!(-1.0)),
            &["`rope_theta`", CONFIG],
        ),
        good(
            "D12c",
            "no rope_theta",
            |f| f.unset("rope_theta"),
            &["`rope_theta` is missing", "10000"],
        ),
    ]
}
