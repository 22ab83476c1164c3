//! Frames between this process and a runner: a head of fixed size, and a body. `runner.py` has the same table.
//!
//! What the runner says is believed as far as its form goes, and no further: a frame of another form, length or number
//! ends its process.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::clock;

/// Bytes of a head.
const HEAD_BYTES: usize = 32;
/// The longest body that a runner may send, and the longest graph.
const BODY_BYTES_MAX: usize = 1 << 20;
const GRAPH_BYTES_MAX: usize = 1 << 30;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum FrameKind {
    /// The memory of the batches from now on; its file comes with the byte after the body.
    Memory = 2,
    /// Rows lie in the memory.
    Score = 3,
    /// An ONNX graph is wanted.
    Convert = 4,
    /// The model is loaded: JSON.
    Ready = 16,
    /// It is not: why, in words.
    Refused = 17,
    /// Scores lie in the memory; the body holds pauses.
    Scored = 18,
    /// It could not be scored: why, in words.
    Failed = 19,
    /// An ONNX graph of `nanos` bytes, then rows.
    Converted = 20,
}

impl FrameKind {
    fn of_runner(code: u32) -> Option<Self> {
        let kinds = [Self::Ready, Self::Refused, Self::Scored, Self::Failed, Self::Converted];
        kinds.into_iter().find(|kind| *kind as u32 == code)
    }
}

/// The head of a frame, and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: FrameKind,
    /// Which batch it is about.
    pub(super) number: u64,
    /// Rows of a batch, pauses of an answer.
    pub(super) count: u32,
    /// Why a batch failed.
    pub(super) code: u32,
    /// How long the model itself took.
    pub(super) nanos: u64,
    pub(super) body: Vec<u8>,
}

impl Frame {
    pub(super) fn new(kind: FrameKind, number: u64) -> Self {
        Self { kind, number, count: 0, code: 0, nanos: 0, body: Vec::new() }
    }

    fn head(&self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[0..4].copy_from_slice(&(self.kind as u32).to_le_bytes());
        head[4..8].copy_from_slice(&u32::try_from(self.body.len()).expect("small bodies").to_le_bytes());
        head[8..16].copy_from_slice(&self.number.to_le_bytes());
        head[16..20].copy_from_slice(&self.count.to_le_bytes());
        head[20..24].copy_from_slice(&self.code.to_le_bytes());
        head[24..32].copy_from_slice(&self.nanos.to_le_bytes());
        head
    }

    /// The frame without its body, and how long that is.
    fn parse(head: &[u8; HEAD_BYTES]) -> Option<(Self, usize)> {
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
        let kind = FrameKind::of_runner(word(0))?;
        let most = if kind == FrameKind::Converted { GRAPH_BYTES_MAX } else { BODY_BYTES_MAX };
        let body = usize::try_from(word(4)).ok().filter(|&bytes| bytes <= most)?;
        Some((Self { number: long(8), count: word(16), code: word(20), nanos: long(24), ..Self::new(kind, 0) }, body))
    }
}

/// Why no frame came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoFrame {
    /// The other side is closed.
    Closed,
    /// The time is over.
    Late,
    /// What came is none.
    Garbage,
}

/// This process's end of the socket.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
}

impl Channel {
    /// Both ends; the other is for the child.
    pub(super) fn pair() -> io::Result<(Self, UnixStream)> {
        let (socket, other) = UnixStream::pair()?;
        Ok((Self { socket }, other))
    }

    /// A frame that fits into the socket's buffer, so that nobody is waited for.
    pub(super) fn send(&mut self, frame: &Frame) -> io::Result<()> {
        if frame.body.is_empty() {
            return self.socket.write_all(&frame.head());
        }
        self.socket.write_all(&[&frame.head()[..], &frame.body].concat())
    }

    /// A byte that carries files.
    pub(super) fn send_files(&self, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(files)), "room for two files");
        sendmsg(&self.socket, &[IoSlice::new(b".")], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Whether anything came, or the other side is closed. A runner that has no batch says nothing.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.wait(clock::now()), Ok(false))
    }

    /// The next frame, if it comes before `deadline`.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Frame, NoFrame> {
        let mut head = [0; HEAD_BYTES];
        self.fill(&mut head, deadline)?;
        let (mut frame, body_bytes) = Frame::parse(&head).ok_or(NoFrame::Garbage)?;
        frame.body.resize(body_bytes, 0);
        self.fill(&mut frame.body, deadline)?;
        Ok(frame)
    }

    fn fill(&mut self, mut buffer: &mut [u8], deadline: Instant) -> Result<(), NoFrame> {
        while !buffer.is_empty() {
            if !self.wait(deadline).map_err(|_| NoFrame::Closed)? {
                return Err(NoFrame::Late);
            }
            match self.socket.read(buffer) {
                Ok(0) => return Err(NoFrame::Closed),
                Ok(read) => buffer = &mut buffer[read..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(NoFrame::Closed),
            }
        }
        Ok(())
    }

    /// Whether there is something to read, the end included, before `deadline`.
    fn wait(&self, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(clock::now());
            let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
            match poll(&mut [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)], Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        clock::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_frame_arrives_as_it_was_sent_also_in_pieces() {
        let (mut ours, mut other) = Channel::pair().unwrap();
        let frame =
            Frame { count: 3, code: 7, nanos: 1 << 40, body: b"words".to_vec(), ..Frame::new(FrameKind::Failed, 9) };
        assert!(ours.is_quiet());
        let bytes = [&frame.head()[..], &frame.body].concat();
        let (first, last) = bytes.split_at(20);
        other.write_all(first).unwrap();
        assert_eq!(ours.receive(clock::now()), Err(NoFrame::Late));
        let (mut ours, mut other) = Channel::pair().unwrap();
        let mut twin = Channel { socket: other.try_clone().unwrap() };
        twin.send(&frame).unwrap();
        assert!(!ours.is_quiet());
        assert_eq!(ours.receive(soon()).unwrap(), frame);
        other.write_all(first).unwrap();
        let writer = std::thread::Builder::new().name("writer".to_owned());
        let last = last.to_vec();
        let writer = writer.spawn(move || other.write_all(&last)).unwrap();
        assert_eq!(ours.receive(soon()).unwrap(), frame);
        writer.join().unwrap().unwrap();
        drop(twin);
        assert_eq!(ours.receive(soon()), Err(NoFrame::Closed));
        assert!(!ours.is_quiet());
    }

    #[test]
    fn what_is_no_frame_is_garbage() {
        let mut too_long = Frame::new(FrameKind::Scored, 1).head();
        too_long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let from_us = Frame::new(FrameKind::Score, 1).head();
        for bytes in [*b"hello, I am printed by a model..", too_long, from_us] {
            let (mut ours, mut other) = Channel::pair().unwrap();
            other.write_all(&bytes).unwrap();
            assert_eq!(ours.receive(soon()), Err(NoFrame::Garbage));
        }
    }
}
