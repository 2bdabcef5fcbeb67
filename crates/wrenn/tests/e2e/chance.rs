//! What a test samples of a matrix that is too large for every run: chosen by a seed that is printed, all of it in a soak.
//!
//! `WRENN_TEST_SEED` repeats a run; `WRENN_TEST_ROUNDS` says how many rounds a soak has (`cargo xtask soak` sets both).

/// The choices of one test.
#[derive(Clone, Copy, Debug)]
pub struct Chance {
    seed: u64,
    soak_rounds: Option<u64>,
}

impl Chance {
    /// That of this run, whose seed is printed.
    pub fn of_this_run() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seed = number("WRENN_TEST_SEED").unwrap_or(u64::from(std::process::id()));
        println!("seed {seed} (set WRENN_TEST_SEED to repeat)");
        Self { seed, soak_rounds: number("WRENN_TEST_ROUNDS") }
    }

    /// The seed itself, for who has a generator of its own.
    pub fn seed(self) -> u64 {
        self.seed
    }

    /// How many rounds a soak has; `None` where a sample is enough.
    pub fn soak_rounds(self) -> Option<u64> {
        self.soak_rounds
    }

    /// A number below `below`: the same for the same seed and `salt`.
    pub fn pick(self, salt: u64, below: u64) -> u64 {
        // Xorshift of a spread seed: the same everywhere.
        let mut x = (self.seed ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        x ^= x << 13;
        x ^= x >> 7;
        (x ^ (x << 17)) % below
    }
}
