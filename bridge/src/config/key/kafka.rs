//! The keys of the section `[kafka]`.

use std::time::Duration;

use super::super::kafka_values::{HEADERS, OrDefault, PARTITIONS, Properties, Routes, TopicRetention};
use super::super::kind::{Kind, Millis, OrOff, Period, Size, Switch, Text};
use super::Key;

/// In the order of the example file.
pub(super) const KEYS: &[Key] = &[
    key!(
        "kafka.bootstrap_servers",
        kafka.bootstrap_servers,
        Text,
        "The brokers, as host:port, several separated by commas; naming them switches the sink on. They may be away. \
         Also KAFKA_BOOTSTRAP_SERVERS."
    )
    .sample("\"127.0.0.1:9092\""),
    key!("kafka.client_id", kafka.client_id, Text, "How this appliance names itself to the brokers."),
    key!(
        "kafka.username",
        kafka.username,
        Text,
        "Who it is by SASL. In kafka.properties belong security.protocol (sasl_ssl or sasl_plaintext) and sasl.mechanism \
         (SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN). Also KAFKA_USERNAME, with KAFKA_SECURITY_PROTOCOL and \
         KAFKA_SASL_MECHANISM."
    )
    .sample("\"tidegate\""),
    key!(
        "kafka.password",
        kafka.password,
        Text,
        "Its password. Better in kafka.password_file or TIDEGATE_KAFKA_PASSWORD. Also KAFKA_PASSWORD."
    )
    .secret()
    .sample("\"...\""),
    key!(
        "kafka.password_file",
        kafka.password_file,
        Text,
        "The file with its password, which stands above kafka.password and sasl.password in kafka.properties; the end of its last line does not count. It is read whenever a connection is \
         made anew, also after the password was refused, so that a changed password needs no restart. Also \
         KAFKA_PASSWORD_FILE."
    )
    .sample("\"/run/secrets/kafka\""),
    key!(
        "kafka.source",
        kafka.source,
        Text,
        "The beginning of the header ce_source; the publisher's Client Identifier follows."
    ),
    key!(
        "kafka.headers",
        kafka.headers,
        HEADERS,
        "Which headers a record carries: cloudevents (binary mode, and what the publisher sent along), minimal (what \
         the publisher sent along - user properties, content type, response topic, correlation data - and ce_id, the \
         record's place in the journal) or none. A route may say otherwise."
    ),
    key!(
        "kafka.routes",
        kafka.routes,
        Routes,
        "Which MQTT topic goes to which Kafka topic: the first whose filter matches. The key is device (the second \
         level of three or more, else the client), client, topic, level:N (the Nth level, else the client), a JSON \
         pointer (RFC 6901) such as /deviceId (the text, number or boolean that it names in the payload, else as \
         device) or none. Also: partitions and retention of the Kafka topic when it is created, and headers, instead \
         of those below and above. With encoding = \"avro\" JSON becomes Avro by a schema of kafka.schema_registry: \
         that of the file schema, registered if it is not yet, else the latest of subject (the topic's name and \
         -value, if it is not said). A topic that no route matches is not carried."
    ),
    key!(
        "kafka.exactly_once",
        kafka.exactly_once,
        Switch,
        "Whether each record is stored once, also over crashes, by transactions; else at least once. Consumers have to \
         set isolation.level=read_committed, and see a record once its transaction is committed."
    ),
    key!(
        "kafka.transactional_id",
        kafka.transactional_id,
        Text,
        "Who this appliance is to the brokers' transactions. Of two that run under one name the later stops the earlier, \
         which then delivers nothing until it is restarted. Empty: client_id and the id of the journal, so that who \
         moves the data folder moves the name."
    )
    .sample("\"plant-7\""),
    key!(
        "kafka.cursor_topic",
        kafka.cursor_topic,
        Text,
        "Where each transaction says how far the journal has come. It is created with cleanup.policy=compact; several \
         appliances may share it. Where the brokers check rights this client needs Read and Write there, and Describe \
         and Write on the transactional id."
    ),
    key!(
        "kafka.transaction_interval",
        kafka.transaction_interval_ms,
        Millis(Period { min: Duration::from_millis(1), max: Duration::from_secs(10) }),
        "How long a transaction is open. Shorter is seen earlier, longer costs less; a transaction is committed earlier \
         if it has 16 MiB."
    ),
    key!(
        "kafka.compression",
        kafka.compression,
        Text,
        "Compression of record batches: none, gzip, snappy, lz4 or zstd. Every client can read none and gzip."
    ),
    key!(
        "kafka.linger",
        kafka.linger_ms,
        Millis(Period { min: Duration::ZERO, max: Duration::from_secs(900) }),
        "How long to wait for more records before a batch is sent."
    ),
    key!(
        "kafka.batch_bytes",
        kafka.batch_bytes,
        Size { min: 1, max: i32::MAX as u64 },
        "The largest batch of records sent to one partition."
    ),
    key!(
        "kafka.max_record_bytes",
        kafka.record_bytes_max,
        Size { min: 1_000, max: 1_000_000_000 },
        "The largest record, key and headers included; larger ones are dead letters. The topic's own \
         max.message.bytes counts if it is smaller; the dead-letter topic has only its own."
    ),
    Key {
        adds_up: true,
        set: |config, raw| {
            config.kafka.properties.extend(Properties.read(raw)?);
            Ok(())
        },
        ..key!(
            "kafka.properties",
            kafka.properties,
            Properties,
            "Any other property of librdkafka, by its own name; also as lines of a section [kafka.properties]. What \
             delivery relies on cannot be set. For TLS: security.protocol (ssl or sasl_ssl), ssl.ca.location (an \
             authority in PEM; else the system's) and, to show a certificate, ssl.certificate.location and \
             ssl.key.location."
        )
    }
    .secret_in_part()
    .sample("{ \"security.protocol\" = \"sasl_ssl\", \"sasl.mechanism\" = \"SCRAM-SHA-512\" }"),
    Key {
        adds_up: true,
        set: |config, raw| {
            config.kafka.property_files.extend(Properties.read(raw)?);
            Ok(())
        },
        ..key!(
            "kafka.property_files",
            kafka.property_files,
            Properties,
            "Properties of librdkafka whose values lie in files, read as kafka.password_file is: the name and the file \
             of each."
        )
    }
    .sample("{ \"ssl.key.password\" = \"/run/secrets/kafka-key\" }"),
    key!(
        "kafka.topics.create",
        kafka.topics.create,
        Switch,
        "Whether the topics that routes name, and the dead-letter topic, are created when they are missing. Those that \
         exist are left alone."
    ),
    key!(
        "kafka.topics.partitions",
        kafka.topics.partitions,
        PARTITIONS,
        "Partitions of a new topic whose route gives none; default is the broker's own number."
    ),
    key!(
        "kafka.topics.replication",
        kafka.topics.replication,
        OrDefault { max: 32_767 },
        "Replicas of a new topic; default is the broker's own number."
    ),
    key!(
        "kafka.topics.retention",
        kafka.topics.retention_ms,
        TopicRetention,
        "How long a new topic whose route does not say it keeps records; default is the broker's own span of time, \
         forever has none."
    ),
    key!(
        "kafka.dead_letter.topic",
        kafka.dead_letter.topic,
        OrOff(Text),
        "The Kafka topic for records that theirs will never take (too large, no right to write it, no such topic, \
         invalid, against a policy), created like the others: payload, key and headers unchanged, and headers \
         tidegate_reason, tidegate_detail and tidegate_kafka_topic. What it does not take either, or everything if it \
         is off, goes into dead-letters/kafka.jsonl in the data folder. The records behind are not held up."
    ),
    key!(
        "kafka.dead_letter.patience",
        kafka.dead_letter.patience_ms,
        Millis(Period { min: Duration::from_secs(1), max: Duration::from_secs(86_400) }),
        "How long a Kafka topic that is missing, and cannot be created, is waited for before its records are dead \
         letters; nothing else is carried meanwhile. After that, and where this client may not write a topic, it is \
         tried again this often."
    ),
    key!(
        "kafka.dead_letter.max_file_bytes",
        kafka.dead_letter.file_bytes_max,
        Size { min: 1 << 20, max: 1 << 40 },
        "Size of the file of dead letters and the one before it, kafka.1.jsonl, together; when it is reached, the \
         older file is removed, with a warning, and counted."
    ),
    key!(
        "kafka.schema_registry.url",
        kafka.schema_registry.url,
        Text,
        "The Schema Registry with the schemas of routes whose encoding is avro: the address below which /subjects lies. \
         Before the first record it must answer; later it may be away. Also KAFKA_SCHEMA_REGISTRY_URL."
    )
    .sample("\"http://127.0.0.1:8081\""),
    key!(
        "kafka.schema_registry.username",
        kafka.schema_registry.username,
        Text,
        "Sent with the password as HTTP Basic authentication."
    )
    .sample("\"tidegate\""),
    key!("kafka.schema_registry.password", kafka.schema_registry.password, Text, "Its password. Better in the file.")
        .secret()
        .sample("\"...\""),
    key!(
        "kafka.schema_registry.password_file",
        kafka.schema_registry.password_file,
        Text,
        "The file with its password, read as kafka.password_file is; it stands above the password."
    )
    .sample("\"/run/secrets/schema-registry\""),
    key!(
        "kafka.schema_registry.ca_file",
        kafka.schema_registry.ca_file,
        Text,
        "Authorities in PEM, of one of which the registry's certificate must be; else it must be of a public one."
    )
    .sample("\"/etc/tidegate/registry-ca.pem\""),
    key!(
        "kafka.schema_registry.refresh",
        kafka.schema_registry.refresh_ms,
        Millis(Period { min: Duration::from_millis(100), max: Duration::from_secs(86_400) }),
        "How often it is asked for the latest schemas; until then records go on with those of before."
    ),
];
