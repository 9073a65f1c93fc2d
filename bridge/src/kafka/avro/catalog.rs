//! The schemas of all routes that encode: fetched before records flow, kept while the registry is away, and looked
//! after by a thread of its own.
//!
//! A route has a schema from the first success of [`Catalog::prepare`] on, and always the last one that could be
//! used. So a registry that goes away later holds nothing up.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use crate::pump::SinkError;
use crate::route::{Encoding, RouteConfig};

use super::encode::Misfit;
use super::registry::{Registry, RegistryConfig};
use super::schema::Schema;

/// The first byte of a record in Confluent's wire format; the schema's id follows, big-endian, then Avro.
const MAGIC: u8 = 0;
const HEADER_BYTES: usize = 5;

/// What records are encoded by.
#[derive(Debug)]
struct Writer {
    id: u32,
    /// As the registry has it.
    text: String,
    schema: Schema,
}

/// Where a route's schema comes from.
#[derive(Debug)]
struct Source {
    filter: String,
    subject: String,
    /// The schema is in this file, and is registered if it is not; without one the latest of the subject counts.
    file: Option<PathBuf>,
    writer: RwLock<Option<Arc<Writer>>>,
}

/// The schemas of all routes that encode.
#[derive(Debug)]
pub(in crate::kafka) struct Catalog {
    config: RegistryConfig,
    /// As many as routes.
    sources: Vec<Option<Source>>,
    /// Dropped with the catalog, which ends the thread.
    refresher: Mutex<Option<SyncSender<()>>>,
}

impl Catalog {
    /// For `routes`; `None` if none of them encodes.
    pub(in crate::kafka) fn new(config: &RegistryConfig, routes: &[RouteConfig]) -> Option<Arc<Self>> {
        let source = |route: &RouteConfig| {
            route.encoding.map(|Encoding::Avro| Source {
                filter: route.filter.clone(),
                // Confluent's TopicNameStrategy.
                subject: route.subject.clone().unwrap_or_else(|| format!("{}-value", route.topic)),
                file: route.schema.clone(),
                writer: RwLock::default(),
            })
        };
        let sources: Vec<_> = routes.iter().map(source).collect();
        sources
            .iter()
            .any(Option::is_some)
            .then(|| Arc::new(Self { config: config.clone(), sources, refresher: Mutex::default() }))
    }

    /// Makes sure that every route has a schema. Blocks. With one from before, what the registry says against the
    /// present one is told in the log, and delivery goes on.
    pub(in crate::kafka) fn prepare(self: &Arc<Self>) -> Result<(), SinkError> {
        let is_complete = || self.sources().all(|source| source.writer().is_some());
        if !is_complete()
            && let Err(error) = self.refresh()
            && !is_complete()
        {
            return Err(error);
        }
        self.watch();
        Ok(())
    }

    /// `payload`, which is JSON, in Confluent's wire format; `None` if the route counted `route` does not encode.
    pub(in crate::kafka) fn encode(&self, route: usize, payload: &[u8]) -> Option<Result<Vec<u8>, Misfit>> {
        let writer = self.sources[route].as_ref()?.writer();
        let writer = writer.expect("nothing is produced before `prepare` has found every schema");
        let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
        out.push(MAGIC);
        out.extend_from_slice(&writer.id.to_be_bytes());
        Some(writer.schema.encode(payload, &mut out).map(|()| out))
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().flatten()
    }

    fn refresh(&self) -> Result<(), SinkError> {
        let registry = Registry::new(&self.config)?;
        let mut first = Ok(());
        for source in self.sources() {
            // One route's mistake does not keep another from its new schema.
            let refreshed = source.refresh(&registry);
            first = first.and(refreshed);
        }
        first
    }

    /// Starts the thread that asks for new schemas, unless it runs.
    fn watch(self: &Arc<Self>) {
        let mut refresher = self.refresher.lock().unwrap_or_else(PoisonError::into_inner);
        if refresher.is_some() {
            return;
        }
        // Nothing is ever sent: that it is gone is what counts.
        let (alive, ended) = sync_channel(0);
        let interval = Duration::from_millis(self.config.refresh_ms.into());
        let kept = Arc::downgrade(self);
        let watch = move || {
            let mut told = None;
            while is_due(&ended, interval)
                && let Some(catalog) = kept.upgrade()
            {
                let failed = catalog.refresh().err().map(|error| error.to_string());
                if told != failed {
                    match &failed {
                        Some(error) => tracing::warn!("{error}; records go on with the schemas of before"),
                        None => tracing::info!("the Schema Registry is asked for new schemas again"),
                    }
                    told = failed;
                }
            }
        };
        match std::thread::Builder::new().name("schemas".into()).spawn(watch) {
            Ok(_) => *refresher = Some(alive),
            Err(error) => tracing::error!("no thread for new schemas ({error}); those of before stay"),
        }
    }
}

/// Waits until schemas are to be asked for; false when nobody needs them any more.
fn is_due(ended: &Receiver<()>, interval: Duration) -> bool {
    ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout)
}

impl Source {
    fn writer(&self) -> Option<Arc<Writer>> {
        self.writer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refresh(&self, registry: &Registry<'_>) -> Result<(), SinkError> {
        let (id, text, references) = match &self.file {
            Some(file) => {
                let text = read_file(file).map_err(|why| self.unusable(&why))?;
                Schema::parse(&text, &[])
                    .map_err(|error| self.unusable(&format!("{}: {error}", file.display())))?;
                (registry.register(&self.subject, &text)?, text, Vec::new())
            }
            None => {
                let latest = registry.latest(&self.subject)?;
                (latest.id, latest.text, latest.references)
            }
        };
        let before = self.writer();
        if before.as_ref().is_some_and(|before| before.id == id && before.text == text) {
            return Ok(());
        }
        let schema = Schema::parse(&text, &references).map_err(|error| {
            self.unusable(&format!("the latest schema of the subject {:?}: {error}", self.subject))
        })?;
        tracing::info!(
            id,
            subject = self.subject,
            "records of {:?} are encoded as {}",
            self.filter,
            schema.root_name()
        );
        *self.writer.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::new(Writer { id, text, schema }));
        Ok(())
    }

    fn unusable(&self, why: &str) -> SinkError {
        SinkError::Operator(format!(
            "kafka.routes: the route for {:?}: its schema cannot be used: {why}",
            self.filter
        ))
    }
}

fn read_file(file: &std::path::Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("{} cannot be read: {error}", file.display()))
}

/// Every mistake in what `routes` say of encodings, without `kafka.routes: ` before it.
pub(in crate::kafka) fn mistakes(config: &RegistryConfig, routes: &[RouteConfig]) -> Vec<String> {
    let mut mistakes = Vec::new();
    for route in routes {
        let mut wrong = |why: &str| mistakes.push(format!("the route for {:?}: {why}", route.filter));
        match route.encoding {
            None if route.schema.is_some() => wrong("there is a schema and no encoding = \"avro\""),
            None if route.subject.is_some() => wrong("there is a subject and no encoding = \"avro\""),
            None => {}
            Some(Encoding::Avro) => {
                if config.url.is_empty() {
                    wrong("encoding = \"avro\" needs kafka.schema_registry.url");
                }
                if route.subject.as_deref() == Some("") {
                    wrong(
                        "the subject is empty: leave it out for the name of the topic with -value behind it",
                    );
                }
            }
        }
    }
    mistakes
}

/// Which files of schemas and passwords cannot be used now, and why.
pub(in crate::kafka) fn unusable_files(config: &RegistryConfig, routes: &[RouteConfig]) -> Vec<String> {
    let encoding = || routes.iter().filter(|route| route.encoding.is_some());
    let mut unusable: Vec<String> = encoding()
        .filter_map(|route| {
            let file = route.schema.as_ref()?;
            let read = read_file(file).and_then(|text| {
                Schema::parse(&text, &[]).map_err(|error| format!("{}: {error}", file.display()))
            });
            read.err().map(|why| format!("kafka.routes: the route for {:?}: schema: {why}", route.filter))
        })
        .collect();
    if encoding().next().is_some() {
        unusable.extend(config.read_password().err());
    }
    unusable
}
