//! Cursors of lists: any text is one of ours or refused, and what is one goes on after its place.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wrenn_server::api::page::{Paging, page_of};

fuzz_target!(|asked: (Option<usize>, &str)| {
    let (limit, cursor) = asked;
    let paging = Paging { limit, cursor: Some(cursor.to_owned()) };
    let Ok(cut) = paging.cut() else { return };
    let after = cut.after.clone().expect("it was given");
    let items: Vec<String> = ('a'..='z').map(String::from).collect();
    let page = page_of(items, &cut, String::clone);
    assert!(page.items.len() <= cut.limit);
    assert!(page.items.iter().all(|item| *item > after));
    if let Some(next) = page.next_cursor {
        let next = Paging { limit, cursor: Some(next) }.cut().expect("what we give is taken");
        assert_eq!(next.after.as_ref(), page.items.last());
    }
});
