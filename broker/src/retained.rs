//! The last record per topic.
