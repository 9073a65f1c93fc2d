//! A door before a registry that has neither TLS nor passwords: speaks HTTPS and wants HTTP Basic authentication.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::server::TlsStream;

use crate::support::http;

/// An open door; closed with the test.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) address: SocketAddr,
    authority: String,
    task: JoinHandle<()>,
}

impl Gate {
    /// Lets `user` with `password` through to `registry`.
    pub(super) async fn open(registry: SocketAddr, user: &str, password: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let expected = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Who does not trust the certificate goes away.
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = pass(stream, registry, &expected).await;
                }
            }
        });
        Self { address, authority: authority.pem(), task }
    }

    /// Who signed its certificate, in PEM.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers one request.
async fn pass(mut stream: TlsStream<TcpStream>, registry: SocketAddr, expected: &str) -> std::io::Result<()> {
    let mut received = Vec::new();
    let (head, body_start) = loop {
        if stream.read_buf(&mut received).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break (String::from_utf8(received[..end].to_vec()).unwrap(), end + 4);
        }
    };
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    let body_bytes = header("content-length").map_or(0, |length| length.parse().unwrap());
    while received.len() < body_start + body_bytes {
        stream.read_buf(&mut received).await?;
    }
    let (status, body) = if header("authorization") == Some(expected) {
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let headers = [("Content-Type", header("content-type").unwrap_or("application/json"))];
        let reply = http::request(registry, method, path, &headers, &received[body_start..]).await?;
        (reply.status, reply.body.to_vec())
    } else {
        (401, br#"{"error_code": 401, "message": "Unauthorized"}"#.to_vec())
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Answer\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await
}
