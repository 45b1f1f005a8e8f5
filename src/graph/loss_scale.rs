//! The dynamic loss scale of f16 programs with an optimizer, see [`crate::control::loss_scale`].

use super::{Graph, Node, Origin, Program};
use crate::control::loss_scale::{LossScale, State, FRESH};
use crate::device::cpu::Slot;
use crate::ops::{cross_entropy, Call, Op};
use crate::tensor::{Elem, HostData, HostTensor, TensorType};
use crate::{Error, Result};

impl Graph {
    /// A copy of the graph in which the loss gradient is multiplied by a scale in device memory.
    pub(super) fn with_loss_scale(&self) -> Self {
        let mut graph = self.clone();
        let scale = graph.add_value(TensorType::stat([1]), Origin::LossScale);
        for node in &mut graph.nodes {
            let Op::CrossEntropy(cross_entropy::Node { loss, pass: cross_entropy::Pass::Bwd(form) }) = node.op else {
                continue;
            };
            let call = cross_entropy::Bwd { loss_scale: Some(scale), ..node.bind(form) };
            let op = Op::CrossEntropy(cross_entropy::Node { loss, pass: cross_entropy::Pass::Bwd(call.form()) });
            *node = Node::new(op, call, node.gate);
        }
        graph.loss_scale = Some(scale);
        graph
    }
}

impl Program {
    /// The dynamic loss scale of the next run; `None` unless this is an f16 program with an optimizer.
    pub fn loss_scale(&self) -> Result<Option<LossScale>> {
        Ok(self.loss_scale_state()?.map(|state| state.next))
    }

    /// Sets the dynamic [`loss_scale`](Self::loss_scale) of the next run. Fails if there is none or it is invalid.
    pub fn load_loss_scale(&mut self, loss_scale: LossScale) -> Result<()> {
        loss_scale.check()?;
        match self.loss_scale_state()? {
            Some(state) => self.write_loss_scale(State::new(loss_scale, state.fresh)),
            None => Err(Error::invalid("loss scale", "only a program in f16 with an optimizer has one")),
        }
    }

    /// The loss scale's state in device memory.
    pub(super) fn loss_scale_state(&self) -> Result<Option<State>> {
        let slot = self.plan.flat.loss_scale;
        if slot.len == 0 {
            return Ok(None);
        }
        let memory = HostTensor { shape: [slot.len].into(), data: self.executor.read(&slot)? };
        Ok(Some(State::from_memory(&memory.to_real::<f64>())))
    }

    pub(super) fn write_loss_scale(&mut self, state: State) -> Result<()> {
        self.executor.write(&self.plan.flat.loss_scale, &HostData::F64(state.to_memory().to_vec()))
    }

    /// Sets the device's flag for the optimizer's first step, if there is a dynamic loss scale.
    pub(super) fn write_fresh(&mut self, fresh: bool) -> Result<()> {
        let Slot { offset, len, .. } = self.plan.flat.loss_scale;
        if len == 0 {
            return Ok(());
        }
        let offset = offset + FRESH * self.plan.flat.stat_bytes;
        let data = HostData::F64(vec![f64::from(u8::from(fresh))]);
        self.executor.write(&Slot { offset, len: 1, elem: Elem::Stat }, &data)
    }
}
