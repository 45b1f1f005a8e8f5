//! What is fused with the convolutions of [`conv2d`](super::conv2d): every part alone, and those that networks combine.

use residuum::ops::conv2d::Epilogue as Output;
use residuum::ops::norm::{Correction, Epilogue, Prologue};
use residuum::ops::norm_conv::Pass;

const PLAIN: Output = Output { scale: false, shift: false, residual: false, relu: false };
const RELU: Option<Prologue> = Some(Prologue { relu: true });
const LINEAR: Option<Prologue> = Some(Prologue { relu: false });
const WITH_A: Option<Correction> = Some(Correction { a: true });
const WITHOUT_A: Option<Correction> = Some(Correction { a: false });

const fn affine(relu: bool, scaled: bool) -> Option<Epilogue> {
    Some(Epilogue::Affine { relu, scaled })
}

const fn signs(norms: usize) -> Option<Epilogue> {
    Some(Epilogue::Signs { norms, gated: false })
}

const fn gated_signs(norms: usize) -> Option<Epilogue> {
    Some(Epilogue::Signs { norms, gated: true })
}

/// Of fwd, with a name.
pub const FORWARD: [(&str, Pass); 7] = [
    ("inside a block", Pass::Fwd { prologue: RELU, epilogue: PLAIN, moments: true }),
    ("first of a block", Pass::Fwd { prologue: None, epilogue: PLAIN, moments: true }),
    ("behind a plain batch norm", Pass::Fwd { prologue: LINEAR, epilogue: PLAIN, moments: false }),
    (
        "last of a pre-activation block",
        Pass::Fwd { prologue: RELU, epilogue: Output { residual: true, ..PLAIN }, moments: true },
    ),
    ("with a bias", Pass::Fwd { prologue: RELU, epilogue: Output { shift: true, ..PLAIN }, moments: true }),
    (
        "inference",
        Pass::Fwd {
            prologue: RELU,
            epilogue: Output { scale: true, shift: true, residual: true, relu: true },
            moments: false,
        },
    ),
    ("nothing fused", Pass::Fwd { prologue: None, epilogue: PLAIN, moments: false }),
];

/// Of fwd with the end of a block.
pub const ENDS: [(&str, Pass); 4] = [
    ("behind a block", Pass::FwdEnd { affine: [true, false] }),
    ("behind a projection block", Pass::FwdEnd { affine: [true, true] }),
    ("behind a block, exchanged", Pass::FwdEnd { affine: [false, true] }),
    ("behind a block without batch norms", Pass::FwdEnd { affine: [false, false] }),
];

/// Of bwd_x.
pub const DATA: [(&str, Pass); 11] = [
    ("inside a block", Pass::BwdX { correction: WITH_A, epilogue: affine(true, false) }),
    ("end of a block", Pass::BwdX { correction: WITH_A, epilogue: signs(1) }),
    ("end of a projection block", Pass::BwdX { correction: WITH_A, epilogue: signs(2) }),
    ("many consumers", Pass::BwdX { correction: WITHOUT_A, epilogue: affine(true, true) }),
    ("no batch norm behind", Pass::BwdX { correction: None, epilogue: affine(true, false) }),
    ("no ReLU before", Pass::BwdX { correction: WITH_A, epilogue: affine(false, false) }),
    ("scaled, no ReLU before", Pass::BwdX { correction: None, epilogue: affine(false, true) }),
    ("no batch norm before", Pass::BwdX { correction: WITHOUT_A, epilogue: None }),
    ("nothing fused", Pass::BwdX { correction: None, epilogue: None }),
    ("end of a block that may be dropped", Pass::BwdX { correction: WITH_A, epilogue: gated_signs(1) }),
    ("the same with a projection", Pass::BwdX { correction: WITH_A, epilogue: gated_signs(2) }),
];

/// Of bwd_w.
pub const WEIGHT: [(&str, Pass); 6] = [
    ("inside a block", Pass::BwdW { correction: WITH_A, prologue: RELU }),
    ("many consumers", Pass::BwdW { correction: WITHOUT_A, prologue: RELU }),
    ("first of a block", Pass::BwdW { correction: WITH_A, prologue: None }),
    ("behind a plain batch norm", Pass::BwdW { correction: WITH_A, prologue: LINEAR }),
    ("no batch norm behind", Pass::BwdW { correction: None, prologue: RELU }),
    ("nothing fused", Pass::BwdW { correction: None, prologue: None }),
];

/// Of both gradients in one launch.
pub const BOTH: [(&str, Pass); 8] = [
    ("inside a block", Pass::Bwd { correction: WITH_A, prologue: RELU, epilogue: affine(true, false) }),
    ("first of a block", Pass::Bwd { correction: WITH_A, prologue: None, epilogue: signs(1) }),
    ("end of a projection block", Pass::Bwd { correction: WITH_A, prologue: RELU, epilogue: signs(2) }),
    ("many consumers", Pass::Bwd { correction: WITHOUT_A, prologue: RELU, epilogue: affine(true, true) }),
    ("no batch norm behind", Pass::Bwd { correction: None, prologue: LINEAR, epilogue: affine(false, false) }),
    ("no batch norm before", Pass::Bwd { correction: WITH_A, prologue: None, epilogue: None }),
    ("nothing fused", Pass::Bwd { correction: None, prologue: None, epilogue: None }),
    ("end of a dropped block", Pass::Bwd { correction: WITH_A, prologue: None, epilogue: gated_signs(2) }),
];

/// All of them.
pub fn passes() -> impl Iterator<Item = (&'static str, Pass)> {
    FORWARD.into_iter().chain(DATA).chain(WEIGHT).chain(BOTH)
}
