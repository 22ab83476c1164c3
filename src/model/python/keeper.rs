//! One thread that starts and buries all child processes of this process.
//!
//! A child is to end with its worker, however that ends, and the kernel's means for that (`PR_SET_PDEATHSIG`) holds it
//! to the thread that started it: so that thread must live as long as the worker, which score threads and those that
//! load models do not. Burying here means that no score thread waits for a large process to be taken down.

use std::io;
use std::process::Child;
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use super::process::Process;
use super::recipe::Recipe;
use crate::clock;

/// Orders that may wait. Each scorer has one at a time, and one child to bury.
const ORDERS_MAX: usize = 1024;
/// How often it is looked whether killed children have ended.
const LOOK: Duration = Duration::from_millis(5);

static ORDERS: Mutex<Option<Sender<Order>>> = Mutex::new(None);

enum Order {
    Start { recipe: Arc<Recipe>, due: Instant, reply: Sender<io::Result<Process>> },
    Bury(Child),
}

/// Has a process started at `due`. The answer comes when it runs, which is before its model is loaded.
pub(super) fn start(recipe: &Arc<Recipe>, due: Instant) -> io::Result<Receiver<io::Result<Process>>> {
    let (reply, answer) = bounded(1);
    let order = Order::Start { recipe: Arc::clone(recipe), due, reply };
    orders()?.send(order).map_err(|_| io::Error::other("the thread that starts processes has ended"))?;
    Ok(answer)
}

/// Waits for a killed child, elsewhere.
pub(super) fn bury(child: Child) {
    let unburied = match orders().map(|orders| orders.send(Order::Bury(child))) {
        Ok(Err(error)) => error.0,
        _ => return,
    };
    if let Order::Bury(mut child) = unburied {
        let _ = child.wait();
    }
}

fn orders() -> io::Result<Sender<Order>> {
    let mut place = ORDERS.lock();
    if let Some(orders) = &*place {
        return Ok(orders.clone());
    }
    let (orders, taken) = bounded(ORDERS_MAX);
    Builder::new().name("forebay-python".to_owned()).spawn(move || run(&taken))?;
    *place = Some(orders.clone());
    Ok(orders)
}

fn run(orders: &Receiver<Order>) {
    let (mut waiting, mut dying) = (Vec::new(), Vec::new());
    loop {
        let now = clock::now();
        let (due, later): (Vec<Start>, _) = waiting.into_iter().partition(|start: &Start| start.due <= now);
        waiting = later;
        dying.extend(due.into_iter().filter_map(Start::carry_out));
        dying.retain_mut(|child: &mut Child| matches!(child.try_wait(), Ok(None)));

        let next = waiting.iter().map(|start| start.due.saturating_duration_since(now)).min();
        let look = (!dying.is_empty()).then_some(LOOK);
        let order = match next.into_iter().chain(look).min() {
            Some(wait) => orders.recv_timeout(wait),
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match order {
            Ok(Order::Start { recipe, due, reply }) => waiting.push(Start { recipe, due, reply }),
            Ok(Order::Bury(child)) => dying.push(child),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

struct Start {
    recipe: Arc<Recipe>,
    due: Instant,
    reply: Sender<io::Result<Process>>,
}

impl Start {
    /// What nobody waits for any more is left to be buried.
    fn carry_out(self) -> Option<Child> {
        let unwanted = self.reply.send(Process::start(&self.recipe)).err()?;
        unwanted.0.ok()?.into_remains()
    }
}
