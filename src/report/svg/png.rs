//! A heat map as a PNG inside a `data:` address: a page with 20,000 cells a picture as SVG would be ten times as large.

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};
use std::io::Write;

/// A picture of palette entries (PNG, ISO/IEC 15948: 8-bit indices), `indices` row by row from the top.
pub(super) fn png(columns: usize, indices: &[u8], palette: &[[u8; 3]]) -> Vec<u8> {
    let rows = indices.len() / columns.max(1);
    let mut out = vec![0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n'];
    let mut header = Vec::new();
    header.extend((columns as u32).to_be_bytes());
    header.extend((rows as u32).to_be_bytes());
    // Eight bits, palette, and the only compression, filter and order that matter.
    header.extend([8, 3, 0, 0, 0]);
    chunk(&mut out, b"IHDR", &header);
    chunk(&mut out, b"PLTE", palette.as_flattened());
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    for row in indices.chunks(columns.max(1)) {
        // Filter type 0 in front of each row. Writing to memory does not fail.
        let _ = encoder.write_all(&[0]).and_then(|()| encoder.write_all(row));
    }
    chunk(&mut out, b"IDAT", &encoder.finish().unwrap_or_default());
    chunk(&mut out, b"IEND", &[]);
    out
}

fn chunk(out: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) {
    out.extend((data.len() as u32).to_be_bytes());
    let mut crc = Crc::new();
    crc.update(name);
    crc.update(data);
    out.extend(name);
    out.extend(data);
    out.extend(crc.sum().to_be_bytes());
}

/// Base64 (RFC 4648) with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= three.len() { letter.into() } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::ZlibDecoder;
    use std::io::Read;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (text, coded) in cases {
            assert_eq!(base64(text.as_bytes()), coded);
        }
    }

    #[test]
    fn a_png_has_its_chunks_and_gives_its_rows_back() {
        let picture = png(3, &[0, 1, 2, 2, 1, 0], &[[0; 3], [128; 3], [255; 3]]);
        assert_eq!(&picture[..8], b"\x89PNG\r\n\x1a\n");
        let (mut at, mut names, mut rows) = (8, Vec::new(), Vec::new());
        while at < picture.len() {
            let length = u32::from_be_bytes(picture[at..at + 4].try_into().unwrap()) as usize;
            let (name, data) = (&picture[at + 4..at + 8], &picture[at + 8..at + 8 + length]);
            names.push(String::from_utf8_lossy(name).into_owned());
            if name == b"IDAT" {
                ZlibDecoder::new(data).read_to_end(&mut rows).unwrap();
            }
            at += length + 12;
        }
        assert_eq!(names, ["IHDR", "PLTE", "IDAT", "IEND"]);
        assert_eq!(rows, [0, 0, 1, 2, 0, 2, 1, 0]);
        // The checksum that every PNG ends with.
        assert_eq!(&picture[picture.len() - 4..], [0xae, 0x42, 0x60, 0x82]);
    }
}
