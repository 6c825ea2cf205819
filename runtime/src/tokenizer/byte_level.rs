//! GPT-2's printable alphabet: every byte written as one character, so that a vocabulary of
//! strings can hold any byte sequence (Radford et al. 2019, `bytes_to_unicode`).

/// Appends `bytes` to `out`, one character a byte.
pub(super) fn write_bytes(bytes: &[u8], out: &mut String) {
    out.extend(bytes.iter().map(|&byte| char_of(byte)));
}

/// Appends the bytes that `text` stands for to `out`; a character outside the alphabet stands for
/// itself.
pub(super) fn read_bytes(text: &str, out: &mut Vec<u8>) {
    for character in text.chars() {
        match byte_of(character) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Printable Latin-1 bytes stand for themselves; the other 68 follow from U+0100 on, in order.
pub(super) fn char_of(byte: u8) -> char {
    let code = match byte {
        0..=0x20 => 0x100 + u32::from(byte),
        0x7F..=0xA0 => 0x121 + u32::from(byte - 0x7F),
        0xAD => 0x143,
        _ => u32::from(byte),
    };
    char::from_u32(code).expect("invariant: codes up to 0x143 are characters")
}

fn byte_of(character: char) -> Option<u8> {
    let byte = match u32::from(character) {
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => code,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_the_alphabet() {
        let bytes: Vec<u8> = (0..=255).collect();
        let (mut text, mut back) = (String::new(), Vec::new());
        write_bytes(&bytes, &mut text);
        read_bytes(&text, &mut back);
        assert_eq!(bytes, back);
        assert_eq!(char_of(b' '), 'Ġ');
        assert_eq!(char_of(b'\n'), 'Ċ');
    }
}
