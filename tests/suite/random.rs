//! Seeded random test data.

/// A seeded generator (splitmix64; Steele, Lea and Flood, 2014): equal names give equal numbers on every machine.
pub struct Random(u64);

impl Random {
    /// Seeded with a hash of `name` (FNV-1a).
    pub fn new(name: &str) -> Self {
        Self(name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3)))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in 0..`n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// `len` whole numbers in `low..=high`.
    pub fn integers(&mut self, len: usize, low: i64, high: i64) -> Vec<f64> {
        (0..len).map(|_| (low + self.below((high - low + 1) as usize) as i64) as f64).collect()
    }

    /// `len` whole numbers in `low..=high`, of which one in `period` is not 0: sums stay exact.
    pub fn sparse(&mut self, len: usize, low: i64, high: i64, period: usize) -> Vec<f64> {
        (0..len)
            .map(|_| {
                if self.below(period) == 0 {
                    (low + self.below((high - low + 1) as usize) as i64) as f64
                } else {
                    0.0
                }
            })
            .collect()
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `len` uniformly distributed numbers in `low..high`.
    pub fn reals(&mut self, len: usize, low: f64, high: f64) -> Vec<f64> {
        (0..len).map(|_| low + (high - low) * self.unit()).collect()
    }

    /// `len` normally distributed numbers.
    pub fn normals(&mut self, len: usize, mean: f64, deviation: f64) -> Vec<f64> {
        (0..len)
            .map(|_| {
                let (u, v) = (1.0 - self.unit(), self.unit());
                mean + deviation * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
            })
            .collect()
    }

    /// `len` labels in 0..`classes`.
    pub fn labels(&mut self, len: usize, classes: usize) -> Vec<i32> {
        (0..len).map(|_| self.below(classes) as i32).collect()
    }
}
