//! Pages of lists, and the cursors between them.
//!
//! A cursor says where the page before ended, in order of what is listed: what is made or removed in between moves nothing else.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;
use wrenn_client::types::Page;

use crate::app::App;
use crate::error::ApiError;
use crate::extract::{fields, parse_fields};
use crate::limits;

/// Which part of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Paging {
    /// At most so many; 100 if nothing is said.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `next_cursor` of the page before.
    #[param(max_length = 256)]
    pub cursor: Option<String>,
}

/// A query of which part of a list, and of what else the list can be asked for.
pub struct Listing<T> {
    /// Which part.
    pub paging: Paging,
    /// What else.
    pub filter: T,
}

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Listing<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        let fields = fields(parts)?;
        // Each of the two refuses fields that it does not know.
        let (paging, filter): (Vec<_>, Vec<_>) =
            fields.into_iter().partition(|(name, _)| Paging::FIELDS.contains(&name.as_str()));
        Ok(Self { paging: parse_fields(&paging)?, filter: parse_fields(&filter)? })
    }
}

/// What a page is asked for, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// At most so many.
    pub limit: usize,
    /// After what; the beginning if `None`.
    pub after: Option<String>,
}

impl Cut {
    /// How many to ask for: one more than fits tells that there are more.
    pub fn asked(&self) -> u32 {
        u32::try_from(self.limit).unwrap_or(u32::MAX - 1) + 1
    }
}

impl Paging {
    /// As they are named in a query.
    const FIELDS: [&str; 2] = ["limit", "cursor"];

    /// Checks it.
    pub fn cut(&self) -> Result<Cut, ApiError> {
        let limit = self.limit.unwrap_or(limits::PAGE_DEFAULT);
        if !(1..=limits::PAGE_MAX).contains(&limit) {
            return Err(ApiError::invalid(format!("`limit` is 1 to {}", limits::PAGE_MAX)));
        }
        Ok(Cut { limit, after: self.cursor.as_deref().map(read_cursor).transpose()? })
    }
}

fn read_cursor(cursor: &str) -> Result<String, ApiError> {
    let refused = || ApiError::invalid("`cursor` is not one of ours").remedy("take it from `next_cursor` as it is");
    if cursor.len() > limits::CURSOR_BYTES_MAX {
        return Err(refused());
    }
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_not_base64| refused())?;
    let text = String::from_utf8(bytes).map_err(|_not_utf8| refused())?;
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(refused());
    }
    Ok(text)
}

/// A page of what is sorted by `place`, of which there may be more than fits.
pub fn page<T>(mut items: Vec<T>, cut: &Cut, place: impl Fn(&T) -> String) -> Page<T> {
    let has_more = items.len() > cut.limit;
    items.truncate(cut.limit);
    let next_cursor = items.last().filter(|_| has_more).map(|last| URL_SAFE_NO_PAD.encode(place(last)));
    Page { items, next_cursor }
}

/// A page of a whole list, which is sorted by `place` here. Places are told apart and have an order as text.
pub fn page_of<T>(mut all: Vec<T>, cut: &Cut, place: impl Fn(&T) -> String) -> Page<T> {
    all.sort_by_cached_key(&place);
    let begin = cut.after.as_ref().map_or(0, |after| all.partition_point(|item| place(item) <= *after));
    let rest = all.into_iter().skip(begin).take(cut.limit + 1).collect();
    page(rest, cut, place)
}

/// The place of what was made at a time: the time in digits that sort, and the id.
pub fn place_in_time(unix_ms: u64, id: &str) -> String {
    format!("{unix_ms:020}.{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(limit: usize, cursor: Option<String>) -> Cut {
        Paging { limit: Some(limit), cursor }.cut().unwrap()
    }

    #[test]
    fn pages_together_are_the_list_whatever_comes_and_goes() {
        let place = |n: &u64| place_in_time(*n, "x");
        let mut cursor = None;
        let mut seen = Vec::new();
        for round in 0.. {
            // Each time one that was seen goes, and one comes that is later than all.
            let all: Vec<u64> = (round..25 + round).rev().collect();
            let page = page_of(all, &cut(10, cursor), place);
            seen.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, (0..27).collect::<Vec<_>>());
    }

    #[test]
    fn a_page_that_is_just_full_is_the_last() {
        let place = |n: &u64| place_in_time(*n, "x");
        assert_eq!(page_of((0..10).collect(), &cut(10, None), place).next_cursor, None);
        assert!(page_of((0..11).collect(), &cut(10, None), place).next_cursor.is_some());
    }

    #[test]
    fn a_cursor_is_taken_as_it_was_given() {
        for wrong in ["", "%", "AA==", "_", &"A".repeat(1000), &URL_SAFE_NO_PAD.encode("\u{1b}")] {
            assert!(read_cursor(wrong).is_err(), "{wrong}");
        }
        assert!(Paging { limit: Some(0), cursor: None }.cut().is_err());
        assert!(Paging { limit: Some(1001), cursor: None }.cut().is_err());
    }
}
