//! Philox 4x32-10: the counter-based random number generator of the host and the kernels.
//!
//! A block of four words depends on a key and a counter only, so numbers can be drawn in any order: a seed gives the
//! same on any number of threads. Source: J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

/// The four words at `counter` of the sequence of `key`.
pub const fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    let [mut k0, mut k1] = key;
    let mut round = 0;
    while round < 10 {
        let even = a as u64 * 0xD251_1F53;
        let odd = c as u64 * 0xCD9E_8D57;
        (a, b, c, d) = ((odd >> 32) as u32 ^ b ^ k0, odd as u32, (even >> 32) as u32 ^ d ^ k1, even as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
        round += 1;
    }
    [a, b, c, d]
}

/// A random sequence that is addressed by index.
///
/// The seed is the key. The counter's lower half is the block's index, its upper half the purpose.
///
/// ```
/// use residuum::tensor::philox::Philox;
///
/// let sequence = Philox::named(7, "conv1.weight");
/// assert_eq!(sequence.uniforms(100)[42], sequence.uniform(42));
/// assert_ne!(sequence.uniform(0), Philox::named(8, "conv1.weight").uniform(0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Philox {
    seed: u64,
    purpose: u64,
}

impl Philox {
    /// The sequence of `seed` for one purpose; different purposes have independent sequences.
    pub const fn new(seed: u64, purpose: u64) -> Self {
        Self { seed, purpose }
    }

    /// The sequence of `seed` for a named purpose, such as a tensor.
    pub const fn named(seed: u64, name: &str) -> Self {
        Self::new(seed, fnv1a(name))
    }

    /// The four uniform words of indices `4 block` to `4 block + 3`.
    pub const fn block(&self, block: u64) -> [u32; 4] {
        let Self { seed, purpose } = *self;
        let counter = [block as u32, (block >> 32) as u32, purpose as u32, (purpose >> 32) as u32];
        philox4x32_10(counter, [seed as u32, (seed >> 32) as u32])
    }

    /// The uniform word at `index`.
    pub const fn word(&self, index: u64) -> u32 {
        self.block(index / 4)[(index % 4) as usize]
    }

    /// The number at `index`, uniform in 0..1 with 24 random bits, exact in f32.
    pub const fn uniform(&self, index: u64) -> f64 {
        unit(self.word(index))
    }

    /// The first `len` numbers of [`uniform`](Self::uniform).
    pub fn uniforms(&self, len: usize) -> Vec<f64> {
        self.draw(len, |words| words.map(unit))
    }

    /// `len` standard normal numbers, by the Box-Muller transform of pairs of words.
    pub fn normals(&self, len: usize) -> Vec<f64> {
        self.draw(len, |[a, b, c, d]| {
            let ([e, f], [g, h]) = (box_muller(a, b), box_muller(c, d));
            [e, f, g, h]
        })
    }

    fn draw(&self, len: usize, numbers: impl Fn([u32; 4]) -> [f64; 4]) -> Vec<f64> {
        let mut out = Vec::with_capacity(len.next_multiple_of(4));
        out.extend((0..len.div_ceil(4)).flat_map(|block| numbers(self.block(block as u64))));
        out.truncate(len);
        out
    }
}

/// The upper 24 bits as a number in 0..1.
const fn unit(word: u32) -> f64 {
    (word >> 8) as f64 / (1 << 24) as f64
}

/// Two independent normal numbers; the logarithm's argument lies in 0 < u <= 1.
fn box_muller(a: u32, b: u32) -> [f64; 2] {
    const SCALE: f64 = 1.0 / 4_294_967_296.0;
    let radius = (-2.0 * ((f64::from(a) + 1.0) * SCALE).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * f64::from(b) * SCALE).sin_cos();
    [radius * cos, radius * sin]
}

/// The 64-bit FNV-1a hash of a name.
pub const fn fnv1a(name: &str) -> u64 {
    let (bytes, mut hash, mut i) = (name.as_bytes(), 0xCBF2_9CE4_8422_2325_u64, 0);
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01B3);
        i += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Random123's `kat_vectors`.
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox4x32_10(counter, key), expected, "counter {counter:x?} key {key:x?}");
        }
    }

    #[test]
    fn numbers_depend_on_seed_purpose_and_index_only() {
        let g = Philox::new(7, 3);
        let all = g.uniforms(1003);
        assert_eq!(all.len(), 1003);
        assert!(all.iter().enumerate().all(|(i, &u)| u == g.uniform(i as u64)));
        assert!(all.iter().all(|u| (0.0..1.0).contains(u)));
        assert_eq!(g.normals(5)[..3], g.normals(3));
        assert_ne!(all[..8], Philox::new(8, 3).uniforms(8));
        assert_ne!(all[..8], Philox::new(7, 4).uniforms(8));
    }

    #[test]
    fn normals_have_the_moments_of_the_normal_distribution() {
        let n = 200_000;
        let x = Philox::named(1, "conv1.weight").normals(n);
        let moment = |k: i32| x.iter().map(|v| v.powi(k)).sum::<f64>() / n as f64;
        // Five standard errors of each estimate: sqrt((E x^2k - (E x^k)^2) / n) with E x^2, 4, 6, 8 = 1, 3, 15, 105.
        for (k, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0f64)] {
            let bound = 5.0 * (variance / n as f64).sqrt();
            assert!((moment(k) - expected).abs() < bound, "moment {k} is {}, expected {expected}", moment(k));
        }
    }

    #[test]
    fn hash_is_fnv1a() {
        assert_eq!(fnv1a(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
    }
}
