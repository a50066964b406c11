//! What lease-exec reads of a certificate itself: when it ends, so that a refusal can say so, and whether
//! it is one of a server's, for those that no chain leads to.
//!
//! It reads the fields that it needs in the order of RFC 5280, 4.1.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::{Timestamp, civil::DateTime, fmt::strtime, tz::TimeZone};
use rustls::CertificateError;

/// The `notAfter` of the first certificate in a PEM text; `None` if there is none that can be read.
pub(super) fn end_of_first(pem: &str) -> Option<Timestamp> {
    let der = in_pem(pem).next()?;
    validity(&der).map(|[_, end]| end)
}

/// Checks that a certificate holds at this time and may be that of a server (RFC 5280, 4.1.2.5 and
/// 4.2.1.12).
///
/// # Errors
///
/// It is not so, or the certificate can't be read.
pub(super) fn check_server(der: &[u8], now: Timestamp) -> Result<(), CertificateError> {
    let [start, end] = validity(der).ok_or(CertificateError::BadEncoding)?;
    if now < start {
        return Err(CertificateError::NotValidYet);
    }
    if now > end {
        return Err(CertificateError::Expired);
    }
    match usages(der).ok_or(CertificateError::BadEncoding)? {
        Some(usages) if !usages.iter().any(|usage| SERVES.contains(usage)) => {
            Err(CertificateError::InvalidPurpose)
        }
        Some(_) | None => Ok(()),
    }
}

/// When a certificate begins and ends to hold.
fn validity(der: &[u8]) -> Option<[Timestamp; 2]> {
    // After the number, the algorithm and the issuer.
    let validity = fields(der)?.nth(3)?;
    let mut times = Elements(validity.content);
    Some([time(&times.next()?)?, time(&times.next()?)?])
}

/// What a certificate may be used for, if it says so: `extKeyUsage`. The outer `None` stands for one that
/// can't be read.
fn usages(der: &[u8]) -> Option<Option<Vec<&[u8]>>> {
    let Some(extensions) = fields(der)?.find(|field| field.tag == EXPLICIT_3) else {
        return Some(None);
    };
    for extension in Elements(Elements(extensions.content).next()?.content) {
        let mut parts = Elements(extension.content);
        if parts.next()?.content == EXTENDED_KEY_USAGE {
            // Whether it is critical may stand between.
            let value = parts.last()?;
            let usages = Elements(Elements(value.content).next()?.content);
            return Some(Some(usages.map(|usage| usage.content).collect()));
        }
    }
    Some(None)
}

/// The fields of a certificate, without its version, which is there from version 2 on.
fn fields(der: &[u8]) -> Option<impl Iterator<Item = Element<'_>>> {
    let certificate = Elements(der).next()?;
    let to_be_signed = Elements(certificate.content).next()?;
    Some(Elements(to_be_signed.content).skip_while(|field| field.tag == EXPLICIT_0))
}

/// The certificates in a PEM text. What is no base64 is passed over, as by Go.
pub(super) fn in_pem(text: &str) -> impl Iterator<Item = Vec<u8>> {
    let blocks = text.split("-----BEGIN CERTIFICATE-----").skip(1);
    blocks.filter_map(|block| {
        let (text, _) = block.split_once("-----END CERTIFICATE-----")?;
        let text: String = text.split_whitespace().collect();
        BASE64.decode(text).ok()
    })
}

/// One element of DER (X.690, 8.1).
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
}

/// Elements one after the other, as far as they can be read.
struct Elements<'a>(&'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // The length follows in so many bytes. No certificate takes more than three.
            0x81..=0x83 => {
                let (length, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
                let length = length
                    .iter()
                    .fold(0, |length, byte| length << 8 | usize::from(*byte));
                (length, rest)
            }
            _ => return None,
        };
        let (content, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some(Element { tag, content })
    }
}

fn time(element: &Element<'_>) -> Option<Timestamp> {
    let text = std::str::from_utf8(element.content).ok()?;
    let text = match element.tag {
        GENERALIZED_TIME => text.to_owned(),
        // Its years have two digits, and end with 2049.
        UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        _ => return None,
    };
    let time: DateTime = strtime::parse("%Y%m%d%H%M%SZ", text)
        .ok()?
        .to_datetime()
        .ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

const EXPLICIT_0: u8 = 0xa0;
const EXPLICIT_3: u8 = 0xa3;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The object identifier 2.5.29.37.
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];

/// `id-kp-serverAuth` and `anyExtendedKeyUsage`.
const SERVES: [&[u8]; 2] = [
    &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01],
    &[0x55, 0x1d, 0x25, 0x00],
];

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::*;

    #[test]
    fn end_is_found_in_either_format_of_time() {
        let key = rcgen::KeyPair::generate().unwrap();
        for (year, end) in [
            (2030, "2030-02-01T00:00:00Z"),
            (2070, "2070-02-01T00:00:00Z"),
        ] {
            let mut parameters = rcgen::CertificateParams::new(["a".repeat(200)]).unwrap();
            parameters.not_after = rcgen::date_time_ymd(year, 2, 1);
            let pem = parameters.self_signed(&key).unwrap().pem();
            let bundle = format!("Subject: somebody\n{pem}{}", key.serialize_pem());
            assert_eq!(end_of_first(&bundle), Some(end.parse().unwrap()));
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        let wrapped = |der: &[u8]| {
            format!(
                "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----",
                BASE64.encode(der)
            )
        };
        for text in [
            "",
            "-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----",
        ] {
            assert_eq!(end_of_first(text), None);
        }
        for der in [
            &[][..],
            &[0x30],
            &[0x30, 0x05, 0x30],
            &[0x30, 0x84, 1, 1, 1, 1],
            &[0x30, 0x02, 0x30, 0x00],
        ] {
            assert_eq!(end_of_first(&wrapped(der)), None);
        }
    }
}
