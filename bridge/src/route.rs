//! Topic to Kafka topic and key, table and columns.
