//! Full journals, trimming, age.
