//! Lists that come in pages, followed to the end.

use super::call::Call;
use crate::error::ClientError;
use crate::limits;
use crate::types::Page;

/// Which part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// At most so many items, 1 to 1000; as the server likes if `None`.
    pub limit: Option<u32>,
    /// Where the page before ended: its `next_cursor`.
    pub cursor: Option<String>,
}

impl ListQuery {
    /// In a request.
    pub(super) fn of(&self, call: Call) -> Call {
        call.query_if("limit", self.limit).query_if("cursor", self.cursor.as_deref())
    }
}

/// The items of all pages. A list that is changed meanwhile is told as the server tells it.
pub(super) async fn all<T, F>(mut page: impl FnMut(ListQuery) -> F) -> Result<Vec<T>, ClientError>
where
    F: Future<Output = Result<Page<T>, ClientError>>,
{
    let mut items = Vec::new();
    let mut query = ListQuery { limit: Some(limits::PAGE_ITEMS_MAX), cursor: None };
    loop {
        let Page { items: more, next_cursor } = page(query.clone()).await?;
        let came_nothing = more.is_empty();
        items.extend(more);
        match next_cursor {
            // An empty page that goes on nowhere would be asked for without end.
            Some(cursor) if !(came_nothing && query.cursor.as_ref() == Some(&cursor)) => query.cursor = Some(cursor),
            Some(_) | None => return Ok(items),
        }
    }
}
