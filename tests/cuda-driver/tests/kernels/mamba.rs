//! The kernels of a Mamba-2 mixer, with every shape of the shared table, on the emulated device, against the reference.

use crate::common::Gpu;
use crate::finished;
use crate::recurrence::{TOKENS, check, run, weights};
use tramontane_kernels::cases::{MAMBA, Numbers, assert_same_bits};

#[test]
fn mamba_agrees_with_the_reference() {
    for m in MAMBA {
        println!("mamba {m:?}: max error {:e}", check(&Gpu::new(), m));
    }
    finished();
}

#[test]
fn how_a_text_is_cut_does_not_matter() {
    for m in MAMBA {
        let (x, all) = (Numbers::new(8).normal(TOKENS * m.in_dim()), weights(m));
        let whole = run(&Gpu::new(), m, &all, true, &x, TOKENS);
        for cut in [1, 2, 4] {
            assert_same_bits(&run(&Gpu::new(), m, &all, true, &x, cut), &whole, "cut");
        }
    }
    finished();
}

#[test]
fn a_time_step_that_is_no_number_shows() {
    let m = &MAMBA[1];
    let mut x = Numbers::new(9).normal(2 * m.in_dim());
    x[m.in_dim() - 1] = f32::NAN;
    let got = run(&Gpu::new(), m, &weights(m), true, &x, 2);
    assert!(got.iter().filter(|x| x.is_nan()).count() > m.head_dim);
    finished();
}
