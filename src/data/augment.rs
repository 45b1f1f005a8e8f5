//! Random crops and flips, a function of the seed, the epoch and the image.

use super::stream::{Purpose, Stream};

/// The random augmentation of training images.
///
/// ```
/// use residuum::data::Augment;
///
/// let augment = Augment { pad: 4, flip: true };
/// let draw = augment.draw(0, 3, 17);
/// assert_eq!(draw, augment.draw(0, 3, 17), "a function of seed, epoch and image");
/// assert!((-4..=4).contains(&draw.top) && (-4..=4).contains(&draw.left));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Augment {
    /// Black pixels added on each side before a random crop to the original size; 0 disables the crop.
    pub pad: usize,
    /// Flips an image left to right with probability 1/2.
    pub flip: bool,
}

/// The transform of one image in one epoch, drawn by [`Augment::draw`]. See [`Augment`] for an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Draw {
    /// The first row of the crop, counted from the first row of the unpadded image.
    pub top: isize,
    /// The first column of the crop, counted from the first column of the unpadded image.
    pub left: isize,
    /// True if the crop is flipped left to right.
    pub mirrored: bool,
}

impl Draw {
    /// The identity.
    pub const IDENTITY: Self = Self { top: 0, left: 0, mirrored: false };

    /// The source pixel's index in an `h` by `w` image, for row `y` and column `x` of the result; `None` for padding.
    pub fn source(self, y: usize, x: usize, h: usize, w: usize) -> Option<usize> {
        let x = if self.mirrored { w - 1 - x } else { x };
        let y = y.checked_add_signed(self.top).filter(|&y| y < h)?;
        let x = x.checked_add_signed(self.left).filter(|&x| x < w)?;
        Some(y * w + x)
    }
}

impl Augment {
    /// The transform of image `index` in `epoch` under `seed`.
    pub fn draw(&self, seed: u64, epoch: u32, index: u32) -> Draw {
        let mut stream = Stream::new(seed, Purpose::Augment, epoch, index);
        let mut offset = || stream.below(2 * self.pad as u32 + 1) as isize - self.pad as isize;
        let (top, left) = (offset(), offset());
        Draw { top, left, mirrored: self.flip && stream.bits() & 1 == 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_augmentation_is_the_identity() {
        assert!((0..50).all(|index| Augment::default().draw(3, 1, index) == Draw::IDENTITY));
    }

    #[test]
    fn a_crop_reads_padding_as_none_and_a_mirrored_one_reads_backwards() {
        let draw = Draw { top: -1, left: 1, mirrored: false };
        assert_eq!(draw.source(0, 0, 3, 3), None, "above the image");
        assert_eq!(draw.source(1, 0, 3, 3), Some(1));
        assert_eq!(draw.source(1, 2, 3, 3), None, "right of the image");
        let mirrored = Draw { mirrored: true, ..Draw::IDENTITY };
        assert_eq!([0, 1, 2].map(|x| mirrored.source(2, x, 3, 3)), [Some(8), Some(7), Some(6)]);
    }

    #[test]
    fn every_offset_and_both_directions_are_drawn() {
        let augment = Augment { pad: 1, flip: true };
        let seen: std::collections::HashSet<Draw> = (0..400).map(|index| augment.draw(0, 0, index)).collect();
        assert_eq!(seen.len(), 3 * 3 * 2);
    }
}
