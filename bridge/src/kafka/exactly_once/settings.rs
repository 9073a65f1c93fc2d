//! What exactly once takes of the configuration.

use std::time::Duration;

use crate::kafka::config::Config;
use crate::route::check_kafka_topic;

use super::place::SEPARATOR;

impl Config {
    /// Every mistake in what is about transactions, with the key it is in.
    pub(in crate::kafka) fn transaction_mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if let Err(why) = check_kafka_topic(&self.cursor_topic) {
            mistakes.push(format!("kafka.cursor_topic: {why}"));
        }
        let topic = &self.cursor_topic;
        let is_for_records = self.routes.iter().any(|route| route.topic == *topic)
            || self.dead_letter.topic.as_ref() == Some(topic);
        if is_for_records {
            mistakes
                .push(format!("kafka.cursor_topic: records go to {topic} as well; it is for cursors alone"));
        }
        if self.transactional_id.contains(|c: char| c == SEPARATOR || c.is_control()) {
            mistakes
                .push(format!("kafka.transactional_id: it cannot contain {SEPARATOR} or control characters"));
        }
        mistakes
    }

    /// Who carries the journal called `journal`, to the brokers' transaction coordinator. Without a name of its own it is
    /// the journal that counts: it keeps its identity wherever its data folder goes.
    pub(super) fn transactional_id(&self, journal: u128) -> String {
        match self.transactional_id.trim() {
            "" => format!("{}-{journal:032x}", self.client_id.replace(SEPARATOR, "-")),
            configured => configured.to_owned(),
        }
    }

    /// How long a transaction is open.
    pub(super) fn transaction_interval(&self) -> Duration {
        Duration::from_millis(self.transaction_interval_ms.into())
    }
}

#[cfg(test)]
mod tests {
    use crate::route::RouteConfig;

    use super::*;

    #[test]
    fn a_journal_keeps_its_identity_wherever_it_goes() {
        let mut config = Config::default();
        assert_eq!(config.transactional_id(0xa1), "tidegate-000000000000000000000000000000a1");
        config.client_id = "plant/7".into();
        assert_eq!(config.transactional_id(1), "plant-7-00000000000000000000000000000001");
        config.transactional_id = "mine".into();
        assert_eq!(config.transactional_id(1), "mine");
    }

    #[test]
    fn cursors_are_kept_apart_from_records_and_from_each_other() {
        let check = |cursor_topic: &str, transactional_id: &str, expected: &[&str]| {
            let route = RouteConfig { filter: "#".into(), topic: "x".into(), ..RouteConfig::default() };
            let (cursor_topic, transactional_id) = (cursor_topic.into(), transactional_id.into());
            let config = Config { cursor_topic, transactional_id, routes: vec![route], ..Config::default() };
            let mistakes = config.transaction_mistakes();
            let keys: Vec<_> =
                mistakes.iter().filter_map(|mistake| mistake.split_once(": ")).map(|(key, _)| key).collect();
            assert_eq!(keys, expected, "{mistakes:?}");
        };
        check("cursors", "plant-7", &[]);
        check("x", "", &["kafka.cursor_topic"]);
        check("", "", &["kafka.cursor_topic"]);
        check("tidegate-dead-letter", "", &["kafka.cursor_topic"]);
        check("cursors", "plant/7", &["kafka.transactional_id"]);
    }
}
