//! The thread that owns a compute device, and the handle to it.
//!
//! All models of a device share its thread, which runs one step of each busy model in turn, so they never fight
//! over the device. Models are read and laid out on other threads and arrive here ready to run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::runner::Submission;
use crate::backend::{CpuBackend, DeviceError};

/// How a device is set up.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Compute threads; `None` is one for each core that this process may use.
    pub threads: Option<usize>,
}

/// A handle to one device thread. The thread ends when the last handle, engine and generation are gone.
#[derive(Clone)]
pub struct Device {
    backend: CpuBackend,
    threads: usize,
    thread: DeviceThread,
}

impl Device {
    /// Starts the compute threads and the device thread.
    pub fn start(options: DeviceOptions) -> Result<Self, DeviceError> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let threads = options.threads.unwrap_or(cores).clamp(1, cores);
        let thread = DeviceThread::spawn()
            .map_err(|error| DeviceError::Failed(format!("cannot start a thread: {error}")))?;
        Ok(Self { backend: CpuBackend::new(threads), threads, thread })
    }

    /// For logs and people: `cpu, 8 threads`.
    pub fn describe(&self) -> String {
        format!("cpu, {} threads", self.threads)
    }

    /// Lets the running answers of all models end as cancelled and waits for the thread. For a tidy exit; dropping
    /// the last handle does the same without waiting.
    pub fn stop(&self) {
        self.thread.stop();
    }

    pub(super) fn backend(&self) -> &CpuBackend {
        &self.backend
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

/// A model as the device thread drives it.
pub(super) trait Runner: Send {
    fn submit(&mut self, request: RequestId, submission: Submission);
    /// Ends a request without further events. Unknown and finished ones are ignored.
    fn cancel(&mut self, request: RequestId);
    fn is_idle(&self) -> bool;
    /// Plans, computes, chooses and sends one step of everything that is running.
    fn step(&mut self);
}

enum Command {
    Add(RunnerId, Box<dyn Runner>),
    Remove(RunnerId),
    Submit(RunnerId, RequestId, Box<Submission>),
    Cancel(RunnerId, RequestId),
    Stop,
}

#[derive(Clone)]
pub(super) struct DeviceThread {
    commands: Sender<Command>,
    next_id: Arc<AtomicU64>,
    join: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl DeviceThread {
    fn spawn() -> std::io::Result<Self> {
        let (commands, receiver) = channel();
        let join = std::thread::Builder::new()
            .name("device".to_owned())
            .spawn(move || Loop { commands: receiver, runners: BTreeMap::new() }.run())?;
        Ok(Self { commands, next_id: Arc::default(), join: Arc::new(Mutex::new(Some(join))) })
    }

    pub(super) fn add(&self, runner: Box<dyn Runner>) -> Arc<Port> {
        let id = RunnerId(self.next());
        // A send fails only after `stop`; what is submitted then sees its event channel close.
        let _ = self.commands.send(Command::Add(id, runner));
        Arc::new(Port { thread: self.clone(), runner: id })
    }

    fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
        let join = self.join.lock().expect("nothing panics under this lock").take();
        if let Some(join) = join {
            // The loop catches the panics of steps; if it died all the same there is nothing left to wait for.
            let _ = join.join();
        }
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
    pub(super) fn submit(&self, submission: Submission) -> RequestId {
        let request = RequestId(self.thread.next());
        let _ =
            self.thread.commands.send(Command::Submit(self.runner, request, Box::new(submission)));
        request
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
}

impl Loop {
    fn run(mut self) {
        while self.take_commands() {
            for runner in self.runners.values_mut().filter(|runner| !runner.is_idle()) {
                runner.step();
            }
        }
    }

    /// Takes what has arrived; sleeps only when there is nothing to compute. False when the device is to end.
    fn take_commands(&mut self) -> bool {
        if self.runners.values().all(|runner| runner.is_idle()) {
            match self.commands.recv() {
                Ok(Command::Stop) | Err(_) => return false,
                Ok(command) => self.apply(command),
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
            // Running answers of a removed model see their event channels close.
            Command::Remove(id) => {
                self.runners.remove(&id);
            }
            Command::Submit(id, request, submission) => {
                if let Some(runner) = self.runners.get_mut(&id) {
                    runner.submit(request, *submission);
                }
            }
            Command::Cancel(id, request) => {
                if let Some(runner) = self.runners.get_mut(&id) {
                    runner.cancel(request);
                }
            }
            Command::Stop => unreachable!("taken by the caller"),
        }
    }
}
