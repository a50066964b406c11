//! When a client certificate ends, so that a refusal can say so.
//!
//! Reads just as much of the certificate as it takes to come to the field (RFC 5280, 4.1). It
//! explains a failure that has happened; nothing is decided on it.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::{Timestamp, civil::DateTime, fmt::strtime, tz::TimeZone};

/// The `notAfter` of the first certificate in a PEM text; `None` if there is none that can be read.
pub(super) fn end_of_first(pem: &str) -> Option<Timestamp> {
    let der = in_pem(pem).next()?;
    let certificate = element(&der)?;
    let to_be_signed = element(certificate.content)?;
    let mut fields = element(to_be_signed.content)?;
    // The version is there from version 2 on.
    if fields.tag == EXPLICIT_0 {
        fields = element(fields.after)?;
    }
    let serial = fields;
    let signature = element(serial.after)?;
    let issuer = element(signature.after)?;
    let validity = element(issuer.after)?;
    let not_before = element(validity.content)?;
    time(&element(not_before.after)?)
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

/// One element of DER (X.690, 8.1), and what follows it.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    after: &'a [u8],
}

fn element(bytes: &[u8]) -> Option<Element<'_>> {
    let (&tag, rest) = bytes.split_first()?;
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
    Some(Element {
        tag,
        content,
        after,
    })
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
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

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
