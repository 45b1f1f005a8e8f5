//! Random convolutions on the host.

use proptest::prelude::*;
use residuum::ops::{conv2d, Op, Write};

use super::checks::passes;
use super::{compare, host, integers, Bound};

prop_compose! {
    fn convolution()(
        (n, h, w) in (1usize..6, 1usize..12, 1usize..12),
        (cg, kg, groups) in (1usize..9, 1usize..9, 1usize..4),
        kernel in [1usize..5, 1usize..5],
        stride in [1usize..4, 1usize..4],
        padding in [0usize..4, 0usize..4],
        dilation in [1usize..4, 1usize..4],
    ) -> conv2d::Spec {
        conv2d::Spec { n, h, w, c: cg * groups, k: kg * groups, kernel, stride, padding, dilation, groups }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_conv2d_is_exact_on_integers(spec in convolution(), bias: bool) {
        // Some kernels do not fit their image.
        if let Ok(conv) = conv2d::Conv2d::new(spec) {
            for pass in passes(bias) {
                let case = integers("any", Op::Conv2d(conv2d::Node { conv, pass }));
                for write in [Write::Overwrite, Write::Accumulate] {
                    if write == Write::Overwrite || !case.op.operator().accumulates().is_empty() {
                        let got = host::<f32>(&case, write);
                        prop_assert_eq!(compare(&case, Bound::Exact, &got, write), Ok(()));
                    }
                }
            }
        }
    }
}
