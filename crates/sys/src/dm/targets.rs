//! The payload of table messages: `struct dm_target_spec` and its text, line by line; and of lists, `struct dm_name_list`.

use super::message::Answer;
use super::table::Table;
use crate::blockdev::{DeviceNumber, Sectors};

/// size_of(struct dm_target_spec): start, length, status, next, type.
const SPEC_BYTES: usize = 40;
/// Bytes of the type's name in it.
const KIND_BYTES: usize = 16;

/// The payload that loads `table`.
pub(super) fn encode(table: &Table) -> Vec<u8> {
    let mut payload = Vec::new();
    for line in table.lines() {
        let arguments = line.target.arguments();
        // The text ends with a NUL, and the next spec is aligned.
        let next = (SPEC_BYTES + arguments.len() + 1).next_multiple_of(8);
        let begin = payload.len();
        payload.extend(line.start.0.to_ne_bytes());
        payload.extend(line.length.0.to_ne_bytes());
        payload.extend(0u32.to_ne_bytes());
        payload.extend((next as u32).to_ne_bytes());
        payload.extend(line.target.kind().as_bytes());
        payload.resize(begin + SPEC_BYTES, 0);
        payload.extend(arguments.as_bytes());
        payload.resize(begin + next, 0);
    }
    payload
}

/// One stretch in a status answer, its text not read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawLine {
    pub start: Sectors,
    pub length: Sectors,
    pub kind: String,
    pub text: String,
}

/// The stretches of a status answer; `None` when it is not as the kernel makes them.
pub(super) fn decode(answer: &Answer) -> Option<Vec<RawLine>> {
    let mut lines = Vec::new();
    let mut at = 0;
    for _ in 0..answer.target_count {
        let spec = answer.payload.get(at..)?;
        lines.push(RawLine {
            start: Sectors(u64_at(spec, 0)?),
            length: Sectors(u64_at(spec, 8)?),
            kind: text(spec.get(24..24 + KIND_BYTES)?),
            text: text(spec.get(SPEC_BYTES..)?),
        });
        // In an answer this counts from the first spec on (in a request, from its own).
        at = u32_at(spec, 20)? as usize;
    }
    Some(lines)
}

/// The devices of a list answer; `None` when it is not as the kernel makes them.
pub(super) fn decode_list(payload: &[u8]) -> Option<Vec<(String, DeviceNumber)>> {
    let mut devices = Vec::new();
    let mut rest = payload;
    // Without devices the kernel's answer ends here, or has one entry without a device.
    if rest.is_empty() {
        return Some(devices);
    }
    loop {
        let number = u64_at(rest, 0)?;
        if number == 0 {
            return Some(devices);
        }
        devices.push((text(rest.get(12..)?), DeviceNumber::from_kernel(number)));
        match u32_at(rest, 8)? {
            0 => return Some(devices),
            next => rest = rest.get(next as usize..)?,
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(target_count: u32, payload: Vec<u8>) -> Answer {
        let device = DeviceNumber { major: 0, minor: 0 };
        Answer { version: [4, 0, 0], flags: 0, open_count: 0, target_count, device, payload }
    }

    #[test]
    fn a_table_is_laid_out_as_the_kernel_reads_it() {
        let table: Table = "0 8 linear 7:0 0\n8 8 zero".parse().unwrap();
        let payload = encode(&table);
        assert_eq!(payload.len(), 48 + 48);
        assert_eq!(&payload[24..32], b"linear\0\0");
        assert_eq!(&payload[40..48], b"7:0 0\0\0\0");
        let lines = decode(&answer(1, payload)).unwrap();
        assert_eq!((lines[0].kind.as_str(), lines[0].text.as_str()), ("linear", "7:0 0"));
    }

    #[test]
    fn an_empty_list_is_empty() {
        assert_eq!(decode_list(&[]), Some(Vec::new()));
        assert_eq!(decode_list(&[0; 16]), Some(Vec::new()));
        assert_eq!(decode_list(&[0; 4]), None);
    }

    proptest! {
        #[test]
        fn any_payload_is_lines_or_none(count in 0u32..20, payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Only that it ends, without a panic and in bounds.
            drop(decode_list(&payload));
            drop(decode(&answer(count, payload)));
        }
    }
}
