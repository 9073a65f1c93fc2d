//! The operating system's sockets behind the rarer transports.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

use super::descriptors::Descriptors;

/// A connected socket.
#[derive(Debug)]
pub(super) enum Net {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Net {
    /// Where there is room for clients, or as it is.
    pub(super) fn place(self, descriptors: Descriptors) -> Result<Self, Self> {
        match self {
            Self::Tcp(stream) => descriptors.place(stream).map(Self::Tcp).map_err(Self::Tcp),
            Self::Unix(stream) => descriptors.place(stream).map(Self::Unix).map_err(Self::Unix),
        }
    }

    /// Lets what is written leave at once.
    pub(super) fn set_nodelay(&self) {
        match self {
            // A peer that is gone already is seen by the next read.
            Self::Tcp(stream) => _ = stream.set_nodelay(true),
            Self::Unix(_) => {}
        }
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn end_writing(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl Read for Net {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match self {
                Self::Tcp(stream) => stream.read(buffer),
                Self::Unix(stream) => stream.read(buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

impl Write for Net {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            let written = match self {
                Self::Tcp(stream) => stream.write_vectored(pieces),
                Self::Unix(stream) => stream.write_vectored(pieces),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Net {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.register(registry, token, interest),
            Self::Unix(stream) => stream.register(registry, token, interest),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.reregister(registry, token, interest),
            Self::Unix(stream) => stream.reregister(registry, token, interest),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.deregister(registry),
            Self::Unix(stream) => stream.deregister(registry),
        }
    }
}
