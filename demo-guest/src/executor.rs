//! A small executor for one thread: tasks, a flag that says that one of them may
//! go on, and tasks that wait for a time.
//!
//! The owner alternates between the stack's driver and
//! [`Executor::run_ready`], and sleeps when neither has work, until
//! [`Executor::wake_sleepers`] has some at the latest. It has no clock: time is
//! an argument.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

use futures_util::stream::{FuturesUnordered, Stream};
use guest_stack::time::Instant;
use lock_api::Mutex;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tasks that were spawned and not yet taken over by the executor.
struct Inbox<R: lock_api::RawMutex> {
    tasks: Mutex<R, Vec<Task>>,
    woken: Arc<Woken>,
    sleepers: Mutex<R, Sleepers>,
}

/// Who waits for a time. The second part of the key tells two apart that wait
/// for the same one.
#[derive(Default)]
struct Sleepers {
    by_time: BTreeMap<(Instant, u64), Waker>,
    next: u64,
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

    /// Waits for a time, at which or soon after which the owner of the executor
    /// comes.
    pub fn sleep_until(&self, time: Instant) -> Sleep<R> {
        Sleep {
            time,
            inbox: self.0.clone(),
            place: None,
        }
    }
}

/// Waits for a time.
pub struct Sleep<R: lock_api::RawMutex> {
    time: Instant,
    inbox: Arc<Inbox<R>>,
    place: Option<u64>,
}

impl<R: lock_api::RawMutex> Future for Sleep<R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut sleepers = this.inbox.sleepers.lock();
        match this.place {
            None => {
                let place = sleepers.next;
                sleepers.next += 1;
                sleepers
                    .by_time
                    .insert((this.time, place), context.waker().clone());
                this.place = Some(place);
                Poll::Pending
            }
            Some(place) => match sleepers.by_time.get_mut(&(this.time, place)) {
                Some(waker) => {
                    waker.clone_from(context.waker());
                    Poll::Pending
                }
                // Taken out when the time came.
                None => Poll::Ready(()),
            },
        }
    }
}

impl<R: lock_api::RawMutex> Drop for Sleep<R> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.inbox
                .sleepers
                .lock()
                .by_time
                .remove(&(self.time, place));
        }
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
                sleepers: Mutex::new(Sleepers::default()),
            }),
        }
    }
}

impl<R: lock_api::RawMutex> Executor<R> {
    /// A handle that starts tasks.
    pub fn spawner(&self) -> Spawner<R> {
        Spawner(self.inbox.clone())
    }

    /// Wakes the tasks whose time has come; says when the next one's comes.
    /// [`run_ready`](Self::run_ready) runs them, and may add others.
    pub fn wake_sleepers(&self, now: Instant) -> Option<Instant> {
        let mut sleepers = self.inbox.sleepers.lock();
        while let Some(first) = sleepers.by_time.first_entry() {
            let (time, _) = *first.key();
            if time > now {
                return Some(time);
            }
            first.remove().wake();
        }
        None
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

#[cfg(test)]
mod tests {
    use super::*;

    type TestExecutor = Executor<parking_lot::RawMutex>;

    fn at(micros: i64) -> Instant {
        Instant::from_micros(micros)
    }

    /// A task that notes in `log` that it was woken, and when it was to be.
    fn note(executor: &TestExecutor, log: &Arc<Mutex<parking_lot::RawMutex, Vec<i64>>>, time: i64) {
        let (sleep, log) = (executor.spawner().sleep_until(at(time)), log.clone());
        executor.spawner().spawn(async move {
            sleep.await;
            log.lock().push(time);
        });
    }

    #[test]
    fn sleepers_wake_in_the_order_of_their_times_and_not_before() {
        let mut executor = TestExecutor::default();
        let log = Arc::new(Mutex::new(Vec::new()));
        for time in [30, 10, 20, 10] {
            note(&executor, &log, time);
        }
        assert!(executor.run_ready());
        assert_eq!(executor.wake_sleepers(at(9)), Some(at(10)));
        assert!(!executor.run_ready());
        assert_eq!(executor.wake_sleepers(at(25)), Some(at(30)));
        assert!(executor.run_ready());
        assert_eq!(*log.lock(), [10, 10, 20]);
        assert_eq!(executor.wake_sleepers(at(30)), None);
        executor.run_ready();
        assert_eq!(*log.lock(), [10, 10, 20, 30]);
    }

    #[test]
    fn a_sleep_that_is_given_up_leaves_nothing_behind() {
        let mut executor = TestExecutor::default();
        let mut sleep = Box::pin(executor.spawner().sleep_until(at(5)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(sleep.as_mut().poll(&mut context).is_pending());
        assert_eq!(executor.wake_sleepers(at(0)), Some(at(5)));
        drop(sleep);
        assert_eq!(executor.wake_sleepers(at(0)), None);
        assert!(!executor.run_ready());
    }
}
