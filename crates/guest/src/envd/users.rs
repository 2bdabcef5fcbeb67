//! Who is who in the guest: users and groups from `/etc/passwd` and `/etc/group`.
//!
//! The binary is static, and glibc's own look-up (NSS) does not work there, so the two files are parsed here. They belong
//! to the guest, which may have put anything in their place: only regular files are read, up to a limit, and a line that
//! makes no sense is skipped, as glibc does. Nothing is cached: a user added a moment ago is known at once.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::files_limits as limits;

/// What a user gets who has no shell in `/etc/passwd`, as login does.
const DEFAULT_SHELL: &str = "/bin/sh";

/// A user of the guest, with all a process needs to run as that user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The login name.
    pub name: String,
    /// The user's number.
    pub uid: u32,
    /// The number of the primary group.
    pub gid: u32,
    /// Every group the user is in, the primary one first, without repeats.
    pub groups: Vec<u32>,
    /// The home directory; `/` when the file names none.
    pub home: PathBuf,
    /// The login shell; `/bin/sh` when the file names none.
    pub shell: PathBuf,
}

/// Why a user could not be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such name; the text is part of E2B's contract.
    #[error("invalid username: '{0}'")]
    Unknown(String),
    /// The files could not be read.
    #[error("cannot read the user database {path}")]
    Read {
        /// Which of the two files.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The users and groups of a guest as they were when loaded.
#[derive(Debug, Default)]
pub struct Accounts {
    users: Vec<Passwd>,
    groups: Vec<Group>,
}

#[derive(Debug, PartialEq, Eq)]
struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
    shell: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Accounts {
    /// Reads the accounts of this system. Blocks.
    pub fn load() -> Result<Self, UserError> {
        Self::load_under(Path::new("/"))
    }

    /// Reads `etc/passwd` and `etc/group` under `root`; a file that is not there holds nobody. Blocks.
    pub fn load_under(root: &Path) -> Result<Self, UserError> {
        let passwd = read_bounded(&root.join("etc/passwd"))?;
        let group = read_bounded(&root.join("etc/group"))?;
        Ok(Self::parse(&passwd, &group))
    }

    /// The accounts in the text of the two files.
    pub fn parse(passwd: &str, group: &str) -> Self {
        Self {
            users: passwd.lines().filter_map(parse_passwd_line).collect(),
            groups: group.lines().filter_map(parse_group_line).collect(),
        }
    }

    /// The user of this name.
    pub fn user(&self, name: &str) -> Result<User, UserError> {
        let entry = self.users.iter().find(|user| user.name == name).ok_or_else(|| UserError::Unknown(shown(name)))?;
        Ok(User {
            name: entry.name.clone(),
            uid: entry.uid,
            gid: entry.gid,
            groups: self.groups_of(entry),
            home: PathBuf::from(or(&entry.home, "/")),
            shell: PathBuf::from(or(&entry.shell, DEFAULT_SHELL)),
        })
    }

    /// The name of a user's number, or the number itself when nobody has it.
    pub fn user_name(&self, uid: u32) -> String {
        self.users.iter().find(|user| user.uid == uid).map_or_else(|| uid.to_string(), |user| user.name.clone())
    }

    /// The name of a group's number, or the number itself when no group has it.
    pub fn group_name(&self, gid: u32) -> String {
        self.groups.iter().find(|group| group.gid == gid).map_or_else(|| gid.to_string(), |group| group.name.clone())
    }

    fn groups_of(&self, user: &Passwd) -> Vec<u32> {
        let mut gids = vec![user.gid];
        let member_of = self.groups.iter().filter(|group| group.members.contains(&user.name));
        for group in member_of.take(limits::GROUPS_PER_USER_MAX) {
            if !gids.contains(&group.gid) {
                gids.push(group.gid);
            }
        }
        gids
    }
}

fn parse_passwd_line(line: &str) -> Option<Passwd> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| is_name(name))?;
    let _password = fields.next()?;
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let _comment = fields.next()?;
    let home = fields.next()?;
    let shell = fields.next().unwrap_or_default();
    Some(Passwd { name: name.to_owned(), uid, gid, home: home.to_owned(), shell: shell.to_owned() })
}

fn parse_group_line(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| is_name(name))?;
    let _password = fields.next()?;
    let gid = fields.next()?.parse().ok()?;
    let members = fields.next().unwrap_or_default();
    let members = members.split(',').map(str::trim).filter(|member| !member.is_empty());
    Some(Group { name: name.to_owned(), gid, members: members.map(str::to_owned).collect() })
}

/// A leading `+` or `-` asks for NIS, `#` is a remark: neither names anybody.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.starts_with(['+', '-', '#'])
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

/// A name as a stranger sent it, fit for an error.
fn shown(name: &str) -> String {
    name.chars().take(limits::USER_NAME_SHOWN_MAX).collect()
}

/// The text of a regular file; bytes that are not UTF-8 are replaced, so that they spoil their own line only.
fn read_bounded(path: &Path) -> Result<String, UserError> {
    let failed = |source| UserError::Read { path: path.to_owned(), source };
    let file = match open_regular(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        other => other.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(limits::ACCOUNTS_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limits::ACCOUNTS_FILE_BYTES_MAX {
        return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens without waiting for anybody: a FIFO in this place would stop us for good.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        # nobody:x:1:1::/:\n\
        broken\n\
        +nis::::::\n\
        words:x:one:two::/:/bin/sh\n\
        user:x:1000:1000:,,,:/home/user:/bin/bash\n\
        bare:x:1001:1002::\n\
        short:x:1003:1003\n\
        user:x:5:5::/second:/second\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:user,bare\nuser:x:1000:\ndocker:x:999: user , \nuser2:x:1000:user\nbad\n";

    #[test]
    fn a_user_comes_with_groups_home_and_shell() {
        let user = Accounts::parse(PASSWD, GROUP).user("user").unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (1000, 1000, vec![1000, 27, 999]));
        assert_eq!((user.home, user.shell), ("/home/user".into(), "/bin/bash".into()));
    }

    #[test]
    fn what_a_line_leaves_out_has_a_default() {
        let bare = Accounts::parse(PASSWD, GROUP).user("bare").unwrap();
        assert_eq!((bare.home, bare.shell, bare.groups), ("/".into(), "/bin/sh".into(), vec![1002, 27]));
    }

    #[test]
    fn unknown_names_are_refused_in_the_words_of_the_contract() {
        let accounts = Accounts::parse(PASSWD, GROUP);
        for name in ["", "nobody", "# nobody", "+nis", "words", "short", "1000", "root ", "ROOT"] {
            assert_eq!(accounts.user(name).unwrap_err().to_string(), format!("invalid username: '{name}'"));
        }
        assert!(accounts.user(&"x".repeat(10_000)).unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn numbers_have_names_or_stay_numbers() {
        let accounts = Accounts::parse(PASSWD, GROUP);
        assert_eq!([accounts.user_name(0), accounts.user_name(4_000_000_000)], ["root", "4000000000"]);
        assert_eq!([accounts.group_name(27), accounts.group_name(28)], ["sudo", "28"]);
    }

    #[test]
    fn files_may_be_missing_but_not_strange_or_huge() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        assert!(matches!(Accounts::load_under(root.path()).unwrap().user("root"), Err(UserError::Unknown(_))));

        std::fs::write(etc.join("passwd"), b"\xff\xfe:x:1:1::/:\nroot:x:0:0::/root:\n").unwrap();
        assert_eq!(Accounts::load_under(root.path()).unwrap().user("root").unwrap().uid, 0);

        let huge = File::create(etc.join("group")).unwrap();
        huge.set_len(limits::ACCOUNTS_FILE_BYTES_MAX + 1).unwrap();
        assert!(matches!(Accounts::load_under(root.path()), Err(UserError::Read { .. })));

        std::fs::remove_file(etc.join("group")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, etc.join("group"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        assert!(
            matches!(Accounts::load_under(root.path()), Err(UserError::Read { .. })),
            "a FIFO must not be waited for"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_harm(passwd in ".{0,400}", group in ".{0,400}", name in ".{0,20}") {
            let accounts = Accounts::parse(&passwd, &group);
            if let Ok(user) = accounts.user(&name) {
                prop_assert_eq!(user.name, name);
                prop_assert_eq!(user.groups[0], user.gid);
            }
        }

        #[test]
        fn a_written_user_is_read_back(name in "[a-z_][a-z0-9_-]{0,30}", uid: u32, gid: u32, home in "/[a-z/]{0,20}") {
            let accounts = Accounts::parse(&format!("{name}:x:{uid}:{gid}:Some One:{home}:/bin/zsh"), "");
            let user = accounts.user(&name).unwrap();
            prop_assert_eq!((user.uid, user.gid, user.home.to_str().unwrap()), (uid, gid, home.as_str()));
            prop_assert_eq!(accounts.user_name(uid), name);
        }
    }
}
