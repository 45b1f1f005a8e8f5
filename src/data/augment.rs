//! Random crops and flips, a function of (seed, epoch, image) alone.

use super::stream::{Purpose, Stream};

/// What is done at random to a training image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Augment {
    /// Black pixels added on each side before a crop of the original size is taken at random; 0 crops nothing.
    pub pad: usize,
    /// Whether half of the images are mirrored left to right.
    pub flip: bool,
}

/// What [`Augment`] does to one image in one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// The first row of the crop, counted from the first row of the unpadded image.
    pub top: isize,
    /// The first column of the crop, counted from the first column of the unpadded image.
    pub left: isize,
    /// Whether the crop is mirrored.
    pub mirrored: bool,
}

impl Draw {
    /// The image as it is.
    pub const IDENTITY: Self = Self { top: 0, left: 0, mirrored: false };

    /// The pixel of an `h` by `w` image that lands in row `y`, column `x` of the result; `None` where that is padding.
    pub fn source(self, y: usize, x: usize, h: usize, w: usize) -> Option<usize> {
        let x = if self.mirrored { w - 1 - x } else { x };
        let y = y.checked_add_signed(self.top).filter(|&y| y < h)?;
        let x = x.checked_add_signed(self.left).filter(|&x| x < w)?;
        Some(y * w + x)
    }
}

impl Augment {
    /// What is done to image `index` in `epoch` under `seed`.
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
    fn nothing_asked_nothing_done() {
        for index in 0..50 {
            assert_eq!(Augment::default().draw(3, 1, index), Draw::IDENTITY);
        }
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
        let mut seen = std::collections::HashSet::new();
        for index in 0..400 {
            let draw = augment.draw(0, 0, index);
            seen.insert((draw.top, draw.left, draw.mirrored));
        }
        assert_eq!(seen.len(), 3 * 3 * 2);
    }
}
