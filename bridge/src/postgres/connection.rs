//! A connection on which nothing waits for ever: every exchange has a deadline, after which the connection is to be
//! given up.

use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, CopyInSink, Statement};

use super::config::{Config, describe};
use super::failure::{Place, sink_error, timed_out};
use super::tls;
use crate::pump::SinkError;

/// `COPY` is sent in parts of about this size, so that the connection never holds a second copy of a whole group.
pub(super) const PART_BYTES: usize = 256 << 10;
/// What is added to the server's own timeout before the client gives up.
const GRACE: Duration = Duration::from_secs(5);

/// An open connection; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) place: Place,
    /// How long an exchange may take.
    wait: Duration,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Connects, with the settings that hold for everything done here.
    pub(super) async fn open(config: &Config) -> Result<Self, SinkError> {
        let mut target = config.target().map_err(SinkError::Operator)?;
        if let Some(password) = config.read_password().map_err(SinkError::Operator)? {
            target.password(password);
        }
        let place =
            Place { target, schema: config.schema.clone(), password_file: config.password_file.clone() };
        let tls = config.tls().and_then(|(_, verify, file)| tls::connector(verify, file.as_deref()));
        // The library's own timeout counts for each address alone, and not for what follows the connect.
        let connecting = place.target.connect(tls.map_err(SinkError::Operator)?);
        let (client, connection) = match tokio::time::timeout(config.connect_timeout, connecting).await {
            Err(_) => return Err(timed_out("connecting", config.connect_timeout, &place)),
            Ok(connected) => connected.map_err(|error| sink_error(&error, "connecting", &place))?,
        };
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                // The statement under way reports it as well, with what to do.
                tracing::debug!(%error, "the PostgreSQL connection ended");
            }
        });
        let connection = Self { client, place, wait: config.statement_timeout + GRACE, task };
        connection.simple("preparing the session", &settings(config)).await?;
        Ok(connection)
    }

    /// Returns when the connection is lost; to be asked once.
    pub(super) async fn lost(&mut self) -> SinkError {
        // A task that was aborted or has panicked is gone as well.
        let _ = (&mut self.task).await;
        SinkError::Retry(format!("the connection to PostgreSQL was lost ({})", describe(&self.place.target)))
    }

    pub(super) async fn simple(&self, doing: &str, sql: &str) -> Result<(), SinkError> {
        self.within(doing, self.client.batch_execute(sql)).await
    }

    pub(super) async fn within<T>(
        &self,
        doing: &str,
        exchange: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, SinkError> {
        self.deadline(doing, exchange).await?.map_err(|error| sink_error(&error, doing, &self.place))
    }

    /// Sends `parts` of a stream to a `COPY`.
    pub(super) async fn copy(
        &self,
        doing: &str,
        copy: &Statement,
        parts: impl Iterator<Item = Bytes>,
    ) -> Result<Result<(), tokio_postgres::Error>, SinkError> {
        let stream = match self.deadline(doing, self.client.copy_in(copy)).await? {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error)),
        };
        let mut stream: Pin<&mut CopyInSink<Bytes>> = pin!(stream);
        for part in parts {
            // An error here only says that the server has answered already; `finish` tells what.
            if self.deadline(doing, stream.send(part)).await?.is_err() {
                break;
            }
        }
        let finished = self.deadline(doing, stream.finish()).await?;
        Ok(finished.map(|_| ()))
    }

    pub(super) async fn deadline<T>(
        &self,
        doing: &str,
        exchange: impl Future<Output = T>,
    ) -> Result<T, SinkError> {
        let late = |_| timed_out(doing, self.wait, &self.place);
        tokio::time::timeout(self.wait, exchange).await.map_err(late)
    }
}

/// A server that has lost us must not hold our lock for long; and a commit that is confirmed must be on its disk,
/// since the journal may be trimmed then.
fn settings(config: &Config) -> String {
    let timeout_ms = config.statement_timeout.as_millis();
    format!(
        "SET statement_timeout = {timeout_ms};
         SET idle_in_transaction_session_timeout = {timeout_ms};
         SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
}
