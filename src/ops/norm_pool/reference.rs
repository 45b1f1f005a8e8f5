//! The op in plain loops: those of the pooling, and what norm defines before or after them.

use super::{Node, Pass};
use crate::ops::{norm, pool, HostIo, HostMut, HostOp, HostOut, HostRef, Write};
use crate::tensor::Real;

impl<T: Real> HostOp<T> for Node {
    fn reference(&self, io: &mut HostIo<'_, T>) {
        let (c, pool) = (self.pool.spec().x[3], self.pool);
        match self.pass {
            Pass::Fwd { relu } => {
                let [x, scale, shift] = [0, 1, 2].map(|i| io.inputs[i].real());
                let activated = |(i, &x): (usize, &T)| {
                    let z = x * scale[i % c] + shift[i % c];
                    if relu {
                        z.maximum(T::ZERO)
                    } else {
                        z
                    }
                };
                let z: Vec<T> = x.iter().enumerate().map(activated).collect();
                let outputs = std::mem::take(&mut io.outputs);
                run(pool, pool::Pass::Fwd, vec![HostRef::Real(&z)], outputs);
            }
            Pass::Bwd(mask) => {
                let mut dz = vec![T::ZERO; self.pool.x().shape.len()];
                let (sources, operands) = io.inputs.split_at(self.results().len());
                run(pool, pool::Pass::Bwd, sources.to_vec(), vec![HostMut::Real(&mut dz)]);
                let mut operands = operands.iter().copied();
                let mask = mask.map(|_, ()| operands.next().expect("an operand"));
                let mut outputs = io.outputs.iter_mut().zip(&io.writes).map(|(to, &write)| HostOut { to, write });
                let g = outputs.next().expect("g");
                let sums = mask.form().sums().map(|_, ()| outputs.next().expect("a sum"));
                norm::reference_gradient(mask, c, &dz, g, sums);
            }
        }
    }

    fn host(&self, io: &mut HostIo<'_, T>) {
        self.reference(io);
    }
}

/// The pooling alone.
fn run<T: Real>(pool: pool::Pool, pass: pool::Pass, inputs: Vec<HostRef<'_, T>>, outputs: Vec<HostMut<'_, T>>) {
    let writes = vec![Write::Overwrite; outputs.len()];
    pool::Node { pool, pass }.reference(&mut HostIo { inputs, outputs, writes, scratch: &mut [] });
}
