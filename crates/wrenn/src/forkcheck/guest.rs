//! What is done in the guests, as scripts that any of our templates can run, and what they answer.
//!
//! ```text
//!   before the fork   witness: opens /dev/urandom, then a step each 50 ms: one more byte in `steps`
//!   in each fork      hook:    writes how many steps there were when it began, and when it ended    ─► `hook`
//!   then              witness: is told to go on (`go`), reads its random bytes now                  ─► `seed`
//! ```
//! Forks are captured once, so the witness has made the same number of steps in each of them: a hook that saw another number
//! ran after the witness did, and one that saw the number change ran beside it.

/// Where the witness and the hook leave what they saw; memory, so it is captured with the rest.
macro_rules! place {
    () => {
        "/run/wrenn-forkcheck"
    };
}

/// Makes the place and the hook.
pub const PREPARE: &str = concat!(
    "set -e\nmkdir -p /etc/wrenn/resume.d ",
    place!(),
    "\ncat > /etc/wrenn/resume.d/wrenn-forkcheck <<'END'\n#!/bin/sh\n",
    "PATH=/usr/sbin:/usr/bin:/sbin:/bin\ncd ",
    place!(),
    r#"
steps() { wc -c < steps; }
before=$(steps)
sleep 0.3
echo $before $(steps) > hook
END
chmod 755 /etc/wrenn/resume.d/wrenn-forkcheck
"#
);

/// Runs in the parent from before the fork on, and so in each fork.
pub const WITNESS: &str = concat!(
    "exec 3</dev/urandom\ncd ",
    place!(),
    r#"
while [ ! -e go ]; do printf . >> steps; sleep 0.05; done
head -c 32 <&3 | sha256sum > seed.new && mv seed.new seed
"#
);

/// Waits until the witness makes steps.
pub const AWAIT_WITNESS: &str = concat!("until [ -s ", place!(), "/steps ]; do sleep 0.05; done");

/// Has the witness read its random bytes, and tells everything, a line each.
pub const TELL: &str = concat!(
    "cd ",
    place!(),
    r#" || exit 1
echo new $(head -c 32 /dev/urandom | sha256sum)
: > go
until [ -e seed ]; do sleep 0.05; done
echo witness $(cat seed)
echo boot-id $(cat /proc/sys/kernel/random/boot_id)
echo machine-id $(cat /etc/machine-id)
echo hostname $(cat /proc/sys/kernel/hostname)
if [ -e hook ]; then echo hook $(cat hook); fi
"#
);

/// Steps of the witness that a hook saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// When it began.
    pub before: u64,
    /// When it ended.
    pub after: u64,
}

/// What a guest tells of itself. None of it is to be trusted, nor to be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Hash of random bytes that a new program read.
    pub new: Option<String>,
    /// Hash of random bytes that the witness read.
    pub witness: Option<String>,
    /// The kernel's.
    pub boot_id: Option<String>,
    /// That of /etc/machine-id.
    pub machine_id: Option<String>,
    /// The kernel's.
    pub hostname: Option<String>,
    /// What the hook saw, if it ran.
    pub hook: Option<Steps>,
}

impl Facts {
    /// Reads what [`TELL`] prints.
    pub fn parse(told: &str) -> Self {
        let mut facts = Self::default();
        for line in told.lines() {
            let mut words = line.split_whitespace();
            let (key, value, second) = (words.next(), words.next(), words.next());
            let text = || value.map(str::to_owned);
            match key {
                Some("new") => facts.new = text(),
                Some("witness") => facts.witness = text(),
                Some("boot-id") => facts.boot_id = text(),
                Some("machine-id") => facts.machine_id = text(),
                Some("hostname") => facts.hostname = text(),
                Some("hook") => facts.hook = steps(value, second),
                Some(_) | None => {}
            }
        }
        facts
    }
}

fn steps(before: Option<&str>, after: Option<&str>) -> Option<Steps> {
    Some(Steps { before: before?.parse().ok()?, after: after?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_words_are_read() {
        let told = "new 11aa  -\nwitness 22bb  -\nboot-id b\nmachine-id m\nhostname h\nhook 7 7\nsomething else\n\n";
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            Facts::parse(told),
            Facts {
                new: text("11aa"),
                witness: text("22bb"),
                boot_id: text("b"),
                machine_id: text("m"),
                hostname: text("h"),
                hook: Some(Steps { before: 7, after: 7 }),
            }
        );
    }

    #[test]
    fn what_a_guest_does_not_say_is_not_there() {
        assert_eq!(Facts::parse(""), Facts::default());
        assert_eq!(Facts::parse("new\nboot-id \nhook 7\n"), Facts::default());
        assert_eq!(Facts::parse("hook -1 2\n").hook, None);
        assert_eq!(Facts::parse("hook 1 x\n").hook, None);
    }
}
