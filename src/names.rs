//! The names of a lease and of its namespace, checked once where they come in.

use std::{fmt, ops::Deref};

/// A name by RFC 1123 as Kubernetes applies it: lower-case letters, digits and `-`, beginning and ending with a letter or digit; with `DOTS` several such parts
/// with a `.` between two.
///
/// It never holds a slash nor begins with a dot, so that it is safe in a path and in a URL.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name<const DOTS: bool>(String);

/// The name of a lease: a subdomain of at most 253 characters.
pub type LeaseName = Name<true>;

/// The name of a namespace: a label of at most 63 characters.
pub type Namespace = Name<false>;

impl<const DOTS: bool> Name<DOTS> {
    /// # Errors
    ///
    /// The sentence that says what is wrong, with the offending character.
    pub fn new(name: &str) -> Result<Self, String> {
        let (what, most, allowed) = match DOTS {
            true => ("lease name", 253, "a-z, 0-9, '-' and '.'"),
            false => ("namespace", 63, "a-z, 0-9 and '-'"),
        };
        let length = name.len();
        if name.is_empty() {
            return Err(format!("the {what} is empty"));
        }
        if length > most {
            return Err(format!(
                "the {what} has {length} characters, but at most {most} are allowed"
            ));
        }
        let is_word = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        let wrong = name
            .char_indices()
            .find(|(_, letter)| !(is_word(*letter) || *letter == '-' || (DOTS && *letter == '.')));
        if let Some((at, letter)) = wrong {
            let at = at + 1;
            return Err(format!(
                "the {what} {name:?} has {letter:?} at position {at}, but only {allowed} are allowed"
            ));
        }
        for part in name.split('.') {
            if part.is_empty() {
                return Err(format!(
                    "the {what} {name:?} has an empty part beside a '.'"
                ));
            }
            if part.starts_with('-') || part.ends_with('-') {
                return Err(format!(
                    "the {what} {name:?} has '-' where each part must begin and end with a-z or 0-9"
                ));
            }
        }
        Ok(Self(name.to_owned()))
    }
}

impl<const DOTS: bool> Deref for Name<DOTS> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const DOTS: bool> fmt::Display for Name<DOTS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// In quotes, as a text.
impl<const DOTS: bool> fmt::Debug for Name<DOTS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_lead_elsewhere_are_none() {
        for name in [
            "", ".", "..", "a/b", "../a", ".a", "a.", "-a", "a-", "A", "a b", "a\0", "a?", "a%2f",
            "\u{e4}",
        ] {
            assert!(LeaseName::new(name).is_err(), "{name:?}");
            assert!(Namespace::new(name).is_err(), "{name:?}");
        }
        assert!(LeaseName::new("a.b").is_ok() && Namespace::new("a.b").is_err());
        let [longest, too_long] = [63, 64].map(|length| "n".repeat(length));
        assert!(Namespace::new(&longest).is_ok() && Namespace::new(&too_long).is_err());
    }
}
