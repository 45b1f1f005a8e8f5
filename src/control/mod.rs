//! The launches of a run besides its ops: they draw gates, update the loss scale and take the optimizer's step.

pub mod gate;
pub mod loss_scale;
pub mod sgd;

use crate::device::{conditions, Kernel, View};

/// Every kernel that the launch code here uses.
pub(crate) fn kernels() -> impl Iterator<Item = &'static Kernel> {
    let kinds = [gate::KERNELS, conditions::KERNELS, loss_scale::KERNELS, sgd::KERNELS];
    kinds.into_iter().flatten().copied().flatten().map(|entry| &entry.kernel)
}

/// True if no buffer of `written` shares memory with another one, of `written` or of `read`.
fn are_apart(written: &[&View], read: &[&View]) -> bool {
    let shares = |i: usize| written[i + 1..].iter().chain(read).any(|other| written[i].overlaps(other));
    !(0..written.len()).any(shares)
}

/// True if `view` holds `count` numbers of 4 bytes, aligned.
fn holds(view: &View, count: usize) -> bool {
    view.bytes() >= 4 * count && view.address().is_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Arch, Device, Target};
    use crate::tensor::DType;

    /// Checks that `launch` refuses each of its `count` buffers if it is not aligned, or shares memory with one that
    /// is `written`.
    fn check(count: usize, written: &[usize], launch: &dyn Fn(&[View])) {
        let Device::Kernels(backend) = Device::blueprint(Arch::Sm80) else { unreachable!("it has memory") };
        let views: Vec<View> = (0..count).map(|_| View::whole(backend.allocate(64).expect("addresses"))).collect();
        let refuses = |i: usize, view: View| {
            let mut views = views.clone();
            views[i] = view;
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| launch(&views))).is_err()
        };
        launch(&views);
        for (i, view) in views.iter().enumerate() {
            assert!(refuses(i, view.part(2, 62).expect("a part")), "buffer {i} is not aligned");
            for &other in written.iter().filter(|&&other| other != i) {
                assert!(refuses(i, views[other].clone()), "buffer {i} is buffer {other}");
            }
        }
    }

    #[test]
    fn buffers_are_aligned_and_apart() {
        let spec = sgd::Spec { momentum: 0.5, dampening: 0.0, nesterov: false, weight_decay: 0.0 };
        let (sgd, target) = (sgd::Sgd::new(spec).expect("sgd"), Target { arch: Arch::Sm80, dtype: DType::F16 });
        check(7, &[0, 1, 2], &|views| {
            let [param, velocity, copy, grad, control, loss_scale, loss] = views else { unreachable!("seven views") };
            let (copy, loss_scale, loss) = (Some(copy), Some(loss_scale), Some(loss));
            let (grad_scale, len, decay_end) = (1.0, 4, 4);
            let buffers =
                sgd::Buffers { param, grad, velocity, copy, control, loss_scale, loss, grad_scale, len, decay_end };
            sgd::launch(&sgd, target, &buffers);
        });
        check(4, &[0, 1], &|views| {
            let [flags, state, grad, loss] = views else { unreachable!("four views") };
            loss_scale::launches(&loss_scale::Buffers { grad, flags, loss: Some(loss), state, len: 4 });
        });
        check(6, &[0, 1, 2, 3], &|views| {
            let [control, gates, closed, grad, thresholds, ranges] = views else { unreachable!("six views") };
            let grad = Some((grad, ranges));
            gate::launches(&gate::Buffers { control, thresholds, gates, closed, grad, blocks: 1, longest: 4 });
        });
    }

    #[test]
    fn each_entry_belongs_to_one_op() {
        let mut known: Vec<_> = crate::kernels().map(|kernel| kernel.name).collect();
        let mut rows: Vec<_> = crate::device::table::ROWS.iter().map(|row| row.name).collect();
        known.sort_unstable();
        rows.sort_unstable();
        assert_eq!(known, rows, "every KERNEL line is of a kind that one op names");
    }
}
