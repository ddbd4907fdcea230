//! Threads that ports run on, each with a runtime of its own.
//!
//! A port that once runs on a thread stays there. A runtime that shares its tasks
//! among threads would move a busy port back and forth, and wake a thread to take
//! it over; a wake-up costs more than the port's work. New ports go to the thread
//! with the fewest. The daemon starts the threads, before it gives up the right to
//! start any; a monitor that embeds the bridge may, or runs its ports on its own
//! runtime ([`Workers::none`]).

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinError;

/// Threads that ports run on. They end with the last clone.
#[derive(Debug, Clone)]
pub struct Workers(Arc<[Worker]>);

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// Ports that run there.
    ports: Arc<AtomicUsize>,
    /// Dropped, it ends the thread.
    _running: oneshot::Sender<()>,
}

/// A port's place on a thread, given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    runtime: Option<Handle>,
    ports: Arc<AtomicUsize>,
}

impl Workers {
    /// No threads: ports run on the runtime in which they are attached.
    pub fn none() -> Self {
        Self(Arc::new([]))
    }

    /// Starts `count` threads, in the network namespace and with the rights of
    /// this one.
    ///
    /// # Errors
    /// The system's, if there are too many threads or descriptors already.
    pub fn start(count: usize) -> io::Result<Self> {
        (0..count)
            .map(Worker::start)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// A place on the thread with the fewest ports.
    pub(crate) fn seat(&self) -> Seat {
        let worker = self
            .0
            .iter()
            .min_by_key(|worker| worker.ports.load(Ordering::Relaxed));
        let ports = worker.map_or_else(Arc::default, |worker| worker.ports.clone());
        // Two at the same time may choose the same thread, which is no harm.
        ports.fetch_add(1, Ordering::Relaxed);
        Seat {
            runtime: worker.map(|worker| worker.runtime.clone()),
            ports,
        }
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (running, ended) = oneshot::channel();
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                // What it says is that the sender is gone.
                let _ = runtime.block_on(ended);
            })?;
        Ok(Self {
            runtime: handle,
            ports: Arc::default(),
            _running: running,
        })
    }
}

impl Seat {
    /// Runs `work` on the seat's thread, and so what it spawns.
    ///
    /// # Errors
    /// If `work` panicked, or the thread ended.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, JoinError> {
        match &self.runtime {
            Some(runtime) => runtime.spawn(work).await,
            None => Ok(work.await),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.ports.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ports_are_spread_over_the_threads_and_their_places_given_back() {
        let workers = Workers::start(2).unwrap();
        let name = async |seat: &Seat| {
            let name = async { thread::current().name().unwrap().to_owned() };
            seat.run(name).await.unwrap()
        };
        let seats = [workers.seat(), workers.seat(), workers.seat()];
        let [a, b, c] = &seats;
        assert_eq!(name(a).await, "worker-0");
        assert_eq!(name(b).await, "worker-1");
        assert_eq!(name(c).await, "worker-0");
        let [a, _b, c] = seats;
        drop((a, c));
        assert_eq!(name(&workers.seat()).await, "worker-0");
    }

    #[tokio::test]
    async fn without_threads_work_is_done_where_it_is_given() {
        let here = thread::current().id();
        let seat = Workers::none().seat();
        let there = seat.run(async { thread::current().id() }).await.unwrap();
        assert_eq!(here, there);
    }

    #[tokio::test]
    async fn the_threads_end_with_the_last_clone() {
        struct Tell(Option<oneshot::Sender<()>>);
        impl Drop for Tell {
            fn drop(&mut self) {
                let _ = self.0.take().unwrap().send(());
            }
        }
        let workers = Workers::start(1).unwrap();
        let (told, gone) = oneshot::channel();
        let tell = Tell(Some(told));
        let endless = async move {
            let _tell = tell;
            std::future::pending::<()>().await;
        };
        let seat = workers.seat();
        let spawn = async { drop(tokio::spawn(endless)) };
        seat.run(spawn).await.unwrap();
        drop((workers, seat));
        gone.await.unwrap();
    }
}
