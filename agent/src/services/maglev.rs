//! Maglev hashing: which backend of a list a hash stands for, the same on every node and mostly the same after a change.
//!
//! By Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4.

use std::fmt::Display;

use podwire_abi::service::{MAGLEV_SIZE, MaglevTable};
use sha2::{Digest, Sha256};

/// In which order a backend would like to have the places of the table.
struct Preference {
    next: usize,
    skip: usize,
}

impl Preference {
    /// By the backend's name alone, so that nodes agree that never speak to each other.
    fn of(backend: &impl Display) -> Self {
        let digest = Sha256::digest(backend.to_string());
        let number = |from: usize| {
            digest[from..from + 8].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let size = MAGLEV_SIZE as u64;
        // Both are smaller than the table, whose size is a prime: every place comes once.
        let (next, skip) = (number(0) % size, number(8) % (size - 1) + 1);
        Self { next: usize::try_from(next).unwrap_or(0), skip: usize::try_from(skip).unwrap_or(1) }
    }

    fn take(&mut self) -> usize {
        let place = self.next;
        self.next = (place + self.skip) % MAGLEV_SIZE;
        place
    }
}

/// The table of a list of backends: the slot of one in each place. None if there is nothing to choose: less than two backends, or
/// more than places.
pub fn table<B: Display>(backends: &[B]) -> Option<Box<MaglevTable>> {
    if !(2..=MAGLEV_SIZE).contains(&backends.len()) {
        return None;
    }
    let mut preferences: Vec<Preference> = backends.iter().map(Preference::of).collect();
    let mut table: Box<MaglevTable> = vec![FREE; MAGLEV_SIZE].into_boxed_slice().try_into().ok()?;
    let mut filled = 0;
    loop {
        for (slot, preference) in (0_u16..).zip(&mut preferences) {
            let mut place = preference.take();
            while table[place] != FREE {
                place = preference.take();
            }
            table[place] = slot;
            filled += 1;
            if filled == MAGLEV_SIZE {
                return Some(table);
            }
        }
    }
}

/// No slot: there are fewer backends than this.
const FREE: u16 = u16::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("10.244.{}.{}:80", n / 250, n % 250 + 2)).collect()
    }

    #[test]
    fn every_backend_has_its_share() {
        for count in [2, 3, 10, 100] {
            let table = table(&backends(count)).unwrap();
            let mut places = vec![0_usize; count];
            for slot in table.iter() {
                places[usize::from(*slot)] += 1;
            }
            let (least, most) = (places.iter().min().unwrap(), places.iter().max().unwrap());
            assert!(most - least <= 1, "{count}: {least} to {most}");
        }
    }

    #[test]
    fn there_must_be_a_choice() {
        assert!(table(&backends(0)).is_none());
        assert!(table(&backends(1)).is_none());
        assert!(table(&backends(MAGLEV_SIZE + 1)).is_none());
    }

    /// The paper's figure for a table of 65537 places and 1000 backends is some percent; what must move at least is a tenth.
    #[test]
    fn one_backend_less_moves_little_else() {
        let all = backends(10);
        let less: Vec<_> = all.iter().filter(|b| **b != all[3]).cloned().collect();
        let (before, after) = (table(&all).unwrap(), table(&less).unwrap());
        let moved = before
            .iter()
            .zip(after.iter())
            .filter(|(b, a)| **b != 3 && all[usize::from(**b)] != less[usize::from(**a)])
            .count();
        assert!(moved * 10 < MAGLEV_SIZE, "{moved} of {MAGLEV_SIZE} places changed hands without need");
    }
}
