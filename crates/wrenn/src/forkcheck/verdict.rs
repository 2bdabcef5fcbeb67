//! What the answers mean: a line for each check, and a verdict. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use wrenn_agent::host_agent::{AgentError, View};
use wrenn_engine::names::SandboxId;

use super::clock::WITHIN;
use super::guest::{Facts, Steps};
use crate::words::{columns, millis, printable_line};

/// What no check of ours can see.
const NOT_COVERED: &str = "random generators inside of programs that ran before the fork, such as OpenSSL's or numpy's: \
                           they go on from the same state in each fork. That is what hooks in /etc/wrenn/resume.d are for: \
                           they run first, and can have such a program seed itself anew.";

/// What one sandbox told, or why it could not be asked.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Which sandbox.
    pub id: SandboxId,
    /// Its access token.
    pub token: String,
    /// What its guest told of itself.
    pub told: Result<Facts, String>,
    /// By how much its clock can be off at most.
    pub clock: Result<Duration, String>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    what: &'static str,
    compared: usize,
    /// Sandboxes whose value another one has too; `None` where nothing is compared with each other.
    duplicates: Option<usize>,
    passed: bool,
    remark: Option<String>,
}

/// All checks of one parent and its forks.
#[derive(Debug)]
pub struct Verdict {
    template: String,
    parent: SandboxId,
    forks: Vec<SandboxId>,
    checks: Vec<Check>,
}

impl Verdict {
    /// Judges what a parent and its forks have told; `failures` says why some forks were not made.
    pub fn of(parent: &View, parents: Answer, forks: Vec<Answer>, failures: &[AgentError]) -> Self {
        let ids = forks.iter().map(|fork| fork.id.clone()).collect();
        let all: Vec<&Answer> = std::iter::once(&parents).chain(&forks).collect();
        let fact = |what, fact: fn(&Facts) -> Option<&String>| {
            distinct(what, &all, |answer| fact(answer.told.as_ref().ok()?).map(String::as_str))
        };
        let checks = vec![
            made(forks.len(), failures),
            fact("random bytes, read by a new program", |facts| facts.new.as_ref()),
            fact("random bytes, read by one from before", |facts| facts.witness.as_ref()),
            fact("boot id", |facts| facts.boot_id.as_ref()),
            fact("machine id", |facts| facts.machine_id.as_ref()),
            fact("hostname", |facts| facts.hostname.as_ref()),
            distinct("access token", &all, |answer| Some(&answer.token)),
            clocks(&all),
            hooks(&forks),
        ];
        Self { template: parent.template.clone(), parent: parent.id.clone(), forks: ids, checks }
    }

    /// Whether all checks passed.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let check = |check: &Check| {
            json!({
                "check": check.what,
                "compared": check.compared,
                "duplicates": check.duplicates,
                "passed": check.passed,
                "remark": check.remark,
            })
        };
        json!({
            "passed": self.passed(),
            "template": self.template,
            "parent": self.parent.as_str(),
            "forks": self.forks.iter().map(SandboxId::as_str).collect::<Vec<_>>(),
            "checks": self.checks.iter().map(check).collect::<Value>(),
            "not_covered": NOT_COVERED,
        })
    }
}

impl fmt::Display for Verdict {
    /// For people: a line for each check, what they come to, and what they do not say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |check: &Check| {
            [
                check.what.to_owned(),
                check.compared.to_string(),
                check.duplicates.map_or_else(|| "-".to_owned(), |duplicates| duplicates.to_string()),
                if check.passed { "PASS" } else { "FAIL" }.to_owned(),
                printable_line(check.remark.as_deref().unwrap_or_default()),
            ]
        };
        let rows: Vec<_> = self.checks.iter().map(row).collect();
        f.write_str(&columns(["CHECK", "COMPARED", "DUPLICATES", "VERDICT", "REMARKS"], &rows))?;
        let failed = self.checks.iter().filter(|check| !check.passed).count();
        match failed {
            0 => writeln!(f, "\nPASS: {} forks of one sandbox, all different where they must be.", self.forks.len())?,
            failed => writeln!(f, "\nFAIL: {failed} of {} checks did not pass.", self.checks.len())?,
        }
        writeln!(f, "Not covered: {NOT_COVERED}")
    }
}

fn made(count: usize, failures: &[AgentError]) -> Check {
    let remark = failures.first().map(|first| format!("{} were not made: {first}", failures.len()));
    let passed = failures.is_empty() && count > 0;
    Check { what: "forks that were asked for are there", compared: count, duplicates: None, passed, remark }
}

/// No two have the same value, and each has one.
fn distinct<'a>(what: &'static str, all: &[&'a Answer], value: impl Fn(&'a Answer) -> Option<&'a str>) -> Check {
    let values: Vec<&str> = all.iter().filter_map(|answer| value(answer)).collect();
    let duplicates = values.len() - values.iter().collect::<BTreeSet<_>>().len();
    let missing = all.iter().find(|answer| value(answer).is_none());
    let passed = duplicates == 0 && missing.is_none() && values.len() > 1;
    Check { what, compared: values.len(), duplicates: Some(duplicates), passed, remark: missing.map(|of| silent(of)) }
}

fn silent(answer: &Answer) -> String {
    match &answer.told {
        Ok(_) => format!("{} does not tell", answer.id),
        Err(error) => format!("{} could not be asked: {error}", answer.id),
    }
}

fn clocks(all: &[&Answer]) -> Check {
    let off_by: Vec<Duration> = all.iter().filter_map(|answer| answer.clock.as_ref().ok().copied()).collect();
    let worst = off_by.iter().max().copied().unwrap_or_default();
    let error = all.iter().find_map(|answer| Some(format!("{}: {}", answer.id, answer.clock.as_ref().err()?)));
    Check {
        what: "clock within 50 ms of the host's",
        compared: off_by.len(),
        duplicates: None,
        passed: error.is_none() && worst < WITHIN,
        remark: Some(error.unwrap_or_else(|| format!("off by at most {:.1} ms", millis(worst)))),
    }
}

const _: () = assert!(WITHIN.as_millis() == 50, "the check's name says so");

/// In each fork the hook ran, nothing else ran beside it, and nothing had run before it: see [`super::guest`].
fn hooks(forks: &[Answer]) -> Check {
    let seen: Vec<Steps> = forks.iter().filter_map(|fork| fork.told.as_ref().ok()?.hook).collect();
    let not_run = forks.len() - seen.len();
    let beside = seen.iter().filter(|steps| steps.before != steps.after).count();
    let begun: BTreeSet<u64> = seen.iter().map(|steps| steps.before).collect();
    let remark = match (not_run, beside, begun.len()) {
        (0, 0, 0 | 1) => None,
        (0, 0, _) => Some("user code had gone on in some before the hook ran".to_owned()),
        (0, beside, _) => Some(format!("user code ran beside it in {beside}")),
        (not_run, _, _) => Some(format!("it did not run in {not_run}")),
    };
    let passed = remark.is_none() && !seen.is_empty();
    Check { what: "resume hook ran before user code", compared: seen.len(), duplicates: None, passed, remark }
}

#[cfg(test)]
mod tests {
    use wrenn_agent::host_agent::Code;

    use super::*;
    use crate::sandbox::tests::view;

    fn answer(number: usize) -> Answer {
        let text = |what: &str| Some(format!("{what} {number}"));
        let told = Facts {
            new: text("new"),
            witness: text("witness"),
            boot_id: text("boot"),
            machine_id: text("machine"),
            hostname: text("host"),
            hook: (number > 0).then_some(Steps { before: 7, after: 7 }),
        };
        Answer {
            id: SandboxId::from_random([u8::try_from(number).unwrap(); 18]),
            token: format!("token {number}"),
            told: Ok(told),
            clock: Ok(Duration::from_micros(1500 * number as u64)),
        }
    }

    /// The verdict on a parent and three forks, of which one is changed; number 0 is the parent.
    fn verdict(changed: usize, change: impl FnOnce(&mut Answer)) -> Verdict {
        let mut answers: Vec<Answer> = (0..4).map(answer).collect();
        change(&mut answers[changed]);
        let forks = answers.split_off(1);
        Verdict::of(&view(), answers.remove(0), forks, &[])
    }

    fn facts(answer: &mut Answer) -> &mut Facts {
        answer.told.as_mut().unwrap()
    }

    /// The one check that did not pass: what it is, and its remark.
    fn failed(verdict: &Verdict) -> (&'static str, Option<usize>, String) {
        assert!(!verdict.passed());
        let mut failed = verdict.checks.iter().filter(|check| !check.passed);
        let check = failed.next().unwrap();
        assert_eq!(failed.next(), None, "one check alone");
        (check.what, check.duplicates, check.remark.clone().unwrap_or_default())
    }

    #[test]
    fn a_verdict_that_anybody_can_read() {
        let verdict = verdict(1, |_| {});
        assert!(verdict.passed());
        assert_eq!(
            format!("\n{verdict}"),
            format!(
                "
CHECK                                  COMPARED  DUPLICATES  VERDICT  REMARKS
forks that were asked for are there    3         -           PASS
random bytes, read by a new program    4         0           PASS
random bytes, read by one from before  4         0           PASS
boot id                                4         0           PASS
machine id                             4         0           PASS
hostname                               4         0           PASS
access token                           4         0           PASS
clock within 50 ms of the host's       4         -           PASS     off by at most 4.5 ms
resume hook ran before user code       3         -           PASS

PASS: 3 forks of one sandbox, all different where they must be.
Not covered: {NOT_COVERED}
"
            )
        );
        let json = verdict.json();
        assert_eq!((&json["passed"], json["forks"].as_array().unwrap().len()), (&json!(true), 3));
        assert_eq!(json["parent"], view().id.as_str());
        assert_eq!((&json["checks"][1]["compared"], &json["checks"][1]["duplicates"]), (&json!(4), &json!(0)));
    }

    #[test]
    fn what_a_fork_has_of_its_parent_or_of_another_is_a_duplicate() {
        let of = |number: usize| answer(number).told.unwrap();
        type Change = fn(&mut Facts, Facts);
        let cases: [(&str, Change); 5] = [
            ("random bytes, read by a new program", |facts, other| facts.new = other.new),
            ("random bytes, read by one from before", |facts, other| facts.witness = other.witness),
            ("boot id", |facts, other| facts.boot_id = other.boot_id),
            ("machine id", |facts, other| facts.machine_id = other.machine_id),
            ("hostname", |facts, other| facts.hostname = other.hostname),
        ];
        for (what, change) in cases {
            for other in [0, 3] {
                let verdict = verdict(2, |answer| change(facts(answer), of(other)));
                assert_eq!(failed(&verdict), (what, Some(1), String::new()));
            }
        }
        let same_token = verdict(2, |answer| answer.token = "token 0".to_owned());
        assert_eq!(failed(&same_token), ("access token", Some(1), String::new()));
    }

    #[test]
    fn a_clock_that_may_be_off_is_off() {
        let late = verdict(3, |answer| answer.clock = Ok(WITHIN));
        assert_eq!(failed(&late).2, "off by at most 50.0 ms");
        let silent = verdict(0, |answer| answer.clock = Err("no time".to_owned()));
        assert!(failed(&silent).2.ends_with(": no time"));
    }

    #[test]
    fn a_hook_has_to_be_the_first() {
        let hook = |steps| verdict(2, |answer| facts(answer).hook = steps);
        assert_eq!(failed(&hook(None)).2, "it did not run in 1");
        assert_eq!(failed(&hook(Some(Steps { before: 7, after: 8 }))).2, "user code ran beside it in 1");
        let late = hook(Some(Steps { before: 8, after: 8 }));
        assert_eq!(failed(&late).2, "user code had gone on in some before the hook ran");
    }

    #[test]
    fn a_sandbox_that_tells_nothing_passes_nothing() {
        let verdict = verdict(1, |answer| {
            answer.told = Err("the sandbox stopped\u{1b}[2J".to_owned());
            answer.clock = Err("unreachable".to_owned());
        });
        let passed: Vec<_> = verdict.checks.iter().filter(|check| check.passed).map(|check| check.what).collect();
        assert_eq!(passed, ["forks that were asked for are there", "access token"]);
        let text = verdict.to_string();
        assert!(text.contains("could not be asked: the sandbox stopped\u{fffd}[2J"), "{text}");
        assert!(text.contains("\nFAIL: 7 of 9 checks did not pass.\n"), "{text}");
    }

    #[test]
    fn forks_that_are_not_there_are_no_success() {
        let no_room = AgentError { code: Code::Exhausted, message: "no room".to_owned() };
        let some = Verdict::of(&view(), answer(0), vec![answer(1)], &[no_room.clone(), no_room.clone()]);
        assert_eq!(failed(&some).2, "2 were not made: no room");
        let none = Verdict::of(&view(), answer(0), Vec::new(), &[no_room]);
        let passed = none.checks.iter().filter(|check| check.passed).count();
        assert_eq!(passed, 1, "the parent's clock alone: {none}");
    }
}
