//! Where the two paths of a branch meet again: immediate post-dominators of the control-flow graph
//! (Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm", on the reversed graph).

use crate::op::{Instr, Op};

/// The meeting point of each instruction that is a branch; `u32::MAX` where the paths meet only at the end.
pub(crate) fn meeting_points(code: &[Instr]) -> Vec<u32> {
    let (starts, block_of) = blocks(code);
    let n = starts.len();
    let exit = n;
    let next: Vec<Vec<usize>> =
        (0..n).map(|b| successors(code, &starts, &block_of, b, exit)).collect();
    let dominators = post_dominators(&next, exit);
    let mut meet = vec![u32::MAX; code.len()];
    for (i, instr) in code.iter().enumerate() {
        if matches!(instr.op, Op::Branch { .. }) {
            let at = dominators[block_of[i]];
            if at < n {
                meet[i] = starts[at] as u32;
            }
        }
    }
    meet
}

/// First instruction of each basic block, and the block of each instruction.
fn blocks(code: &[Instr]) -> (Vec<usize>, Vec<usize>) {
    let mut first = vec![false; code.len()];
    first[0] = true;
    for (i, instr) in code.iter().enumerate() {
        if let Op::Branch { target } = instr.op {
            first[target as usize] = true;
        }
        if matches!(instr.op, Op::Branch { .. } | Op::Exit) && i + 1 < code.len() {
            first[i + 1] = true;
        }
    }
    let mut starts = Vec::new();
    let mut block_of = Vec::with_capacity(code.len());
    for (i, &f) in first.iter().enumerate() {
        if f {
            starts.push(i);
        }
        block_of.push(starts.len() - 1);
    }
    (starts, block_of)
}

fn successors(
    code: &[Instr],
    starts: &[usize],
    block_of: &[usize],
    block: usize,
    exit: usize,
) -> Vec<usize> {
    let last = starts.get(block + 1).copied().unwrap_or(code.len()) - 1;
    let fall = if last + 1 < code.len() { block_of[last + 1] } else { exit };
    let instr = &code[last];
    let taken = if let Op::Branch { target } = instr.op {
        block_of[target as usize]
    } else if let Op::Exit = instr.op {
        exit
    } else {
        return vec![fall];
    };
    if instr.guard.is_some() { vec![taken, fall] } else { vec![taken] }
}

/// The immediate post-dominator of each block, `exit` included.
fn post_dominators(next: &[Vec<usize>], exit: usize) -> Vec<usize> {
    let n = next.len() + 1;
    let mut previous = vec![Vec::new(); n];
    for (b, targets) in next.iter().enumerate() {
        for &t in targets {
            previous[t].push(b);
        }
    }
    // Post-order of the reversed graph, from the exit.
    let mut order = Vec::with_capacity(n);
    let mut rank = vec![usize::MAX; n];
    let mut stack = vec![(exit, 0)];
    let mut seen = vec![false; n];
    seen[exit] = true;
    while let Some((b, i)) = stack.pop() {
        if let Some(&p) = previous[b].get(i) {
            stack.push((b, i + 1));
            if !seen[p] {
                seen[p] = true;
                stack.push((p, 0));
            }
        } else {
            rank[b] = order.len();
            order.push(b);
        }
    }
    let mut dominator = vec![usize::MAX; n];
    dominator[exit] = exit;
    let mut changed = true;
    while changed {
        changed = false;
        for &b in order.iter().rev().skip(1) {
            let known = next[b].iter().copied().filter(|&t| dominator[t] != usize::MAX);
            let new = known.reduce(|x, y| intersect(&dominator, &rank, x, y));
            if let Some(new) = new
                && dominator[b] != new
            {
                dominator[b] = new;
                changed = true;
            }
        }
    }
    dominator
}

fn intersect(dominator: &[usize], rank: &[usize], mut x: usize, mut y: usize) -> usize {
    while x != y {
        while rank[x] < rank[y] {
            x = dominator[x];
        }
        while rank[y] < rank[x] {
            y = dominator[y];
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Guard;

    fn branch(target: u32, guarded: bool) -> Instr {
        Instr {
            guard: guarded.then_some(Guard { pred: 0, negated: false }),
            op: Op::Branch { target },
        }
    }

    fn plain() -> Instr {
        Instr { guard: None, op: Op::Nop }
    }

    #[test]
    fn if_else_meets_after_both_arms() {
        // 0: if p goto 3; 1: nop; 2: goto 4; 3: nop; 4: exit
        let code = vec![
            branch(3, true),
            plain(),
            branch(4, false),
            plain(),
            Instr { guard: None, op: Op::Exit },
        ];
        assert_eq!(meeting_points(&code)[0], 4);
    }

    #[test]
    fn a_loop_meets_after_its_end() {
        // 0: nop; 1: if p goto 0; 2: exit
        let code = vec![plain(), branch(0, true), Instr { guard: None, op: Op::Exit }];
        assert_eq!(meeting_points(&code)[1], 2);
    }
}
