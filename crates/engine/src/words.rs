//! Enums that are one word each: shown, read and kept in JSON as the same word.

/// A word that is none of a kind's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is none of {}", known.join(", "))]
pub struct UnknownWord {
    pub(crate) given: String,
    pub(crate) known: &'static [&'static str],
}

/// Gives an enum its words: `Display`, `FromStr` and serde.
macro_rules! words {
    ($type:ty: $($variant:ident => $text:literal),+ $(,)?) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $text),+ })
            }
        }
        impl std::str::FromStr for $type {
            type Err = $crate::words::UnknownWord;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err($crate::words::UnknownWord { given: other.to_owned(), known: &[$($text),+] }),
                }
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use words;

#[cfg(test)]
mod tests {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Colour {
        Red,
        Green,
    }
    words!(Colour: Red => "red", Green => "green");

    #[test]
    fn a_word_is_shown_read_and_kept_in_the_same_way() {
        for (colour, word) in [(Colour::Red, "red"), (Colour::Green, "green")] {
            assert_eq!(colour.to_string(), word);
            assert_eq!(word.parse(), Ok(colour));
            assert_eq!(serde_json::to_value(colour).unwrap(), word);
            assert_eq!(serde_json::from_value::<Colour>(word.into()).unwrap(), colour);
        }
        assert_eq!("blue".parse::<Colour>().unwrap_err().to_string(), "`blue` is none of red, green");
        assert!(serde_json::from_value::<Colour>("blue".into()).is_err());
    }
}
