//! Double-buffered inputs: the next batch is written while a step still reads its own.
//!
//! A recorded step has fixed addresses, so there are two recordings, one for each set of places, replayed in turn. A
//! copy at the start of each step would cost a pass over the batch.

use std::sync::Arc;

use crate::device::cpu::Slot;
use crate::device::{Memory, SideQueue};
use crate::tensor::memory;
use crate::Result;

/// The two places of each input of a program, and the turn.
#[derive(Debug)]
pub(super) struct Inputs {
    places: Vec<[Slot; 2]>,
    /// True for an input that was set since the last run, in the place that the run did not read.
    fresh: Vec<bool>,
    turn: usize,
    /// The queue for copies concurrent with the running step, if the device has one.
    side: Option<Box<dyn SideQueue>>,
    memory: Arc<dyn Memory>,
}

impl Inputs {
    /// `places` is empty if inputs have one place each.
    pub fn new(places: &[[Slot; 2]], memory: &Arc<dyn Memory>) -> Result<Self> {
        let side = if places.is_empty() { None } else { memory.clone().side_queue()? };
        let fresh = vec![false; places.len()];
        Ok(Self { places: places.to_vec(), fresh, turn: 0, side, memory: memory.clone() })
    }

    /// The input whose first place is `slot`.
    pub fn find(&self, slot: &Slot) -> Option<usize> {
        self.places.iter().position(|[first, _]| first == slot)
    }

    /// The place from which the last run read input `i`.
    pub fn read_place(&self, i: usize) -> Slot {
        self.places[i][self.turn]
    }

    /// Sets input `i` of the next run.
    pub fn set(&mut self, i: usize, bytes: &[u8]) -> Result<()> {
        let free = 1 - self.turn;
        let offset = self.places[i][free].offset;
        match &self.side {
            Some(side) => side.write(free, offset, bytes)?,
            None => self.memory.write(offset, bytes)?,
        }
        self.fresh[i] = true;
        Ok(())
    }

    /// The turn of the run that starts now. `bytes` gives the size of a slot.
    ///
    /// Inputs that were not set are copied to their other places through the host; trainers set every input.
    pub fn take_turn(&mut self, bytes: impl Fn(&Slot) -> usize) -> Result<usize> {
        if !self.fresh.contains(&true) {
            return Ok(self.turn);
        }
        let (old, new) = (self.turn, 1 - self.turn);
        for (places, _) in self.places.iter().zip(&self.fresh).filter(|(_, &fresh)| !fresh) {
            let mut kept = memory::filled("an input that stays", 0, bytes(&places[old]))?;
            self.memory.read(places[old].offset, &mut kept)?;
            self.memory.write(places[new].offset, &kept)?;
        }
        if let Some(side) = &self.side {
            side.join()?;
        }
        self.fresh.fill(false);
        self.turn = new;
        Ok(new)
    }

    /// Records that the run of this turn is on the device's queue.
    pub fn started(&self) -> Result<()> {
        self.side.as_ref().map_or(Ok(()), |side| side.release(self.turn))
    }
}
