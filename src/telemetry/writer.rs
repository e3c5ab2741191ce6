//! Writes to standard error without ever blocking the caller.
//!
//! If a log collector hangs, its pipe fills up and writes block until something reads again. The relay has a single
//! thread, so that would stop publishing, leases, probes and signals as well. Lines therefore go through a queue to a
//! dedicated thread. If the queue is full, lines are dropped and counted, and the count is logged once lines get through again.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait at most: some hundred kilobytes.
const QUEUE: usize = 1024;

/// Longest wait for the last lines when the process ends.
const LAST_LINES: Duration = Duration::from_secs(1);

enum Entry {
    Line(Vec<u8>),
    /// Answered when all before it is written.
    Flush(SyncSender<()>),
}

/// Where lines are written to. Cheap to clone.
#[derive(Clone)]
pub(super) struct Lines {
    queue: SyncSender<Entry>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Lines that end in `output`, written by a thread of its own.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn to(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, entries) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(output, &entries, &counted))?;
        Ok(Self { queue, lost })
    }

    /// Waits, up to a limit, until all lines so far are written.
    fn flush(&self) {
        let (done, written) = sync_channel(1);
        // If the queue is full, nothing is reading it.
        if self.queue.try_send(Entry::Flush(done)).is_ok() {
            let _ = written.recv_timeout(LAST_LINES);
        }
    }
}

/// The writer thread: runs until all senders are gone.
fn write(mut output: impl Write, entries: &Receiver<Entry>, lost: &AtomicU64) {
    for entry in entries {
        match entry {
            Entry::Line(line) => {
                // A log that cannot be written, to a full disk say, has nowhere to say so.
                let _ = output.write_all(&line);
                let lines = lost.swap(0, Ordering::Relaxed);
                if lines > 0 {
                    tracing::warn!(
                        lines,
                        "lines of this log are lost: standard error was not read for a while"
                    );
                }
            }
            Entry::Flush(done) => {
                let _ = done.try_send(());
            }
        }
    }
}

impl<'w> MakeWriter<'w> for Lines {
    type Writer = &'w Lines;

    fn make_writer(&'w self) -> Self::Writer {
        self
    }
}

impl Write for &Lines {
    /// Takes a whole line: the formatter writes each by one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Entry::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the log going. Dropped before the process ends, it waits for the last lines, for a second at most.
#[must_use = "the last lines are lost if it is not dropped at the end"]
pub struct Logging(pub(super) Lines);

impl Drop for Logging {
    fn drop(&mut self) {
        self.0.flush();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Takes a line only when it is let.
    struct Held {
        let_go: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Held {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.let_go.recv();
            let _ = self
                .written
                .send(String::from_utf8(bytes.to_vec()).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_is_lost_is_counted() {
        let (go, let_go) = channel();
        let (written, lines) = channel();
        let log = Lines::to(Held { let_go, written }).unwrap();
        let sent = QUEUE * 2;
        for n in 0..sent {
            (&log).write_all(format!("{n}\n").as_bytes()).unwrap();
        }
        // It may hold one line already.
        let lost = log.lost.load(Ordering::Relaxed);
        let kept = sent as u64 - lost;
        assert!((QUEUE as u64..=QUEUE as u64 + 1).contains(&kept), "{kept}");
        drop(Logging(log.clone()));
        go.send(()).unwrap();
        assert_eq!(lines.recv().unwrap(), "0\n");
        // The rest goes on in order, and in the end nothing is counted twice.
        drop(go);
        for n in 1..kept {
            assert_eq!(lines.recv().unwrap(), format!("{n}\n"));
        }
        drop(Logging(log.clone()));
        assert_eq!(log.lost.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_last_lines_are_waited_for() {
        let (written, lines) = channel();
        let (go, let_go) = channel();
        drop(go);
        let log = Lines::to(Held { let_go, written }).unwrap();
        let logging = Logging(log.clone());
        let layer = tracing_subscriber::fmt::layer().with_writer(log);
        tracing::subscriber::with_default(Registry::default().with(layer), || {
            tracing::warn!("the last");
        });
        drop(logging);
        let line = lines.try_recv().unwrap();
        assert!(line.ends_with('\n') && line.contains("the last"), "{line}");
        assert!(lines.try_recv().is_err(), "one call for one line");
    }
}
