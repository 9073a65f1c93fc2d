//! The keys of the section `[postgres]`.

use std::time::Duration;

use super::super::kind::{Count, Days, Kind, Period, Size, Text};
use super::{DAY, HOUR, Key, SECOND};

/// In the order of the example file.
pub(super) const KEYS: &[Key] = &[
    key!(
        "postgres.url",
        postgres.url,
        Text,
        "The database, as postgres://user:password@host:port/database or host=... user=...; naming it switches the \
         sink on. It may be away. A password is better in postgres.password_file or TIDEGATE_POSTGRES_URL than here. Also DB_HOST, DB_PORT, DB_NAME, DB_USER, DB_PASSWORD, DB_SSL_MODE, or DB_CONNECTION_STRING."
    )
    .secret_in_part()
    .sample("\"postgres://tidegate@127.0.0.1:5432/tidegate\""),
    key!(
        "postgres.password_file",
        postgres.password_file,
        Text,
        "The file with the role's password; the end of its last line does not count. It is read at each connect, so \
         that a changed password needs no restart, and stands above a password in url. Also DB_PASSWORD_FILE."
    )
    .sample("\"/run/secrets/postgres\""),
    key!(
        "postgres.schema",
        postgres.schema,
        Text,
        "The schema of the tables that are to be read; made if it is missing. The sink's own bookkeeping lies in \
         SCHEMA_internal."
    ),
    key!(
        "postgres.application_name",
        postgres.application_name,
        Text,
        "What its sessions are called in pg_stat_activity."
    ),
    key!(
        "postgres.max_transaction_bytes",
        postgres.transaction_bytes_max,
        Size { min: 64 << 10, max: 256 << 20 },
        "A transaction takes no further batch once it has this many bytes of rows. Takes about twice this of memory."
    ),
    key!(
        "postgres.connect_timeout",
        postgres.connect_timeout,
        Period { min: Duration::from_millis(100), max: HOUR },
        "How long to wait for a connection; then it is tried again."
    ),
    key!(
        "postgres.statement_timeout",
        postgres.statement_timeout,
        Period { min: SECOND, max: DAY },
        "How long a statement may take before the connection is given up and made again."
    ),
    key!(
        "postgres.partition_days_ahead",
        postgres.partition_days_ahead,
        Count { min: 1, max: 60 },
        "How many days ahead there is a partition."
    ),
    key!(
        "postgres.retention",
        postgres.retention_days,
        Days { max: 36_500 },
        "How long readings are kept, in whole days (90d), or forever. A day's partition is dropped when all of the \
         day is older. Devices with a wrong clock count by the time they say."
    ),
    key!(
        "postgres.rollup_retention",
        postgres.rollup_retention_days,
        Days { max: 36_500 },
        "How long readings_per_minute and readings_per_hour are kept, in whole days, or forever."
    ),
    key!(
        "postgres.reader_role",
        postgres.reader_role,
        Text,
        "A role that may read the schema and nothing else, for Metabase and analysts; made if it is missing and the \
         sink's own role may make roles. Give it a password with ALTER ROLE."
    )
    .sample("\"metabase\""),
    key!(
        "postgres.tls_ca_file",
        postgres.tls_ca_file,
        Text,
        "The authority, in PEM, that the server's certificate must be of when url has sslmode=require, verify-ca or \
         verify-full. Also sslrootcert in url."
    )
    .sample("\"/etc/tidegate/postgres-ca.pem\""),
];
