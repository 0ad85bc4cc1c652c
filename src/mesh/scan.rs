//! A donor's side of a pull: everything above a stamp, in pieces, with little held at any time.

use super::Context;
use crate::base::version::{Hlc, Incarnation, Version};
use crate::mesh::Portions;
use crate::mesh::progress::Progress;
use crate::peer::frame::{Frame, OriginVector};
use crate::peer::operation::{Kind, Operation};
use crate::store::{Cursor, Flow, Storage};

/// Writers that one frame may name.
const FRAME_WRITERS_MAX: usize = 255;

/// Where the scan for one pull stands.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) id: u32,
    above: Hlc,
    /// `None`: not begun, or at its end.
    cursor: Option<Cursor>,
    begun: bool,
    /// The clear that the dialer was told of when it began.
    clear: Version,
    /// And what was held then.
    vectors: Vec<OriginVector>,
}

impl Scan {
    pub(super) fn new(id: u32, above: Hlc) -> Scan {
        Scan { id, above, cursor: None, begun: false, clear: Version::default(), vectors: Vec::new() }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    pub(super) fn begin<S: Storage>(&mut self, clear: Version, vectors: Vec<OriginVector>, store: &S) {
        (self.begun, self.clear, self.cursor) = (true, clear, Some(store.cursor_start()));
        self.vectors = vectors;
    }

    /// Of those that were named when it began, the ones of whom it may have sent more. To be asked at its end.
    pub(super) fn grown(&self, progress: &Progress) -> Vec<Incarnation> {
        let has_grown = |before: &&OriginVector| {
            progress.get(before.origin).is_some_and(|origin| !origin.vector().is_same(before))
        };
        self.vectors.iter().filter(has_grown).map(|before| before.origin).collect()
    }

    /// A clear has come since it began: what that took away the dialer was not sent, though it may lack the clear as
    /// well. Begins again, then; not much can be left.
    pub(super) fn is_spoilt<S: Storage>(&mut self, store: &S) -> bool {
        let is_spoilt = store.clear_version() != self.clear;
        self.begun &= !is_spoilt;
        is_spoilt
    }

    /// Looks at some records and hands over a frame with those that are wanted, if any. True at the end.
    /// The number of records sent is returned beside.
    pub(super) fn step<S: Storage>(
        &mut self,
        context: Context<'_, S>,
        portions: Portions,
        send: &mut dyn FnMut(&Frame<'_>),
    ) -> (bool, u64) {
        let Some(cursor) = self.cursor else { return (true, 0) };
        let mut writers: Vec<u8> = Vec::new();
        let mut indices: Vec<crate::base::version::WriterIndex> = Vec::new();
        let mut bytes = Vec::new();
        let mut sent = 0;
        self.cursor = context.store.scan(cursor, self.above, portions.scan_records, &mut |record, buried| {
            if bytes.len() > portions.frame_bytes {
                return Flow::StopBefore;
            }
            let writer = record.version.writer;
            let index = match indices.iter().position(|known| *known == writer) {
                Some(index) => index,
                None if indices.len() == FRAME_WRITERS_MAX => return Flow::StopBefore,
                None => {
                    let incarnation = context.store.incarnation(writer).unwrap_or(Incarnation(0));
                    writers.extend_from_slice(&incarnation.0.to_le_bytes());
                    indices.push(writer);
                    indices.len() - 1
                }
            };
            bytes.push(index as u8);
            let operation = Operation {
                kind: if buried { Kind::Rm } else { Kind::Set },
                hlc: record.version.hlc,
                expires_at_ms: if buried { 0 } else { record.expires_at_ms },
                marks: record.marks.0,
                key: record.key,
                value: if buried { &[] } else { record.value },
            };
            operation.encode(&mut bytes);
            sent += 1;
            Flow::Continue
        });
        if sent > 0 {
            send(&Frame::Records { id: self.id, writers: &writers, bytes: &bytes });
        }
        (self.cursor.is_none(), sent)
    }
}
