//! Fused convolutions: every part alone, and the combinations that networks use.

use residuum::ops::conv2d::{Bwd, BwdW, BwdX, End, Fwd, Pass};
use residuum::ops::load::{Affine, Load, Operand};
use residuum::ops::store::{Epilogue, Mask, Moments, Normalised, Sums};

const PLAIN: Epilogue = Epilogue { scale: None, shift: None, residual: None, relu: false };
const AFFINE: Affine = Affine { scale: (), shift: () };
const RELU: Load = Load::Affine { affine: AFFINE, relu: true };
const LINEAR: Load = Load::Affine { affine: AFFINE, relu: false };
const WITH_A: Load = Load::Corrected { y: (), a: Some(()), b: (), c: () };
const WITHOUT_A: Load = Load::Corrected { y: (), a: None, b: (), c: () };
const NORMALISED: Normalised = Normalised { y: (), mean: () };

const fn affine(relu: bool, scaled: bool) -> Option<Mask> {
    Some(Mask::Affine { y: (), scale: (), shift: (), mean: (), relu, scaled })
}

const fn signs(second: Option<Normalised>, gate: Option<()>) -> Option<Mask> {
    Some(Mask::Signs { bits: (), first: NORMALISED, second, gate })
}

const fn loaded(load: Load) -> Operand {
    Operand { value: (), load }
}

const fn sums(mask: Option<Mask>) -> Option<Sums> {
    match mask {
        None => None,
        Some(Mask::Signs { second: Some(_), .. }) => Some(Sums { dy: (), first: (), second: Some(()) }),
        Some(_) => Some(Sums { dy: (), first: (), second: None }),
    }
}

const fn fwd(x: Load, epilogue: Epilogue, moments: bool) -> Pass {
    let moments = if moments { Some(Moments { mean: (), var: () }) } else { None };
    Pass::Fwd(Fwd { x: loaded(x), w: (), epilogue, y: (), moments, end: None })
}

const fn end(own: Option<Affine>, others: Option<Affine>) -> Pass {
    let (moments, end) = (Some(Moments { mean: (), var: () }), Some(End { z: (), signs: () }));
    Pass::Fwd(Fwd { x: loaded(Load::Sum { own, other: (), others }), w: (), epilogue: PLAIN, y: (), moments, end })
}

const fn bwd_x(dy: Load, mask: Option<Mask>) -> Pass {
    Pass::BwdX(BwdX { dy: loaded(dy), w: (), mask, dx: (), sums: sums(mask) })
}

const fn bwd_w(dy: Load, x: Load) -> Pass {
    Pass::BwdW(BwdW { dy: loaded(dy), x: loaded(x), dw: () })
}

const fn bwd(dy: Load, x: Load, mask: Option<Mask>) -> Pass {
    Pass::Bwd(Bwd { dy: loaded(dy), w: (), x: loaded(x), mask, dx: (), dw: (), sums: sums(mask) })
}

/// Forms of fwd, with names.
pub const FORWARD: [(&str, Pass); 7] = [
    ("inside a block", fwd(RELU, PLAIN, true)),
    ("first of a block", fwd(Load::AsIs, PLAIN, true)),
    ("behind a plain batch norm", fwd(LINEAR, PLAIN, false)),
    ("last of a pre-activation block", fwd(RELU, Epilogue { residual: Some(()), ..PLAIN }, true)),
    ("with a bias", fwd(RELU, Epilogue { shift: Some(()), ..PLAIN }, true)),
    ("inference", fwd(RELU, Epilogue { scale: Some(()), shift: Some(()), residual: Some(()), relu: true }, false)),
    ("nothing fused", fwd(Load::AsIs, PLAIN, false)),
];

/// Forms of fwd that load the end of a block.
pub const ENDS: [(&str, Pass); 4] = [
    ("behind a block", end(Some(AFFINE), None)),
    ("behind a projection block", end(Some(AFFINE), Some(AFFINE))),
    ("behind a block, exchanged", end(None, Some(AFFINE))),
    ("behind a block without batch norms", end(None, None)),
];

/// Forms of bwd_x.
pub const DATA: [(&str, Pass); 11] = [
    ("inside a block", bwd_x(WITH_A, affine(true, false))),
    ("end of a block", bwd_x(WITH_A, signs(None, None))),
    ("end of a projection block", bwd_x(WITH_A, signs(Some(NORMALISED), None))),
    ("many consumers", bwd_x(WITHOUT_A, affine(true, true))),
    ("no batch norm behind", bwd_x(Load::AsIs, affine(true, false))),
    ("no ReLU before", bwd_x(WITH_A, affine(false, false))),
    ("scaled, no ReLU before", bwd_x(Load::AsIs, affine(false, true))),
    ("no batch norm before", bwd_x(WITHOUT_A, None)),
    ("nothing fused", bwd_x(Load::AsIs, None)),
    ("end of a block that may be dropped", bwd_x(WITH_A, signs(None, Some(())))),
    ("the same with a projection", bwd_x(WITH_A, signs(Some(NORMALISED), Some(())))),
];

/// Forms of bwd_w.
pub const WEIGHT: [(&str, Pass); 6] = [
    ("inside a block", bwd_w(WITH_A, RELU)),
    ("many consumers", bwd_w(WITHOUT_A, RELU)),
    ("first of a block", bwd_w(WITH_A, Load::AsIs)),
    ("behind a plain batch norm", bwd_w(WITH_A, LINEAR)),
    ("no batch norm behind", bwd_w(Load::AsIs, RELU)),
    ("nothing fused", bwd_w(Load::AsIs, Load::AsIs)),
];

/// Forms of both gradients in one launch.
pub const BOTH: [(&str, Pass); 8] = [
    ("inside a block", bwd(WITH_A, RELU, affine(true, false))),
    ("first of a block", bwd(WITH_A, Load::AsIs, signs(None, None))),
    ("end of a projection block", bwd(WITH_A, RELU, signs(Some(NORMALISED), None))),
    ("many consumers", bwd(WITHOUT_A, RELU, affine(true, true))),
    ("no batch norm behind", bwd(Load::AsIs, LINEAR, affine(false, false))),
    ("no batch norm before", bwd(WITH_A, Load::AsIs, None)),
    ("nothing fused", bwd(Load::AsIs, Load::AsIs, None)),
    ("end of a dropped block", bwd(WITH_A, Load::AsIs, signs(Some(NORMALISED), Some(())))),
];

/// All forms.
pub fn passes() -> impl Iterator<Item = (&'static str, Pass)> {
    FORWARD.into_iter().chain(DATA).chain(WEIGHT).chain(BOTH)
}
