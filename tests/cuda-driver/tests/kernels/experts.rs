//! The kernels of a mixture of experts, with every mixture of the shared table, on the emulated device, against the
//! reference.

use crate::common::Gpu;
use crate::finished;
use crate::mixtures::{self, Mixture};
use tramontane_kernels::cases::{EXPERTS, ExpertsCase, assert_close};
use tramontane_kernels::cuda::{self, Choice, Element, Pairs, Weights};

const FORMATS: [Weights; 5] = [
    Weights::Dense(Element::F32),
    Weights::Dense(Element::F16),
    Weights::Dense(Element::Bf16),
    Weights::Packed(cuda::Packed::Q8),
    Weights::Packed(cuda::Packed::Q4),
];

#[test]
fn the_choice_is_that_of_the_reference() {
    for &case in EXPERTS {
        let mixture = Mixture::new(case);
        let gpu = Gpu::new();
        let pairs = mixture.choose(&gpu);
        assert_eq!(gpu.numbers(pairs.chosen, pairs.len()), mixture.chosen, "{case:?}");
        let weights = gpu.read(pairs.weights, pairs.len());
        assert_close(&weights, &mixture.weights, 2e-6, &format!("{case:?}"));
    }
    finished();
}

#[test]
fn pairs_stand_in_the_order_of_their_experts() {
    for &case in EXPERTS {
        let mixture = Mixture::new(case);
        let gpu = Gpu::new();
        let pairs = mixture.choose(&gpu);
        gpu.run(&[cuda::sort_pairs(&pairs)]);
        let mut order: Vec<u32> = (0..pairs.len() as u32).collect();
        order.sort_by_key(|pair| mixture.chosen[*pair as usize]);
        let tokens: Vec<u32> = order.iter().map(|pair| pair / case.n_active as u32).collect();
        let before = |e: u32| mixture.chosen.iter().filter(|chosen| **chosen < e).count() as u32;
        let starts: Vec<u32> = (0..=case.n_experts as u32).map(before).collect();
        assert_eq!(gpu.numbers(pairs.order, pairs.len()), order, "{case:?}");
        assert_eq!(gpu.numbers(pairs.tokens, pairs.len()), tokens, "{case:?}");
        assert_eq!(gpu.numbers(pairs.starts, case.n_experts + 1), starts, "{case:?}");
    }
    finished();
}

#[test]
fn the_products_are_those_of_the_reference() {
    for weights in FORMATS {
        let mut worst = 0.0f32;
        for &case in EXPERTS {
            let mixture = Mixture::new(case);
            worst = worst.max(mixture.products(&Gpu::new(), weights));
        }
        println!("experts {weights:?}: max error {worst:e}");
    }
    finished();
}

/// A choice among outputs that are no numbers, or infinite, stays within the experts, and shows in the weights.
#[test]
fn outputs_that_are_no_numbers_choose_experts_that_exist() {
    let case = ExpertsCase { groups: Some((2, 1)), ..EXPERTS[0] };
    for (softmax, bad) in [(true, f32::NAN), (false, f32::NAN), (true, f32::NEG_INFINITY)] {
        let gpu = Gpu::new();
        let pairs = mixtures::pairs(&gpu, &case);
        let choice = Choice { softmax, ..mixtures::choice(&case, 0) };
        gpu.run(&[cuda::route(&choice, gpu.floats(&[bad; 8]), &pairs)]);
        let chosen = gpu.numbers(pairs.chosen, 2);
        assert!(chosen[0] < chosen[1] && chosen[1] < 8, "{chosen:?}");
        assert!(gpu.read(pairs.weights, 2).iter().all(|w| w.is_nan()), "{bad}, {softmax}");
    }
    finished();
}

#[test]
fn ties_go_to_the_lower_number() {
    let gpu = Gpu::new();
    let case = EXPERTS[0];
    let pairs: Pairs = mixtures::pairs(&gpu, &case);
    gpu.run(&[cuda::route(&mixtures::choice(&case, 0), gpu.floats(&[1.0; 8]), &pairs)]);
    assert_eq!(gpu.numbers(pairs.chosen, 2), [0, 1]);
    assert_eq!(gpu.read(pairs.weights, 2), [1.25, 1.25]);
    finished();
}
