//! The certificate the broker shows, and whom it lets show one.
//!
//! Files are read whole and checked before anything of them is used: a file with a mistake leaves the certificate of
//! before in use. Connections that are open keep what they began with.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use x509_cert::Certificate;
use x509_cert::der::asn1::{Any, PrintableString, TeletexString, Utf8StringRef};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Decode as _, Tag, Tagged as _};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// `id-at-commonName` (X.520).
const CN: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// The files, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities whose certificates clients may show; without it no client is asked for one.
    pub client_authorities: Option<PathBuf>,
    /// Whether a client must show one.
    pub client_required: bool,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be read, or is no PEM.
    #[error("cannot read {} from {}: {error}", what, path.display())]
    Read {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        error: PemError,
    },
    /// It has nothing of what should be in it.
    #[error("{} has no {what} in PEM", path.display())]
    Missing {
        /// What should be in it; a key under a passphrase is none.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not work together.
    #[error("the certificate in {} and the key in {} cannot be used: {error}", certificate.display(), key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        error: rustls::Error,
    },
    /// The authorities for clients cannot be used.
    #[error("the authorities in {} cannot be used: {error}", path.display())]
    Authorities {
        /// Their file.
        path: PathBuf,
        /// Why.
        error: String,
    },
}

/// By what a changed file is known.
type Stamp = Vec<Option<(i64, i64, u64, u64)>>;

/// The certificate in use; it can be replaced while connections are open.
#[derive(Debug)]
pub struct Certificates {
    files: CertificateFiles,
    current: RwLock<Arc<ServerConfig>>,
    seen: Mutex<Stamp>,
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// If they cannot be used, with the file and the reason.
    pub fn load(files: CertificateFiles) -> Result<Self, CertificateError> {
        let stamp = stamp(&files);
        let current = RwLock::new(Arc::new(configure(&files)?));
        Ok(Self { files, current, seen: Mutex::new(stamp) })
    }

    /// Reads the files again; connections from now on see the new certificate.
    ///
    /// # Errors
    ///
    /// If they cannot be used; the certificate of before stays.
    pub fn reload(&self) -> Result<(), CertificateError> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = stamp(&self.files);
        let config = Arc::new(configure(&self.files)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Whether a file is not the one that was read last.
    pub fn changed(&self) -> bool {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) != stamp(&self.files)
    }

    /// The files.
    pub const fn files(&self) -> &CertificateFiles {
        &self.files
    }

    /// What a connection that begins now is served with.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn stamp(files: &CertificateFiles) -> Stamp {
    let all = [Some(&files.certificate), Some(&files.key), files.client_authorities.as_ref()];
    let look = |path: &PathBuf| fs::metadata(path).ok();
    let stamp = |meta: fs::Metadata| (meta.mtime(), meta.mtime_nsec(), meta.len(), meta.ino());
    all.into_iter().flatten().map(|path| look(path).map(stamp)).collect()
}

fn configure(files: &CertificateFiles) -> Result<ServerConfig, CertificateError> {
    let chain = certificates("a certificate", &files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unreadable("a private key without passphrase", &files.key, error))?;
    let unusable = |error| CertificateError::Unusable {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        error,
    };
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match &files.client_authorities {
        Some(path) => builder.with_client_cert_verifier(verifier(path, files.client_required)?),
        None => builder.with_no_client_auth(),
    };
    builder.with_single_cert(chain, key).map_err(unusable)
}

fn verifier(path: &Path, required: bool) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
    let refuse = |error: &dyn std::fmt::Display| CertificateError::Authorities {
        path: path.to_owned(),
        error: error.to_string(),
    };
    let mut roots = RootCertStore::empty();
    for authority in certificates("a certificate", path)? {
        roots.add(authority).map_err(|error| refuse(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| refuse(&error))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let all: Vec<_> = read.map_err(|error| unreadable(what, path, error))?;
    if all.is_empty() { Err(CertificateError::Missing { what, path: path.to_owned() }) } else { Ok(all) }
}

fn unreadable(what: &'static str, path: &Path, error: PemError) -> CertificateError {
    let path = path.to_owned();
    if matches!(error, PemError::NoItemsFound) {
        CertificateError::Missing { what, path }
    } else {
        CertificateError::Read { what, path, error }
    }
}

/// Whom a certificate names: its Common Name, else its first DNS name, URI or e-mail address.
pub(super) fn identity(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let certificate = certificate.tbs_certificate();
    let named = certificate.subject().iter().filter(|attribute| attribute.oid == CN);
    let common = named.filter_map(|attribute| text(&attribute.value)).find(|name| !name.is_empty());
    if common.is_some() {
        return common;
    }
    let (_, SubjectAltName(names)) = certificate.get_extension::<SubjectAltName>().ok()??;
    names.iter().find_map(|name| match name {
        GeneralName::DnsName(name)
        | GeneralName::UniformResourceIdentifier(name)
        | GeneralName::Rfc822Name(name) => Some(name.to_string()).filter(|name| !name.is_empty()),
        GeneralName::OtherName(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EdiPartyName(_)
        | GeneralName::IpAddress(_)
        | GeneralName::RegisteredId(_) => None,
    })
}

/// A string of a name, in the encodings that are in use.
fn text(value: &Any) -> Option<String> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the other tags of ASN.1 are no texts of names")]
    match value.tag() {
        Tag::Utf8String => value.decode_as::<Utf8StringRef<'_>>().ok().map(|text| text.as_str().to_owned()),
        Tag::PrintableString => value.decode_as::<PrintableString>().ok().map(|text| text.to_string()),
        Tag::TeletexString => value.decode_as::<TeletexString>().ok().map(|text| text.to_string()),
        Tag::Ia5String => std::str::from_utf8(value.value()).ok().map(str::to_owned),
        _ => None,
    }
}
