//! Storage whose keys are never mistaken for one another: a key names a place and the generation of what is in
//! it, so that a key to something removed finds nothing, even after the place was used again.

/// A key into [`Slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// A key that finds nothing in any table.
    pub const NONE: Self = Self { index: u32::MAX, generation: u32::MAX };

    /// The place, for tables that run beside the slots.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// A table with stable keys; places of removed values are used again, the last freed first.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// How many values there are.
    pub const fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is no value.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts `value` in and returns its key.
    pub fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.value = Some(value);
            return Key { index, generation: slot.generation };
        }
        let index = u32::try_from(self.slots.len()).expect("limits keep tables far below 4 billion");
        self.slots.push(Slot { generation: 0, value: Some(value) });
        Key { index, generation: 0 }
    }

    /// Takes the value of `key` out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index())?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(value)
    }

    /// The value of `key`.
    pub fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index())?;
        if slot.generation == key.generation { slot.value.as_ref() } else { None }
    }

    /// The value of `key`.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index())?;
        if slot.generation == key.generation { slot.value.as_mut() } else { None }
    }

    /// The keys of all values that are there now.
    pub fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }

    /// How many places there are, used or free.
    pub const fn places(&self) -> usize {
        self.slots.len()
    }

    /// The keys of what is in `count` places, beginning with place `from`.
    pub fn keys_from(&self, from: usize, count: usize) -> Vec<Key> {
        let places = self.slots.iter().enumerate().skip(from).take(count);
        let used = places.filter(|(_, slot)| slot.value.is_some());
        used.map(|(index, slot)| Key { index: index as u32, generation: slot.generation }).collect()
    }

    /// All values with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let key = Key { index: index as u32, generation: slot.generation };
            slot.value.as_ref().map(|value| (key, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_to_something_removed_finds_nothing() {
        let mut slots = Slots::default();
        let first = slots.insert("first");
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert("second");
        assert_eq!(second.index(), first.index());
        assert_eq!((slots.get(first), slots.get(second)), (None, Some(&"second")));
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.len(), 1);
        let third = slots.insert("third");
        slots.remove(second);
        assert_eq!(slots.keys_from(0, 1), []);
        assert_eq!(slots.keys_from(0, 9), [third]);
        assert_eq!((slots.keys_from(1, 1), slots.keys_from(2, 9)), (vec![third], vec![]));
    }
}
