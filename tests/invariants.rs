//! What must hold for every model whatever its weights: how a text is cut, what else runs, and on how many
//! threads, changes no bit; and no token sees the future.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Expected, folder, forward, load, load_threads, prefill};
use tramontane::{ErrorKind, Format, LoadOptions, Model};

/// Each tiny model that can be loaded, with a prompt of it.
fn each(mut check: impl FnMut(&str, &Model, &[u32])) {
    let mut checked = 0;
    for name in common::names() {
        match load(&folder(&name), Format::F32) {
            Ok(model) => check(&name, &model, &Expected::of(&name).ids("input_ids_0")),
            // `golden.rs` lists these.
            Err(e) if e.kind() == ErrorKind::NotSupported => continue,
            Err(e) => panic!("{name}: {e}"),
        }
        checked += 1;
    }
    assert!(checked > 15, "only {checked} models were checked");
}

/// Passes `ids` in pieces of `sizes`, over and over, and gives the logits of all.
fn in_pieces(model: &Model, ids: &[u32], sizes: &[usize]) -> Vec<f32> {
    let mut cache = model.cache().unwrap();
    let (mut rest, mut logits) = (ids, Vec::new());
    for &size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(size.min(rest.len()));
        logits.extend(forward(model, piece, &mut cache));
        assert_eq!(cache.len(), ids.len() - after.len());
        rest = after;
    }
    logits
}

#[test]
fn a_prompt_may_pass_in_any_pieces() {
    each(|name, model, ids| {
        // Its angles depend on how long the text was when a token passed, as in transformers.
        if name == "llama_rope_dynamic" {
            return;
        }
        let whole = prefill(model, ids);
        for sizes in [&[1][..], &[7], &[1, 16, 3], &[ids.len() - 1, 1]] {
            assert!(in_pieces(model, ids, sizes) == whole, "{name} in pieces of {sizes:?}");
        }
    });
}

#[test]
fn no_token_sees_the_future() {
    each(|name, model, ids| {
        let vocab = model.architecture().vocab;
        let whole = prefill(model, ids);
        for changed in [1, ids.len() / 2, ids.len() - 1] {
            let mut other = ids.to_vec();
            other[changed] = (other[changed] + 1) % vocab as u32;
            let logits = prefill(model, &other);
            assert!(
                logits[..changed * vocab] == whole[..changed * vocab],
                "{name}: before token {changed}"
            );
            let after = changed * vocab..(changed + 1) * vocab;
            assert!(
                logits[after.clone()] != whole[after],
                "{name}: token {changed} makes no difference"
            );
        }
    });
}

#[test]
fn a_cache_can_be_cut_back() {
    each(|name, model, ids| {
        if name == "llama_rope_dynamic" {
            return;
        }
        let cut = ids.len() / 2;
        let expected = prefill(model, ids);
        let vocab = model.architecture().vocab;
        let mut cache = model.cache().unwrap();
        forward(model, ids, &mut cache);
        // Where a window has moved on, or a state cannot go back, all is forgotten and must pass again.
        let kept = if cache.truncate(cut) { cut } else { 0 };
        assert_eq!(cache.len(), kept, "{name}");
        let logits = forward(model, &ids[kept..], &mut cache);
        assert!(logits == expected[kept * vocab..], "{name} cut to {kept}");
    });
}

#[test]
fn a_fork_does_not_disturb_its_origin() {
    each(|name, model, ids| {
        let (start, end) = ids.split_at(ids.len() / 2);
        let mut alone = model.cache().unwrap();
        forward(model, start, &mut alone);
        let expected = forward(model, end, &mut alone);
        let mut origin = model.cache().unwrap();
        forward(model, start, &mut origin);
        let mut fork = origin.fork();
        let reversed: Vec<u32> = end.iter().rev().copied().collect();
        forward(model, &reversed, &mut fork);
        assert!(forward(model, end, &mut origin) == expected, "{name}: the origin changed");
        let mut fork = fork.fork();
        drop(origin);
        fork.truncate(0);
        assert!(fork.is_empty());
    });
}

#[test]
fn sequences_side_by_side_are_as_alone() {
    each(|name, model, ids| {
        let others: Vec<u32> = ids.iter().rev().copied().collect();
        let alone = (in_pieces(model, ids, &[3]), in_pieces(model, &others, &[3]));
        let (mut one, mut two) = (model.cache().unwrap(), model.cache().unwrap());
        let mut together = (Vec::new(), Vec::new());
        for (a, b) in ids.chunks(3).zip(others.chunks(3)) {
            together.0.extend(forward(model, a, &mut one));
            together.1.extend(forward(model, b, &mut two));
        }
        assert!(together == alone, "{name}: taking turns");
        // And at once, on two threads.
        let at_once = std::thread::scope(|scope| {
            let other = scope.spawn(|| in_pieces(model, &others, &[3]));
            (in_pieces(model, ids, &[3]), other.join().unwrap())
        });
        assert!(at_once == alone, "{name}: at once");
    });
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    each(|name, model, ids| {
        let one = in_pieces(model, ids, &[ids.len() - 1, 1]);
        for threads in [2, 3] {
            let many = load_threads(&folder(name), Format::F32, threads).unwrap();
            assert!(
                in_pieces(&many, ids, &[ids.len() - 1, 1]) == one,
                "{name} on {threads} threads"
            );
        }
    });
}

#[test]
fn wrong_ids_and_caches_are_refused_and_leave_the_cache_alone() {
    let model = load(&folder("llama_tied"), Format::F32).unwrap();
    let other = load(&folder("llama_mha"), Format::F32).unwrap();
    let mut cache = model.cache().unwrap();
    forward(&model, &[1, 2, 3], &mut cache);
    let vocab = model.architecture().vocab as u32;
    for ids in [&[][..], &[vocab], &[5, u32::MAX]] {
        assert_eq!(model.forward(ids, &mut cache).unwrap_err().kind(), ErrorKind::BadInput);
    }
    let too_long = vec![1; model.info().context];
    assert_eq!(model.forward(&too_long, &mut cache).unwrap_err().kind(), ErrorKind::TooLong);
    assert_eq!(other.forward(&[1], &mut cache).unwrap_err().kind(), ErrorKind::BadInput);
    assert_eq!(cache.len(), 3);
    let mut fresh = model.cache().unwrap();
    forward(&model, &[1, 2, 3], &mut fresh);
    assert!(forward(&model, &[4], &mut cache) == forward(&model, &[4], &mut fresh));
}

/// The built-in model in the format it is stored in, and a prompt longer than its window and than a chunk.
#[cfg(feature = "embedded")]
fn built_in(threads: usize) -> (Model, Vec<u32>) {
    let options = LoadOptions { threads: Some(threads), ..LoadOptions::default() };
    let model = Model::load("", &options).unwrap();
    let ids = (0..1000u32).map(|i| (i * i * 31 + i * 7) % 4093 + 3).collect();
    (model, ids)
}

#[cfg(feature = "embedded")]
#[test]
fn chunks_and_threads_change_no_bit_of_a_long_prompt() {
    let (model, ids) = built_in(1);
    let whole = prefill(&model, &ids);
    let chunk = model.info().chunk;
    // With AMX, attention takes groups of 32 tokens or none.
    let more = if model.info().device.contains("amx") { 96 } else { 99 };
    for sizes in [&[chunk][..], &[chunk / 2], &[chunk + more]] {
        assert!(in_pieces(&model, &ids, sizes) == whole, "in pieces of {sizes:?}");
    }
    let (model, _) = built_in(2);
    assert!(prefill(&model, &ids) == whole, "on 2 threads");
}

#[cfg(feature = "embedded")]
#[test]
fn a_window_bounds_the_cache() {
    let (model, ids) = built_in(1);
    let mut cache = model.cache().unwrap();
    let mut after = Vec::new();
    for _ in 0..2 {
        forward(&model, &ids, &mut cache);
        after.push(cache.bytes());
    }
    assert!(after[1] <= after[0] + after[0] / 4, "{after:?} bytes after 1000 and 2000 tokens");
}
