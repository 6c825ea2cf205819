//! Values under small numbers that are used again: what the ring's completions name things by.
//!
//! Owns nothing but the numbers. It must not know what it holds.

/// Values by number; a number is free again once its value was taken out.
pub(super) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Slab<T> {
        Slab { entries: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> usize {
        match self.free.pop() {
            Some(number) => {
                self.entries[number] = Some(value);
                number
            }
            None => {
                self.entries.push(Some(value));
                self.entries.len() - 1
            }
        }
    }

    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut T> {
        self.entries.get_mut(number)?.as_mut()
    }

    pub(super) fn remove(&mut self, number: usize) -> Option<T> {
        let value = self.entries.get_mut(number)?.take()?;
        self.free.push(number);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_while_in_use_and_come_back_after() {
        let mut slab = Slab::new();
        let numbers = [slab.insert('a'), slab.insert('b'), slab.insert('c')];
        assert_eq!(slab.remove(numbers[1]), Some('b'));
        assert_eq!((slab.remove(numbers[1]), slab.remove(99), slab.len()), (None, None, 2));
        assert_eq!(slab.insert('d'), numbers[1]);
        assert_eq!(slab.get_mut(numbers[2]), Some(&mut 'c'));
        assert_eq!((slab.insert('e'), slab.len()), (3, 4));
    }
}
