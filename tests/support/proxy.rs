//! A connection's middle: bytes go through until somebody cuts it, or holds it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;
use std::time::Duration;

use parking_lot::Mutex;

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Passes connections on to one port of this machine. Its threads end with the process.
pub struct Proxy {
    port: u16,
    open: Arc<Mutex<Vec<TcpStream>>>,
    held: Arc<AtomicBool>,
}

impl Proxy {
    pub fn start(to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = Self { port, open: Arc::default(), held: Arc::default() };
        let (open, held) = (Arc::clone(&proxy.open), Arc::clone(&proxy.held));
        let serve = move || {
            for client in listener.incoming().map_while(Result::ok) {
                // A server that is away ends the connection, as it would its own.
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                open.lock().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                pass(client.try_clone().unwrap(), server.try_clone().unwrap(), &held);
                pass(server, client, &held);
            }
        };
        Builder::new().name("test-proxy".to_owned()).spawn(serve).unwrap();
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends all connections; what is on its way is lost. New ones are taken.
    pub fn cut(&self) {
        for stream in self.open.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Nothing goes through while it is held, and nobody is told.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, held: &Arc<AtomicBool>) {
    let held = Arc::clone(held);
    let copy = move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            while held.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK_EVERY);
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    };
    Builder::new().name("test-proxy".to_owned()).spawn(copy).unwrap();
}
