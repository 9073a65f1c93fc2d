//! What a failure means: try again, wait for an operator, or never store this record.
//!
//! Messages say what to do, and never hold the password.

use std::path::PathBuf;

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, SqlState};

use super::config::{database, describe};
use crate::pump::SinkError;

/// Where it was tried.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) target: tokio_postgres::Config,
    /// The schema that analysts see.
    pub(super) schema: String,
    /// The file that the password was read from.
    pub(super) password_file: Option<PathBuf>,
}

/// Why something could not be stored.
#[derive(Debug)]
pub(super) enum StoreError {
    /// The server refuses the data itself; the connection is well. The line of the `COPY` stream, from 1, if the
    /// server named it.
    Refused { reason: String, line: Option<u64> },
    /// Some of the rows are there already.
    Duplicate,
    /// Anything else.
    Sink(SinkError),
}

impl From<SinkError> for StoreError {
    fn from(error: SinkError) -> Self {
        Self::Sink(error)
    }
}

/// How the library's error begins when it is about TLS; it tells in no other way.
const TLS_FAILED: &str = "error performing TLS handshake";
/// How it begins when the server asks for a password and there is none, or asks in a way that is not known here.
const LOGIN_FAILED: [&str; 2] = ["invalid configuration", "authentication error"];

/// What `error`, met while `doing`, means for the whole sink.
pub(super) fn sink_error(error: &Error, doing: &str, place: &Place) -> SinkError {
    let at = describe(&place.target);
    let Some(server) = error.as_db_error() else {
        let cause = cause(error);
        if error.to_string().starts_with(TLS_FAILED) {
            return SinkError::Operator(format!(
                "PostgreSQL and TLS ({at}): {cause}: check sslmode in postgres.url, postgres.tls_ca_file, and that the server's certificate is for this host and not expired"
            ));
        }
        if LOGIN_FAILED.iter().any(|begin| error.to_string().starts_with(begin)) {
            return SinkError::Operator(format!(
                "PostgreSQL lets nobody in like this ({at}): {cause}: {}",
                login_advice(place)
            ));
        }
        return SinkError::Retry(format!(
            "PostgreSQL is away ({at}): {cause} while {doing}: check that the server runs and that postgres.url names it"
        ));
    };
    match advice(server, place) {
        Some(advice) => {
            SinkError::Operator(format!("PostgreSQL refused {doing} ({at}): {}: {advice}", server.message()))
        }
        None => SinkError::Retry(format!(
            "PostgreSQL failed while {doing} ({at}): {} (SQLSTATE {}){}",
            server.message(),
            server.code().code(),
            hint(server.code())
        )),
    }
}

/// What `error`, met while storing rows, means for them.
pub(super) fn store_error(error: &Error, place: &Place) -> StoreError {
    match error.as_db_error() {
        Some(server) if *server.code() == SqlState::UNIQUE_VIOLATION => StoreError::Duplicate,
        Some(server) if is_about_the_data(server.code()) => {
            StoreError::Refused { reason: reason(server), line: server.where_().and_then(line_of) }
        }
        Some(_) | None => StoreError::Sink(sink_error(error, "storing readings", place)),
    }
}

/// A timeout, which the server had no part in.
pub(super) fn timed_out(doing: &str, timeout: std::time::Duration, place: &Place) -> SinkError {
    SinkError::Retry(format!(
        "PostgreSQL gave no answer within {} ms while {doing} ({}): the server or the network hangs, or something holds a lock",
        timeout.as_millis(),
        describe(&place.target)
    ))
}

/// What to look at when the server lets us not in.
fn login_advice(place: &Place) -> String {
    let user = place.target.get_user().unwrap_or("");
    let where_it_is = match &place.password_file {
        Some(file) => {
            format!("the user in postgres.url, the password in {} (postgres.password_file)", file.display())
        }
        None => "user and password in postgres.url".to_owned(),
    };
    format!("check {where_it_is}, and the server's pg_hba.conf for role {user}")
}

/// What an operator can do, if only an operator can do something.
fn advice(error: &DbError, place: &Place) -> Option<String> {
    let user = place.target.get_user().unwrap_or("");
    let code = error.code();
    let advice = if *code == SqlState::INVALID_PASSWORD
        || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
    {
        login_advice(place)
    } else if *code == SqlState::INVALID_CATALOG_NAME {
        format!(
            "CREATE DATABASE \"{}\" ENCODING 'UTF8', or name another in postgres.url",
            database(&place.target)
        )
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        let (database, schema) = (database(&place.target), &place.schema);
        let schemas = format!("\"{schema}\", \"{schema}_internal\"");
        format!(
            "to let role {user} make its tables: GRANT CREATE, CONNECT ON DATABASE \"{database}\" TO \"{user}\"; if they are another role's: GRANT USAGE ON SCHEMA {schemas} TO \"{user}\"; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schemas} TO \"{user}\""
        )
    } else if *code == SqlState::UNDEFINED_TABLE
        || *code == SqlState::UNDEFINED_COLUMN
        || *code == SqlState::UNDEFINED_FUNCTION
        || *code == SqlState::INVALID_SCHEMA_NAME
        || *code == SqlState::WRONG_OBJECT_TYPE
        || *code == SqlState::BAD_COPY_FILE_FORMAT
    {
        "somebody changed Tidegate's tables: undo the change, or name an empty postgres.schema".to_owned()
    } else if *code == SqlState::DUPLICATE_TABLE || *code == SqlState::DUPLICATE_FUNCTION {
        "another program's table is in the way: name another postgres.schema".to_owned()
    } else {
        return None;
    };
    Some(advice)
}

/// What to look at while it is tried again: most of this passes, but not always by itself.
fn hint(code: &SqlState) -> &'static str {
    if *code == SqlState::DISK_FULL {
        ": the server's disk is full: make room; readings wait in the journal until then"
    } else if *code == SqlState::TOO_MANY_CONNECTIONS {
        ": too many connections: raise max_connections, or end some"
    } else if code.code().starts_with("53") {
        ": the server lacks memory or another resource; readings wait in the journal until then"
    } else if *code == SqlState::QUERY_CANCELED || *code == SqlState::LOCK_NOT_AVAILABLE {
        ": it took longer than postgres.statement_timeout: perhaps somebody holds a lock (SELECT * FROM pg_locks WHERE NOT granted), or the server is overloaded"
    } else if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        ": the server or the role takes no writes: name the primary in postgres.url, and set default_transaction_read_only = off"
    } else {
        ""
    }
}

/// Whether another row would be taken: data exceptions, constraints, errors that triggers raise, limits of a row.
fn is_about_the_data(code: &SqlState) -> bool {
    *code != SqlState::BAD_COPY_FILE_FORMAT && matches!(&code.code()[..2], "22" | "23" | "P0" | "54" | "44")
}

fn reason(error: &DbError) -> String {
    match error.detail() {
        Some(detail) => format!("{} ({detail})", error.message()),
        None => error.message().to_owned(),
    }
}

/// The `17` of `COPY readings, line 17, column ...`.
fn line_of(context: &str) -> Option<u64> {
    let (_, rest) = context.split_once(", line ")?;
    let end = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// The innermost cause, which says most.
fn cause(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::line_of;

    #[test]
    fn the_line_of_a_refused_row_is_found() {
        assert_eq!(line_of("COPY readings, line 17, column number"), Some(17));
        assert_eq!(line_of("COPY readings, line 3"), Some(3));
        assert_eq!(line_of("COPY readings, line 3: \"x\""), Some(3));
        assert_eq!(line_of("PL/pgSQL function f() line 3"), None);
    }
}
