//! Rows, read with care, and values as both databases keep them.
//!
//! A number is a BIGINT, a word of ours (a scope, a state) is text. What a row has that this version does not know is an
//! error that names the column: a newer version may have written it.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::error::DbError;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A row of a table.
pub(super) struct Row {
    table: &'static str,
    row: AnyRow,
}

impl Row {
    pub(super) fn new(table: &'static str, row: AnyRow) -> Self {
        Self { table, row }
    }

    pub(super) fn text(&self, column: &'static str) -> Result<String, DbError> {
        self.row.try_get(column).map_err(|source| self.unreadable(column, source))
    }

    pub(super) fn text_or_null(&self, column: &'static str) -> Result<Option<String>, DbError> {
        self.row.try_get(column).map_err(|source| self.unreadable(column, source))
    }

    pub(super) fn number<T>(&self, column: &'static str) -> Result<T, DbError>
    where
        T: TryFrom<i64, Error: Into<Cause>>,
    {
        let number: i64 = self.row.try_get(column).map_err(|source| self.unreadable(column, source))?;
        T::try_from(number).map_err(|source| self.unreadable(column, source))
    }

    pub(super) fn number_or_null<T>(&self, column: &'static str) -> Result<Option<T>, DbError>
    where
        T: TryFrom<i64, Error: Into<Cause>>,
    {
        let number: Option<i64> = self.row.try_get(column).map_err(|source| self.unreadable(column, source))?;
        number.map(T::try_from).transpose().map_err(|source| self.unreadable(column, source))
    }

    /// One of `all`, by its name.
    pub(super) fn word<T: Copy>(
        &self,
        column: &'static str,
        all: &[T],
        name: fn(T) -> &'static str,
    ) -> Result<T, DbError> {
        let text = self.text(column)?;
        let found = all.iter().copied().find(|word| name(*word) == text);
        found.ok_or_else(|| self.unreadable(column, format!("{text:?} is none of its words")))
    }

    pub(super) fn word_or_null<T: Copy>(
        &self,
        column: &'static str,
        all: &[T],
        name: fn(T) -> &'static str,
    ) -> Result<Option<T>, DbError> {
        match self.text_or_null(column)? {
            Some(_) => self.word(column, all, name).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, DbError> {
        serde_json::from_str(&self.text(column)?).map_err(|source| self.unreadable(column, source))
    }

    pub(super) fn json_or_null<T: DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>, DbError> {
        match self.text_or_null(column)? {
            Some(_) => self.json(column).map(Some),
            None => Ok(None),
        }
    }

    fn unreadable(&self, column: &'static str, source: impl Into<Cause>) -> DbError {
        DbError::Unreadable { table: self.table, column, source: source.into() }
    }
}

/// A number as a BIGINT. What is beyond is cut to the largest: times and counts of ours never come near.
pub(super) fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A text that somebody else chose, as it can be kept: without NUL, which PostgreSQL refuses, and at most `bytes` long.
pub(super) fn keepable(text: &str, bytes: usize) -> Cow<'_, str> {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let kept = &text[..end];
    if kept.contains('\0') { Cow::Owned(kept.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(kept) }
}

/// JSON of what can always be written as JSON.
pub(super) fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain structs and lists of text become JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_are_made_keepable() {
        assert_eq!(keepable("plain", 10), "plain");
        assert_eq!(keepable("a\0b", 10), "a\u{fffd}b");
        assert_eq!(keepable("käse", 2), "k", "no half characters");
        assert_eq!(keepable("abc", 0), "");
    }
}
