//! A linear layer on the kernels of conv2d.

use super::{Node, Pass};
use crate::ops::conv2d;

/// The convolution that computes `node`.
pub(super) fn as_conv(node: &Node) -> conv2d::Node {
    let pass = match node.pass {
        Pass::Fwd { bias } => conv2d::Pass::Fwd(conv2d::Epilogue { shift: bias, ..Default::default() }),
        Pass::BwdX => conv2d::Pass::BwdX,
        Pass::BwdW => conv2d::Pass::BwdW,
        Pass::BwdBias => conv2d::Pass::BwdBias,
    };
    conv2d::Node { conv: node.linear.conv, pass }
}
