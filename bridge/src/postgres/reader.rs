//! The role that may read the schema and nothing else, for Metabase and analysts.
//!
//! Everything to be read lies in one schema, so a grant on that schema shows tables and views with their keys, and hides
//! partitions, cursor and quarantine. What a later version adds is granted at the next connect.

use tokio_postgres::Client;

use super::config::{Config, database};
use super::migration::LOCK;

/// Lets the role read, if anything is lacking; says whether something was. The error tells an administrator what to do.
pub(super) async fn admit(
    client: &Client,
    config: &Config,
    target: &tokio_postgres::Config,
) -> Result<bool, String> {
    let failed = |error: tokio_postgres::Error| problem(config, target, &cause(&error));
    if is_admitted(client, config).await.map_err(failed)? {
        return Ok(false);
    }
    let granted = client.batch_execute(&grants(config)).await;
    if granted.is_err() {
        client.batch_execute("ROLLBACK").await.map_err(failed)?;
    }
    granted.map_err(failed)?;
    // Who may grant only some of it is told so by a warning alone.
    if is_admitted(client, config).await.map_err(failed)? {
        Ok(true)
    } else {
        Err(problem(config, target, "the sink's role may not grant everything"))
    }
}

async fn is_admitted(client: &Client, config: &Config) -> Result<bool, tokio_postgres::Error> {
    let (role, schema) = (&config.reader_role, &config.schema);
    let exists = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)";
    if !client.query_one(exists, &[role]).await?.get::<_, bool>(0) {
        return Ok(false);
    }
    let all = "SELECT has_database_privilege($1, current_database(), 'CONNECT')
        AND has_schema_privilege($1, $2, 'USAGE') AND NOT EXISTS (
            SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $2 AND c.relkind IN ('r', 'p', 'v', 'm')
                AND NOT has_table_privilege($1, c.oid, 'SELECT'))";
    Ok(client.query_one(all, &[role, schema]).await?.get(0))
}

/// The lock keeps instances that start at once from making the role twice.
fn grants(config: &Config) -> String {
    let (role, literal) = (identifier(&config.reader_role), literal(&config.reader_role));
    format!(
        "BEGIN; SET LOCAL lock_timeout = '2s'; SELECT pg_advisory_xact_lock({LOCK});
         DO $do$ BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN
                EXECUTE format('CREATE ROLE %I LOGIN', {literal});
                EXECUTE format('ALTER ROLE %I SET default_transaction_read_only = on', {literal});
            END IF;
            IF NOT has_database_privilege({literal}, current_database(), 'CONNECT') THEN
                EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), {literal});
            END IF;
         END $do$;
         {}; COMMIT",
        on_schema(&config.schema, &role, "")
    )
}

fn on_schema(schema: &str, role: &str, whose: &str) -> String {
    format!(
        "GRANT USAGE ON SCHEMA \"{schema}\" TO {role}; \
         GRANT SELECT ON ALL TABLES IN SCHEMA \"{schema}\" TO {role}; \
         ALTER DEFAULT PRIVILEGES {whose}IN SCHEMA \"{schema}\" GRANT SELECT ON TABLES TO {role}"
    )
}

fn problem(config: &Config, target: &tokio_postgres::Config, cause: &str) -> String {
    let role = identifier(&config.reader_role);
    let whose = format!("FOR ROLE {} ", identifier(target.get_user().unwrap_or_default()));
    format!(
        "postgres.reader_role {} cannot be given the right to read ({cause}); readings are stored all the same. Run as an administrator: CREATE ROLE {role} LOGIN; GRANT CONNECT ON DATABASE {} TO {role}; {}",
        config.reader_role,
        identifier(database(target)),
        on_schema(&config.schema, &role, &whose)
    )
}

fn cause(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Backslashes are plain in a string with standard_conforming_strings, unless it begins with E.
fn literal(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{escaped}'")
}

#[cfg(test)]
mod tests {
    use super::{identifier, literal};

    #[test]
    fn names_are_quoted_whatever_they_hold() {
        assert_eq!(identifier("a\"b'c"), "\"a\"\"b'c\"");
        assert_eq!(literal("a'b\\c\"d"), "E'a''b\\\\c\"d'");
    }
}
