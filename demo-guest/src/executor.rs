//! A small executor for one thread: tasks, and a flag that says that one of them
//! may go on.
//!
//! The owner alternates between the stack's driver and
//! [`Executor::run_ready`], and sleeps when neither has work.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll};

use futures_util::stream::{FuturesUnordered, Stream};
use lock_api::Mutex;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tasks that were spawned and not yet taken over by the executor.
struct Inbox<R: lock_api::RawMutex> {
    tasks: Mutex<R, Vec<Task>>,
    woken: Arc<Woken>,
}

/// Set when some task may go on.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // ORDERING: Release pairs with the Acquire in `run_ready`.
        self.0.store(true, Ordering::Release);
    }
}

/// Starts tasks, from within tasks too.
pub struct Spawner<R: lock_api::RawMutex>(Arc<Inbox<R>>);

impl<R: lock_api::RawMutex> Clone for Spawner<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R: lock_api::RawMutex> Spawner<R> {
    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.lock().push(Box::pin(task));
        self.0.woken.wake_by_ref();
    }
}

/// The executor.
pub struct Executor<R: lock_api::RawMutex> {
    tasks: FuturesUnordered<Task>,
    inbox: Arc<Inbox<R>>,
}

impl<R: lock_api::RawMutex> Default for Executor<R> {
    fn default() -> Self {
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        Self {
            tasks: FuturesUnordered::new(),
            inbox: Arc::new(Inbox {
                tasks: Mutex::new(Vec::new()),
                woken,
            }),
        }
    }
}

impl<R: lock_api::RawMutex> Executor<R> {
    /// A handle that starts tasks.
    pub fn spawner(&self) -> Spawner<R> {
        Spawner(self.inbox.clone())
    }

    /// Runs every task that can go on, until none can; says whether there was
    /// one.
    pub fn run_ready(&mut self) -> bool {
        let mut ran = false;
        // ORDERING: pairs with the Release in `Woken`.
        while self.inbox.woken.0.swap(false, Ordering::Acquire) {
            ran = true;
            self.tasks.extend(self.inbox.tasks.lock().drain(..));
            let waker = self.inbox.woken.clone().into();
            let mut context = Context::from_waker(&waker);
            while let Poll::Ready(Some(())) = Pin::new(&mut self.tasks).poll_next(&mut context) {}
        }
        ran
    }
}
