//! The thread that owns a compute device, and the handle to it.
//!
//! All models of a device share its thread, which runs one step of each busy model in turn, so they never fight
//! over the device. Models are read and laid out on other threads and arrive here ready to run.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::memory::Ledger;
use super::runner::Submission;
use super::start::{AnyBackend, DeviceOptions, Opened};
use super::{Event, GenerateError};
use crate::backend::DeviceError;

/// A handle to one device thread. The thread ends when the last handle, engine and generation are gone.
#[derive(Clone)]
pub struct Device {
    backend: AnyBackend,
    ledger: Arc<Ledger>,
    warning: Option<String>,
    thread: DeviceThread,
}

impl Device {
    /// Starts the device thread, and on it the device. MLX belongs to the thread that had it first for as long as the
    /// process lives: another device cannot use it, not even when that one is gone.
    pub fn start(options: DeviceOptions) -> Result<Self, DeviceError> {
        let (sender, receiver) = channel();
        let memory_bytes = options.memory_bytes;
        let ledger = Arc::new(Ledger::new());
        let thread = DeviceThread::spawn(ledger.clone(), move || {
            let opened = AnyBackend::open(&options);
            let backend = opened.as_ref().ok().map(|opened| opened.backend.clone());
            // Nobody waits for it only if the process is ending.
            let _ = sender.send(opened);
            backend.map(|backend| Box::new(move || backend.free_bytes()) as FreeBytes)
        });
        let cannot = |why: String| DeviceError::Failed(format!("cannot start a thread: {why}"));
        let thread = thread.map_err(|error| cannot(error.to_string()))?;
        let opened = receiver.recv().map_err(|_| cannot("it ended at once".to_owned()))??;
        let Opened { backend, warning } = opened;
        let free = || backend.room().map(|free| free / 10 * 9);
        if let Some(bytes) = memory_bytes.or_else(free) {
            ledger.set_ceiling(bytes);
        }
        Ok(Self { backend, ledger, warning, thread })
    }

    /// Bytes that all models together may have; `None` if nobody knows how much memory there is.
    pub fn memory_bytes(&self) -> Option<usize> {
        self.ledger.ceiling()
    }

    /// Why it is not the device that one could expect, if so.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// For logs and people: `cpu, 8 threads, avx2` or `cuda, NVIDIA H100 80GB HBM3, mlx 0.32.4`.
    pub fn describe(&self) -> String {
        self.backend.describe()
    }

    /// Bytes a second that the device's threads read from memory together, measured now, which takes a second or two and
    /// wants an idle device. `None` if it is not the CPU, or too little memory is free to tell.
    pub fn read_bandwidth(&self) -> Option<f64> {
        self.backend.read_bandwidth()
    }

    /// False after `stop`, or if the thread is lost.
    pub fn is_running(&self) -> bool {
        self.thread.is_running()
    }

    /// Ends the running answers of all models and waits for the thread. For a tidy exit; dropping the last handle
    /// does the same without waiting.
    pub fn stop(&self) {
        self.thread.stop();
    }

    pub(super) fn backend(&self) -> &AnyBackend {
        &self.backend
    }

    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    pub(super) fn thread(&self) -> &DeviceThread {
        &self.thread
    }
}

/// Names a model on its device thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RunnerId(u64);

/// Names a request on its device thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RequestId(pub(super) u64);

/// Lets a model know that something has come for it from another thread.
pub(super) type Waker = Arc<dyn Fn() + Send + Sync>;

/// A model as the device thread drives it.
pub(super) trait Runner: Send {
    /// It was added to its device: this is how other threads can call `wake`.
    fn added(&mut self, _: Waker) {}
    /// Takes what has come for it.
    fn wake(&mut self) {}
    fn submit(&mut self, request: RequestId, submission: Submission);
    /// Ends a request without further events. Unknown and finished ones are ignored.
    fn cancel(&mut self, request: RequestId);
    fn is_idle(&self) -> bool;
    /// Plans, computes, chooses and sends one step of everything that is running.
    fn step(&mut self);
    /// Gives back what is beyond its budget for keys and values.
    fn settle(&mut self);
    /// Ends everything that is running or waiting, and what is to outlive it is put away until then.
    fn stop(&mut self, until: Instant);
}

enum Command {
    Add(RunnerId, Box<dyn Runner>),
    Remove(RunnerId),
    Submit(RunnerId, RequestId, Box<Submission>),
    Cancel(RunnerId, RequestId),
    Wake(RunnerId),
    Settle(Sender<()>),
    Stop,
}

#[derive(Clone)]
pub(super) struct DeviceThread {
    commands: Sender<Command>,
    next_id: Arc<AtomicU64>,
    join: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl DeviceThread {
    /// `open` runs on the new thread, which ends at once if it opens nothing.
    fn spawn(
        ledger: Arc<Ledger>,
        open: impl FnOnce() -> Option<FreeBytes> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (commands, receiver) = channel();
        let join = std::thread::Builder::new().name("device".to_owned()).spawn(move || {
            if let Some(free) = open() {
                let (runners, looked) = (BTreeMap::new(), Instant::now());
                Loop { commands: receiver, runners, ledger, free, looked }.run();
            }
        })?;
        Ok(Self { commands, next_id: Arc::default(), join: Arc::new(Mutex::new(Some(join))) })
    }

    pub(super) fn add(&self, mut runner: Box<dyn Runner>) -> Arc<Port> {
        let id = RunnerId(self.next());
        let commands = self.commands.clone();
        runner.added(Arc::new(move || {
            let _ = commands.send(Command::Wake(id));
        }));
        // A send fails only after `stop`; what is submitted then sees its event channel close.
        let _ = self.commands.send(Command::Add(id, runner));
        Arc::new(Port { thread: self.clone(), runner: id })
    }

    /// Lets all models give back what is beyond their budgets, and returns when they have.
    pub(super) fn settle(&self) {
        let (done, wait) = channel();
        // A thread that is gone has given back everything.
        if self.commands.send(Command::Settle(done)).is_ok() {
            let _ = wait.recv();
        }
    }

    fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
        let join = self.join.lock().expect("nothing panics under this lock").take();
        if let Some(join) = join {
            // The loop catches the panics of steps; if it died all the same there is nothing left to wait for.
            let _ = join.join();
        }
    }

    fn is_running(&self) -> bool {
        let join = self.join.lock().expect("nothing panics under this lock");
        join.as_ref().is_some_and(|join| !join.is_finished())
    }

    fn next(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// One model's end of the command channel, held by its engine and its generations. The model leaves the device when
/// the last of them drops it.
pub(super) struct Port {
    thread: DeviceThread,
    runner: RunnerId,
}

impl Port {
    pub(super) fn submit(&self, submission: Submission) -> Result<RequestId, GenerateError> {
        let request = RequestId(self.thread.next());
        let command = Command::Submit(self.runner, request, Box::new(submission));
        match self.thread.commands.send(command) {
            Ok(()) => Ok(request),
            Err(_) => Err(GenerateError::ShuttingDown),
        }
    }

    /// Has the model look for what has come for it.
    pub(super) fn wake(&self) {
        let _ = self.thread.commands.send(Command::Wake(self.runner));
    }

    pub(super) fn same_device(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.thread.next_id, &other.thread.next_id)
    }

    pub(super) fn cancel(&self, request: RequestId) {
        let _ = self.thread.commands.send(Command::Cancel(self.runner, request));
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let _ = self.thread.commands.send(Command::Remove(self.runner));
    }
}

struct Loop {
    commands: Receiver<Command>,
    runners: BTreeMap<RunnerId, Box<dyn Runner>>,
    ledger: Arc<Ledger>,
    free: FreeBytes,
    /// When the system was last asked for it.
    looked: Instant,
}

/// How much memory the system has left, where it says so.
type FreeBytes = Box<dyn Fn() -> Option<usize>>;

/// How long a model's end may take for what is still to be written to disk; others wait for it.
const LAST_WRITES: Duration = Duration::from_secs(3);

/// How often the system is asked for it.
const LOOK: Duration = Duration::from_secs(1);

impl Loop {
    fn run(mut self) {
        while self.take_commands() {
            self.look_at_memory();
            let busy: Vec<RunnerId> = self.ids(|runner| !runner.is_idle());
            for id in busy {
                self.drive(id, |runner| runner.step());
            }
        }
        let until = Instant::now() + LAST_WRITES;
        for id in self.ids(|_| true) {
            self.drive(id, |runner| runner.stop(until));
        }
    }

    /// Lets models give back what they can spare when the system is short of memory.
    fn look_at_memory(&mut self) {
        if self.runners.is_empty() || self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        if let Some(free) = (self.free)()
            && self.ledger.observe(free, 0)
        {
            tracing::debug!(free_mb = free >> 20, "short of memory, budgets are smaller");
            self.settle();
        }
    }

    fn settle(&mut self) {
        for id in self.ids(|_| true) {
            self.drive(id, |runner| runner.settle());
        }
    }

    /// Takes what has arrived; sleeps only when there is nothing to compute. False when the device is to end.
    fn take_commands(&mut self) -> bool {
        if self.runners.values().all(|runner| runner.is_idle()) {
            // What is kept must go when others need the memory, requests or not.
            let longest = if self.runners.is_empty() { Duration::MAX } else { LOOK };
            match self.commands.recv_timeout(longest) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Ok(command) => self.apply(command),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Ok(command) => self.apply(command),
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Add(id, runner) => {
                self.runners.insert(id, runner);
            }
            // Nobody is left to hear its answers.
            Command::Remove(id) => {
                let until = Instant::now() + LAST_WRITES;
                self.drive(id, |runner| runner.stop(until));
                self.runners.remove(&id);
                self.ledger.settle();
            }
            Command::Submit(id, request, submission) => {
                if self.runners.contains_key(&id) {
                    self.drive(id, |runner| runner.submit(request, *submission));
                } else {
                    let lost = GenerateError::Failed("an earlier failure ended it".to_owned());
                    let _ = submission.events.send(Event::Error(lost));
                }
            }
            Command::Cancel(id, request) => self.drive(id, |runner| runner.cancel(request)),
            Command::Wake(id) => self.drive(id, |runner| runner.wake()),
            Command::Settle(done) => {
                self.settle();
                let _ = done.send(());
            }
            Command::Stop => unreachable!("taken by the caller"),
        }
    }

    /// Lets one model work. A bug of ours that panics there costs that model, not the process: its answers break off
    /// and it takes no more.
    fn drive(&mut self, id: RunnerId, work: impl FnOnce(&mut dyn Runner)) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(runner.as_mut()))) {
            tracing::error!("a model is lost: {}", panic_message(&*panic));
            self.runners.remove(&id);
        }
    }

    fn ids(&self, which: impl Fn(&dyn Runner) -> bool) -> Vec<RunnerId> {
        let chosen = self.runners.iter().filter(|(_, runner)| which(runner.as_ref()));
        chosen.map(|(&id, _)| id).collect()
    }
}

/// What a caught panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::super::log::RequestLog;
    use super::super::{Draft, GenerateRequest, Usage};
    use super::*;
    use crate::sample::SamplingParams;

    /// Answers each request with its usage in the next step, or panics.
    struct Fake {
        waiting: Vec<Submission>,
        panics: bool,
    }

    impl Runner for Fake {
        fn submit(&mut self, _: RequestId, submission: Submission) {
            self.waiting.push(submission);
        }

        fn cancel(&mut self, _: RequestId) {}

        fn is_idle(&self) -> bool {
            self.waiting.is_empty()
        }

        fn step(&mut self) {
            assert!(!self.panics, "a bug");
            for submission in self.waiting.drain(..) {
                submission.events.send(Event::Usage(Usage::default())).unwrap();
            }
        }

        fn settle(&mut self) {}

        fn stop(&mut self, _: Instant) {}
    }

    fn with_models() -> DeviceThread {
        DeviceThread::spawn(Arc::new(Ledger::new()), || Some(Box::new(|| None))).unwrap()
    }

    fn ask(port: &Port) -> Result<UnboundedReceiver<Event>, GenerateError> {
        let (events, receiver) = unbounded_channel();
        let request = GenerateRequest {
            prompt: vec![1],
            choices: 1,
            sampling: SamplingParams::default(),
            max_tokens: None,
            stop: Vec::new(),
            ignore_end: false,
            score_prompt: false,
            background: false,
            draft: Draft::Nobody,
            output: crate::text::output::OutputParser::plain(),
            constraint: None,
            thinking: None,
            streamed: false,
        };
        let log = RequestLog::new("fake", request.streamed);
        let constraints = Vec::new();
        port.submit(Submission { request, constraints, draft_model: None, events, log })?;
        Ok(receiver)
    }

    #[test]
    fn a_model_that_panics_takes_only_itself_along() {
        let thread = with_models();
        let broken = thread.add(Box::new(Fake { waiting: Vec::new(), panics: true }));
        let sound = thread.add(Box::new(Fake { waiting: Vec::new(), panics: false }));
        assert_eq!(ask(&broken).unwrap().blocking_recv(), None);
        assert!(matches!(ask(&broken).unwrap().blocking_recv(), Some(Event::Error(_))));
        assert!(matches!(ask(&sound).unwrap().blocking_recv(), Some(Event::Usage(_))));
    }

    #[test]
    fn a_stopped_device_takes_no_more() {
        let thread = with_models();
        let port = thread.add(Box::new(Fake { waiting: Vec::new(), panics: false }));
        assert!(thread.is_running());
        thread.stop();
        assert!(!thread.is_running());
        let refused = ask(&port).err();
        assert_eq!(refused, Some(GenerateError::ShuttingDown));
    }
}
