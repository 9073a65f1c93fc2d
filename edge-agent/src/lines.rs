//! Standard input and output, each on a thread of its own because they block: lines come in, answers go out.
//!
//! Both are bounded. The agent takes no more lines while it cannot write them down or its answers are not read,
//! so that whoever writes lines is held back by the pipe and nothing is dropped.

use std::io::{self, BufRead, Read, Write};

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};

use crate::reading::LINE_BYTES_MAX;

/// Lines read ahead of the agent.
const LINES_MAX: usize = 256;
const STACK_BYTES: usize = 128 * 1024;

/// One line of standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Counted from 1.
    pub(crate) number: u64,
    /// Without its end; cut off shortly behind [`LINE_BYTES_MAX`] if it is longer.
    pub(crate) bytes: Vec<u8>,
}

/// Starts to read `input`; the channel ends when it does.
pub(crate) fn read_lines(input: impl Read + Send + 'static) -> anyhow::Result<mpsc::Receiver<Line>> {
    let (sender, receiver) = mpsc::channel(LINES_MAX);
    let thread = std::thread::Builder::new().name("stdin".to_owned()).stack_size(STACK_BYTES);
    let read = move || {
        let mut input = io::BufReader::new(input);
        for number in 1.. {
            match read_line(&mut input) {
                Ok(Some(bytes)) => {
                    if sender.blocking_send(Line { number, bytes }).is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => return tracing::error!("standard input cannot be read any further: {error}"),
            }
        }
    };
    thread.spawn(read).context("starting the thread that reads standard input")?;
    Ok(receiver)
}

/// Reads up to the end of the line, but keeps only so much that a line that is too long can be told from one
/// that is not. `None` at the end of the input.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    if input.by_ref().take(LINE_BYTES_MAX as u64 + 2).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    } else {
        input.skip_until(b'\n')?;
    }
    Ok(Some(line))
}

/// Answers on their way to standard output.
#[derive(Debug)]
pub(crate) struct Answers {
    sender: Option<mpsc::Sender<String>>,
    ended: oneshot::Receiver<()>,
}

impl Answers {
    /// Starts to write to `output`.
    pub(crate) fn write_to(mut output: impl Write + Send + 'static) -> anyhow::Result<Self> {
        let (sender, mut receiver) = mpsc::channel::<String>(1);
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("stdout".to_owned()).stack_size(STACK_BYTES);
        let write = move || {
            while let Some(text) = receiver.blocking_recv() {
                if let Err(error) = output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
                    tracing::error!(
                        "lines are not answered any more: standard output cannot be written: {error}"
                    );
                    break;
                }
            }
            // Nobody waits for it any more if the agent has ended.
            let _ = end.send(());
        };
        thread.spawn(write).context("starting the thread that writes standard output")?;
        Ok(Self { sender: Some(sender), ended })
    }

    /// Waits until [`Answers::send`] would take something, or would never again. Cancel safe.
    pub(crate) async fn ready(&self) {
        if let Some(sender) = &self.sender {
            // The permit is given back at once; this task is the only one that sends.
            let _ = sender.reserve().await;
        }
    }

    /// Whether [`Answers::send`] would take something.
    pub(crate) fn is_ready(&self) -> bool {
        self.sender.as_ref().is_none_or(|sender| sender.is_closed() || sender.capacity() > 0)
    }

    /// Passes whole lines on. They are lost if nobody reads standard output any more.
    pub(crate) fn send(&self, text: String) {
        if let Some(sender) = &self.sender {
            // Full cannot be, for the caller asked; closed has been told by the thread that closed it.
            let _ = sender.try_send(text);
        }
    }

    /// Waits until everything is written.
    pub(crate) async fn finish(mut self) {
        self.sender = None;
        // An error is the thread having ended, which is what is waited for.
        let _ = self.ended.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8]) -> Vec<Vec<u8>> {
        let mut input = io::Cursor::new(input.to_vec());
        std::iter::from_fn(|| read_line(&mut input).unwrap()).collect()
    }

    #[test]
    fn lines_lose_their_ends_and_the_last_needs_none() {
        assert_eq!(lines(b"a\r\n\nb"), [&b"a"[..], b"", b"b"]);
        assert_eq!(lines(b""), [b""; 0]);
    }

    #[test]
    fn a_line_that_never_ends_takes_no_memory_and_harms_no_other() {
        let mut input = vec![b'x'; 5 * LINE_BYTES_MAX];
        input.extend_from_slice(b"\nnext\n");
        let lines = lines(&input);
        assert!(lines[0].len() > LINE_BYTES_MAX && lines[0].len() <= LINE_BYTES_MAX + 2);
        assert_eq!(lines[1..], [b"next"]);
        let longest = [&vec![b'x'; LINE_BYTES_MAX][..], b"\r\n"].concat();
        assert_eq!(self::lines(&longest), [vec![b'x'; LINE_BYTES_MAX]]);
    }
}
